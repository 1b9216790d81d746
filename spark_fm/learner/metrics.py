"""Evaluation sums that partitions compute apart and the driver adds up."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.spec import Loss

# Metric name -> whether larger is better, by loss.
METRICS: dict[Loss, dict[str, bool]] = {
    "logistic": {"logloss": False, "accuracy": True, "f1": True},
    "squared": {"rmse": False, "mae": False, "r2": True},
}


@dataclass(frozen=True, slots=True)
class MetricSums:
    """Weighted sums over rows, float64; adding two gives those of both row sets."""

    weight: float = 0.0
    loss: float = 0.0
    absolute_error: float = 0.0
    label: float = 0.0
    label_square: float = 0.0
    true_positive: float = 0.0
    false_positive: float = 0.0
    false_negative: float = 0.0
    true_negative: float = 0.0

    def __add__(self, other: MetricSums) -> MetricSums:
        """Return the sums over both sets of rows."""
        names = [field.name for field in fields(self)]
        return MetricSums(*(getattr(self, n) + getattr(other, n) for n in names))

    def to_dict(self) -> dict[str, float]:
        """Return the sums by name, for transport."""
        return asdict(self)

    def mean_loss(self) -> float:
        """Return the weighted mean loss (log loss, or squared error)."""
        return self.loss / self.weight if self.weight else float("nan")

    def values(self, loss: Loss) -> dict[str, float]:
        """Return the metrics of ``METRICS[loss]`` by name; NaN where undefined."""
        if not self.weight:
            return dict.fromkeys(METRICS[loss], float("nan"))
        if loss == "logistic":
            wrong = self.false_positive + self.false_negative
            f1_base = 2 * self.true_positive + wrong
            return {
                "logloss": self.loss / self.weight,
                "accuracy": (self.true_positive + self.true_negative) / self.weight,
                "f1": 2 * self.true_positive / f1_base if f1_base else float("nan"),
            }
        spread = self.label_square - self.label**2 / self.weight
        return {
            "rmse": float(np.sqrt(self.loss / self.weight)),
            "mae": self.absolute_error / self.weight,
            "r2": 1 - self.loss / spread if spread > 0 else float("nan"),
        }


def metric_sums(
    loss: Loss,
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> MetricSums:
    """Return the sums for raw ``scores``; all arrays of shape (n_rows,). O(n_rows)."""
    score = scores.astype(np.float64)
    label = labels.astype(np.float64)
    weight = weights.astype(np.float64)
    if loss == "squared":
        error = score - label
        return MetricSums(
            weight=float(weight.sum()),
            loss=float((weight * error**2).sum()),
            absolute_error=float((weight * np.abs(error)).sum()),
            label=float((weight * label).sum()),
            label_square=float((weight * label**2).sum()),
        )
    positive, predicted = label > 0.5, score >= 0
    with np.errstate(invalid="ignore"):  # a NaN score gives a NaN loss
        log_loss = np.logaddexp(0, np.where(positive, -score, score))
    return MetricSums(
        weight=float(weight.sum()),
        loss=float((weight * log_loss).sum()),
        label=float((weight * label).sum()),
        label_square=float((weight * label**2).sum()),
        true_positive=float(weight[positive & predicted].sum()),
        false_positive=float(weight[~positive & predicted].sum()),
        false_negative=float(weight[positive & ~predicted].sum()),
        true_negative=float(weight[~positive & ~predicted].sum()),
    )
