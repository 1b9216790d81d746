"""Compiled training passes, one specialisation for each (k, loss, optimizer).

Runs on executors. Score and gradients are those of Rendle, "Factorization Machines"
(ICDM 2010, doi:10.1109/ICDM.2010.127), eqs. (1) to (5): with ``s_f = sum_i v_if x_i``,

    score       = w0 + sum_i w_i x_i + 0.5 sum_f (s_f^2 - sum_i v_if^2 x_i^2)
    d score / d v_if = x_i (s_f - v_if x_i)

A row costs O(nnz k): one sweep over its features for the score, one for the update.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch, frozen
from spark_fm.learner.jit import is_cached, njit
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.optimizers import CLIP, FACTORS_WD, LINEAR_WD, OPTIMIZERS, RESCALE
from spark_fm.learner.predict import make_score_row
from spark_fm.learner.simd import (
    LINE_FLOATS,
    WIDTH,
    clipped,
    less_product,
    load,
    load_at,
    local_floats,
    prefetch,
    prefetch_at,
    spread,
    store,
    store_at,
)
from spark_fm.learner.spec import Hyperparameters, LossName, OptimizerName
from spark_fm.learner.state import Layout, TrainState


@dataclass(frozen=True, slots=True)
class PassStats:
    """Result of one pass over a batch."""

    loss_sum: float  # weighted loss of each row before its update
    weight_sum: float
    compile_seconds: float
    order: NDArray[np.int64]  # rows in the order of training


def train_inplace(
    state: TrainState,
    batch: CsrBatch,
    order: NDArray[np.int64],
    *,
    spec: Hyperparameters,
    step_scale: float = 1.0,
    scores: NDArray[np.float32] | None = None,
) -> PassStats:
    """Change ``state`` in place by one pass over the rows ``order``; O(nnz k).

    ``indices < state.n_features``, checked by the caller: kernels do not check. ``step_scale``
    multiplies the learning rates. ``scores``, of shape (len(order),), takes the raw score of
    each row before the update of its mini-batch.
    """
    started = time.perf_counter()
    mini_batch = spec.mini_batch_size > 1 or scores is not None
    kernel = training_kernel(spec.k, spec.loss, spec.optimizer, mini_batch)
    compile_seconds = time.perf_counter() - started
    slots = np.full(state.n_features, -1, np.int32) if mini_batch else _NO_SLOTS
    loss_sum, weight_sum = kernel(
        state.rows, state.bias, frozen(order), *_inputs(batch),
        spec.kernel_vector(step_scale), slots, spec.mini_batch_size,
        _NO_SCORES if scores is None else scores,
    )  # fmt: skip
    return PassStats(loss_sum, weight_sum, compile_seconds, order)


_NO_SLOTS = np.empty(0, np.int32)
_NO_SCORES = np.empty(0, np.float32)


def _inputs(batch: CsrBatch) -> list[NDArray[Any]]:
    arrays = (batch.indptr, batch.indices, batch.values, batch.labels, batch.weights)
    return [frozen(array) for array in arrays]


def is_compiled(spec: Hyperparameters) -> bool:
    """Return whether this machine keeps the kernel that trains with these hyperparameters."""
    return is_cached(_tag(spec.k, spec.loss, spec.optimizer, spec.mini_batch_size > 1))


def _tag(k: int, loss: LossName, optimizer: OptimizerName, mini_batch: bool) -> str:
    form = "batch" if mini_batch else "row"
    return f"train-{form}-k{k}-{loss}-{optimizer}"


@lru_cache(maxsize=64)
def training_kernel(k: int, loss: LossName, optimizer: OptimizerName, mini_batch: bool) -> Any:
    """Return the compiled pass for these constants, compiling or loading it now."""
    make = _make_mini_batch_pass if mini_batch else _make_row_pass
    kernel = njit(make(k, loss, optimizer), tag=_tag(k, loss, optimizer, mini_batch))
    layout = Layout(k, optimizer)
    empty = CsrBatch.from_arrays(
        np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    )
    kernel(
        np.zeros((0, layout.stride), np.float32), np.zeros(4), frozen(np.empty(0, np.int64)),
        *_inputs(empty), np.zeros(9), _NO_SLOTS, 1, _NO_SCORES,
    )  # fmt: skip
    return kernel


def _make_row_pass(k: int, loss: LossName, optimizer: OptimizerName) -> Any:
    loss_of, gradient_of = LOSSES[loss].value, LOSSES[loss].gradient
    score_row = make_score_row(k)
    update_feature = OPTIMIZERS[optimizer].make_feature_update(k)
    update_bias = OPTIMIZERS[optimizer].make_bias_update()
    layout = Layout(k, optimizer)
    decay_column, updates_column = layout.decay, layout.n_updates
    stride = layout.stride
    n_lanes = k // WIDTH * WIDTH

    def row_pass(  # type: ignore[no-untyped-def]
        rows,
        bias,
        order,
        indptr,
        indices,
        values,
        labels,
        weights,
        hyper,
        slots,
        batch_size,
        scores,
    ):
        sums = local_floats(k)
        squares = local_floats(k)
        gradient = local_floats(k)
        rescale = hyper[RESCALE] if hyper[RESCALE] > 0 else 1.0
        linear_wd = np.float32(hyper[LINEAR_WD])
        factors_wd = np.float32(hyper[FACTORS_WD])
        clip = np.float32(hyper[CLIP])
        bound = spread(clip)
        loss_sum = 0.0
        weight_sum = 0.0
        for i in range(len(order)):
            r = order[i]
            # The features of the next row come from memory while this one is processed.
            ahead, ahead_stop = 0, 0
            if i + 1 < len(order):
                ahead, ahead_stop = indptr[order[i + 1]], indptr[order[i + 1] + 1]
            # Rows in a shuffled order lie far apart: so do the entries of the row after the
            # next, and the offsets of the rows after that.
            if i + 4 < len(order):
                prefetch_at(indptr, order[i + 4])
                prefetch_at(labels, order[i + 2])
                prefetch_at(weights, order[i + 2])
                for p in range(indptr[order[i + 2]], indptr[order[i + 2] + 1], LINE_FLOATS):
                    prefetch_at(indices, p)
                    prefetch_at(values, p)
            weight = weights[r]
            if weight == 0:
                continue
            start, stop = indptr[r], indptr[r + 1]
            score = bias[0] + score_row(rows, indices, values, start, stop, sums, squares)
            loss_sum += weight * loss_of(score, labels[r])
            weight_sum += weight
            slope = gradient_of(score, labels[r])
            step = update_bias(bias, weight * slope * rescale, weight, hyper)
            scaled = np.float32(slope * rescale)
            for p in range(start, stop):
                if ahead < ahead_stop:
                    for column in range(0, stride, LINE_FLOATS):
                        prefetch(rows, indices[ahead], column)
                    ahead += 1
                j = indices[p]
                x = values[p]
                gx = weight * scaled * x
                wd = weight * factors_wd * rows[j, decay_column]
                for f in range(0, n_lanes, WIDTH):
                    v = load(rows, j, f)
                    g = less_product(load_at(sums, f), v, spread(x)) * spread(gx)
                    store_at(gradient, f, clipped(g + v * spread(wd), bound))
                for f in range(n_lanes, k):
                    v1 = rows[j, f]
                    g1 = gx * (sums[f] - v1 * x) + wd * v1
                    gradient[f] = min(max(g1, -clip), clip)
                g1 = gx + weight * linear_wd * rows[j, decay_column] * rows[j, k]
                update_feature(rows, j, gradient, min(max(g1, -clip), clip), hyper, step)
                rows[j, updates_column] += weight
        return loss_sum, weight_sum

    return row_pass


def _make_mini_batch_pass(k: int, loss: LossName, optimizer: OptimizerName) -> Any:
    loss_of, gradient_of = LOSSES[loss].value, LOSSES[loss].gradient
    score_row = make_score_row(k)
    update_feature = OPTIMIZERS[optimizer].make_feature_update(k)
    update_bias = OPTIMIZERS[optimizer].make_bias_update()
    decay_column = Layout(k, optimizer).decay
    updates_column = Layout(k, optimizer).n_updates
    n_lanes = k // WIDTH * WIDTH

    def mini_batch_pass(  # type: ignore[no-untyped-def]
        rows,
        bias,
        order,
        indptr,
        indices,
        values,
        labels,
        weights,
        hyper,
        slots,
        batch_size,
        scores,
    ):
        # slots[j] is the row of feature j in the batch's gradient, -1 outside a batch.
        keeps_scores = len(scores) > 0
        sums = local_floats(k)
        squares = local_floats(k)
        gradient = local_floats(k)
        capacity = 1024
        batch_gradient = np.empty((capacity, k + 1), np.float32)
        updated = np.empty(capacity, np.int32)
        linear_wd = np.float32(hyper[LINEAR_WD])
        factors_wd = np.float32(hyper[FACTORS_WD])
        clip = np.float32(hyper[CLIP])
        loss_sum = 0.0
        weight_sum = 0.0
        for first in range(0, len(order), batch_size):
            last = min(first + batch_size, len(order))
            n_updated = 0
            n_rows = 0
            bias_gradient = 0.0
            batch_weight = 0.0
            for i in range(first, last):
                r = order[i]
                weight = weights[r]
                if weight == 0:
                    continue
                start, stop = indptr[r], indptr[r + 1]
                score = bias[0] + score_row(rows, indices, values, start, stop, sums, squares)
                if keeps_scores:
                    scores[i] = score
                loss_sum += weight * loss_of(score, labels[r])
                batch_weight += weight
                n_rows += 1
                slope = weight * gradient_of(score, labels[r])
                bias_gradient += slope
                for p in range(start, stop):
                    j = indices[p]
                    slot = slots[j]
                    if slot < 0:
                        if n_updated == capacity:
                            capacity *= 2
                            grown = np.empty((capacity, k + 1), np.float32)
                            grown[:n_updated] = batch_gradient
                            batch_gradient = grown
                            longer = np.empty(capacity, np.int32)
                            longer[:n_updated] = updated
                            updated = longer
                        slot = np.int32(n_updated)
                        slots[j] = slot
                        updated[slot] = j
                        batch_gradient[slot] = 0
                        n_updated += 1
                    x = values[p]
                    gx = np.float32(slope) * x
                    for f in range(0, n_lanes, WIDTH):
                        g = less_product(load_at(sums, f), load(rows, j, f), spread(x)) * spread(gx)
                        store(batch_gradient, slot, f, load(batch_gradient, slot, f) + g)
                    for f in range(n_lanes, k):
                        batch_gradient[slot, f] += gx * (sums[f] - rows[j, f] * x)
                    batch_gradient[slot, k] += gx
                    rows[j, updates_column] += weight
            if batch_weight == 0:
                continue
            weight_sum += batch_weight
            rescale = hyper[RESCALE] if hyper[RESCALE] > 0 else 1.0 / n_rows
            scale = np.float32(rescale)
            step = update_bias(bias, bias_gradient * rescale, 1.0, hyper)
            for slot in range(n_updated):
                j = updated[slot]
                slots[j] = -1
                decay = rows[j, decay_column]
                for f in range(k):
                    g1 = scale * batch_gradient[slot, f] + factors_wd * decay * rows[j, f]
                    gradient[f] = min(max(g1, -clip), clip)
                g1 = scale * batch_gradient[slot, k] + linear_wd * decay * rows[j, k]
                update_feature(rows, j, gradient, min(max(g1, -clip), clip), hyper, step)
        return loss_sum, weight_sum

    return mini_batch_pass
