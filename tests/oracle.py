"""Slow, obvious float64 twins of the learner: the judge of its tests.

Every formula is written as in the paper or the docstring it comes from, with loops, and
shares no code with ``spark_fm.learner`` beyond the names of hyperparameters. Scores are
the O(n^2) sum over pairs, never the sum-of-squares identity that the kernels use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner import averaging
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import TrainState

Entries = list[tuple[int, float]]
Floats = NDArray[np.float64]
BETA1, BETA2 = 0.9, 0.999  # Kingma and Ba, "Adam" (ICLR 2015), algorithm 1


@dataclass
class Model:
    """``w0``, ``w`` of shape (n,) and ``V`` of shape (n, k), float64."""

    w0: float
    w: Floats
    V: Floats

    @classmethod
    def of_table(cls, table: NDArray[np.float32], bias: float) -> Model:
        """Read factors and linear weights from a table of k + 1 columns."""
        wide = table.astype(np.float64)
        return cls(float(bias), wide[:, -1].copy(), wide[:, :-1].copy())


def entries_of(batch: CsrBatch, row: int) -> Entries:
    """Return (feature, value) of one row."""
    span = range(batch.indptr[row], batch.indptr[row + 1])
    return [(int(batch.indices[p]), float(batch.values[p])) for p in span]


def score(model: Model, entries: Entries) -> float:
    """Return w0 + sum w_i x_i + sum over pairs i < j of <v_i, v_j> x_i x_j."""
    total = model.w0
    for i, x in entries:
        total += model.w[i] * x
    for a in range(len(entries)):
        for b in range(a + 1, len(entries)):
            (i, x), (j, y) = entries[a], entries[b]
            total += float(model.V[i] @ model.V[j]) * x * y
    return total


def scores(model: Model, batch: CsrBatch) -> Floats:
    """Return the score of every row."""
    return np.array([score(model, entries_of(batch, r)) for r in range(batch.n_rows)])


def magnitude(model: Model, entries: Entries) -> float:
    """Return a bound on every partial sum of a score: all terms made positive."""
    reach = sum(np.abs(model.V[i] * x) for i, x in entries) if entries else np.zeros(1)
    linear = sum(abs(model.w[i] * x) for i, x in entries)
    return float(abs(model.w0) + linear + np.sum(np.square(reach)))


def score_gradient(model: Model, entries: Entries) -> tuple[dict[int, float], dict[int, Floats]]:
    """Return d score / d w_i and d score / d v_i of each feature of the row."""
    by_w = {i: x for i, x in entries}
    by_v = {}
    for a, (i, x) in enumerate(entries):
        others = np.zeros(model.V.shape[1])
        for b, (j, y) in enumerate(entries):
            if a != b:
                others += model.V[j] * y
        by_v[i] = x * others
    return by_w, by_v


def loss(name: str, value: float, label: float) -> float:
    """Return the reported loss of a score: log loss or squared error."""
    if name == "squared":
        return (value - label) ** 2
    return float(np.logaddexp(0.0, -value if label == 1 else value))


def slope(name: str, value: float, label: float) -> float:
    """Return the derivative by the score of what is minimised.

    That is the log loss, or half of the squared error.
    """
    if name == "squared":
        return value - label
    return 1 / (1 + math.exp(-value)) - label if value > -700 else -label


@dataclass
class Twin:
    """A training state in float64: the model, and optimizer statistics by feature.

    ``statistics`` has the documented columns: the two row-wise sums of AdaGrad (factors,
    linear), or Adam's first and second moments of (v_1 .. v_k, w). ``bias_statistics``
    is AdaGrad's sum or Adam's first moment, Adam's second moment, and its step count.
    """

    model: Model
    statistics: Floats
    bias_statistics: Floats
    decay: Floats
    touches: Floats

    @classmethod
    def of_state(cls, state: TrainState) -> Twin:
        """Read the documented row layout: v, w, statistics, decay scale, touches."""
        k = state.layout.k
        n_statistics = {"sgd": 0, "adagrad": 2, "adam": 2 * (k + 1)}[state.layout.optimizer]
        rows = state.rows.astype(np.float64)
        end = k + 1 + n_statistics
        return cls(
            Model(float(state.bias[0]), rows[:, k].copy(), rows[:, :k].copy()),
            rows[:, k + 1 : end].copy(),
            state.bias[1:].copy(),
            rows[:, end].copy(),
            rows[:, end + 1].copy(),
        )

    def table(self) -> Floats:
        """Return v, w, statistics and touches side by side."""
        w, touches = self.model.w[:, None], self.touches[:, None]
        return np.hstack([self.model.V, w, self.statistics, touches])

    def bias(self) -> Floats:
        """Return w0 and its statistics."""
        return np.array([self.model.w0, *self.bias_statistics])


def train(
    twin: Twin,
    batch: CsrBatch,
    order: Sequence[int] | NDArray[np.int64],
    *,
    spec: Hyperparameters,
    step_scale: float = 1.0,
) -> tuple[float, float]:
    """Change ``twin`` by one pass; return weighted loss before each update, and weight."""
    loss_sum = weight_sum = 0.0
    size = spec.mini_batch_size
    for first in range(0, len(order), size):
        chunk = [int(r) for r in order[first : first + size]]
        live = [r for r in chunk if batch.weights[r] > 0]
        if not live:
            continue
        by_bias = 0.0
        by_feature: dict[int, Floats] = {}
        for r in live:
            weight, label = float(batch.weights[r]), float(batch.labels[r])
            entries = entries_of(batch, r)
            value = score(twin.model, entries)
            loss_sum += weight * loss(spec.loss, value, label)
            weight_sum += weight
            outer = weight * slope(spec.loss, value, label)
            by_bias += outer
            by_w, by_v = score_gradient(twin.model, entries)
            for i in by_w:
                gradient = outer * np.append(by_v[i], by_w[i])
                by_feature[i] = by_feature.get(i, 0.0) + gradient
                twin.touches[i] += weight
        if size == 1:  # the row's weight counts for its decay as well
            rescale, decay_weight = 1.0, float(batch.weights[live[0]])
        else:
            rescale, decay_weight = 1 / len(live), 1.0
        if spec.rescale_grad is not None:
            rescale = spec.rescale_grad
        _update(twin, by_bias, by_feature, spec, (rescale, decay_weight, step_scale))
    return loss_sum, weight_sum


def _update(
    twin: Twin,
    by_bias: float,
    by_feature: dict[int, Floats],
    spec: Hyperparameters,
    factors: tuple[float, float, float],
) -> None:
    """Rescale, then decay, then clip, then step: first the bias, then each feature."""
    rescale, decay_weight, step_scale = factors
    model, k = twin.model, twin.model.V.shape[1]
    bound = math.inf if spec.clip_gradient is None else spec.clip_gradient
    g = rescale * by_bias + decay_weight * spec.bias.wd * model.w0
    g = min(max(g, -bound), bound)
    bias_lr = spec.bias.lr * step_scale if spec.use_bias else 0.0
    linear_lr = spec.linear.lr * step_scale if spec.use_linear else 0.0
    factors_lr = spec.factors.lr * step_scale
    correction = _bias_step(twin, g, bias_lr, spec)
    for i, loss_gradient in by_feature.items():
        decay = decay_weight * twin.decay[i]
        g_v = rescale * loss_gradient[:k] + spec.factors.wd * decay * model.V[i]
        g_w = rescale * loss_gradient[k] + spec.linear.wd * decay * model.w[i]
        g_v, g_w = np.clip(g_v, -bound, bound), float(np.clip(g_w, -bound, bound))
        kept = twin.statistics[i]
        if spec.optimizer == "sgd":
            model.V[i] -= factors_lr * g_v
            model.w[i] -= linear_lr * g_w
        elif spec.optimizer == "adagrad":
            kept[0] += np.mean(g_v**2)
            kept[1] += g_w**2
            model.V[i] -= factors_lr * g_v / (math.sqrt(kept[0]) + spec.eps)
            model.w[i] -= linear_lr * g_w / (math.sqrt(kept[1]) + spec.eps)
        else:
            g = np.append(g_v, g_w)
            first, second = kept[: k + 1], kept[k + 1 :]
            first[:] = BETA1 * first + (1 - BETA1) * g
            second[:] = BETA2 * second + (1 - BETA2) * g**2
            move = correction * first / (np.sqrt(second) + spec.eps)
            model.V[i] -= factors_lr * move[:k]
            model.w[i] -= linear_lr * move[k]


def _bias_step(twin: Twin, g: float, lr: float, spec: Hyperparameters) -> float:
    """Move w0; return Adam's bias correction of this step, which counts whole updates."""
    kept = twin.bias_statistics
    if spec.optimizer == "sgd":
        twin.model.w0 -= lr * g
    elif spec.optimizer == "adagrad":
        kept[0] += g**2
        twin.model.w0 -= lr * g / (math.sqrt(kept[0]) + spec.eps)
    else:
        kept[2] += 1
        kept[0] = BETA1 * kept[0] + (1 - BETA1) * g
        kept[1] = BETA2 * kept[1] + (1 - BETA2) * g**2
        correction = math.sqrt(1 - BETA2 ** kept[2]) / (1 - BETA1 ** kept[2])
        twin.model.w0 -= lr * correction * kept[0] / (math.sqrt(kept[1]) + spec.eps)
        return correction
    return 1.0


def objective(model: Model, batch: CsrBatch, spec: Hyperparameters) -> float:
    """Return what one gradient step over a row descends: weighted loss plus L2 terms.

    The squared error counts half, decay of a group is ``wd / 2 * value^2``, and only
    touched features decay.
    """
    total = 0.0
    half = 0.5 if spec.loss == "squared" else 1.0
    for r in range(batch.n_rows):
        entries, weight = entries_of(batch, r), float(batch.weights[r])
        total += weight * half * loss(spec.loss, score(model, entries), float(batch.labels[r]))
        total += weight * spec.bias.wd / 2 * model.w0**2
        for i, _ in entries:
            total += weight * spec.linear.wd / 2 * model.w[i] ** 2
            total += weight * spec.factors.wd / 2 * float(model.V[i] @ model.V[i])
    return total


def difference_quotients(function: Callable[[], float], target: Floats) -> Floats:
    """Return central differences of ``function`` by every element of ``target``."""
    step = 1e-6  # error step^2 from the formula, 1e-16 / step from rounding
    quotients = np.zeros_like(target)
    for place in np.ndindex(target.shape):
        kept = target[place]
        target[place] = kept + step
        above = function()
        target[place] = kept - step
        below = function()
        target[place] = kept
        quotients[place] = (above - below) / (2 * step)
    return quotients


def merge(
    old: NDArray[np.float32],
    deltas: Sequence[averaging.Delta],
    rule: averaging.AveragingRule,
) -> dict[int, tuple[float, Floats]]:
    """Return (touches, new columns) of each touched feature, one feature at a time."""
    k, optimizer = rule.layout.k, rule.layout.optimizer
    merged = {}
    for j in sorted({int(i) for delta in deltas for i in delta.ids}):
        start = old[j].astype(np.float64)
        hits = [(d, int(np.flatnonzero(d.ids == j)[0])) for d in deltas if j in d.ids]
        touches = sum(float(d.n_updates[row]) for d, row in hits)
        changes = [
            d.columns[row].astype(np.float64) - start[: d.columns.shape[1]] for d, row in hits
        ]
        total = np.sum(changes, axis=0)
        if optimizer == "adagrad":
            roots = np.sqrt(start[k + 1 : k + 3] + total[k + 1 :] / rule.n_partitions)
            length = float(np.clip(rule.row_length, averaging.SHORT_ROW, averaging.LONG_ROW))
            gain = averaging.PROGRESS_GAIN * (length / averaging.SHORT_ROW) ** 2 / rule.residual
            floor = averaging.PROGRESS_FLOOR * rule.factors_lr * touches / roots[1]
            by_v = max(gain * rule.factors_lr * total[k + 1] / roots[0], floor)
            by_w = max(gain * rule.linear_lr * total[k + 2] / roots[1], floor)
        else:
            by_v = by_w = touches / averaging.UPDATES_TO_SETTLE
        new = start[: len(total)].copy()
        mean = total / len(hits)
        new[:k] += mean[:k] * _speed_up(by_v, len(hits))
        new[k] += mean[k] * _speed_up(by_w, len(hits))
        if optimizer == "adagrad":
            new[k + 1] += mean[k + 1] * _speed_up(by_v, len(hits))
            new[k + 2] += mean[k + 2] * _speed_up(by_w, len(hits))
        else:
            new[k + 1 :] += total[k + 1 :] / rule.n_partitions
        merged[j] = (touches, new)
    return merged


def _speed_up(progress: float, n_touching: int) -> float:
    """Return s(L) / s(L / N) with s(L) = 1 - exp(-L)."""
    return math.expm1(-progress) / math.expm1(-progress / n_touching)


def average_bias(biases: Sequence[Floats]) -> Floats:
    """Return the plain mean of the bias vectors of the partitions that trained."""
    return sum(biases) / len(biases)


def average_epochs(tables: Sequence[Floats]) -> Floats:
    """Return the polynomial-decay average, eta = 1, of the models after T epochs.

    Unrolled, model t of T weighs 2 t / (T (T + 1)): the last epoch the most.
    """
    n = len(tables)
    return sum(2 * t / (n * (n + 1)) * table for t, table in enumerate(tables, start=1))


def metrics(name: str, raw: Floats, labels: Floats, weights: Floats) -> dict[str, float]:
    """Return weighted metrics of raw scores, row by row."""
    total = float(sum(weights))
    rows = list(zip(raw, labels, weights, strict=True))
    if name == "squared":
        error = sum(w * (s - y) ** 2 for s, y, w in rows)
        mean = sum(w * y for _, y, w in rows) / total
        spread = sum(w * (y - mean) ** 2 for _, y, w in rows)
        return {
            "rmse": math.sqrt(error / total),
            "mae": sum(w * abs(s - y) for s, y, w in rows) / total,
            "r2": 1 - error / spread,
        }
    hit = sum(w for s, y, w in rows if s >= 0 and y == 1)
    right = hit + sum(w for s, y, w in rows if s < 0 and y == 0)
    said = sum(w for s, _, w in rows if s >= 0)
    true = sum(w for _, y, w in rows if y == 1)
    precision, recall = hit / said, hit / true
    return {
        "logloss": sum(w * loss("logistic", s, y) for s, y, w in rows) / total,
        "accuracy": right / total,
        "f1": 2 * precision * recall / (precision + recall),
        "roc_auc": roc_auc(raw, labels, weights),
        "pr_auc": average_precision(raw, labels, weights),
    }


def roc_auc(scores: Floats, labels: Floats, weights: Floats) -> float:
    """Return the chance that a positive row scores higher than a negative one, ties half."""
    rows = list(zip(scores, labels, weights, strict=True))
    positive, negative = ([(s, w) for s, y, w in rows if y == label] for label in (1, 0))
    total = sum(w for _, w in positive) * sum(w for _, w in negative)
    won = sum(
        w * v * (1.0 if s > t else 0.5 if s == t else 0.0) for s, w in positive for t, v in negative
    )
    return won / total if total else math.nan


def average_precision(scores: Floats, labels: Floats, weights: Floats) -> float:
    """Return the mean, over the positive rows, of the precision down to their score."""
    rows = list(zip(scores, labels, weights, strict=True))
    total = sum(w for _, y, w in rows if y == 1)
    if not total or total == sum(w for _, _, w in rows):
        return math.nan
    area = 0.0
    for score in set(scores):
        above = [(y, w) for s, y, w in rows if s >= score]
        precision = sum(w for y, w in above if y == 1) / max(sum(w for _, w in above), 1e-300)
        area += precision * sum(w for s, y, w in rows if s == score and y == 1)
    return area / total


def first_decay_scale(count: int, power: float) -> float:
    """Return what multiplies the decay of a feature with ``count`` non-zeros."""
    return (1000 / max(count, 1)) ** power
