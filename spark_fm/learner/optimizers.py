"""Optimizers: one ``Optimizer`` object each, with its kernel functions, in ``OPTIMIZERS``.

Inlined into the compiled passes; runs on executors. AdaGrad is that of Duchi, Hazan and
Singer (JMLR 12, 2011) with one accumulator for a feature's whole factor vector; Adam that
of Kingma and Ba (ICLR 2015, algorithm 1), moving the features of the row or mini-batch only.
On a GPU, n rows train side by side: its functions take the steps of n gradients of equal
size (``docs/gpu.md``). To add an optimizer, write its functions and its object here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.jit import njit
from spark_fm.learner.simd import WIDTH, load, load_at, root, spread, store, total

# Indices into the vector of hyperparameters that a kernel reads.
BIAS_LR, LINEAR_LR, FACTORS_LR, BIAS_WD, LINEAR_WD, FACTORS_WD, CLIP, EPS, RESCALE = range(9)
ADAM_BETA1 = 0.9
ADAM_BETA2 = 0.999


@dataclass(frozen=True, slots=True)
class GpuUpdate:
    """Device functions of an optimizer; a ``rate`` is the step per unit of gradient.

    ``square`` is that of a gradient on its way, for coordinates that have seen none yet. A
    ``move`` takes sums over ``n`` steps, of which ``left`` is what damping leaves.
    """

    rate: Any  # (rows, j, f, square, hyper, step)
    move: Any  # (rows, j, f, gradient, square, n, left, hyper, step)
    bias_rate: Any  # (bias, square, hyper, step)
    move_bias: Any  # (bias, gradient, square, n, left, hyper, step)


@dataclass(frozen=True, slots=True)
class Optimizer:
    """All that depends on the optimizer; the other modules ask this object."""

    name: str
    default_lr: float  # of biasLr, linearLr and factorsLr
    n_statistics: Callable[[int], int]  # columns of a state row, for k factors
    # k -> update(rows, j, gradient, linear_gradient, hyper, step)
    make_feature_update: Callable[[int], Any]
    # -> update(bias, gradient, weight, hyper) -> step for the features that follow
    make_bias_update: Callable[[], Any]
    make_gpu_update: Callable[[int, Callable[..., Any]], GpuUpdate]  # of k and cuda.jit
    divides_by_root: bool  # of squares, so that eps or adagradInit must be positive
    # Adds up squares, from adagradInit on: of a feature's factors in column k + 1, of its
    # linear weight in column k + 2 and of the bias in bias[1].
    sums_squares: bool = False
    has_factor_squares: bool = False  # on a GPU: reads the square sum of every factor
    bias_correction: Callable[[NDArray[Any]], NDArray[Any]] | None = None  # of update numbers


def _make_descend(k: int) -> Any:
    n_lanes = k // WIDTH * WIDTH

    def descend(rows, j, gradient, rate):  # type: ignore[no-untyped-def]
        for f in range(0, n_lanes, WIDTH):
            store(rows, j, f, load(rows, j, f) - load_at(gradient, f) * spread(rate))
        for f in range(n_lanes, k):
            rows[j, f] -= rate * gradient[f]

    return njit(descend, variant=f"descend-k{k}")


def _clipped_bias_gradient(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
    g = gradient + weight * hyper[BIAS_WD] * bias[0]
    return min(max(g, -hyper[CLIP]), hyper[CLIP])


_clipped_bias_gradient = njit(_clipped_bias_gradient)


def _make_adagrad(k: int) -> Any:
    one_kth = np.float32(1.0 / k)
    factor_sum, linear_sum = k + 1, k + 2
    n_lanes = k // WIDTH * WIDTH
    descend = _make_descend(k)

    def adagrad(rows, j, gradient, linear_gradient, hyper, step):  # type: ignore[no-untyped-def]
        # Row-wise: one accumulator of the mean square for the whole factor vector.
        eps = np.float32(hyper[EPS])
        parts = spread(np.float32(0))
        for f in range(0, n_lanes, WIDTH):
            g = load_at(gradient, f)
            parts = parts + g * g
        square = total(parts)
        for f in range(n_lanes, k):
            square += gradient[f] * gradient[f]
        square = rows[j, factor_sum] + square * one_kth
        descend(rows, j, gradient, np.float32(hyper[FACTORS_LR]) / (np.sqrt(square) + eps))
        rows[j, factor_sum] = square
        square = rows[j, linear_sum] + linear_gradient * linear_gradient
        rows[j, linear_sum] = square
        rows[j, k] -= np.float32(hyper[LINEAR_LR]) / (np.sqrt(square) + eps) * linear_gradient

    return njit(adagrad, variant=f"feature-k{k}")


def _make_adagrad_bias() -> Any:
    def adagrad(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
        g = _clipped_bias_gradient(bias, gradient, weight, hyper)
        bias[1] += g * g
        bias[0] -= hyper[BIAS_LR] * g / (np.sqrt(bias[1]) + hyper[EPS])
        return 1.0

    return njit(adagrad, variant="bias")


def _make_gpu_adagrad(k: int, jit: Callable[..., Any]) -> GpuUpdate:
    def rate(rows, j, f, square, hyper, step):  # type: ignore[no-untyped-def]
        if f < k:
            return hyper[FACTORS_LR] / (math.sqrt(max(rows[j, k + 1], square)) + hyper[EPS])
        return hyper[LINEAR_LR] / (math.sqrt(max(rows[j, k + 2], square)) + hyper[EPS])

    def move(rows, j, f, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        # The caller has added the squares.
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        seen = rows[j, k + 1] if f < k else rows[j, k + 2]
        rows[j, f] -= lr / (math.sqrt(seen) + hyper[EPS]) * left * gradient

    def bias_rate(bias, square, hyper, step):  # type: ignore[no-untyped-def]
        return hyper[BIAS_LR] / (math.sqrt(max(np.float32(bias[1]), square)) + hyper[EPS])

    def move_bias(bias, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        bias[1] += square
        rate = hyper[BIAS_LR] / (math.sqrt(np.float32(bias[1])) + hyper[EPS])
        bias[0] -= rate * left * gradient

    return GpuUpdate(jit(rate), jit(move), jit(bias_rate), jit(move_bias))


def _make_sgd(k: int) -> Any:
    descend = _make_descend(k)

    def sgd(rows, j, gradient, linear_gradient, hyper, step):  # type: ignore[no-untyped-def]
        descend(rows, j, gradient, np.float32(hyper[FACTORS_LR]))
        rows[j, k] -= np.float32(hyper[LINEAR_LR]) * linear_gradient

    return njit(sgd, variant=f"feature-k{k}")


def _make_sgd_bias() -> Any:
    def sgd(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
        bias[0] -= hyper[BIAS_LR] * _clipped_bias_gradient(bias, gradient, weight, hyper)
        return 1.0

    return njit(sgd, variant="bias")


def _make_gpu_sgd(k: int, jit: Callable[..., Any]) -> GpuUpdate:
    def rate(rows, j, f, square, hyper, step):  # type: ignore[no-untyped-def]
        return hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]

    def move(rows, j, f, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        rows[j, f] -= lr * left * gradient

    def bias_rate(bias, square, hyper, step):  # type: ignore[no-untyped-def]
        return hyper[BIAS_LR]

    def move_bias(bias, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        bias[0] -= hyper[BIAS_LR] * left * gradient

    return GpuUpdate(jit(rate), jit(move), jit(bias_rate), jit(move_bias))


def _make_adam(k: int) -> Any:
    beta1, beta2 = np.float32(ADAM_BETA1), np.float32(ADAM_BETA2)
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    first, second = k + 1, 2 * (k + 1)
    n_lanes = k // WIDTH * WIDTH

    def adam_one(rows, j, f, g, rate, eps):  # type: ignore[no-untyped-def]
        m = beta1 * rows[j, first + f] + rest1 * g
        s = beta2 * rows[j, second + f] + rest2 * g * g
        rows[j, first + f] = m
        rows[j, second + f] = s
        rows[j, f] -= rate * m / (np.sqrt(s) + eps)

    adam_one = njit(adam_one, variant=f"adam-k{k}")

    def adam(rows, j, gradient, linear_gradient, hyper, step):  # type: ignore[no-untyped-def]
        # Lazy: only rows of this batch move; step is the shared bias correction.
        eps = np.float32(hyper[EPS])
        rate = np.float32(hyper[FACTORS_LR] * step)
        for f in range(0, n_lanes, WIDTH):
            g = load_at(gradient, f)
            m = load(rows, j, first + f) * spread(beta1) + g * spread(rest1)
            s = load(rows, j, second + f) * spread(beta2) + g * g * spread(rest2)
            store(rows, j, first + f, m)
            store(rows, j, second + f, s)
            move = m * spread(rate) / (root(s) + spread(eps))
            store(rows, j, f, load(rows, j, f) - move)
        for f in range(n_lanes, k):
            adam_one(rows, j, f, gradient[f], rate, eps)
        adam_one(rows, j, k, linear_gradient, np.float32(hyper[LINEAR_LR] * step), eps)

    return njit(adam, variant=f"feature-k{k}")


def _make_adam_bias() -> Any:
    def adam(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
        # bias[3] counts the updates of the whole tensors, for the bias correction.
        bias[3] += 1
        step = np.sqrt(1 - ADAM_BETA2 ** bias[3]) / (1 - ADAM_BETA1 ** bias[3])
        g = _clipped_bias_gradient(bias, gradient, weight, hyper)
        bias[1] = ADAM_BETA1 * bias[1] + (1 - ADAM_BETA1) * g
        bias[2] = ADAM_BETA2 * bias[2] + (1 - ADAM_BETA2) * g * g
        bias[0] -= hyper[BIAS_LR] * step * bias[1] / (np.sqrt(bias[2]) + hyper[EPS])
        return step

    return njit(adam, variant="bias")


def _adam_bias_correction(t: NDArray[Any]) -> NDArray[Any]:
    correction: NDArray[Any] = np.sqrt(1 - ADAM_BETA2**t) / (1 - ADAM_BETA1**t)
    return correction


def _make_gpu_adam(k: int, jit: Callable[..., Any]) -> GpuUpdate:
    first, second = k + 1, 2 * (k + 1)
    one = np.float32(1)  # a Python number would make float64 of all that it meets
    beta1, beta2 = np.float32(ADAM_BETA1), np.float32(ADAM_BETA2)
    fresh1, fresh2 = one - beta1, one - beta2
    log_beta1, log_beta2 = np.float32(math.log(ADAM_BETA1)), np.float32(math.log(ADAM_BETA2))

    @jit
    def steps(moment, gradient, square, seen, n, rate, eps):  # type: ignore[no-untyped-def]
        """Return how far n steps of equal gradients go, and the moments behind them."""
        rest1, rest2 = fresh1, fresh2
        if n > one:
            rest1 = np.float32(-math.expm1(n * log_beta1))
            rest2 = np.float32(-math.expm1(n * log_beta2))
        old = beta1 * rest1 / fresh1  # steps that the old moment is worth
        way = moment * old + gradient / n * (n - old)
        moment += rest1 * (gradient / n - moment)
        seen += rest2 * (square / n - seen)
        return rate * way / (math.sqrt(seen) + eps), moment, seen

    def rate(rows, j, f, square, hyper, step):  # type: ignore[no-untyped-def]
        seen = max(rows[j, second + f], fresh2 * square)
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        return lr * step / (math.sqrt(seen) + hyper[EPS])

    def move(rows, j, f, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        lr = hyper[FACTORS_LR] if f < k else hyper[LINEAR_LR]
        way, moment, seen = steps(
            rows[j, first + f], gradient, square, rows[j, second + f], n, lr * step, hyper[EPS]
        )
        rows[j, first + f] = moment
        rows[j, second + f] = seen
        rows[j, f] -= left * way

    def bias_rate(bias, square, hyper, step):  # type: ignore[no-untyped-def]
        seen = max(np.float32(bias[2]), fresh2 * square)
        return hyper[BIAS_LR] * step / (math.sqrt(seen) + hyper[EPS])

    def move_bias(bias, gradient, square, n, left, hyper, step):  # type: ignore[no-untyped-def]
        bias[3] += n
        way, moment, seen = steps(
            np.float32(bias[1]), gradient, square, np.float32(bias[2]), n,
            hyper[BIAS_LR] * step, hyper[EPS],
        )  # fmt: skip
        bias[0] -= left * way
        bias[1] = moment
        bias[2] = seen

    return GpuUpdate(jit(rate), jit(move), jit(bias_rate), jit(move_bias))


OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        Optimizer(
            name="adagrad",
            default_lr=0.2,
            n_statistics=lambda k: 2,
            make_feature_update=_make_adagrad,
            make_bias_update=_make_adagrad_bias,
            make_gpu_update=_make_gpu_adagrad,
            divides_by_root=True,
            sums_squares=True,
        ),
        Optimizer(
            name="sgd",
            default_lr=0.02,
            n_statistics=lambda k: 0,
            make_feature_update=_make_sgd,
            make_bias_update=_make_sgd_bias,
            make_gpu_update=_make_gpu_sgd,
            divides_by_root=False,
        ),
        Optimizer(
            name="adam",
            default_lr=0.005,
            n_statistics=lambda k: 2 * (k + 1),
            make_feature_update=_make_adam,
            make_bias_update=_make_adam_bias,
            make_gpu_update=_make_gpu_adam,
            divides_by_root=True,
            has_factor_squares=True,
            bias_correction=_adam_bias_correction,
        ),
    )
}
