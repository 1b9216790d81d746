"""Evaluation sums that partitions compute apart and the driver adds up."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.histogram import MarginHistogram
from spark_fm.learner.spec import Loss

# Metric name -> whether larger is better, by loss.
METRICS: dict[Loss, dict[str, bool]] = {
    "logistic": {
        "logloss": False, "accuracy": True, "f1": True, "roc_auc": True, "pr_auc": True,
    },
    "squared": {"rmse": False, "mae": False, "r2": True},
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class MetricSums:
    """Weighted sums over rows, float64; adding two gives those of both row sets.

    Parameters
    ----------
    weight, loss : float
        Of both kinds of model; the loss is log loss or squared error.
    absolute_error, label, label_square : float
        Of a regressor.
    histogram : MarginHistogram
        Of a classifier: its counts and areas come from here.
    """

    weight: float = 0.0
    loss: float = 0.0
    absolute_error: float = 0.0
    label: float = 0.0
    label_square: float = 0.0
    histogram: MarginHistogram = field(default_factory=MarginHistogram.empty)

    def __add__(self, other: MetricSums) -> MetricSums:
        """Return the sums over both sets of rows."""
        names = [field.name for field in fields(self)]
        return MetricSums(*(getattr(self, n) + getattr(other, n) for n in names))

    def to_dict(self) -> dict[str, Any]:
        """Return the sums by name, for transport as JSON."""
        sums = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**sums, "histogram": self.histogram.to_text()}

    @classmethod
    def from_dict(cls, sums: dict[str, Any]) -> MetricSums:
        """Rebuild sums from ``to_dict``."""
        return cls(**{**sums, "histogram": MarginHistogram.from_text(sums["histogram"])})

    def mean_loss(self) -> float:
        """Return the weighted mean loss (log loss, or squared error)."""
        return self.loss / self.weight if self.weight else float("nan")

    def values(self, loss: Loss) -> dict[str, float]:
        """Return the metrics of ``METRICS[loss]`` by name; NaN where undefined.

        A NaN score makes every metric NaN. The areas, ``roc_auc`` and ``pr_auc`` (average
        precision), are those of the histogram's bins, within 1e-4 of the exact ones on
        real sets (see ``MarginHistogram``); the others are exact.
        """
        if not self.weight or np.isnan(self.loss):
            return dict.fromkeys(METRICS[loss], float("nan"))
        if loss == "logistic":
            tp, fp, fn, tn = self.histogram.confusion()
            f1_base = 2 * tp + fp + fn
            roc_auc, pr_auc = self.histogram.areas()
            return {
                "logloss": self.loss / self.weight,
                "accuracy": (tp + tn) / self.weight,
                "f1": 2 * tp / f1_base if f1_base else float("nan"),
                "roc_auc": roc_auc,
                "pr_auc": pr_auc,
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
    score, label, weight = (a.astype(np.float64) for a in (scores, labels, weights))
    total, cost = float(weight.sum()), loss_sum(loss, scores, labels, weights)
    if loss == "logistic":
        counts = MarginHistogram.of(score, label > 0.5, weight)
        return MetricSums(weight=total, loss=cost, histogram=counts)
    return MetricSums(
        weight=total,
        loss=cost,
        absolute_error=float((weight * np.abs(score - label)).sum()),
        label=float((weight * label).sum()),
        label_square=float((weight * label**2).sum()),
    )


def loss_sum(
    loss: Loss,
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> float:
    """Return the weighted sum of the loss alone; arrays as for ``metric_sums``."""
    score, label = scores.astype(np.float64), labels.astype(np.float64)
    if loss == "squared":
        losses = (score - label) ** 2
    else:
        with np.errstate(invalid="ignore"):  # a NaN score gives a NaN loss
            losses = np.logaddexp(0, np.where(label > 0.5, -score, score))
    return float((weights.astype(np.float64) * losses).sum())
