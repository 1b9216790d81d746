"""Compiled passes of a GPU: rows of a block side by side, then features side by side.

Imported on a machine with a GPU, or under Numba's CUDA simulator. ``docs/gpu.md`` says why
the rows of a block may train at once, and derives what is called pull and stiffness here.

A group of 32 threads (a warp) works on one row, or on one chunk of one feature's entries;
within it neighbouring threads have neighbouring factors, so that they read whole lines.
All sums have a fixed order: equal inputs give equal bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda

from spark_fm.learner.blocked import ALONE
from spark_fm.learner.cuda_shape import SCALARS, WARP, Shape, simulated
from spark_fm.learner.cuda_steps import (
    HALF,
    ONE,
    ZERO,
    bias_function,
    bias_step_function,
    clipped,
    finish_function,
    loss_functions,
    rate_function,
    share,
)
from spark_fm.learner.optimizers import CLIP, FACTORS_WD, LINEAR_WD, RESCALE
from spark_fm.learner.spec import Loss, Optimizer
from spark_fm.learner.state import Layout

ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Kernels:
    """The passes of one specialisation.

    Parameters
    ----------
    score, add, add_shared : compiled kernels
        Scores of a block's rows; the steps of its features and of the bias; the steps of
        features with several chunks.
    shape : Shape
    """

    score: Any
    add: Any
    add_shared: Any
    shape: Shape


def make_sums(shape: Shape) -> tuple[Any, Any]:
    """Return ``sum_over(value, lane, lowest)`` of a warp, and ``meet()`` of its threads.

    ``sum_over`` gives each lane the sum over those whose number differs from its own in
    the bits from ``lowest`` on: 1 for all, 8 for every eighth. Through registers, or
    through shared memory, which takes the thread block for a warp; both in one order.
    """
    widest = shape.lanes // 2

    @cuda.jit(device=True)
    def by_shuffles(value, lane, lowest):  # type: ignore[no-untyped-def]
        offset = widest
        while offset >= lowest:
            value += cuda.shfl_xor_sync(ALL, value, offset)
            offset //= 2
        return value

    @cuda.jit(device=True)
    def by_shared_memory(value, lane, lowest):  # type: ignore[no-untyped-def]
        seen = cuda.shared.array(WARP, np.float32)
        offset = widest
        while offset >= lowest:
            seen[lane] = value
            cuda.syncthreads()
            value += seen[lane ^ offset]
            cuda.syncthreads()
            offset //= 2
        return value

    @cuda.jit(device=True)
    def warp_meets():  # type: ignore[no-untyped-def]
        cuda.syncwarp()

    @cuda.jit(device=True)
    def block_meets():  # type: ignore[no-untyped-def]
        cuda.syncthreads()

    return (by_shuffles, warp_meets) if shape.shuffles else (by_shared_memory, block_meets)


@lru_cache(maxsize=32)
def kernels(
    k: int, loss: Loss, optimizer: Optimizer, per_row: bool, shuffles: bool | None = None
) -> Kernels:
    """Return the passes for these constants, compiled at their first use.

    ``shuffles`` is as in Shape; by default where there are registers to shuffle.
    """
    shuffles = not simulated() if shuffles is None else shuffles
    shape = Shape(k, loss, optimizer, per_row, shuffles)
    finish = finish_function(shape, *make_sums(shape))
    return Kernels(
        _score_kernel(shape), _add_kernel(shape, finish), _add_shared_kernel(shape, finish), shape
    )


@lru_cache(maxsize=32)
def margins_kernel(k: int, shuffles: bool | None = None) -> tuple[Any, Shape]:
    """Return what gives raw scores and nothing else, compiled at its first use, and its shape.

    Rows come one after the other from entry 0 on; negative indices are passed over.
    """
    shape = Shape(k, "squared", "sgd", False, not simulated() if shuffles is None else shuffles)
    lanes, warps, width, groups = shape.lanes, shape.warps, shape.width, shape.groups
    sum_over, _ = make_sums(shape)

    @cuda.jit
    def margins(table, bias, n_rows, indptr, indices, values, scores):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * warps + cuda.threadIdx.x // lanes
        if row >= n_rows:
            return
        lane = cuda.threadIdx.x % lanes
        group, column = lane // width, lane % width
        start, stop = indptr[row], indptr[row + 1]
        total = ZERO
        for base in range(0, k, width):
            f = base + column
            s, q = ZERO, ZERO
            if f < k:
                for p in range(start + group, stop, groups):
                    if indices[p] >= 0:
                        t = table[indices[p], f] * values[p]
                        s += t
                        q += t * t
            s = sum_over(s, lane, width)
            q = sum_over(q, lane, width)
            if group == 0 and f < k:
                total += HALF * (s * s - q)
        for p in range(start + lane, stop, lanes):
            if indices[p] >= 0:
                total += table[indices[p], k] * values[p]
        total = sum_over(total, lane, 1)
        if lane == 0:
            scores[row] = bias + total

    return margins, shape


def _score_kernel(shape: Shape) -> Any:
    k, per_row, lanes, warps = shape.k, shape.per_row, shape.lanes, shape.warps
    width, groups = shape.width, shape.groups
    sum_over, meet = make_sums(shape)
    loss_of, slope_of, curvature_of = loss_functions(shape.loss)
    rate_of = rate_function(k, shape.optimizer)
    bias_rate, _ = bias_function(shape.optimizer)

    @cuda.jit
    def score(  # type: ignore[no-untyped-def]
        rows, bias, hyper, step, first, n_rows, indptr, indices, values, repeats,
        labels, weights, sums, slopes, pulls, scores, losses,
    ):  # fmt: skip
        place = cuda.blockIdx.x * warps + cuda.threadIdx.x // lanes
        if place >= n_rows:
            return
        lane = cuda.threadIdx.x % lanes
        group, column = lane // width, lane % width
        start, stop = indptr[first + place], indptr[first + place + 1]
        total = ZERO
        for base in range(0, k, width):
            f = base + column
            s, q = ZERO, ZERO
            if f < k:
                for p in range(start + group, stop, groups):
                    t = rows[indices[p], f] * values[p]
                    s += t
                    q += t * t
            s = sum_over(s, lane, width)
            q = sum_over(q, lane, width)
            if group == 0 and f < k:
                sums[place, f] = s
                total += HALF * (s * s - q)
        for p in range(start + lane, stop, lanes):
            total += rows[indices[p], k] * values[p]
        value = np.float32(bias[0]) + sum_over(total, lane, 1)
        weight = weights[first + place]
        rescale = hyper[RESCALE] if per_row and hyper[RESCALE] > ZERO else ONE
        slope = slope_of(value, labels[first + place]) * rescale
        if lane == 0:
            scores[first + place] = value
            losses[first + place] = weight * loss_of(value, labels[first + place])
            slopes[place] = weight * slope
        if not per_row or n_rows == 1:
            if lane == 0:
                pulls[place] = ZERO
            return
        meet()
        # How far the features that other rows of the block have, too, pull this row's score.
        moved, count = ZERO, ZERO
        for base in range(0, k, width):
            f = base + column
            if f < k:
                s = sums[place, f]
                for p in range(start + group, stop, groups):
                    if repeats[p] > 1:
                        j, x = indices[p], values[p]
                        e = x * (s - rows[j, f] * x)
                        rate = rate_of(rows, j, f, slope * slope * e * e, hyper, step)
                        moved += share(repeats[p]) * rate * e * e
        for p in range(start + lane, stop, lanes):
            if repeats[p] > 1:
                j, x = indices[p], values[p]
                rate = rate_of(rows, j, k, slope * slope * x * x, hyper, step)
                moved += share(repeats[p]) * rate * x * x
                count += share(repeats[p]) * (ONE if rate > ZERO else ZERO)
                count += share(repeats[p])
        moved = sum_over(moved, lane, 1)
        count = sum_over(count, lane, 1)
        rate = bias_rate(bias, slope * slope, hyper, step)
        moved += share(n_rows) * rate
        count += share(n_rows) * (ONE if rate > ZERO else ZERO)
        if lane == 0:
            pulls[place] = weight * rescale * curvature_of(value) * math.sqrt(count * moved)

    return score


def _add_kernel(shape: Shape, finish: Any) -> Any:
    k, per_row, lanes, warps = shape.k, shape.per_row, shape.lanes, shape.warps
    width, groups, n_held, tail = shape.width, shape.groups, shape.n_held, shape.tail
    is_adam = shape.optimizer == "adam"
    decay_column = Layout(k, shape.optimizer).decay
    sum_over, _ = make_sums(shape)
    step_bias = bias_step_function(shape, sum_over)

    @cuda.jit
    def add(  # type: ignore[no-untyped-def]
        rows, bias, hyper, step, first, n_rows, first_chunk, n_chunks, features, starts, slots,
        places, values, weights, sums, slopes, pulls, partials,
    ):  # fmt: skip
        number = cuda.blockIdx.x * warps + cuda.threadIdx.x // lanes
        lane = cuda.threadIdx.x % lanes
        if number == n_chunks:
            step_bias(bias, lane, n_rows, slopes, pulls, weights, first, hyper, step)
        if number >= n_chunks:
            return
        group, column = lane // width, lane % width
        chunk = first_chunk + number
        j, start, stop = features[chunk], starts[chunk], starts[chunk + 1]
        held = cuda.local.array(n_held, np.float32)
        squares = cuda.local.array(n_held, np.float32)
        scalars = cuda.local.array(SCALARS, np.float32)
        decay = rows[j, decay_column]
        square, bend = ZERO, ZERO
        for i in range(n_held):
            f = i * width + column
            g_sum, g_square = ZERO, ZERO
            if f < k:
                v = rows[j, f]
                for p in range(start + group, stop, groups):
                    place, x = places[p], values[p]
                    e = x * (sums[place, f] - v * x)
                    g = slopes[place] * e
                    if per_row:
                        wd = weights[first + place] * hyper[FACTORS_WD] * decay
                        g = clipped(g + wd * v, hyper[CLIP])
                        g_square += g * g
                        bend += pulls[place] * e * e
                    g_sum += g
            held[i] = sum_over(g_sum, lane, width)
            square += g_square
            squares[i] = sum_over(g_square, lane, width) if is_adam else g_square
        linear, linear_square, linear_bend, pull, touches = ZERO, ZERO, ZERO, ZERO, ZERO
        for p in range(start + lane, stop, lanes):
            place, x = places[p], values[p]
            weight = weights[first + place]
            g = slopes[place] * x
            if per_row:
                g = clipped(g + weight * hyper[LINEAR_WD] * decay * rows[j, k], hyper[CLIP])
                linear_square += g * g
                linear_bend += pulls[place] * x * x
                pull += pulls[place]
            linear += g
            touches += weight
        scalars[0] = sum_over(linear, lane, 1)
        scalars[1] = sum_over(linear_square, lane, 1)
        scalars[2] = sum_over(square, lane, 1)
        scalars[3] = sum_over(bend, lane, 1)
        scalars[4] = sum_over(linear_bend, lane, 1)
        scalars[5] = sum_over(pull, lane, 1)
        scalars[6] = sum_over(touches, lane, 1)
        slot = slots[chunk]
        if slot == ALONE:
            finish(rows, j, lane, held, squares, scalars, stop - start, n_rows, hyper, step)
            return
        if group == 0:
            for i in range(n_held):
                f = i * width + column
                if f < k:
                    partials[slot, f] = held[i]
                    if is_adam:
                        partials[slot, k + f] = squares[i]
        if lane == 0:
            for i in range(SCALARS):
                partials[slot, tail + i] = scalars[i]

    return add


def _add_shared_kernel(shape: Shape, finish: Any) -> Any:
    k, lanes, warps = shape.k, shape.lanes, shape.warps
    width, n_held, tail = shape.width, shape.n_held, shape.tail
    is_adam = shape.optimizer == "adam"

    @cuda.jit
    def add_shared(  # type: ignore[no-untyped-def]
        rows, hyper, step, n_rows, first, n_features, features, repeats, slots, counts, partials
    ):  # fmt: skip
        number = cuda.blockIdx.x * warps + cuda.threadIdx.x // lanes
        if number >= n_features:
            return
        lane = cuda.threadIdx.x % lanes
        column = lane % width
        slot, count = slots[first + number], counts[first + number]
        held = cuda.local.array(n_held, np.float32)
        squares = cuda.local.array(n_held, np.float32)
        scalars = cuda.local.array(SCALARS, np.float32)
        for i in range(n_held):
            f = i * width + column
            held[i], squares[i] = ZERO, ZERO
            if f < k:
                for c in range(slot, slot + count):
                    held[i] += partials[c, f]
                    if is_adam:
                        squares[i] += partials[c, k + f]
        for i in range(SCALARS):
            scalars[i] = ZERO
            for c in range(slot, slot + count):
                scalars[i] += partials[c, tail + i]
        n = repeats[first + number]
        finish(rows, features[first + number], lane, held, squares, scalars, n, n_rows, hyper, step)

    return add_shared
