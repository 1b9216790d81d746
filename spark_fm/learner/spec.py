"""Hyperparameters of a training, and the scaling of labels and weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidParamError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.optimizers import (
    BIAS_LR,
    BIAS_WD,
    CLIP,
    EPS,
    FACTORS_LR,
    FACTORS_WD,
    LINEAR_LR,
    LINEAR_WD,
    OPTIMIZERS,
    RESCALE,
)

LossName = str  # a key of LOSSES
OptimizerName = str  # a key of OPTIMIZERS
InitMethod = Literal["normal", "uniform", "constant"]

MAX_FACTORS = 16384


@dataclass(frozen=True, slots=True)
class GroupHyperparameters:
    """Learning rate, weight decay and initial values of bias, linear weights or factors."""

    lr: float  # >= 0
    wd: float  # L2 (>= 0), added to the gradient of an updated coordinate as wd * value
    # N(0, init_sigma), U[-init_scale, init_scale] or init_value
    init_method: InitMethod = "constant"
    init_sigma: float = 0.01  # standard deviation (>= 0)
    init_scale: float = 0.01  # >= 0
    # None: for the bias the mean label, or its log-odds under logistic loss; elsewhere 0.
    init_value: float | None = None

    def check(self, name: str) -> None:
        """Raise InvalidParamError when a value is out of range."""
        for key, value in (
            ("Lr", self.lr),
            ("Wd", self.wd),
            ("InitSigma", self.init_sigma),
            ("InitScale", self.init_scale),
        ):
            require(
                value >= 0 and math.isfinite(value), f"{name}{key}", value, "a finite number >= 0"
            )
        require(
            self.init_method in ("normal", "uniform", "constant"),
            f"{name}InitMethod",
            self.init_method,
            '"normal", "uniform" or "constant"',
        )
        require(
            self.init_value is None or math.isfinite(self.init_value),
            f"{name}InitValue",
            self.init_value,
            "a finite number",
        )


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Hyperparameters of one training, Spark-free; sent to every worker."""

    k: int  # dimension of the factor vectors (1 to 16,384)
    loss: LossName
    optimizer: OptimizerName
    epochs: int  # most passes over the data (>= 1)
    bias: GroupHyperparameters
    linear: GroupHyperparameters
    factors: GroupHyperparameters
    seed: int = 0  # of initial values and row order (0 to 2**63 - 1)
    shuffle: bool = True  # a new random row order every epoch
    use_bias: bool = True  # whether the model has w0
    use_linear: bool = True  # whether the model has w
    mini_batch_size: int = 1  # rows per update (>= 1)
    adagrad_init: float = 1.0  # initial value of AdaGrad's accumulators (>= 0)
    # Feature j decays with wd * (1000 / c_j) ** power, c_j its number of non-zeros in the
    # training set (0 to 1); 0 decays every feature alike.
    decay_frequency_power: float = 0.0
    clip_gradient: float | None = None  # bound on gradient coordinates after weight decay (> 0)
    eps: float = 1e-8  # added to the square root in AdaGrad and Adam (>= 0)
    # Factor on the summed loss gradient of a mini-batch (> 0); None: one over its rows of
    # positive weight.
    rescale_grad: float | None = None
    # Return the average of the models after each epoch, late ones weighing most, not the last.
    average_epochs: bool = True
    # Train as Amazon SageMaker's algorithm does: fill the last mini-batch up with empty rows of
    # label 0, and let features without rows keep their initial values.
    sagemaker: bool = False

    def check(self) -> None:
        """Raise InvalidParamError naming the Param whose value is out of range."""
        finite = math.isfinite
        require(1 <= self.k <= MAX_FACTORS, "numFactors", self.k, f"1 to {MAX_FACTORS}")
        require(self.loss in LOSSES, "loss", self.loss, quoted_choices(LOSSES))
        require(
            self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, quoted_choices(OPTIMIZERS)
        )
        require(1 <= self.epochs <= 1_000_000, "epochs", self.epochs, "1 to 1,000,000")
        require(-(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
        require(
            1 <= self.mini_batch_size <= 2**31 - 1,
            "miniBatchSize",
            self.mini_batch_size,
            "1 to 2,147,483,647",
        )
        require(
            self.adagrad_init >= 0 and finite(self.adagrad_init),
            "adagradInit",
            self.adagrad_init,
            "a finite number >= 0",
        )
        require(
            0 <= self.decay_frequency_power <= 1,
            "decayFrequencyPower",
            self.decay_frequency_power,
            "0 to 1",
        )
        require(
            self.clip_gradient is None or self.clip_gradient > 0,
            "clipGradient",
            self.clip_gradient,
            "a number > 0, or leave it unset",
        )
        require(self.eps >= 0 and finite(self.eps), "eps", self.eps, "a finite number >= 0")
        optimizer = OPTIMIZERS[self.optimizer]
        never_zero = not optimizer.divides_by_root or (
            optimizer.sums_squares and self.adagrad_init > 0
        )
        require(
            self.eps > 0 or never_zero, "eps", self.eps, "more than 0, or a zero gradient is 0/0"
        )
        require(
            self.rescale_grad is None or (self.rescale_grad > 0 and finite(self.rescale_grad)),
            "rescaleGrad",
            self.rescale_grad,
            "a finite number > 0, or leave it unset",
        )
        self.bias.check("bias")
        self.linear.check("linear")
        self.factors.check("factors")

    def kernel_vector(self, lr_scale: float) -> NDArray[np.float64]:
        """Return what kernels read, by the indices of ``optimizers``; learning rates scaled."""
        vector = np.zeros(9)
        vector[BIAS_LR] = self.bias.lr * lr_scale if self.use_bias else 0.0
        vector[LINEAR_LR] = self.linear.lr * lr_scale if self.use_linear else 0.0
        vector[FACTORS_LR] = self.factors.lr * lr_scale
        vector[BIAS_WD] = self.bias.wd
        vector[LINEAR_WD] = self.linear.wd
        vector[FACTORS_WD] = self.factors.wd
        vector[CLIP] = np.inf if self.clip_gradient is None else self.clip_gradient
        vector[EPS] = self.eps
        vector[RESCALE] = 0.0 if self.rescale_grad is None else self.rescale_grad
        return vector

    @property
    def init_key(self) -> tuple[int, int]:
        """Non-negative words that seed a generator."""
        return (self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF)


def quoted_choices(names: Iterable[str]) -> str:
    """Return '"a", "b" or "c"', for messages and help."""
    *others, last = (f'"{name}"' for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise InvalidParamError unless ``ok``."""
    if not ok:
        raise InvalidParamError(f"{name}={value!r} is not allowed: expected {allowed}.")


@dataclass(frozen=True)
class Scaling:
    """What labels and weights are divided by before training, and what labels are less before."""

    label: float = 1.0  # the labels' standard deviation, where a regressor standardizes them
    weight: float = 1.0  # the mean weight, so that only ratios matter
    offset: float = 0.0  # the labels' mean, where a regressor standardizes them

    def apply(self, batch: CsrBatch) -> CsrBatch:
        """Return the batch as it trains: float32 labels and weights, scaled in float64."""
        labels = (batch.labels - self.offset) / self.label
        weights = batch.weights / self.weight
        return replace(batch, labels=labels.astype(np.float32), weights=weights.astype(np.float32))

    def label_of(self, score: float) -> float:
        """Return a raw score of a training in units of the labels."""
        return score * self.label + self.offset

    def score_of(self, label: float) -> float:
        """Return a label in units of the training."""
        return (label - self.offset) / self.label
