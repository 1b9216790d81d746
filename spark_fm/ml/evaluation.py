"""Metrics, curves and calibration of a model on labelled rows; driver only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.learner.losses import BINARY, Floats
from spark_fm.ml.base import SPARK_OUTPUTS, FittedModel
from spark_fm.ml.html import against_constant, card
from spark_fm.ml.plots import (
    CALIBRATION_GROUPS,
    draw_calibration,
    draw_fit,
    draw_precision_recall,
    draw_residuals,
    draw_roc,
    finish,
    new_figure,
)
from spark_fm.scoring.metrics import (
    ClassifierSums,
    Names,
    RegressorSums,
    classifier_sums,
    merged_means,
    regressor_sums,
)
from spark_fm.spark.schema import (
    ColumnNames,
    check_batch_frame,
    check_training_columns,
    find_column,
    quoted,
    without_metadata,
)

CURVE_POINTS = 1000
RESIDUAL_BINS = 40
NO_BETTER = (
    "The model is no better than a constant on these rows. They may be of another kind than the "
    "training rows, or encoded otherwise: see model.summary.warnings, too."
)
TAIL = 0.001  # fraction of the rows that each outermost bin of residuals takes in


@dataclass(frozen=True, slots=True, eq=False)
class FMEvaluation:
    """A model measured on rows with labels, as ``model.evaluate(df)`` returns it.

    Parameters
    ----------
    metrics : dict of str to float
        ``rows``; of a classifier ``logloss``, ``accuracy``, ``precision``, ``recall``,
        ``f1``, ``roc_auc`` and ``pr_auc`` (average precision), of a regressor ``rmse``,
        ``mae`` and ``r2``. NaN where undefined.
    calibration : DataFrame
        At most 20 groups of rows of about equal weight, by score: mean ``score``, the
        fraction of label 1 (``rate``) or the mean ``label`` of a regressor, ``weight``.
    confusion : DataFrame or None
        Classifier: weight of rows by label (rows) and predicted label (columns).
    roc : DataFrame or None
        Classifier: ``FPR``, ``TPR`` and ``threshold``, at most 1,001 points.
    pr : DataFrame or None
        Classifier: ``recall``, ``precision`` and ``threshold``, at most 1,000 points.
    residuals : DataFrame or None
        Regressor: histogram of score minus label, ``low``, ``high`` and ``weight`` of 40
        bins; the outermost bins also hold the values beyond them, 0.1 % each.
    """

    metrics: dict[str, Any]
    calibration: pd.DataFrame
    confusion: pd.DataFrame | None = None
    roc: pd.DataFrame | None = None
    pr: pd.DataFrame | None = None
    residuals: pd.DataFrame | None = None

    def plot(self, path: str | None = None) -> Any:
        """Draw ROC, precision-recall and calibration, or a regressor's fit and residuals.

        Parameters
        ----------
        path : str, optional
            File to save the picture to; the suffix gives the format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib: install ``spark-fm[plot]``.
        """
        is_classifier = self.roc is not None
        figure, axes = new_figure(1, 3 if is_classifier else 2)
        if is_classifier:
            draw_roc(axes[0], self.roc, self.metrics["roc_auc"])
            draw_precision_recall(axes[1], self.pr, self.metrics["pr_auc"])
            draw_calibration(axes[2], self.calibration)
        else:
            draw_fit(axes[0], self.calibration)
            draw_residuals(axes[1], self.residuals)
        figure.suptitle(f"Evaluation on {self.metrics['rows']:,} rows")
        return finish(figure, path)

    @property
    def baseline(self) -> float:
        """Return the log loss or RMSE of the constant that is best on these very rows.

        That of the mean label. NaN where it is undefined.
        """
        if self.confusion is None:
            spread = 1 - float(self.metrics["r2"])
            return float(self.metrics["rmse"]) / math.sqrt(spread) if spread > 0 else math.nan
        by_label = self.confusion.to_numpy().sum(axis=1)
        rates = by_label[by_label > 0] / by_label.sum()
        return float(-(rates * np.log(rates)).sum())

    def _repr_html_(self) -> str:
        """Show in a notebook how good the model is, and what to look at."""
        name, shown = ("logloss", "Log loss") if self.roc is not None else ("rmse", "RMSE")
        value, constant = self.metrics[name], self.baseline
        look = "whether scores are probabilities" if self.roc is not None else "where it is wrong"
        return card(
            "Evaluation", against_constant(shown, value, constant), self.metrics,
            warnings=[] if value < constant or math.isnan(constant) else [NO_BETTER],
            advice={"evaluation.plot()": f"shows {look}"},
        )  # fmt: skip

    def __repr__(self) -> str:
        """Show the metrics."""
        values = ", ".join(f"{k}={v:.6g}" for k, v in self.metrics.items() if k != "rows")
        return f"FMEvaluation({self.metrics['rows']} rows, {values})"


class EvaluateMethods(FittedModel):
    """The method of a model that measures it."""

    def evaluate(self, dataset: DataFrame) -> FMEvaluation:
        """Return metrics, curves and calibration on rows with labels, in one job.

        Parameters
        ----------
        dataset : DataFrame
            With featuresCol and labelCol; if it has weightCol, rows are weighted by it.

        Raises
        ------
        InvalidColumnError, InvalidDataError

        Notes
        -----
        No rows are collected on the driver. Log loss and counts are exact; curves and areas
        treat scores whose log-odds agree to 1e-4 as ties. Rows without a score
        (handleInvalid "skip" or "keep") are left out.
        """
        check_batch_frame(dataset, "evaluate")
        weight = self.getOrDefault("weightCol") if self.isDefined("weightCol") else ""
        weight = weight if weight and find_column(dataset, weight) else ""
        features, label = self.getFeaturesCol(), self.getLabelCol()
        check_training_columns(dataset, ColumnNames(features, label, weight or None, None))
        rows = dataset.select(
            without_metadata(features, features),
            quoted(label).cast("double").alias("spark_fm_label"),
            (quoted(weight).cast("double") if weight else F.lit(1.0)).alias("spark_fm_weight"),
        )
        # Writes the score only, null where "skip" would drop the row.
        outputs = {
            "scoreCol": "spark_fm_score",
            **dict.fromkeys(("predictedLabelCol", *SPARK_OUTPUTS), ""),
        }
        if self.getHandleInvalid() == "skip":
            outputs["handleInvalid"] = "keep"
        scorer = self.copy({self.getParam(name): value for name, value in outputs.items()})
        scored = scorer.transform(rows).select(
            F.col("spark_fm_score").alias("score"),
            F.col("spark_fm_label").alias("label"),
            F.col("spark_fm_weight").alias("weight"),
        )
        names = Names(label=label, score=self.getScoreCol(), weight=weight or None)
        if self.getPredictorType() == BINARY:
            return _of_classifier(
                classifier_sums(scored, names, threshold=self.getThreshold(), curves=True)
            )
        return _of_regressor(regressor_sums(scored, names, centre=self.weights.bias))


def _of_classifier(sums: ClassifierSums) -> FMEvaluation:
    thinned, inputs = sums.groups.thinned(CURVE_POINTS), sums.inputs
    return FMEvaluation(
        metrics=sums.metrics(),
        calibration=pd.DataFrame(sums.groups.equal_weights(CALIBRATION_GROUPS).calibration()),
        confusion=pd.DataFrame(
            [[inputs.tn, inputs.fp], [inputs.fn, inputs.tp]],
            index=["label 0", "label 1"],
            columns=["predicted 0", "predicted 1"],
        ),
        roc=pd.DataFrame(thinned.roc()),
        pr=pd.DataFrame(thinned.precision_recall()),
    )


def _of_regressor(sums: RegressorSums) -> FMEvaluation:
    groups = merged_means(sums.by_score, CALIBRATION_GROUPS)
    return FMEvaluation(
        metrics=sums.metrics(),
        calibration=pd.DataFrame({name: groups[name] for name in ("score", "label", "weight")}),
        residuals=_histogram(sums.by_residual["residual"], sums.by_residual["weight"]),
    )


def _histogram(residual: Floats, weight: Floats) -> pd.DataFrame:
    """Return the weights of groups of rows, of ascending mean residual, in even bins."""
    quantiles = (np.cumsum(weight) - weight / 2) / weight.sum()
    low, high = np.interp([TAIL, 1 - TAIL], quantiles, residual)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(
        np.clip(residual, low, high), RESIDUAL_BINS, (low, high), weights=weight
    )
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "weight": counts})
