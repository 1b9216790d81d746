"""Logistic and squared loss of a raw score, compiled.

Labels are 0 or 1 under logistic loss, any number under squared loss. The squared
loss is ``(score - y)**2``; its gradient is taken of half of it, as is usual for
factorization machines, so that step sizes mean the same for both losses.
"""

from __future__ import annotations

import numpy as np

from spark_fm.learner.jit import njit


def _logistic_loss(score, label):  # type: ignore[no-untyped-def]
    margin = score if label > 0.5 else -score
    if margin > 0:
        return np.log1p(np.exp(-margin))
    return np.log1p(np.exp(margin)) - margin


def _logistic_gradient(score, label):  # type: ignore[no-untyped-def]
    if score > 0:
        return 1.0 / (1.0 + np.exp(-score)) - label
    e = np.exp(score)
    return e / (1.0 + e) - label


def _squared_loss(score, label):  # type: ignore[no-untyped-def]
    return (score - label) * (score - label)


def _squared_gradient(score, label):  # type: ignore[no-untyped-def]
    return score - label


LOSSES = {
    "logistic": (njit(_logistic_loss), njit(_logistic_gradient)),
    "squared": (njit(_squared_loss), njit(_squared_gradient)),
}
