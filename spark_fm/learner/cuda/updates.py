"""What a row's score and a feature's gradients lead to, as functions of a GPU's threads.

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
    BIAS_LR,
    BIAS_WD,
    CLIP,
    EPS,
    FACTORS_LR,
    FACTORS_WD,
    LINEAR_LR,
    LINEAR_WD,
    RESCALE,
)
from spark_fm.learner.spec import ADAM_BETA1, ADAM_BETA2, Loss, Optimizer
from spark_fm.learner.state import Layout

# A Python number would make float64 of all that it meets.
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
BETA1, BETA2 = np.float32(ADAM_BETA1), np.float32(ADAM_BETA2)
REST1, REST2 = ONE - BETA1, ONE - BETA2
LOG_BETA1, LOG_BETA2 = np.float32(math.log(ADAM_BETA1)), np.float32(math.log(ADAM_BETA2))


def loss_functions(loss: Loss) -> tuple[Any, Any, Any]:
    """Return loss, slope and curvature of a score and a label."""

    @cuda.jit(device=True)
    def logistic(score, label):  # type: ignore[no-untyped-def]
        margin = score if label > HALF else -score
        return math.log1p(math.exp(-abs(margin))) + max(-margin, ZERO)

    @cuda.jit(device=True)
    def logistic_slope(score, label):  # type: ignore[no-untyped-def]
        e = math.exp(-abs(score))
        probability = ONE / (ONE + e) if score > ZERO else e / (ONE + e)
        return probability - label

    @cuda.jit(device=True)
    def logistic_curvature(score):  # type: ignore[no-untyped-def]
        e = math.exp(-abs(score))
        return e / ((ONE + e) * (ONE + e))

    @cuda.jit(device=True)
    def squared(score, label):  # type: ignore[no-untyped-def]
        return (score - label) * (score - label)

    @cuda.jit(device=True)
    def squared_slope(score, label):  # type: ignore[no-untyped-def]
        return score - label

    @cuda.jit(device=True)
    def squared_curvature(score):  # type: ignore[no-untyped-def]
        return ONE

    if loss == "logistic":
        return logistic, logistic_slope, logistic_curvature
    return squared, squared_slope, squared_curvature


def rate_function(k: int, optimizer: Optimizer) -> Any:
    """Return ``rate(rows, j, f, square, hyper, step)``: a coordinate's step a unit gradient.

    ``square`` is that of a gradient on its way, for coordinates that have seen none yet.
    """
    second = 2 * (k + 1)

    @cuda.jit(device=True)
    def adagrad(rows, j, f, square, hyper, step):  # type: ignore[no-untyped-def]
        if f < k:
            return hyper[FACTORS_LR] / (math.sqrt(max(rows[j, k + 1], square)) + hyper[EPS])
        return hyper[LINEAR_LR] / (math.sqrt(max(rows[j, k + 2], square)) + hyper[EPS])

    @cuda.jit(device=True)
    def sgd(rows, j, f, square, hyper, step):  # type: ignore[no-untyped-def]
        return hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]

    @cuda.jit(device=True)
    def adam(rows, j, f, square, hyper, step):  # type: ignore[no-untyped-def]
        seen = max(rows[j, second + f], REST2 * square)
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        return lr * step / (math.sqrt(seen) + hyper[EPS])

    return {"adagrad": adagrad, "sgd": sgd, "adam": adam}[optimizer]


@cuda.jit(device=True)
def damping(stiffness):  # type: ignore[no-untyped-def]
    """Return what is left of steps that each shrink the gradient of the next."""
    if stiffness < np.float32(1e-4):
        return ONE - HALF * stiffness
    return (ONE - math.exp(-stiffness)) / stiffness


@cuda.jit(device=True)
def share(n):  # type: ignore[no-untyped-def]
    """Return which share of n entries are others."""
    return np.float32(n - 1) / np.float32(n)


@cuda.jit(device=True)
def clipped(gradient, bound):  # type: ignore[no-untyped-def]
    """Return the gradient within the bound."""
    return min(max(gradient, -bound), bound)


@cuda.jit(device=True)
def _adam_move(moment, gradient, square, seen, n, rate, eps):  # type: ignore[no-untyped-def]
    """Return how far n steps of equal gradients go, and the moments behind them."""
    rest1, rest2 = REST1, REST2
    if n > ONE:
        rest1 = np.float32(-math.expm1(n * LOG_BETA1))
        rest2 = np.float32(-math.expm1(n * LOG_BETA2))
    kept = BETA1 * rest1 / REST1  # steps that the old moment is worth
    way = moment * kept + gradient / n * (n - kept)
    moment += rest1 * (gradient / n - moment)
    seen += rest2 * (square / n - seen)
    return rate * way / (math.sqrt(seen) + eps), moment, seen


def step_function(k: int, optimizer: Optimizer) -> Any:
    """Return ``move(rows, j, f, gradient, square, n, left, hyper, step)`` of a coordinate.

    ``gradient`` and ``square`` are sums over ``n`` steps, of which ``left`` is what damping
    leaves. AdaGrad's sums are the caller's.
    """
    first, second = k + 1, 2 * (k + 1)

    @cuda.jit(device=True)
    def adagrad(rows, j, f, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        seen = rows[j, k + 1] if f < k else rows[j, k + 2]
        rows[j, f] -= lr / (math.sqrt(seen) + hyper[EPS]) * left * gradient

    @cuda.jit(device=True)
    def sgd(rows, j, f, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        rows[j, f] -= lr * left * gradient

    @cuda.jit(device=True)
    def adam(rows, j, f, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        way, moment, seen = _adam_move(
            rows[j, first + f], gradient, square, rows[j, second + f], n, lr * step, hyper[EPS]
        )
        rows[j, first + f] = moment
        rows[j, second + f] = seen
        rows[j, f] -= left * way

    return {"adagrad": adagrad, "sgd": sgd, "adam": adam}[optimizer]


def bias_rate_function(optimizer: Optimizer) -> Any:
    """Return ``rate(bias, square, hyper, step)``: the bias's step a unit gradient."""

    @cuda.jit(device=True)
    def adagrad(bias, square, hyper, step):  # type: ignore[no-untyped-def]
        return hyper[BIAS_LR] / (math.sqrt(max(np.float32(bias[1]), square)) + hyper[EPS])

    @cuda.jit(device=True)
    def sgd(bias, square, hyper, step):  # type: ignore[no-untyped-def]
        return hyper[BIAS_LR]

    @cuda.jit(device=True)
    def adam(bias, square, hyper, step):  # type: ignore[no-untyped-def]
        seen = max(np.float32(bias[2]), REST2 * square)
        return hyper[BIAS_LR] * step / (math.sqrt(seen) + hyper[EPS])

    return {"adagrad": adagrad, "sgd": sgd, "adam": adam}[optimizer]


def _move_bias_function(optimizer: Optimizer) -> Any:
    """Return ``move(bias, gradient, square, n, left, hyper, step)``, as ``step_function``'s."""

    @cuda.jit(device=True)
    def adagrad(bias, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        bias[1] += square
        rate = hyper[BIAS_LR] / (math.sqrt(np.float32(bias[1])) + hyper[EPS])
        bias[0] -= rate * left * gradient

    @cuda.jit(device=True)
    def sgd(bias, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        bias[0] -= hyper[BIAS_LR] * left * gradient

    @cuda.jit(device=True)
    def adam(bias, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        bias[3] += n
        way, moment, seen = _adam_move(
            np.float32(bias[1]), gradient, square, np.float32(bias[2]), n,
            hyper[BIAS_LR] * step, hyper[EPS],
        )  # fmt: skip
        bias[0] -= left * way
        bias[1] = moment
        bias[2] = seen

    return {"adagrad": adagrad, "sgd": sgd, "adam": adam}[optimizer]


def finish_function(shape: Shape, sum_over: Any, meet: Any) -> Any:
    """Return ``finish`` of a feature: its step, from the sums over its entries.

    ``sum_over`` and ``meet`` are those of ``cuda_kernels.make_sums``.
    """
    k, per_row, width, n_held = shape.k, shape.per_row, shape.width, shape.n_held
    layout = Layout(k, shape.optimizer)
    decay_column, touch_column = layout.decay, layout.n_updates
    rate_of, move = rate_function(k, shape.optimizer), step_function(k, shape.optimizer)
    is_adagrad, is_adam = shape.optimizer == "adagrad", shape.optimizer == "adam"
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
                stiffness = share(n) * math.sqrt(scalars[3] * scalars[5])
                left = damping(stiffness * math.sqrt(rate))
                rate = rate_of(rows, j, k, linear_square / n_steps, hyper, step)
                linear_left = damping(share(n) * math.sqrt(rate * scalars[4] * scalars[5]))
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
        if is_adagrad:
            meet()  # all have read the sums of before
            if lane == 0:
                rows[j, k + 1] += square * one_kth
                rows[j, k + 2] += linear_square
            meet()
        if group == 0:
            for i in range(n_held):
                f = i * width + column
                if f < k:
                    if is_adam and n_steps > ONE:
                        rate = rate_of(rows, j, f, squares[i] / n_steps, hyper, step)
                        left = damping(stiffness * math.sqrt(rate))
                    move(rows, j, f, held[i], squares[i], n_steps, left, hyper, step)
        if lane == 0:
            move(rows, j, k, linear, linear_square, n_steps, linear_left, hyper, step)
            rows[j, touch_column] += scalars[6]

    return finish


def bias_functions(shape: Shape, sum_over: Any) -> tuple[Any, Any]:
    """Return ``add_bias`` and ``step_bias``: every row of a block has the bias.

    A warp adds up what CHUNK rows say of it; another one adds up these, and takes the step.
    """
    per_row, lanes = shape.per_row, shape.lanes
    bias_rate = bias_rate_function(shape.optimizer)
    move_bias = _move_bias_function(shape.optimizer)

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
                left = damping(share(n_rows) * math.sqrt(rate) * pull)
        else:
            scale = hyper[RESCALE] if hyper[RESCALE] > ZERO else ONE / np.float32(n_rows)
            gradient = clipped(scale * gradient + hyper[BIAS_WD] * value, hyper[CLIP])
            square = gradient * gradient
        move_bias(bias, gradient, square, n_steps, left, hyper, step)

    return add_bias, step_bias
