"""SageMaker's training, slow and obvious, in float64: the judge of ``sageMakerTraining``.

Written from the description of MXNet's Adam for row-sparse tensors (``python/mxnet/
optimizer.py`` and ``src/operator/optimizer_op-inl.h`` of Apache MXNet 1.3) with dense
matrices and the sum over pairs; shares no code with ``spark_fm.learner``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass
class Adam:
    """One tensor with its moments; rows that a mini-batch lacks are left alone."""

    value: Floats
    lr: float
    wd: float
    m: Floats = field(init=False)
    v: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.m, self.v = np.zeros_like(self.value), np.zeros_like(self.value)

    def step(self, gradient: Floats, rows: list[int], t: int, *, scale: float, clip: float) -> None:
        for row in rows:
            g = scale * gradient[row] + self.wd * self.value[row]
            g = np.clip(g, -clip, clip)
            self.m[row] = 0.9 * self.m[row] + 0.1 * g
            self.v[row] = 0.999 * self.v[row] + 0.001 * g * g
            rate = self.lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            self.value[row] -= rate * self.m[row] / (np.sqrt(self.v[row]) + 1e-8)


def score(w0: float, w: Floats, V: Floats, x: Floats) -> float:
    """Return w0 + sum w_i x_i + the sum over pairs."""
    pairs = sum(V[i] @ V[j] * x[i] * x[j] for i in range(len(x)) for j in range(i + 1, len(x)))
    return float(w0 + w @ x + pairs)


def train(
    tensors: tuple[Adam, Adam, Adam],
    X: Floats,
    present: NDArray[np.bool_],
    y: Floats,
    *,
    loss: str,
    batch_size: int,
    epochs: int,
    rescale: float | None = None,
    clip: float = math.inf,
) -> list[list[float]]:
    """Train in place; return for each epoch the scores of all rows before their update.

    ``present`` tells which features a row has, whatever their value. The last mini-batch is
    filled up with empty rows of label 0.
    """
    bias, linear, factors = tensors
    missing = -len(y) % batch_size
    X = np.vstack([X, np.zeros((missing, X.shape[1]))])
    present = np.vstack([present, np.zeros((missing, X.shape[1]), bool)])
    y = np.concatenate([y, np.zeros(missing)])
    told, t = [], 0
    for _ in range(epochs):
        scores = []
        for first in range(0, len(y), batch_size):
            g0, gw, gV = np.zeros(1), np.zeros(X.shape[1]), np.zeros_like(factors.value)
            for r in range(first, first + batch_size):
                x = X[r]
                value = score(bias.value[0], linear.value, factors.value, x)
                scores.append(value)
                d = (1 / (1 + math.exp(-value)) if loss == "logistic" else value) - y[r]
                s = x @ factors.value
                g0[0] += d
                gw += d * x
                for i in range(len(x)):
                    gV[i] += d * (x[i] * s - factors.value[i] * x[i] ** 2)
            t += 1
            rows = np.flatnonzero(present[first : first + batch_size].any(axis=0)).tolist()
            scale = 1 / batch_size if rescale is None else rescale
            bias.step(g0, [0], t, scale=scale, clip=clip)
            linear.step(gw, rows, t, scale=scale, clip=clip)
            factors.step(gV, rows, t, scale=scale, clip=clip)
        told.append(scores)
    return told


def metrics(scores: list[float], labels: list[float], loss: str) -> dict[str, float]:
    """Return what SageMaker prints of rows with these scores, in plain loops."""
    n = len(scores)
    if loss == "squared":
        squares = sum((s - y) ** 2 for s, y in zip(scores, labels, strict=True)) / n
        absolute = sum(abs(s - y) for s, y in zip(scores, labels, strict=True)) / n
        return {"rmse": math.sqrt(squares), "mse": squares, "absolute_loss": absolute}
    entropy, tp, fp, fn, right = 0.0, 0, 0, 0, 0
    for s, y in zip(scores, labels, strict=True):
        p = 1 / (1 + math.exp(-s))
        entropy -= math.log(p if y == 1 else 1 - p)
        said = p >= 0.5
        right += said == (y == 1)
        tp += said and y == 1
        fp += said and y == 0
        fn += (not said) and y == 1
    return {
        "binary_classification_accuracy": right / n,
        "binary_classification_cross_entropy": entropy / n,
        "binary_f_1.000": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0,
    }
