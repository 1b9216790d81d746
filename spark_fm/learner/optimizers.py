"""What one gradient does to one feature and to the bias, for each optimizer.

Inlined into the compiled passes; runs on executors. AdaGrad is that of Duchi, Hazan and
Singer (JMLR 12, 2011) with one accumulator for a feature's whole factor vector; Adam that
of Kingma and Ba (ICLR 2015, algorithm 1), moving the features of the row or mini-batch only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.jit import njit
from spark_fm.learner.simd import WIDTH, load, load_at, root, spread, store, total
from spark_fm.learner.spec import ADAM_BETA1, ADAM_BETA2, Hyperparameters, Optimizer

# Positions in the vector of hyperparameters that a kernel reads.
BIAS_LR, LINEAR_LR, FACTORS_LR, BIAS_WD, LINEAR_WD, FACTORS_WD, CLIP, EPS, RESCALE = range(9)


def hyperparameters(spec: Hyperparameters, step_scale: float) -> NDArray[np.float64]:
    """Return the kernel's vector; ``step_scale`` multiplies the three step sizes."""
    vector = np.zeros(9)
    vector[BIAS_LR] = spec.bias.lr * step_scale if spec.use_bias else 0.0
    vector[LINEAR_LR] = spec.linear.lr * step_scale if spec.use_linear else 0.0
    vector[FACTORS_LR] = spec.factors.lr * step_scale
    vector[BIAS_WD] = spec.bias.wd
    vector[LINEAR_WD] = spec.linear.wd
    vector[FACTORS_WD] = spec.factors.wd
    vector[CLIP] = np.inf if spec.clip_gradient is None else spec.clip_gradient
    vector[EPS] = spec.eps
    vector[RESCALE] = 0.0 if spec.rescale_grad is None else spec.rescale_grad
    return vector


def make_feature_update(k: int, optimizer: Optimizer) -> Any:
    """Return ``update(rows, j, gradient, linear_gradient, hyper, step)``."""
    one_kth = np.float32(1.0 / k)
    beta1, beta2 = np.float32(ADAM_BETA1), np.float32(ADAM_BETA2)
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    first, second = k + 1, 2 * (k + 1)
    factor_sum, linear_sum = k + 1, k + 2
    n_lanes = k // WIDTH * WIDTH

    def descend(rows, j, gradient, rate):  # type: ignore[no-untyped-def]
        for f in range(0, n_lanes, WIDTH):
            store(rows, j, f, load(rows, j, f) - load_at(gradient, f) * spread(rate))
        for f in range(n_lanes, k):
            rows[j, f] -= rate * gradient[f]

    descend = njit(descend, variant=f"descend-k{k}")

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

    def sgd(rows, j, gradient, linear_gradient, hyper, step):  # type: ignore[no-untyped-def]
        descend(rows, j, gradient, np.float32(hyper[FACTORS_LR]))
        rows[j, k] -= np.float32(hyper[LINEAR_LR]) * linear_gradient

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

    return njit({"adagrad": adagrad, "sgd": sgd, "adam": adam}[optimizer], variant=f"feature-k{k}")


def make_bias_update(optimizer: Optimizer) -> Any:
    """Return ``update(bias, gradient, weight, hyper) -> step`` for all that follows."""

    def clipped(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
        g = gradient + weight * hyper[BIAS_WD] * bias[0]
        return min(max(g, -hyper[CLIP]), hyper[CLIP])

    clipped = njit(clipped, variant=optimizer)

    def adagrad(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
        g = clipped(bias, gradient, weight, hyper)
        bias[1] += g * g
        bias[0] -= hyper[BIAS_LR] * g / (np.sqrt(bias[1]) + hyper[EPS])
        return 1.0

    def sgd(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
        bias[0] -= hyper[BIAS_LR] * clipped(bias, gradient, weight, hyper)
        return 1.0

    def adam(bias, gradient, weight, hyper):  # type: ignore[no-untyped-def]
        # bias[3] counts the updates of the whole tensors, for the bias correction.
        bias[3] += 1
        step = np.sqrt(1 - ADAM_BETA2 ** bias[3]) / (1 - ADAM_BETA1 ** bias[3])
        g = clipped(bias, gradient, weight, hyper)
        bias[1] = ADAM_BETA1 * bias[1] + (1 - ADAM_BETA1) * g
        bias[2] = ADAM_BETA2 * bias[2] + (1 - ADAM_BETA2) * g * g
        bias[0] -= hyper[BIAS_LR] * step * bias[1] / (np.sqrt(bias[2]) + hyper[EPS])
        return step

    return njit({"adagrad": adagrad, "sgd": sgd, "adam": adam}[optimizer], variant="bias")
