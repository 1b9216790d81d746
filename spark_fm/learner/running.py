"""Metrics of an epoch as it runs: each row scored before the update that it takes part in.

They are what SageMaker's algorithm prints of its training channel: means over the rows
seen so far, while the parameters change, the empty rows of the last mini-batch included.
Runs where the epoch was trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.spec import Loss, TrainSpec

PUBLISH_INTERVAL = 500  # mini-batches from one published state of the metrics to the next
CROSS_ENTROPY = "binary_classification_cross_entropy"
# Name as SageMaker publishes it -> whether larger is better, by loss.
RUNNING_METRICS: dict[Loss, dict[str, bool]] = {
    "logistic": {
        "binary_classification_accuracy": True, CROSS_ENTROPY: False, "binary_f_1.000": True,
    },
    "squared": {"rmse": False, "mse": False, "absolute_loss": False},
}  # fmt: skip


def running_metrics(
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    spec: TrainSpec,
    *,
    label_scale: float = 1.0,
) -> dict[str, Any]:
    """Return the metrics of an epoch and of its published mini-batches; O(n_rows).

    Parameters
    ----------
    scores : ndarray of shape (n_rows,), float32
        Raw scores in the order of training, each from before the row's update.
    labels : ndarray of shape (n_rows,), float32
    spec : TrainSpec
    label_scale : float
        Unit of scores and labels.

    Returns
    -------
    dict
        ``metrics``: of all rows, by name. ``batches``: dicts of ``batch`` (0 and every
        500th) and the ``metrics`` of the rows up to its end.
    """
    n_rows, size = len(scores), spec.mini_batch_size
    sums = _cumulative(scores.astype(np.float64), labels.astype(np.float64), spec.loss, label_scale)
    n_batches = -(-n_rows // size)
    return {
        "metrics": _metrics(sums, n_rows, spec.loss),
        "batches": [
            {"batch": batch, "metrics": _metrics(sums, min(n_rows, (batch + 1) * size), spec.loss)}
            for batch in range(0, n_batches, PUBLISH_INTERVAL)
        ],
    }


def _cumulative(
    scores: NDArray[np.float64], labels: NDArray[np.float64], loss: Loss, scale: float
) -> dict[str, NDArray[np.float64]]:
    """Return running sums over the rows of what the metrics are made of."""
    if loss == "squared":
        errors = np.abs(scores - labels) * scale
        terms: dict[str, NDArray[Any]] = {"squared": errors**2, "absolute": errors}
    else:
        positive, said = labels > 0.5, scores >= 0
        terms = {
            "loss": np.logaddexp(0, np.where(positive, -scores, scores)),
            "right": positive == said,
            "true_positive": positive & said,
            "wrong": positive != said,
        }
    return {name: np.cumsum(term, dtype=np.float64) for name, term in terms.items()}


def _metrics(sums: dict[str, NDArray[np.float64]], n_rows: int, loss: Loss) -> dict[str, float]:
    if not n_rows:
        return dict.fromkeys(RUNNING_METRICS[loss], float("nan"))
    now = {name: float(total[n_rows - 1]) for name, total in sums.items()}
    if loss == "squared":
        mse = now["squared"] / n_rows
        return {"rmse": mse**0.5, "mse": mse, "absolute_loss": now["absolute"] / n_rows}
    f1_base = 2 * now["true_positive"] + now["wrong"]
    return {
        "binary_classification_accuracy": now["right"] / n_rows,
        CROSS_ENTROPY: now["loss"] / n_rows,
        "binary_f_1.000": 2 * now["true_positive"] / f1_base if f1_base else 0.0,
    }
