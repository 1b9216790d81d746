"""Experimental: compiled passes of a GPU: rows of a block side by side, then features side by side.

Imported on a machine with a GPU, or under Numba's CUDA simulator. ``docs/gpu.md`` says why
the rows of a block may train at once, and derives what is called pull and stiffness here.

A group of 32 threads (a warp) works on one row, or on one chunk of one feature's entries;
within it neighbouring threads have neighbouring factors, so that they read whole lines.
All sums have a fixed order: equal inputs give equal bits. One launch trains all blocks of a
chunk of rows: starting a kernel takes the host longer than most blocks take the GPU, so the grid
stays, and its threads wait for each other (a cooperative launch).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda, float32

from spark_fm.learner.cuda.blocks import ALONE, CHUNK
from spark_fm.learner.cuda.device import SCALARS, Shape, simulated
from spark_fm.learner.cuda.updates import (
    HALF,
    ONE,
    ZERO,
    bias_functions,
    clipped,
    finish_function,
    gpu_update,
    other_fraction,
)
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.optimizers import CLIP, FACTORS_WD, LINEAR_WD, OPTIMIZERS, RESCALE
from spark_fm.learner.spec import LossName, OptimizerName
from spark_fm.learner.state import Layout

ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Passes:
    """The passes of one specialisation."""

    visit: Any  # kernel: trains on the blocks of a chunk of rows, one after the other
    shape: Shape

    def most_thread_blocks(self) -> int:
        """Return the largest grid whose threads can wait for each other, once it is compiled."""
        if simulated():
            return 1
        [compiled] = self.visit.overloads.values()
        return int(
            compiled.max_cooperative_grid_blocks(self.shape.threads, self.shape.shared_bytes)
        )


def make_sums(shape: Shape) -> tuple[Any, Any]:
    """Return ``sum_over(value, lane, lowest)`` of a warp, and ``meet()`` of its threads.

    ``sum_over`` gives each lane the sum over those whose number differs from its own in
    the bits from ``lowest`` on: 1 for all, 8 for every eighth. Through registers, or
    through shared memory, which takes the thread block for a warp; both in one order.
    Launches give ``shape.shared_bytes`` of it.
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
        # Of the size that the launch says: of a fixed one, every caller would define its own.
        seen = cuda.shared.array(0, float32)
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


def margin_function(shape: Shape) -> Any:
    """Return ``margin(table, start, stop, indices, values, lane, held)`` of a row, bias apart.

    ``held`` takes the sums ``s_f`` of the lane's factors. Negative indices add nothing.
    """
    k, lanes, width, groups, n_held = (
        shape.k, shape.lanes, shape.width, shape.groups, shape.n_held,
    )  # fmt: skip
    sum_over, _ = make_sums(shape)

    @cuda.jit(device=True)
    def margin(table, start, stop, indices, values, lane, held):  # type: ignore[no-untyped-def]
        group, column = lane // width, lane % width
        for i in range(n_held):
            held[i] = ZERO
        total = ZERO
        for p in range(start + group, stop, groups):
            j, x = indices[p], values[p]
            if j >= 0:
                for i in range(n_held):
                    if i * width + column < k:
                        t = table[j, i * width + column] * x
                        held[i] += t
                        total -= HALF * t * t
        for i in range(n_held):
            held[i] = sum_over(held[i], lane, width)
            if group == 0:
                total += HALF * held[i] * held[i]
        for p in range(start + lane, stop, lanes):
            if indices[p] >= 0:
                total += table[indices[p], k] * values[p]
        return sum_over(total, lane, 1)

    return margin


@lru_cache(maxsize=32)
def passes(
    k: int, loss: LossName, optimizer: OptimizerName, per_row: bool, shuffles: bool | None = None
) -> Passes:
    """Return the passes for these constants, compiled at their first use.

    ``shuffles`` is as in Shape; by default where there are registers to shuffle.
    """
    shuffles = not simulated() if shuffles is None else shuffles
    shape = Shape(k, loss, optimizer, per_row, shuffles)
    return Passes(_visit_kernel(shape), shape)


def _visit_kernel(shape: Shape) -> Any:
    lanes, warps = shape.lanes, shape.warps
    score, add, add_shared = (
        _score_function(shape),
        _add_function(shape),
        _add_shared_function(shape),
    )
    add_bias, step_bias = bias_functions(shape, make_sums(shape)[0])

    @cuda.jit
    def visit(  # type: ignore[no-untyped-def]
        rows, bias, hyper, order, steps, places, chunks, shared, indptr, indices, values, repeats,
        labels, weights, features, starts, slots, entry_places, entry_values, shared_features,
        shared_repeats, shared_slots, shared_counts, sums, slopes, pulls, partials, bias_partials,
        scores, losses,
    ):  # fmt: skip
        grid: Any = cuda.cg.this_grid()
        warp = cuda.blockIdx.x * warps + cuda.threadIdx.x // lanes
        n_warps = cuda.gridDim.x * warps
        lane = cuda.threadIdx.x % lanes
        for at in range(len(order)):
            block, step = order[at], steps[at]
            first, n_rows = places[block], places[block + 1] - places[block]
            first_chunk, n_chunks = chunks[block], chunks[block + 1] - chunks[block]
            first_shared, n_shared = shared[block], shared[block + 1] - shared[block]
            n_bias = (n_rows + CHUNK - 1) // CHUNK
            for place in range(warp, n_rows, n_warps):
                score(
                    place, lane, rows, bias, hyper, step, first, n_rows, indptr, indices, values,
                    repeats, labels, weights, sums, slopes, pulls, scores, losses,
                )  # fmt: skip
            grid.sync()
            for number in range(warp, n_bias + n_chunks, n_warps):
                if number < n_bias:
                    add_bias(
                        number, lane, bias, first, n_rows, slopes, pulls, weights, hyper,
                        bias_partials,
                    )  # fmt: skip
                else:
                    add(
                        first_chunk + number - n_bias, lane, rows, hyper, step, first, n_rows,
                        features, starts, slots, entry_places, entry_values, weights, sums,
                        slopes, pulls, partials,
                    )  # fmt: skip
            grid.sync()
            for number in range(warp, 1 + n_shared, n_warps):
                if number == 0:
                    step_bias(bias, lane, n_rows, n_bias, bias_partials, hyper, step)
                else:
                    add_shared(
                        first_shared + number - 1, lane, rows, hyper, step, n_rows,
                        shared_features, shared_repeats, shared_slots, shared_counts, partials,
                    )  # fmt: skip
            grid.sync()

    return visit


def _score_function(shape: Shape) -> Any:
    """Return ``score`` of the row at a place: its sums and slope, and how far it is pulled."""
    k, per_row, lanes = shape.k, shape.per_row, shape.lanes
    width, groups, n_held = shape.width, shape.groups, shape.n_held
    sum_over, _ = make_sums(shape)
    margin = margin_function(shape)
    loss = LOSSES[shape.loss]
    loss_of, slope_of, curvature_of = (
        cuda.jit(device=True)(function)
        for function in (loss.gpu_value, loss.gpu_gradient, loss.gpu_curvature)
    )
    update = gpu_update(shape)
    rate_of, bias_rate = update.rate, update.bias_rate

    @cuda.jit(device=True)
    def score(  # type: ignore[no-untyped-def]
        place, lane, rows, bias, hyper, step, first, n_rows, indptr, indices, values, repeats,
        labels, weights, sums, slopes, pulls, scores, losses,
    ):  # fmt: skip
        group, column = lane // width, lane % width
        start, stop = indptr[first + place], indptr[first + place + 1]
        held = cuda.local.array(n_held, np.float32)
        value = np.float32(bias[0]) + margin(rows, start, stop, indices, values, lane, held)
        for i in range(n_held):
            if group == 0 and i * width + column < k:
                sums[place, i * width + column] = held[i]
        weight = weights[first + place]
        rescale = hyper[RESCALE] if per_row and hyper[RESCALE] > ZERO else ONE
        slope = slope_of(value, labels[first + place]) * rescale
        pull = ZERO
        if per_row and n_rows > 1:
            # How far the features that other rows of the block have, too, pull this row's score.
            moved, count = ZERO, ZERO
            for p in range(start + group, stop, groups):
                if repeats[p] > 1:
                    j, x, others = indices[p], values[p], other_fraction(repeats[p])
                    for i in range(n_held):
                        f = i * width + column
                        if f < k:
                            e = x * (held[i] - rows[j, f] * x)
                            rate = rate_of(rows, j, f, slope * slope * e * e, hyper, step)
                            moved += others * rate * e * e
            for p in range(start + lane, stop, lanes):
                if repeats[p] > 1:
                    j, x, others = indices[p], values[p], other_fraction(repeats[p])
                    rate = rate_of(rows, j, k, slope * slope * x * x, hyper, step)
                    moved += others * rate * x * x
                    count += others * (ONE if rate > ZERO else ZERO)
                    count += others
            moved = sum_over(moved, lane, 1)
            count = sum_over(count, lane, 1)
            rate = bias_rate(bias, slope * slope, hyper, step)
            moved += other_fraction(n_rows) * rate
            count += other_fraction(n_rows) * (ONE if rate > ZERO else ZERO)
            pull = weight * rescale * curvature_of(value) * math.sqrt(count * moved)
        if lane == 0:
            scores[first + place] = value
            losses[first + place] = weight * loss_of(value, labels[first + place])
            slopes[place] = weight * slope
            pulls[place] = pull

    return score


def _add_function(shape: Shape) -> Any:
    """Return ``add`` of a chunk: the step of its feature, or its part of what makes it."""
    k, per_row, lanes = shape.k, shape.per_row, shape.lanes
    width, groups, n_held, tail = shape.width, shape.groups, shape.n_held, shape.tail
    needs_squares = OPTIMIZERS[shape.optimizer].has_factor_squares
    decay_column = Layout(k, shape.optimizer).decay
    sum_over, meet = make_sums(shape)
    finish = finish_function(shape, sum_over, meet)

    @cuda.jit(device=True)
    def add(  # type: ignore[no-untyped-def]
        chunk, lane, rows, hyper, step, first, n_rows, features, starts, slots, places, values,
        weights, sums, slopes, pulls, partials,
    ):  # fmt: skip
        group, column = lane // width, lane % width
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
            squares[i] = sum_over(g_square, lane, width) if needs_squares else g_square
        linear, linear_square, linear_bend, pull, n_updates = ZERO, ZERO, ZERO, ZERO, ZERO
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
            n_updates += weight
        scalars[0] = sum_over(linear, lane, 1)
        scalars[1] = sum_over(linear_square, lane, 1)
        scalars[2] = sum_over(square, lane, 1)
        scalars[3] = sum_over(bend, lane, 1)
        scalars[4] = sum_over(linear_bend, lane, 1)
        scalars[5] = sum_over(pull, lane, 1)
        scalars[6] = sum_over(n_updates, lane, 1)
        slot = slots[chunk]
        if slot == ALONE:
            finish(rows, j, lane, held, squares, scalars, stop - start, n_rows, hyper, step)
            return
        if group == 0:
            for i in range(n_held):
                f = i * width + column
                if f < k:
                    partials[slot, f] = held[i]
                    if needs_squares:
                        partials[slot, k + f] = squares[i]
        if lane == 0:
            for i in range(SCALARS):
                partials[slot, tail + i] = scalars[i]

    return add


def _add_shared_function(shape: Shape) -> Any:
    """Return ``add_shared`` of a feature of several chunks: its step, from their parts."""
    k, width, n_held, tail = shape.k, shape.width, shape.n_held, shape.tail
    needs_squares = OPTIMIZERS[shape.optimizer].has_factor_squares
    finish = finish_function(shape, *make_sums(shape))

    @cuda.jit(device=True)
    def add_shared(  # type: ignore[no-untyped-def]
        number, lane, rows, hyper, step, n_rows, features, repeats, slots, counts, partials
    ):  # fmt: skip
        column = lane % width
        slot, count = slots[number], counts[number]
        held = cuda.local.array(n_held, np.float32)
        squares = cuda.local.array(n_held, np.float32)
        scalars = cuda.local.array(SCALARS, np.float32)
        for i in range(n_held):
            f = i * width + column
            held[i], squares[i] = ZERO, ZERO
            if f < k:
                for c in range(slot, slot + count):
                    held[i] += partials[c, f]
                    if needs_squares:
                        squares[i] += partials[c, k + f]
        for i in range(SCALARS):
            scalars[i] = ZERO
            for c in range(slot, slot + count):
                scalars[i] += partials[c, tail + i]
        n = repeats[number]
        finish(rows, features[number], lane, held, squares, scalars, n, n_rows, hyper, step)

    return add_shared
