"""Losses of a raw score: one ``Loss`` object each, with its kernel functions, in ``LOSSES``.

Labels are 0 or 1 under logistic loss, any number under squared loss. The squared
loss is ``(score - y)**2``; its gradient is taken of half of it, as is usual for
factorization machines, so that learning rates mean the same for both losses.
To add a loss, write its functions and its object here; ``Loss`` lists what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidParamError
from spark_fm.learner.jit import njit
from spark_fm.learner.predict import sigmoid

Floats = NDArray[np.float64]
BINARY, REGRESSOR = "binary_classifier", "regressor"  # values of the Param predictorType


@dataclass(frozen=True, slots=True)
class Loss:
    """All that depends on the loss; the other modules ask this object."""

    name: str
    predictor_type: str
    is_classifier: bool  # labels are 0 and 1, and scores probabilities
    default_metric: str  # of validation, one of ``validation_metrics(name)``
    # Of the CPU's kernels: njit functions of a score and a label.
    value: Any
    gradient: Any
    # Of the GPU's kernels, not yet compiled: (score, label), (score, label), (score).
    gpu_value: Callable[..., Any]
    gpu_gradient: Callable[..., Any]
    gpu_curvature: Callable[..., Any]
    row_losses: Callable[[Floats, Floats], Floats]  # of raw scores and labels
    null_model_loss: Callable[[NDArray[np.float32], Floats], float]  # of labels and weights
    link: Callable[[NDArray[Any]], NDArray[Any]]  # raw score -> score
    initial_bias: Callable[[float], float]  # mean label -> raw score
    # Mean loss of a raw score that is the same for all rows, of mean and variance of the labels.
    constant_loss: Callable[[float, float, float], float]
    label_power: int  # losses grow with this power of the labels' scale; 0: labels are classes
    residual_is_loss: bool  # of ``AveragingRule``: the mean loss; else 1

    @property
    def metric_kind(self) -> str:
        """Whose metrics judge it: those of classifiers (BINARY) or of regressors (REGRESSOR)."""
        return BINARY if self.is_classifier else REGRESSOR


# Python numbers would make float64 of a GPU's float32.
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


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


def _gpu_logistic_loss(score, label):  # type: ignore[no-untyped-def]
    margin = score if label > _HALF else -score
    return math.log1p(math.exp(-abs(margin))) + max(-margin, _ZERO)


def _gpu_logistic_gradient(score, label):  # type: ignore[no-untyped-def]
    e = math.exp(-abs(score))
    probability = _ONE / (_ONE + e) if score > _ZERO else e / (_ONE + e)
    return probability - label


def _gpu_logistic_curvature(score):  # type: ignore[no-untyped-def]
    e = math.exp(-abs(score))
    return e / ((_ONE + e) * (_ONE + e))


def log_losses(scores: Floats, labels: Floats) -> Floats:
    """Return the logistic loss of each row; NaN for a NaN score."""
    with np.errstate(invalid="ignore"):
        losses: Floats = np.logaddexp(0, np.where(labels > 0.5, -scores, scores))
    return losses


def _log_odds(label_mean: float) -> float:
    rate = min(max(label_mean, 1e-6), 1 - 1e-6)  # one class only: keep it finite
    return float(np.log(rate / (1 - rate)))


def _squared_loss(score, label):  # type: ignore[no-untyped-def]
    return (score - label) * (score - label)


def _squared_gradient(score, label):  # type: ignore[no-untyped-def]
    return score - label


def _gpu_squared_curvature(score):  # type: ignore[no-untyped-def]
    return _ONE


def squared_errors(scores: Floats, labels: Floats) -> Floats:
    """Return the squared error of each row."""
    errors: Floats = (scores - labels) ** 2
    return errors


LOSSES = {
    loss.name: loss
    for loss in (
        Loss(
            name="logistic",
            predictor_type=BINARY,
            is_classifier=True,
            default_metric="logloss",
            value=njit(_logistic_loss),
            gradient=njit(_logistic_gradient),
            gpu_value=_gpu_logistic_loss,
            gpu_gradient=_gpu_logistic_gradient,
            gpu_curvature=_gpu_logistic_curvature,
            row_losses=log_losses,
            null_model_loss=lambda labels, weights: math.log(2.0) * float(weights.sum()),
            link=sigmoid,
            initial_bias=_log_odds,
            constant_loss=lambda score, mean, variance: float(
                np.logaddexp(0, score) - score * mean
            ),
            label_power=0,
            residual_is_loss=False,
        ),
        Loss(
            name="squared",
            predictor_type=REGRESSOR,
            is_classifier=False,
            default_metric="rmse",
            value=njit(_squared_loss),
            gradient=njit(_squared_gradient),
            gpu_value=_squared_loss,
            gpu_gradient=_squared_gradient,
            gpu_curvature=_gpu_squared_curvature,
            row_losses=squared_errors,
            null_model_loss=lambda labels, weights: float(
                weights @ np.square(labels, dtype=np.float64)
            ),
            link=lambda scores: scores,
            initial_bias=lambda label_mean: label_mean,
            constant_loss=lambda score, mean, variance: variance + (score - mean) ** 2,
            label_power=2,
            residual_is_loss=True,
        ),
    )
}


def loss_of_predictor(predictor_type: str) -> Loss:
    """Return the loss that a predictor type trains with."""
    for loss in LOSSES.values():
        if loss.predictor_type == predictor_type:
            return loss
    known = " or ".join(f'"{loss.predictor_type}"' for loss in LOSSES.values())
    raise InvalidParamError(f"predictorType={predictor_type!r} is not allowed: expected {known}.")
