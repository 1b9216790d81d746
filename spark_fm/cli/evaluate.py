"""``spark-fm evaluate``: measure a saved model on files; driver only."""

from __future__ import annotations

import argparse
import json
import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_fm.cli.inputs import InputSpec, add_input_flags, explained, open_source
from spark_fm.cli.params import add_set_flag, apply_params, collect_params
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.engine.columns import check_training_columns, quoted
from spark_fm.engine.request import ColumnNames
from spark_fm.errors import InvalidDataError
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.params import BINARY

log = logging.getLogger(__name__)

USAGE = "--model PATH --input PATH --format FORMAT [more flags]"
EXAMPLE = """example:
  spark-fm evaluate --model a9a.model --input a9a.t.gz --format libsvm
"""
# Scores whose log-odds agree to this share a step of the ROC and PR curves.
LOG_ODDS_STEP = 1e-4
# Probabilities are kept this far from 0 and 1 in the log loss.
CLIP = 1e-15
_OUTPUTS = ("predictedLabelCol", "predictionCol", "probabilityCol", "rawPredictionCol")
_TITLES = {
    "rows": "rows", "logloss": "log loss", "accuracy": "accuracy", "precision": "precision",
    "recall": "recall", "f1": "F1", "roc_auc": "ROC AUC", "pr_auc": "PR AUC", "rmse": "RMSE",
    "mae": "MAE", "r2": "R2",
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--model", required=True, metavar="PATH", help="a saved model")
    add_input_flags(parser, what="rows with labels")
    parser.add_argument(
        "--num-features", type=int, metavar="N",
        help="length of the vectors in text files [the model's]",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_set_flag(parser)
    add_session_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Print the metrics of a model."""
    values = collect_params(args, FactorizationMachineModel())
    with spark_session(args) as spark:
        model = apply_params(FactorizationMachineModel.load(args.model), values)
        spec = InputSpec(
            file_format=args.format,
            features_col=model.getFeaturesCol(),
            label_col=model.getLabelCol(),
            num_features=args.num_features or model.numFeatures,
        )
        source = open_source(spark, args.input, spec)
        with explained(source):
            metrics = measure(model, source.frame)
    print(json.dumps(_plain(metrics)) if args.json else table(metrics, model.getThreshold()))


def measure(model: FactorizationMachineModel, frame: DataFrame) -> dict[str, Any]:
    """Return the metrics of the model on a frame with features and label.

    Parameters
    ----------
    model : FactorizationMachineModel
    frame : DataFrame
        With the model's featuresCol and labelCol, and its weightCol where there is one.

    Raises
    ------
    InvalidColumnError, InvalidDataError

    Notes
    -----
    One job. Log loss and counts are exact; the areas under the curves treat scores whose
    log-odds agree to 1e-4 as ties. PR AUC is the average precision.
    """
    weight = model.getOrDefault("weightCol") if model.isDefined("weightCol") else ""
    weight = weight if weight in frame.schema.names else ""
    features, label = model.getFeaturesCol(), model.getLabelCol()
    check_training_columns(frame.schema, ColumnNames(features, label, weight or None, None))
    rows = frame.select(
        quoted(features).alias(features),
        quoted(label).cast("double").alias("spark_fm_label"),
        (quoted(weight).cast("double") if weight else F.lit(1.0)).alias("spark_fm_weight"),
    )
    scored = _scorer(model).transform(rows).select(
        F.col("spark_fm_score").alias("score"),
        F.col("spark_fm_label").alias("label"),
        F.col("spark_fm_weight").alias("weight"),
    )  # fmt: skip
    if model.getPredictorType() == BINARY:
        return _classifier_metrics(scored, label, model.getThreshold())
    return _regressor_metrics(scored, label)


def _scorer(model: FactorizationMachineModel) -> FactorizationMachineModel:
    """Return a copy that writes the score only, null where "skip" would drop the row."""
    values = {"scoreCol": "spark_fm_score"}
    if model.getHandleInvalid() == "skip":
        values["handleInvalid"] = "keep"
    scorer: FactorizationMachineModel = apply_params(model, values, _OUTPUTS)
    return scorer


def _total(condition: Column, value: Column) -> Column:
    return F.sum(F.when(condition, value).otherwise(0.0))


def _classifier_metrics(scored: DataFrame, label_col: str, threshold: float) -> dict[str, Any]:
    score, label, weight = F.col("score"), F.col("label"), F.col("weight")
    is_scored = score.isNotNull()
    positive, negative = is_scored & (label == 1.0), is_scored & label.isin(0.0, -1.0)
    predicted = score >= threshold
    clipped = F.least(F.greatest(score, F.lit(CLIP)), F.lit(1 - CLIP))
    log_odds = F.log(clipped) - F.log(1.0 - clipped)
    # eqNullSafe, because a null label must count as a bad one.
    known = label.eqNullSafe(1.0) | label.eqNullSafe(0.0) | label.eqNullSafe(-1.0)
    groups = scored.groupBy(F.round(log_odds / LOG_ODDS_STEP).alias("bin")).agg(
        _total(positive, weight).alias("positive"),
        _total(negative, weight).alias("negative"),
        _total(positive & predicted, weight).alias("tp"),
        _total(negative & predicted, weight).alias("fp"),
        _total(positive, -F.log(clipped) * weight).alias("loss_positive"),
        _total(negative, -F.log(1.0 - clipped) * weight).alias("loss_negative"),
        F.count_if(positive | negative).alias("rows"),
        F.count_if(~is_scored).alias("unscored"),
        F.count_if(label == -1.0).alias("minus_ones"),
        F.count_if(label == 0.0).alias("zeros"),
        F.count_if(~known).alias("bad_labels"),
        F.first(F.when(~known, F.coalesce(label.cast("string"), F.lit("null"))), True).alias("bad"),
    )
    found = groups.toArrow().to_pydict()
    _check_labels(found, label_col)
    sums = {name: np.array(found[name], np.float64) for name in found if name != "bad"}
    return _from_bins(sums)


def _check_labels(found: dict[str, list[Any]], label_col: str) -> None:
    if sum(found["bad_labels"]):
        example = next(value for value in found["bad"] if value is not None)
        raise InvalidDataError(
            f"labelCol={label_col!r} has {sum(found['bad_labels'])} row(s) with a label other than "
            f"0 or 1, for example {example}; a classifier needs 0 and 1, or -1 and 1."
        )
    if sum(found["minus_ones"]) and sum(found["zeros"]):
        raise InvalidDataError(
            f"labelCol={label_col!r} has labels 0 and -1; a classifier needs 0 and 1, or -1 and 1."
        )
    if sum(found["minus_ones"]):
        log.info("labels -1/1 mapped to 0/1")
    _check_rows(sum(found["rows"]), sum(found["unscored"]))


def _check_rows(n_rows: int, n_unscored: int) -> None:
    if not n_rows:
        raise InvalidDataError("the input has no rows that can be scored. Check --input.")
    if n_unscored:
        log.warning("left out %d row(s) that the model cannot score", n_unscored)


def _from_bins(sums: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the classifier's metrics from sums by bin of the score."""
    positive, negative = sums["positive"].sum(), sums["negative"].sum()
    total, tp, fp = positive + negative, sums["tp"].sum(), sums["fp"].sum()
    fn, tn = positive - tp, negative - fp
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, positive)
    loss = sums["loss_positive"].sum() + sums["loss_negative"].sum()
    roc_auc, pr_auc = areas(sums["bin"], sums["positive"], sums["negative"])
    return {
        "rows": int(sums["rows"].sum()),
        "logloss": _ratio(loss, total),
        "accuracy": _ratio(tp + tn, total),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "roc_auc": roc_auc,
        "pr_auc": pr_auc,
        "confusion": {name: float(value) for name, value in
                      (("tp", tp), ("fp", fp), ("fn", fn), ("tn", tn))},
    }  # fmt: skip


def areas(
    scores: NDArray[np.float64], positive: NDArray[np.float64], negative: NDArray[np.float64]
) -> tuple[float, float]:
    """Return ROC AUC and average precision; NaN where a class is missing.

    Parameters
    ----------
    scores : ndarray of shape (n_bins,), float64
        Distinct scores, in any order; NaN ones are left out.
    positive, negative : ndarray of shape (n_bins,), float64
        Weight of either class at each score.

    Notes
    -----
    Ties count half in the ROC AUC. O(n_bins log n_bins).
    """
    order = np.argsort(-scores)
    order = order[~np.isnan(scores[order])]
    hits, misses = np.cumsum(positive[order]), np.cumsum(negative[order])
    if not len(order) or not hits[-1] or not misses[-1]:
        return math.nan, math.nan
    tpr = np.concatenate([[0.0], hits / hits[-1]])
    fpr = np.concatenate([[0.0], misses / misses[-1]])
    seen = hits + misses
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    roc = float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))
    return roc, float(np.sum(np.diff(tpr) * precision))


def _regressor_metrics(scored: DataFrame, label_col: str) -> dict[str, Any]:
    score, label, weight = F.col("score"), F.col("label"), F.col("weight")
    bad = label.isNull() | F.isnan(label)
    used = score.isNotNull() & ~bad
    error = score - label
    row = scored.agg(
        F.count_if(used).alias("rows"),
        F.count_if(score.isNull()).alias("unscored"),
        F.count_if(bad).alias("bad"),
        _total(used, weight).alias("weight"),
        _total(used, weight * error * error).alias("squared"),
        _total(used, weight * F.abs(error)).alias("absolute"),
        _total(used, weight * label).alias("label"),
        _total(used, weight * label * label).alias("label_square"),
    ).collect()[0]
    if row["bad"]:
        raise InvalidDataError(
            f"labelCol={label_col!r} has {row['bad']} row(s) with a null or NaN label."
        )
    _check_rows(row["rows"], row["unscored"])
    weight_sum = row["weight"]
    spread = row["label_square"] - _ratio(row["label"] ** 2, weight_sum)
    return {
        "rows": row["rows"],
        "rmse": math.sqrt(_ratio(row["squared"], weight_sum)),
        "mae": _ratio(row["absolute"], weight_sum),
        "r2": 1 - row["squared"] / spread if spread > 0 else math.nan,
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics with null for NaN, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }


def table(metrics: dict[str, Any], threshold: float) -> str:
    """Return the metrics, and a classifier's confusion matrix, as text."""
    lines = []
    for name, title in _TITLES.items():
        if name in metrics:
            value = metrics[name]
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.6f}"
            lines.append(f"{title:<10} {shown:>12}")
    confusion = metrics.get("confusion")
    if confusion is not None:
        cells = {name: f"{value:,.10g}" for name, value in confusion.items()}
        lines += [
            "",
            f"{f'score >= {threshold:g}':<16}{'predicted 0':>14}{'predicted 1':>14}",
            f"{'label 0':<16}{cells['tn']:>14}{cells['fp']:>14}",
            f"{'label 1':<16}{cells['fn']:>14}{cells['tp']:>14}",
        ]
    return "\n".join(lines)
