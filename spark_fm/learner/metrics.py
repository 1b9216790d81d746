"""Metrics: one ``Metric`` object each, in ``METRICS``, and the sums they are made of.

``evaluate`` and ``FMEvaluator`` have the sums from Spark's aggregates of any model's scores
(``scoring.metrics``); validation and SageMaker's running metrics make them here, with ROC and
precision-recall curves from a histogram of raw scores, whose error has a bound.
"""

from __future__ import annotations

import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.losses import BINARY, LOSSES, REGRESSOR, Floats, log_losses, squared_errors
from spark_fm.learner.predict import sigmoid
from spark_fm.learner.spec import Hyperparameters, LossName

# Bins on either side of 0, and the margin below which half of them lie.
BINS = 4096
HALF = 4.0
_LARGEST = 1e30  # so that an infinite margin has a bin too


@dataclass(frozen=True, slots=True, eq=False)
class MarginHistogram:
    """Weight of either class by bin of the margin, without empty bins.

    A margin m (the log-odds of label 1) belongs to bin ``floor(4096 m / (4 + |m|))``:
    exact arithmetic on every machine, 0.001 wide at m = 0, 0.004 at 4, 0.01 at 9, and
    every finite margin has one of 8,193 bins. Margins of one bin count as ties, that is
    half, in the ROC AUC. Against the exact areas of trained models on the test rows of
    a9a, frappe and ml-100k, well fitted and overfitted ones, the ROC AUC was off by
    6e-6 at most and the average precision by 8e-5. O(n_rows).
    """

    bins: NDArray[np.int16]  # (n,), ascending, -4096 to 4096; negative ones of negative margins
    positive: Floats  # (n,), weight of the rows of either class
    negative: Floats

    @classmethod
    def empty(cls) -> MarginHistogram:
        """Return the histogram of no rows."""
        return cls(np.empty(0, np.int16), np.empty(0), np.empty(0))

    @classmethod
    def of(cls, margins: Floats, positive: NDArray[np.bool_], weights: Floats) -> MarginHistogram:
        """Count rows; all arrays of shape (n_rows,). NaN margins are left out."""
        known = ~np.isnan(margins)
        if not known.all():
            margins, positive, weights = margins[known], positive[known], weights[known]
        margins = np.clip(margins, -_LARGEST, _LARGEST)
        bins = np.floor(BINS * margins / (HALF + np.abs(margins))).astype(np.int64)
        return cls._counted(2 * (bins + BINS) + positive, weights)

    @classmethod
    def _counted(cls, cells: NDArray[np.int64], weights: Floats) -> MarginHistogram:
        """Add up weights by cell: even ones are of negative rows, odd ones of positive."""
        table = np.bincount(cells, weights, 2 * (2 * BINS + 1)).reshape(-1, 2)
        used = np.flatnonzero(table.any(axis=1))
        return cls((used - BINS).astype(np.int16), table[used, 1], table[used, 0])

    def __add__(self, other: MarginHistogram) -> MarginHistogram:
        """Return the histogram of both sets of rows."""
        if not len(self.bins) or not len(other.bins):
            return self if len(self.bins) else other
        bins = np.concatenate([self.bins, other.bins]).astype(np.int64) + BINS
        return self._counted(
            np.concatenate([2 * bins + 1, 2 * bins]),
            np.concatenate([self.positive, other.positive, self.negative, other.negative]),
        )

    def areas(self) -> tuple[float, float]:
        """Return ROC AUC and average precision; NaN where a class is missing."""
        return areas(self.bins, self.positive, self.negative)

    def confusion(self) -> tuple[float, float, float, float]:
        """Return true and false positives, false and true negatives, cut at margin 0."""
        predicted = self.bins >= 0
        return (
            float(self.positive[predicted].sum()),
            float(self.negative[predicted].sum()),
            float(self.positive[~predicted].sum()),
            float(self.negative[~predicted].sum()),
        )

    def groups(self) -> ScoreGroups:
        """Return the bins as groups of probabilities, a bin's middle for its rows."""
        bins = self.bins[::-1].astype(np.float64)
        return ScoreGroups(
            score=sigmoid(_margin(bins + 0.5)),
            threshold=sigmoid(_margin(bins)),
            positive=self.positive[::-1],
            negative=self.negative[::-1],
        )

    def to_text(self) -> str:
        """Return compressed text, for transport as JSON: some bytes a bin."""
        if not len(self.bins):
            return ""
        parts = (self.bins.astype("<i2"), self.positive.astype("<f8"), self.negative.astype("<f8"))
        return b64encode(zlib.compress(b"".join(part.tobytes() for part in parts))).decode()

    @classmethod
    def from_text(cls, text: str) -> MarginHistogram:
        """Rebuild a histogram from ``to_text``."""
        if not text:
            return cls.empty()
        data = zlib.decompress(b64decode(text))
        n = len(data) // 18
        positive, negative = np.frombuffer(data, "<f8", 2 * n, offset=2 * n).reshape(2, n)
        return cls(np.frombuffer(data, "<i2", n), positive, negative)


def _margin(edges: Floats) -> Floats:
    """Return the margins at bin edges: the inverse of the formula in the class."""
    fraction = np.clip(edges / BINS, -1 + 1e-9, 1 - 1e-9)
    margin: Floats = HALF * fraction / (1 - np.abs(fraction))
    return margin


def areas(scores: NDArray[Any], positive: Floats, negative: Floats) -> tuple[float, float]:
    """Return ROC AUC and average precision of the weight of either class at distinct scores.

    NaN where a class is missing; NaN scores are left out. Ties count half in the ROC AUC: it is
    the chance that a positive row scores higher than a negative one, plus half the chance that
    they score the same. The average precision is the sum over scores, from the highest down, of
    the precision down to there times the recall gained there. O(n log n).
    """
    scores = np.asarray(scores, np.float64)
    order = np.argsort(-scores)
    order = order[~np.isnan(scores[order])]
    hits, misses = np.cumsum(positive[order]), np.cumsum(negative[order])
    if not len(order) or not hits[-1] or not misses[-1]:
        return math.nan, math.nan
    recall = np.concatenate([[0.0], hits / hits[-1]])
    fall_out = np.concatenate([[0.0], misses / misses[-1]])
    precision = _ratio(hits, hits + misses)
    roc_auc = float(np.sum(np.diff(fall_out) * (recall[1:] + recall[:-1]) / 2))
    return roc_auc, float(np.sum(np.diff(recall) * precision))


@dataclass(frozen=True, slots=True, eq=False)
class ScoreGroups:
    """Rows grouped by score, from the highest score down."""

    score: Floats  # (n,), weighted mean of each group
    threshold: Floats  # (n,), lowest score of each group
    positive: Floats  # (n,), weight of either class
    negative: Floats

    def thinned(self, n_groups: int) -> ScoreGroups:
        """Return at most ``n_groups`` groups, cut so that both axes of the ROC are covered."""
        fractions = (w / w.sum() if w.sum() else w for w in (self.positive, self.negative))
        return self._merged(sum(fractions, np.zeros(len(self.score))), n_groups)

    def equal_weights(self, n_groups: int) -> ScoreGroups:
        """Return at most ``n_groups`` groups of about equal weight: for calibration."""
        return self._merged(self.positive + self.negative, n_groups)

    def _merged(self, mass: Floats, n_groups: int) -> ScoreGroups:
        starts = run_starts(mass, n_groups)
        if not len(starts):
            return self
        weight = self.positive + self.negative
        total = np.add.reduceat(weight, starts)
        ends = np.append(starts[1:], len(mass)) - 1
        return ScoreGroups(
            score=_ratio(np.add.reduceat(weight * self.score, starts), total),
            threshold=self.threshold[ends],
            positive=np.add.reduceat(self.positive, starts),
            negative=np.add.reduceat(self.negative, starts),
        )

    def roc(self) -> dict[str, Floats]:
        """Return ``FPR`` and ``TPR`` of predicting 1 from each ``threshold`` on.

        The first point is (0, 0) at an infinite threshold, the last one (1, 1); NaN where
        a class is missing.
        """
        recall, fall_out, _ = self._rates()
        return {
            "FPR": np.concatenate([[0.0], fall_out]),
            "TPR": np.concatenate([[0.0], recall]),
            "threshold": np.concatenate([[np.inf], self.threshold]),
        }

    def precision_recall(self) -> dict[str, Floats]:
        """Return ``recall`` and ``precision`` of predicting 1 from each ``threshold`` on."""
        recall, _, precision = self._rates()
        return {"recall": recall, "precision": precision, "threshold": self.threshold}

    def calibration(self) -> dict[str, Floats]:
        """Return mean ``score``, fraction of positives (``rate``) and ``weight`` by group."""
        weight = self.positive + self.negative
        columns = (self.score, _ratio(self.positive, weight), weight)
        return dict(zip(("score", "rate", "weight"), (c[::-1] for c in columns), strict=True))

    def to_dict(self) -> dict[str, list[float]]:
        """Return plain data, for the model's metadata."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def from_dict(cls, columns: dict[str, list[float]]) -> ScoreGroups:
        """Rebuild groups from ``to_dict``."""
        return cls(**{name: np.array(columns[name], np.float64) for name in cls.__slots__})

    def _rates(self) -> tuple[Floats, Floats, Floats]:
        hits, misses = np.cumsum(self.positive), np.cumsum(self.negative)
        return (
            _ratio(hits, hits[-1:]),
            _ratio(misses, misses[-1:]),
            _ratio(hits, hits + misses),
        )


def run_starts(mass: Floats, n_runs: int) -> NDArray[np.int64]:
    """Return where at most ``n_runs`` runs of about equal mass (>= 0) start.

    An element is never split: a heavy one may be a run by itself.
    """
    if not mass.sum() > 0:
        return np.arange(len(mass))[:1]
    middle = np.cumsum(mass) - mass / 2
    run = np.minimum((middle / mass.sum() * n_runs).astype(np.int64), n_runs - 1)
    return np.flatnonzero(np.diff(run, prepend=-1))


def _ratio(part: Floats, whole: Floats) -> Floats:
    shape = np.broadcast_shapes(part.shape, whole.shape)
    ratio: Floats = np.divide(part, whole, out=np.full(shape, np.nan), where=whole > 0)
    return ratio


@dataclass(frozen=True, slots=True)
class MetricInputs:
    """What metrics are functions of: weighted sums over rows, and the areas.

    Validation has them from ``MetricSums``, ``evaluate`` and ``FMEvaluator`` from Spark's
    aggregates of scores.
    """

    weight: float
    loss: float  # log loss of a classifier, squared error of a regressor
    # Of a classifier: true and false positives, false and true negatives.
    tp: float = 0.0
    fp: float = 0.0
    fn: float = 0.0
    tn: float = 0.0
    roc_auc: float = math.nan
    pr_auc: float = math.nan
    # Of a regressor.
    absolute_error: float = 0.0
    label_variation: float = 0.0  # weighted sum of the squared differences from their mean


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; ``METRICS`` has them all, in the order in which they are reported."""

    name: str
    predictor_type: str
    larger_is_better: bool
    value: Callable[[MetricInputs], float]  # NaN where undefined
    in_validation: bool = True  # False: of ``evaluate`` only


def f_beta(inputs: MetricInputs, beta: float) -> float:
    """Return (1 + b^2) precision recall / (b^2 precision + recall), b = ``beta``."""
    hits = (1 + beta**2) * inputs.tp
    return _quotient(hits, hits + inputs.fp + beta**2 * inputs.fn)


def _r2(inputs: MetricInputs) -> float:
    variation = inputs.label_variation
    return 1 - inputs.loss / variation if variation > 0 else math.nan


def _mean_loss(inputs: MetricInputs) -> float:
    return _quotient(inputs.loss, inputs.weight)


def _quotient(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


METRICS = {
    metric.name: metric
    for metric in (
        Metric("logloss", BINARY, False, _mean_loss),
        Metric("accuracy", BINARY, True, lambda s: _quotient(s.tp + s.tn, s.weight)),
        Metric("precision", BINARY, True, lambda s: _quotient(s.tp, s.tp + s.fp), False),
        Metric("recall", BINARY, True, lambda s: _quotient(s.tp, s.tp + s.fn), False),
        Metric("f1", BINARY, True, lambda s: f_beta(s, 1.0)),
        Metric("roc_auc", BINARY, True, lambda s: s.roc_auc),
        Metric("pr_auc", BINARY, True, lambda s: s.pr_auc),
        Metric("rmse", REGRESSOR, False, lambda s: math.sqrt(_mean_loss(s))),
        Metric("mae", REGRESSOR, False, lambda s: _quotient(s.absolute_error, s.weight)),
        Metric("r2", REGRESSOR, True, _r2),
    )
}


def validation_metrics(loss: LossName) -> dict[str, Metric]:
    """Return the metrics that models of a loss can be validated by."""
    kind = LOSSES[loss].metric_kind
    return {
        name: metric
        for name, metric in METRICS.items()
        if metric.predictor_type == kind and metric.in_validation
    }


def metric_values(predictor_type: str, inputs: MetricInputs) -> dict[str, float]:
    """Return all metrics of a predictor type by name."""
    return {
        name: metric.value(inputs)
        for name, metric in METRICS.items()
        if metric.predictor_type == predictor_type
    }


@dataclass(frozen=True, slots=True, eq=False)
class MetricSums:
    """Weighted sums over rows, float64; those of two row sets add up."""

    weight: float = 0.0
    loss: float = 0.0  # log loss of a classifier, squared error of a regressor
    # Of a regressor.
    absolute_error: float = 0.0
    label: float = 0.0
    label_square: float = 0.0
    # Of a classifier: its counts and areas come from here.
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

    def values(self, loss: LossName) -> dict[str, float]:
        """Return ``validation_metrics(loss)`` by name; NaN where undefined.

        A NaN score makes every metric NaN. The areas, ``roc_auc`` and ``pr_auc`` (average
        precision), are those of the histogram's bins, within 1e-4 of the exact ones on
        real sets (see ``MarginHistogram``); the others are exact.
        """
        metrics = validation_metrics(loss)
        if not self.weight or np.isnan(self.loss):
            return dict.fromkeys(metrics, float("nan"))
        tp, fp, fn, tn = self.histogram.confusion()
        roc_auc, pr_auc = self.histogram.areas()
        inputs = MetricInputs(
            self.weight, self.loss, tp=tp, fp=fp, fn=fn, tn=tn, roc_auc=roc_auc, pr_auc=pr_auc,
            absolute_error=self.absolute_error,
            label_variation=self.label_square - self.label**2 / self.weight,
        )  # fmt: skip
        return {name: metric.value(inputs) for name, metric in metrics.items()}


def metric_sums(
    loss: LossName,
    scores: NDArray[np.floating],
    labels: NDArray[np.floating],
    weights: NDArray[np.floating],
) -> MetricSums:
    """Return the sums for raw ``scores``; all arrays of shape (n_rows,). O(n_rows)."""
    score, label, weight = (a.astype(np.float64) for a in (scores, labels, weights))
    total = float(weight.sum())
    if LOSSES[loss].is_classifier:
        return MetricSums(
            weight=total,
            loss=float((weight * log_losses(score, label)).sum()),
            histogram=MarginHistogram.of(score, label > 0.5, weight),
        )
    return MetricSums(
        weight=total,
        loss=float((weight * squared_errors(score, label)).sum()),
        absolute_error=float((weight * np.abs(score - label)).sum()),
        label=float((weight * label).sum()),
        label_square=float((weight * label**2).sum()),
    )


def merit(sums: MetricSums | None, loss: LossName, name: str) -> float:
    """Return a metric such that larger is better; -inf where undefined."""
    if sums is None:
        return -math.inf
    value = sums.values(loss)[name]
    value = value if validation_metrics(loss)[name].larger_is_better else -value
    return -math.inf if math.isnan(value) else value


def loss_sum(
    loss: LossName,
    scores: NDArray[np.floating],
    labels: NDArray[np.floating],
    weights: NDArray[np.floating],
) -> float:
    """Return the weighted sum of the training loss; arrays as for ``metric_sums``."""
    losses = LOSSES[loss].row_losses(scores.astype(np.float64), labels.astype(np.float64))
    return float((weights.astype(np.float64) * losses).sum())


PUBLISH_INTERVAL = 500  # mini-batches from one published state of the metrics to the next
CROSS_ENTROPY = "binary_classification_cross_entropy"
# By the predictor type and the name that SageMaker publishes.
RUNNING_METRICS = {
    BINARY: {
        "binary_classification_accuracy": METRICS["accuracy"],
        CROSS_ENTROPY: METRICS["logloss"],
        "binary_f_1.000": METRICS["f1"],
    },
    REGRESSOR: {
        "rmse": METRICS["rmse"],
        "mse": Metric("mse", REGRESSOR, False, _mean_loss),
        "absolute_loss": METRICS["mae"],
    },
}


def running_metrics(
    scores: NDArray[np.float32],
    labels: NDArray[np.float32],
    spec: Hyperparameters,
    *,
    label_scale: float = 1.0,
) -> dict[str, Any]:
    """Return the metrics of an epoch and of its published mini-batches; O(n_rows).

    ``scores`` are raw, in the order of training, each from before the row's update;
    ``label_scale`` is the unit of scores and labels. The result has ``metrics``, of all rows by
    name, and ``batches``: dicts of ``batch`` (0 and every 500th) and the ``metrics`` of the rows up
    to its end.
    """
    n_rows, size = len(scores), spec.mini_batch_size
    loss = LOSSES[spec.loss]
    sums = _cumulative(
        scores.astype(np.float64), labels.astype(np.float64), loss.is_classifier, label_scale
    )

    def metrics_of_first(n: int) -> dict[str, float]:
        metrics = RUNNING_METRICS[loss.metric_kind]
        if not n:
            return dict.fromkeys(metrics, math.nan)
        inputs = MetricInputs(n, **{name: float(total[n - 1]) for name, total in sums.items()})
        values = {name: metric.value(inputs) for name, metric in metrics.items()}
        if math.isnan(values.get("binary_f_1.000", 0.0)):
            values["binary_f_1.000"] = 0.0  # as SageMaker reports it of no positives at all
        return values

    return {
        "metrics": metrics_of_first(n_rows),
        "batches": [
            {"batch": batch, "metrics": metrics_of_first(min(n_rows, (batch + 1) * size))}
            for batch in range(0, -(-n_rows // size), PUBLISH_INTERVAL)
        ],
    }


def _cumulative(
    scores: Floats, labels: Floats, is_classifier: bool, scale: float
) -> dict[str, Floats]:
    """Return the fields of ``MetricInputs`` as running sums over the rows."""
    if is_classifier:
        positive, predicted = labels > 0.5, scores >= 0
        terms: dict[str, NDArray[Any]] = {
            "loss": log_losses(scores, labels),
            "tp": positive & predicted,
            "fp": ~positive & predicted,
            "fn": positive & ~predicted,
            "tn": ~positive & ~predicted,
        }
    else:
        errors = np.abs(scores - labels) * scale
        terms = {"loss": errors**2, "absolute_error": errors}
    return {name: np.cumsum(term, dtype=np.float64) for name, term in terms.items()}
