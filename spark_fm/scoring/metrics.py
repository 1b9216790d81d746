"""The sums behind the metrics of a DataFrame's scores, in one job of Spark's own aggregates.

Driver only. Spark, not Python workers, adds up: the groups of the curves need its shuffle.

A scored frame has the columns ``score``, ``label`` and ``weight``, all double. Rows of
null score are left out and counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_fm.errors import InvalidDataError
from spark_fm.learner.losses import BINARY, REGRESSOR, Floats
from spark_fm.learner.metrics import MetricInputs, ScoreGroups, areas, metric_values, run_starts
from spark_fm.spark.collect import worker_errors

log = logging.getLogger(__name__)

# Scores whose log-odds agree to this are one step of the ROC and PR curves.
LOG_ODDS_STEP = 1e-4
# Probabilities are kept this far from 0 and 1 in the log loss.
CLIP = 1e-15
# Groups of a regressor's scores and residuals to a factor of 2.
STEPS_PER_OCTAVE = 64
_OUTSIDE = 1e7  # beyond every log-odds bin: scores that are no probabilities


@dataclass(frozen=True, slots=True)
class Names:
    """The caller's names of the columns, for messages."""

    label: str
    score: str
    weight: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ClassifierSums:
    """Sums over the scored rows of a classifier, cut at the threshold."""

    n_rows: int
    inputs: MetricInputs  # the loss is NaN when a score lies outside 0 to 1
    groups: ScoreGroups  # rows by score; none unless curves were asked for

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name; NaN where undefined."""
        return {"rows": self.n_rows, **metric_values(BINARY, self.inputs)}


@dataclass(frozen=True, slots=True, eq=False)
class RegressorSums:
    """Sums over the scored rows of a regressor, in all and by groups.

    ``by_score`` and ``by_residual`` have the mean ``score``, ``label`` and ``residual`` and the
    ``weight`` of rows of about equal score or residual, ascending; empty unless asked for.
    """

    n_rows: int
    inputs: MetricInputs
    by_score: dict[str, Floats]
    by_residual: dict[str, Floats]

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name; NaN where undefined."""
        return {"rows": self.n_rows, **metric_values(REGRESSOR, self.inputs)}


def classifier_sums(
    scored: DataFrame, names: Names, *, threshold: float, curves: bool
) -> ClassifierSums:
    """Return the sums of a classifier's scores against labels 0 and 1, or -1 and 1.

    From ``threshold`` on the predicted label is 1. ``curves`` groups the rows by score, for the
    areas and curves, which costs a shuffle. Raises InvalidDataError for other labels, weights
    that are negative or null, NaN scores, and no rows. One job. Loss and counts are exact;
    probabilities whose log-odds agree to 1e-4 share a group.
    """
    score, label, weight = F.col("score"), F.col("label"), F.col("weight")
    is_scored = score.isNotNull()
    positive, negative = is_scored & (label == 1.0), is_scored & label.isin(0.0, -1.0)
    predicted = score >= threshold
    clipped = F.least(F.greatest(score, F.lit(CLIP)), F.lit(1 - CLIP))
    # eqNullSafe, because a null label must count as a bad one.
    known = label.eqNullSafe(1.0) | label.eqNullSafe(0.0) | label.eqNullSafe(-1.0)
    groups: Any = scored.groupBy(_score_bin(clipped).alias("bin")) if curves else scored
    found = _rows(
        groups.agg(
            _total(positive, weight).alias("positive"),
            _total(negative, weight).alias("negative"),
            _total(positive & predicted, weight).alias("tp"),
            _total(negative & predicted, weight).alias("fp"),
            _total(positive, -F.log(clipped) * weight).alias("loss_positive"),
            _total(negative, -F.log(1.0 - clipped) * weight).alias("loss_negative"),
            _total(positive | negative, weight * score).alias("score"),
            F.min(score).alias("threshold"),
            F.count_if((score < 0.0) | (score > 1.0)).alias("outside"),
            F.count_if(label == -1.0).alias("minus_ones"),
            F.count_if(label == 0.0).alias("zeros"),
            *_faults(positive | negative, known),
        )
    )
    _check(
        found, names, "a label other than 0 or 1",
        "metrics of a classifier need 0 and 1, or -1 and 1. For a regressor take another metric: "
        'FMEvaluator(metricName="rmse"), "mae" or "r2".',
    )  # fmt: skip
    _check_minus_ones(found, names)
    return _classifier_sums(found, curves=curves)


def _classifier_sums(found: dict[str, Any], *, curves: bool) -> ClassifierSums:
    sums = {name: np.array(found[name], np.float64) for name in found if name != "example"}
    weight = sums["positive"] + sums["negative"]
    used = np.flatnonzero((weight > 0) & curves)
    used = used[np.argsort(-sums["threshold"][used])]
    groups = ScoreGroups(
        score=sums["score"][used] / weight[used],
        threshold=sums["threshold"][used],
        positive=sums["positive"][used],
        negative=sums["negative"][used],
    )
    # Groups are disjoint in score: their order stands for it.
    roc_auc, pr_auc = areas(np.arange(len(used), 0, -1), groups.positive, groups.negative)
    positive, negative = float(sums["positive"].sum()), float(sums["negative"].sum())
    tp, fp = float(sums["tp"].sum()), float(sums["fp"].sum())
    loss = sums["loss_positive"].sum() + sums["loss_negative"].sum()
    inputs = MetricInputs(
        weight=positive + negative,
        loss=math.nan if sums["outside"].any() else float(loss),
        tp=tp,
        fp=fp,
        fn=positive - tp,
        tn=negative - fp,
        roc_auc=roc_auc,
        pr_auc=pr_auc,
    )
    return ClassifierSums(int(sums["rows"].sum()), inputs, groups)


def regressor_sums(
    scored: DataFrame, names: Names, *, centre: float | None = None
) -> RegressorSums:
    """Return the sums of a regressor's scores against its labels.

    With a ``centre``, rows are also grouped by residual, and by score: finely around the centre,
    and the wider the further from it. Raises InvalidDataError for null or NaN labels, bad
    weights, NaN scores, and no rows. One job. The groups' means are exact.
    """
    score, label, weight = F.col("score"), F.col("label"), F.col("weight")
    bad = label.isNull() | F.isnan(label)
    used = score.isNotNull() & ~bad
    error = score - label
    sums = [
        _total(used, weight).alias("weight"),
        _total(used, weight * error * error).alias("loss"),
        _total(used, weight * F.abs(error)).alias("absolute_error"),
        _total(used, weight * label).alias("label"),
        _variation(used).alias("label_variation"),
        _total(used, weight * score).alias("score"),
        *_faults(used, ~bad),
    ]
    if centre is None:
        found = _rows(scored.agg(*sums))
    else:
        bins = {"by_score": _distance_bin(score - centre), "by_residual": _distance_bin(error)}
        binned = scored.withColumns(bins)
        sets = [[F.col("by_score")], [F.col("by_residual")]]
        groups = binned.groupingSets(sets, F.col("by_score"), F.col("by_residual"))
        found = _rows(groups.agg(F.grouping("by_score").alias("set"), *sums))
    return _regressor_sums(found, names)


def _regressor_sums(found: dict[str, Any], names: Names) -> RegressorSums:
    # The set of groups by score holds every row once, and so does the one by residual.
    first = [row for row, other in enumerate(found.get("set", [0])) if not other]
    once = {name: [values[row] for row in first] for name, values in found.items()}
    _check(once, names, "a label that is null or NaN", "a regressor needs a number.")
    names_of_sums = {field.name for field in fields(MetricInputs)} & once.keys()
    totals = {name: float(np.sum(once[name])) for name in names_of_sums}
    totals["label_variation"] += _between(once["weight"], once["label"])
    inputs = MetricInputs(**totals)
    by_score = by_residual = {}
    if "set" in found:
        is_first = np.array(found["set"]) == 0
        by_score, by_residual = _means(found, is_first), _means(found, ~is_first)
        by_score = _sorted(by_score, "score")
        by_residual = _sorted(by_residual, "residual")
    return RegressorSums(sum(once["rows"]), inputs, by_score, by_residual)


def _means(found: dict[str, Any], mask: NDArray[np.bool_]) -> dict[str, Floats]:
    weight, score, label = (
        np.array(found[name], np.float64)[mask] for name in ("weight", "score", "label")
    )
    used = weight > 0
    weight, score, label = weight[used], score[used], label[used]
    return {
        "score": score / weight,
        "label": label / weight,
        "residual": (score - label) / weight,
        "weight": weight,
    }


def _sorted(columns: dict[str, Floats], name: str) -> dict[str, Floats]:
    order = np.argsort(columns[name])
    return {key: values[order] for key, values in columns.items()}


def merged_means(columns: dict[str, Floats], n_groups: int) -> dict[str, Floats]:
    """Return the means of at most ``n_groups`` neighbouring groups of about equal weight."""
    weight = columns["weight"]
    starts = run_starts(weight, n_groups)
    total = np.add.reduceat(weight, starts)
    means = {
        name: np.add.reduceat(values * weight, starts) / total for name, values in columns.items()
    }
    return {**means, "weight": total}


def _score_bin(probability: Column) -> Column:
    """Return a bin of the score that keeps the order: by log-odds from 0 to 1."""
    score = F.col("score")
    log_odds = F.log(probability) - F.log(1.0 - probability)
    outside = F.when(score > 1.0, _OUTSIDE).when(score < 0.0, -_OUTSIDE)
    far = F.round(F.asinh(score) / LOG_ODDS_STEP) + outside
    return F.coalesce(far, F.round(log_odds / LOG_ODDS_STEP))


def _distance_bin(distance: Column) -> Column:
    """Return a bin of a signed distance, of a width in proportion to it."""
    steps = F.floor(F.log2(F.abs(distance)) * STEPS_PER_OCTAVE)
    # Exponents of doubles stay above -1,100, so both signs keep apart.
    return F.when(distance == 0.0, 0).otherwise(F.signum(distance) * (steps + 10**6))


def _total(condition: Column, value: Column) -> Column:
    return F.sum(F.when(condition, value).otherwise(0.0))


def _variation(used: Column) -> Column:
    """Return the weighted sum of the squared differences of labels from their mean, 0 of no rows.

    By Spark's covariances, which keep the digits of labels far from 0: with wy the weighted
    labels and W the sum of weights, n (cov(wy, y) - sum(wy) cov(w, y) / W).
    """
    weight, label = F.when(used, F.col("weight")), F.when(used, F.col("label"))
    weighted = weight * label
    slope = F.sum(weighted) / F.nullif(F.sum(weight), F.lit(0.0))
    variation = F.covar_pop(weighted, label) - slope * F.covar_pop(weight, label)
    return F.coalesce(F.count_if(used) * variation, F.lit(0.0))


def _between(weights: Sequence[float], labels: Sequence[float]) -> float:
    """Return what the differences between groups add, of their sums of weights and wy."""
    total = np.array(weights)
    total, label = total[total > 0], np.array(labels)[total > 0]
    if not len(total):
        return 0.0
    means = label / total
    centred = means - means[0]
    variation = float(total @ (centred - total @ centred / total.sum()) ** 2)
    # Means of equal labels differ by rounding.
    return variation if variation > 1e-26 * total.sum() * means[0] ** 2 else 0.0


def _faults(used: Column, known: Column) -> tuple[Column, ...]:
    """Return the counts of rows used, left out and at fault, and one label at fault."""
    score, label, weight = F.col("score"), F.col("label"), F.col("weight")
    shown = F.coalesce(label.cast("string"), F.lit("null"))
    return (
        F.count_if(used).alias("rows"),
        F.count_if(score.isNull()).alias("unscored"),
        F.count_if(F.isnan(score)).alias("nan_scores"),
        F.count_if(weight.isNull() | F.isnan(weight) | (weight < 0)).alias("bad_weights"),
        F.count_if(~known).alias("bad_labels"),
        F.first(F.when(~known, shown), ignorenulls=True).alias("example"),
    )


def _rows(groups: DataFrame) -> dict[str, Any]:
    with worker_errors():
        found: dict[str, Any] = groups.toArrow().to_pydict()
    return found


def _check(found: dict[str, Any], names: Names, fault: str, wanted: str) -> None:
    """Raise InvalidDataError for rows that no metric can take."""
    if sum(found["bad_labels"]):
        example = next(value for value in found["example"] if value is not None)
        raise InvalidDataError(
            f"labelCol={names.label!r} has {sum(found['bad_labels'])} row(s) with {fault}, for "
            f"example {example}; {wanted}"
        )
    if sum(found["bad_weights"]):
        raise InvalidDataError(
            f"weightCol={names.weight!r} has {sum(found['bad_weights'])} row(s) with a null, NaN "
            "or negative weight; expected numbers >= 0. Clean the data, or leave weightCol unset."
        )
    if sum(found["nan_scores"]):
        raise InvalidDataError(
            f"scoreCol={names.score!r} has {sum(found['nan_scores'])} row(s) with a NaN score, or "
            "with a vector of other than two numbers. Fix the model that made it, set scoreCol to "
            "another column, or drop these rows."
        )
    if not sum(found["rows"]):
        raise InvalidDataError(
            "The input has no rows that can be scored. Check where the rows come from."
        )
    if sum(found["unscored"]):
        log.warning("left out %d row(s) without a score", sum(found["unscored"]))


def _check_minus_ones(found: dict[str, Any], names: Names) -> None:
    if sum(found["minus_ones"]) and sum(found["zeros"]):
        raise InvalidDataError(
            f"labelCol={names.label!r} has labels 0 and -1; a classifier needs 0 and 1, or -1 and "
            "1."
        )
    if sum(found["minus_ones"]):
        log.info("labels -1/1 mapped to 0/1")
