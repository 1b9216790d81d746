"""Experimental: the steps of features and of the bias, as functions of a GPU's threads.

Imported with a GPU or under Numba's CUDA simulator. The formulas are those of ``losses``
and ``optimizers``; of n rows that train side by side, the steps are those of n gradients of
equal size, damped by how much each would have shrunk the next (``docs/gpu.md``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from spark_fm.learner.cuda.blocks import CHUNK
from spark_fm.learner.cuda.device import Shape
from spark_fm.learner.optimizers import (
    BIAS_WD,
    CLIP,
    FACTORS_WD,
    LINEAR_WD,
    OPTIMIZERS,
    RESCALE,
    GpuUpdate,
)
from spark_fm.learner.state import Layout

# A Python number would make float64 of all that it meets.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)


def gpu_update(shape: Shape) -> GpuUpdate:
    """Return the optimizer's device functions."""
    return OPTIMIZERS[shape.optimizer].make_gpu_update(shape.k, cuda.jit(device=True))


@cuda.jit(device=True)
def damping(stiffness):  # type: ignore[no-untyped-def]
    """Return what is left of steps that each shrink the gradient of the next."""
    if stiffness < np.float32(1e-4):
        return ONE - HALF * stiffness
    return (ONE - math.exp(-stiffness)) / stiffness


@cuda.jit(device=True)
def other_fraction(n):  # type: ignore[no-untyped-def]
    """Return which fraction of n entries are others."""
    return np.float32(n - 1) / np.float32(n)


@cuda.jit(device=True)
def clipped(gradient, bound):  # type: ignore[no-untyped-def]
    """Return the gradient within the bound."""
    return min(max(gradient, -bound), bound)


def finish_function(shape: Shape, sum_over: Any, meet: Any) -> Any:
    """Return ``finish`` of a feature: its step, from the sums over its entries.

    ``sum_over`` and ``meet`` are those of ``kernels.make_sums``.
    """
    k, per_row, width, n_held = shape.k, shape.per_row, shape.width, shape.n_held
    layout = Layout(k, shape.optimizer)
    decay_column, touch_column = layout.decay, layout.n_updates
    update, optimizer = gpu_update(shape), OPTIMIZERS[shape.optimizer]
    rate_of, move = update.rate, update.move
    sums_squares, has_factor_squares = optimizer.sums_squares, optimizer.has_factor_squares
    one_kth = np.float32(1.0 / k)

    @cuda.jit(device=True)
    def finish(  # type: ignore[no-untyped-def]
        rows, j, lane, held, squares, scalars, n, n_rows, hyper, step
    ):  # fmt: skip
        """Take the step of feature j: sums by factor in ``held``, the others in ``scalars``."""
        group, column = lane // width, lane % width
        linear, linear_square, square = scalars[0], scalars[1], scalars[2]
        n_steps, left, linear_left = ONE, ONE, ONE
        stiffness = ZERO
        if per_row:
            n_steps = np.float32(n)
            if n > 1:
                rate = rate_of(rows, j, 0, square * one_kth / n_steps, hyper, step)
                stiffness = other_fraction(n) * math.sqrt(scalars[3] * scalars[5])
                left = damping(stiffness * math.sqrt(rate))
                rate = rate_of(rows, j, k, linear_square / n_steps, hyper, step)
                linear_left = damping(other_fraction(n) * math.sqrt(rate * scalars[4] * scalars[5]))
        else:
            scale = hyper[RESCALE] if hyper[RESCALE] > ZERO else ONE / np.float32(n_rows)
            decay = rows[j, decay_column]
            linear = scale * linear + hyper[LINEAR_WD] * decay * rows[j, k]
            linear = clipped(linear, hyper[CLIP])
            linear_square = linear * linear
            square = ZERO
            for i in range(n_held):
                f = i * width + column
                if f < k:
                    g = scale * held[i] + hyper[FACTORS_WD] * decay * rows[j, f]
                    held[i] = clipped(g, hyper[CLIP])
                    squares[i] = held[i] * held[i]
                    if group == 0:
                        square += squares[i]
            square = sum_over(square, lane, 1)
        if sums_squares:
            meet()  # all have read the sums of before
            if lane == 0:
                rows[j, k + 1] += square * one_kth
                rows[j, k + 2] += linear_square
            meet()
        if group == 0:
            for i in range(n_held):
                f = i * width + column
                if f < k:
                    if has_factor_squares and n_steps > ONE:
                        rate = rate_of(rows, j, f, squares[i] / n_steps, hyper, step)
                        left = damping(stiffness * math.sqrt(rate))
                    move(rows, j, f, held[i], squares[i], n_steps, left, hyper, step)
        if lane == 0:
            move(rows, j, k, linear, linear_square, n_steps, linear_left, hyper, step)
            rows[j, touch_column] += scalars[6]

    return finish


def bias_functions(shape: Shape, sum_over: Any) -> tuple[Any, Any]:
    """Return ``add_bias`` and ``step_bias``: every row of a block has the bias.

    A warp adds up the gradients of CHUNK rows; another one adds up these sums and takes the step.
    """
    per_row, lanes = shape.per_row, shape.lanes
    update = gpu_update(shape)
    bias_rate, move_bias = update.bias_rate, update.move_bias

    @cuda.jit(device=True)
    def add_bias(  # type: ignore[no-untyped-def]
        number, lane, bias, first, n_rows, slopes, pulls, weights, hyper, partials
    ):  # fmt: skip
        gradient, square, pull = ZERO, ZERO, ZERO
        value = np.float32(bias[0])
        for place in range(number * CHUNK + lane, min((number + 1) * CHUNK, n_rows), lanes):
            g = slopes[place]
            if per_row:
                g = clipped(g + weights[first + place] * hyper[BIAS_WD] * value, hyper[CLIP])
            gradient += g
            square += g * g
            pull += pulls[place]
        gradient = sum_over(gradient, lane, 1)
        square = sum_over(square, lane, 1)
        pull = sum_over(pull, lane, 1)
        if lane == 0:
            partials[number, 0] = gradient
            partials[number, 1] = square
            partials[number, 2] = pull

    @cuda.jit(device=True)
    def step_bias(bias, lane, n_rows, n_partials, partials, hyper, step):  # type: ignore[no-untyped-def]
        gradient, square, pull = ZERO, ZERO, ZERO
        for number in range(lane, n_partials, lanes):
            gradient += partials[number, 0]
            square += partials[number, 1]
            pull += partials[number, 2]
        gradient = sum_over(gradient, lane, 1)
        square = sum_over(square, lane, 1)
        pull = sum_over(pull, lane, 1)
        if lane > 0:
            return
        value = np.float32(bias[0])
        n_steps, left = ONE, ONE
        if per_row:
            n_steps = np.float32(n_rows)
            if n_rows > 1:
                rate = bias_rate(bias, square / n_steps, hyper, step)
                left = damping(other_fraction(n_rows) * math.sqrt(rate) * pull)
        else:
            scale = hyper[RESCALE] if hyper[RESCALE] > ZERO else ONE / np.float32(n_rows)
            gradient = clipped(scale * gradient + hyper[BIAS_WD] * value, hyper[CLIP])
            square = gradient * gradient
        move_bias(bias, gradient, square, n_steps, left, hyper, step)

    return add_bias, step_bias
