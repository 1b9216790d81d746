"""Slow, obvious twin of a GPU's pass: rows of a block at once, one loop after the other.

Plain loops over float64, as ``docs/gpu.md`` has the formulas; no part of it is shared with
the kernels. It is also compiled, so that whole trainings can be compared.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import Layout

B1, B2 = 0.9, 0.999
ADAGRAD, SGD, ADAM = 0, 1, 2


@njit
def _rate(lr, seen, square, optimizer, correction, eps):  # type: ignore[no-untyped-def]
    if optimizer == SGD:
        return lr
    if optimizer == ADAGRAD:
        return lr / (math.sqrt(max(seen, square)) + eps)
    return lr * correction / (math.sqrt(max(seen, (1 - B2) * square)) + eps)


@njit
def _left(stiffness):  # type: ignore[no-untyped-def]
    return (1 - math.exp(-stiffness)) / stiffness if stiffness > 1e-6 else 1.0


@njit
def _clip(g, bound):  # type: ignore[no-untyped-def]
    return min(max(g, -bound), bound)


@njit
def _moved(value, m, s, g, g2, n, lr, left, optimizer, correction, eps):  # type: ignore[no-untyped-def]
    """Return the value, first and second statistic after n steps of equal gradients."""
    if optimizer == SGD:
        return value - lr * left * g, m, s
    if optimizer == ADAGRAD:  # s is the sum of squares, these included
        return value - lr / (math.sqrt(s) + eps) * left * g, m, s
    way, mean = 0.0, g / n
    for _ in range(n):
        m = B1 * m + (1 - B1) * mean
        s = B2 * s + (1 - B2) * g2 / n
        way += m
    return value - left * lr * correction * way / (math.sqrt(s) + eps), m, s


@njit
def _visit(  # type: ignore[no-untyped-def]
    rows, bias, blocks, order, indptr, indices, values, labels, weights,
    lr, wd, clip, eps, rescale, k, logistic, optimizer, per_row, scores,
):  # fmt: skip
    # lr and wd: of bias, linear weights, factors.
    decay_column = rows.shape[1] - 2
    touch_column = decay_column + 1
    n_features = len(rows)
    loss_sum = weight_sum = 0.0
    for b in range(len(blocks) - 1):
        mine = order[blocks[b] : blocks[b + 1]]
        n_rows = len(mine)
        if n_rows == 0:
            continue
        repeats = np.zeros(n_features, np.int64)
        for r in mine:
            for p in range(indptr[r], indptr[r + 1]):
                repeats[indices[p]] += 1
        correction = 0.0
        updates = n_rows if per_row else 1
        for i in range(updates):
            t = bias[3] + 1 + i
            correction += math.sqrt(1 - B2**t) / (1 - B1**t) / updates
        sums = np.zeros((n_rows, k))
        slopes = np.zeros(n_rows)
        pulls = np.zeros(n_rows)
        for i in range(n_rows):
            r = mine[i]
            score = bias[0]
            for p in range(indptr[r], indptr[r + 1]):
                j, x = indices[p], values[p]
                score += rows[j, k] * x
                for q in range(indptr[r], p):
                    for f in range(k):
                        score += rows[j, f] * rows[indices[q], f] * x * values[q]
                for f in range(k):
                    sums[i, f] += rows[j, f] * x
            scores[blocks[b] + i] = score
            if logistic:
                probability = 1 / (1 + math.exp(-score))
                slope, curvature = probability - labels[r], probability * (1 - probability)
                loss_sum += weights[r] * math.log1p(math.exp(-score if labels[r] > 0.5 else score))
            else:
                slope, curvature = score - labels[r], 1.0
                loss_sum += weights[r] * (score - labels[r]) ** 2
            weight_sum += weights[r]
            if per_row:
                slope, curvature = slope * rescale, curvature * rescale
            slopes[i] = weights[r] * slope
            moved = count = 0.0
            for p in range(indptr[r], indptr[r + 1]):
                j, x = indices[p], values[p]
                share = (repeats[j] - 1) / repeats[j]
                for f in range(k):
                    e = x * (sums[i, f] - rows[j, f] * x)
                    seen = rows[j, k + 1] if optimizer == ADAGRAD else 0.0
                    if optimizer == ADAM:
                        seen = rows[j, 2 * (k + 1) + f]
                    g2 = (slope * e) ** 2
                    moved += share * _rate(lr[2], seen, g2, optimizer, correction, eps) * e * e
                seen = rows[j, k + 2] if optimizer == ADAGRAD else 0.0
                if optimizer == ADAM:
                    seen = rows[j, 2 * (k + 1) + k]
                rate = _rate(lr[1], seen, (slope * x) ** 2, optimizer, correction, eps)
                moved += share * rate * x * x
                count += share * (2 if rate > 0 else 1)
            seen = bias[2] if optimizer == ADAM else bias[1]
            rate = _rate(lr[0], seen, slope**2, optimizer, correction, eps)
            moved += (n_rows - 1) / n_rows * rate
            count += (n_rows - 1) / n_rows * (1 if rate > 0 else 0)
            pulls[i] = weights[r] * curvature * math.sqrt(moved * count)
        scale = rescale if rescale > 0 else 1 / n_rows
        g = g2 = pull = 0.0
        for i in range(n_rows):
            one = slopes[i]
            if per_row:
                one = _clip(one + weights[mine[i]] * wd[0] * bias[0], clip)
            g, g2, pull = g + one, g2 + one * one, pull + pulls[i]
        n, left = 1, 1.0
        if per_row:
            n = n_rows
            seen = bias[2] if optimizer == ADAM else bias[1]
            rate = _rate(lr[0], seen, g2 / n, optimizer, correction, eps)
            left = _left((n - 1) / n * math.sqrt(rate) * pull)
        else:
            g = _clip(scale * g + wd[0] * bias[0], clip)
            g2 = g * g
        first, second = bias[1], bias[2]
        if optimizer == ADAGRAD:
            first += g2
            bias[0], _, bias[1] = _moved(
                bias[0], 0.0, first, g, g2, n, lr[0], left, optimizer, correction, eps
            )
        else:
            bias[0], bias[1], bias[2] = _moved(
                bias[0], first, second, g, g2, n, lr[0], left, optimizer, correction, eps
            )
        if optimizer == ADAM:
            bias[3] += updates
        g1 = np.zeros((n_features, k + 1))
        squares = np.zeros((n_features, k + 1))
        bend = np.zeros((n_features, 2))
        pulled = np.zeros(n_features)
        for i in range(n_rows):
            r = mine[i]
            for p in range(indptr[r], indptr[r + 1]):
                j, x = indices[p], values[p]
                for f in range(k + 1):
                    e = x * (sums[i, f] - rows[j, f] * x) if f < k else x
                    one = slopes[i] * e
                    if per_row:
                        decay = wd[2] if f < k else wd[1]
                        one = _clip(
                            one + weights[r] * decay * rows[j, decay_column] * rows[j, f], clip
                        )
                    g1[j, f] += one
                    squares[j, f] += one * one
                    bend[j, 0 if f < k else 1] += pulls[i] * e * e
                pulled[j] += pulls[i]
                rows[j, touch_column] += weights[r]
        for j in range(n_features):
            if repeats[j] == 0:
                continue
            n = repeats[j] if per_row else 1
            if not per_row:
                for f in range(k + 1):
                    decay = wd[2] if f < k else wd[1]
                    one = scale * g1[j, f] + decay * rows[j, decay_column] * rows[j, f]
                    g1[j, f] = _clip(one, clip)
                    squares[j, f] = g1[j, f] ** 2
            old_factors, old_linear = 0.0, 0.0
            if optimizer == ADAGRAD:
                old_factors, old_linear = rows[j, k + 1], rows[j, k + 2]
                rows[j, k + 1] += squares[j, :k].sum() / k
                rows[j, k + 2] += squares[j, k]
            mean = squares[j, :k].sum() / k / n
            for f in range(k + 1):
                g2 = squares[j, f] / n
                if optimizer == ADAM:
                    old = rows[j, 2 * (k + 1) + f]
                else:
                    old = old_factors if f < k else old_linear
                    g2 = mean if f < k else g2
                rate = _rate(lr[2] if f < k else lr[1], old, g2, optimizer, correction, eps)
                bent = bend[j, 0 if f < k else 1]
                left = 1.0
                if per_row:
                    left = _left((n - 1) / n * math.sqrt(rate * bent * pulled[j]))
                m = s = 0.0
                if optimizer == ADAGRAD:
                    s = rows[j, k + 1] if f < k else rows[j, k + 2]
                elif optimizer == ADAM:
                    m, s = rows[j, k + 1 + f], rows[j, 2 * (k + 1) + f]
                rows[j, f], m, s = _moved(
                    rows[j, f], m, s, g1[j, f], squares[j, f], n, lr[2] if f < k else lr[1],
                    left, optimizer, correction, eps,
                )  # fmt: skip
                if optimizer == ADAM:
                    rows[j, k + 1 + f], rows[j, 2 * (k + 1) + f] = m, s
    return loss_sum, weight_sum


class BlockTwin:
    """A training state in float64 that visits blocks of rows.

    Parameters
    ----------
    rows : ndarray of shape (n_features, layout.n_updates + 1)
    bias : ndarray of shape (4,)
    spec : Hyperparameters
    compiled : bool
        Run the loops compiled.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        bias: NDArray[Any],
        spec: Hyperparameters,
        *,
        compiled: bool = False,
    ) -> None:
        self.rows = rows[:, : Layout(spec.k, spec.optimizer).n_updates + 1].astype(np.float64)
        self.bias = bias.astype(np.float64)
        self._spec = spec
        self._visit = _visit if compiled else _visit.py_func

    def visit(
        self, batch: CsrBatch, blocks: list[NDArray[np.int64]], step_scale: float = 1.0
    ) -> tuple[float, float, NDArray[np.float64]]:
        """Train on blocks of row numbers; return the sums of losses and weights, and scores."""
        spec = self._spec
        groups = (spec.bias, spec.linear, spec.factors)
        used = (spec.use_bias, spec.use_linear, True)
        lr = np.array([g.lr * step_scale * u for g, u in zip(groups, used, strict=True)])
        wd = np.array([g.wd for g in groups])
        kept = [rows[batch.weights[rows] > 0] for rows in blocks]
        order = np.concatenate([np.empty(0, np.int64), *kept])
        places = np.cumsum([0] + [len(rows) for rows in kept])
        per_row = spec.mini_batch_size == 1
        scores = np.zeros(len(order))
        rescale = spec.rescale_grad or (1.0 if per_row else 0.0)
        loss, weight = self._visit(
            self.rows, self.bias, places, order, batch.indptr, batch.indices,
            batch.values.astype(np.float64), batch.labels.astype(np.float64),
            batch.weights.astype(np.float64), lr, wd,
            np.inf if spec.clip_gradient is None else spec.clip_gradient, spec.eps, rescale,
            spec.k, spec.loss == "logistic",
            {"adagrad": ADAGRAD, "sgd": SGD, "adam": ADAM}[spec.optimizer], per_row, scores,
        )  # fmt: skip
        return loss, weight, scores
