"""Metrics of scored rows for model selection; driver only.

The module path is part of the on-disk format.
"""

from __future__ import annotations

import math
from typing import Any

from pyspark import keyword_only
from pyspark.ml.evaluation import Evaluator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasLabelCol, HasWeightCol
from pyspark.ml.util import MLReadable, MLWritable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_fm.errors import InvalidDataError
from spark_fm.learner.losses import REGRESSOR
from spark_fm.learner.metrics import METRICS, f_beta
from spark_fm.learner.spec import require
from spark_fm.ml.persistence import FMStageReader, FMStageWriter
from spark_fm.scoring.metrics import Names, classifier_sums, regressor_sums
from spark_fm.spark.schema import check_number, column_of, is_vector, quoted

# SageMaker's objective names and the project's own.
SAGEMAKER_METRICS = {
    "test:binary_classification_cross_entropy": "logloss",
    "test:binary_classification_accuracy": "accuracy",
    "test:binary_f_beta": "f_beta",
    "test:rmse": "rmse",
}
EVALUATOR_METRICS = (
    *SAGEMAKER_METRICS,
    *(name for name, metric in METRICS.items() if metric.in_validation),
)


class FMEvaluator(
    Evaluator,
    HasLabelCol,
    HasWeightCol,
    MLReadable["FMEvaluator"],
    MLWritable,
):
    """Metric of scored rows, by SageMaker's objective names or the project's own.

    For CrossValidator and TrainValidationSplit, on the scores of any model.

    Parameters
    ----------
    metricName : str
        Of classifiers ``test:binary_classification_cross_entropy`` (the default; also
        called ``logloss``), ``test:binary_classification_accuracy`` (``accuracy``),
        ``test:binary_f_beta``, ``f1``, ``roc_auc`` and ``pr_auc`` (average precision); of
        regressors ``test:rmse`` (``rmse``), ``mae`` and ``r2``.
    labelCol : str
        Default ``label``.
    scoreCol : str
        Default ``score``: a number, or a vector of two, such as Spark's own
        ``probability``, whose second entry is used. The log loss needs P(label = 1); the
        other metrics of classifiers take any score.
    weightCol : str, optional
    threshold : float
        Smallest score for which the predicted label is 1 (0 to 1), for accuracy, f1 and
        f_beta.
    beta : float
        Weight of recall in ``test:binary_f_beta`` (> 0); default 1.

    Notes
    -----
    One Spark job. Rows with a null score are left out, with a warning; labels other than
    0 and 1 (or -1 and 1), null labels, NaN scores and bad weights raise InvalidDataError,
    as does an undefined metric, because NaN would win or lose a search silently. Areas
    treat scores whose log-odds agree to 1e-4 as ties; all else is exact.

    Examples
    --------
    >>> from spark_fm import FMEvaluator
    >>> scored = spark.createDataFrame(
    ...     [(1.0, 0.8), (0.0, 0.6), (1.0, 0.7), (0.0, 0.1)], ["label", "score"])
    >>> FMEvaluator(metricName="test:binary_classification_accuracy").evaluate(scored)
    0.75
    >>> FMEvaluator(metricName="roc_auc").evaluate(scored)
    1.0
    """

    metricName: Param[str] = Param(
        Params._dummy(), "metricName", f"metric: one of {', '.join(EVALUATOR_METRICS)}",
        TypeConverters.toString,
    )  # fmt: skip
    scoreCol: Param[str] = Param(
        Params._dummy(), "scoreCol",
        "score column: a number, or a vector of two, whose second entry is used",
        TypeConverters.toString,
    )  # fmt: skip
    threshold: Param[float] = Param(
        Params._dummy(), "threshold", "smallest score for which the predicted label is 1 (0 to 1)",
        TypeConverters.toFloat,
    )  # fmt: skip
    beta: Param[float] = Param(
        Params._dummy(), "beta", "weight of recall in test:binary_f_beta (> 0)",
        TypeConverters.toFloat,
    )  # fmt: skip

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        metricName: str | None = None,
        labelCol: str | None = None,
        scoreCol: str | None = None,
        weightCol: str | None = None,
        threshold: float | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(
            metricName="test:binary_classification_cross_entropy", labelCol="label",
            scoreCol="score", threshold=0.5, beta=1.0,
        )  # fmt: skip
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(
        self,
        *,
        metricName: str | None = None,
        labelCol: str | None = None,
        scoreCol: str | None = None,
        weightCol: str | None = None,
        threshold: float | None = None,
        beta: float | None = None,
    ) -> FMEvaluator:
        """Set the Params that are given; None unsets one."""
        for name, value in self._input_kwargs.items():
            if value is None:
                self.clear(self.getParam(name))
        _check_metric(self._input_kwargs.get("metricName"))
        return self._set(**{n: v for n, v in self._input_kwargs.items() if v is not None})

    def getMetricName(self) -> str:
        """Return metricName."""
        return self.getOrDefault(self.metricName)

    def setMetricName(self, value: str) -> FMEvaluator:
        """Set metricName."""
        _check_metric(value)
        return self._set(metricName=value)

    def setLabelCol(self, value: str) -> FMEvaluator:
        """Set labelCol."""
        return self._set(labelCol=value)

    def getScoreCol(self) -> str:
        """Return scoreCol."""
        return self.getOrDefault(self.scoreCol)

    def setScoreCol(self, value: str) -> FMEvaluator:
        """Set scoreCol."""
        return self._set(scoreCol=value)

    def setWeightCol(self, value: str) -> FMEvaluator:
        """Set weightCol."""
        return self._set(weightCol=value)

    def getThreshold(self) -> float:
        """Return threshold."""
        return self.getOrDefault(self.threshold)

    def setThreshold(self, value: float) -> FMEvaluator:
        """Set threshold."""
        return self._set(threshold=value)

    def getBeta(self) -> float:
        """Return beta."""
        return self.getOrDefault(self.beta)

    def setBeta(self, value: float) -> FMEvaluator:
        """Set beta."""
        return self._set(beta=value)

    def isLargerBetter(self) -> bool:
        """Return whether larger values of the metric are better."""
        name = self._metric()
        return name == "f_beta" or METRICS[name].larger_is_better

    def _metric(self) -> str:
        name = self.getMetricName()
        _check_metric(name)
        return SAGEMAKER_METRICS.get(name, name)

    def _evaluate(self, dataset: DataFrame) -> float:
        metric = self._metric()
        threshold, beta = self.getThreshold(), self.getBeta()
        require(0 <= threshold <= 1, "threshold", threshold, "0 to 1")
        require(0 < beta < math.inf, "beta", beta, "a finite number > 0")
        weight = self.getOrDefault("weightCol") if self.isDefined("weightCol") else ""
        names = Names(self.getLabelCol(), self.getScoreCol(), weight or None)
        scored = _scored_rows(dataset, names)
        if metric in METRICS and METRICS[metric].predictor_type == REGRESSOR:
            inputs = regressor_sums(scored, names).inputs
        else:
            inputs = classifier_sums(
                scored, names, threshold=threshold, curves=metric in ("roc_auc", "pr_auc")
            ).inputs
            if metric == "logloss" and math.isnan(inputs.loss):
                raise InvalidDataError(
                    f"scoreCol={names.score!r} has scores outside 0 to 1; "
                    f"metricName={self.getMetricName()!r} needs P(label = 1). Set scoreCol to a "
                    "probability, or use roc_auc."
                )
        is_f_beta = metric == "f_beta"
        value = f_beta(inputs, beta) if is_f_beta else METRICS[metric].value(inputs)
        if math.isnan(value):
            raise InvalidDataError(
                f"metricName={self.getMetricName()!r} is undefined on these rows: they have one "
                "class only, constant labels or no weight. Use more rows, or another metric."
            )
        return float(value)

    def write(self) -> FMStageWriter:
        """Return a writer of this evaluator's Params."""
        return FMStageWriter(self)

    @classmethod
    def read(cls) -> FMStageReader:
        """Return a reader of evaluators."""
        return FMStageReader(cls)


def _scored_rows(dataset: DataFrame, names: Names) -> DataFrame:
    """Return the columns score, label and weight; raise if one has a wrong type."""
    check_number(dataset, names.label, "labelCol")
    if names.weight is not None:
        check_number(dataset, names.weight, "weightCol")
    weight = F.lit(1.0) if names.weight is None else quoted(names.weight).cast("double")
    return dataset.select(
        _score(dataset, names.score).alias("score"),
        quoted(names.label).cast("double").alias("label"),
        weight.alias("weight"),
    )


def _score(dataset: DataFrame, name: str) -> Column:
    if is_vector(column_of(dataset, name, "scoreCol").dataType):
        values = vector_to_array(quoted(name))
        # A null vector is a null score; one of another size is an error, like a NaN score.
        invalid = F.when(values.isNotNull(), float("nan"))
        return F.when(F.size(values) == 2, F.get(values, 1)).otherwise(invalid)
    check_number(dataset, name, "scoreCol")
    return quoted(name).cast("double")


def _check_metric(name: object) -> None:
    """Raise InvalidParamError before a search trains its models for nothing."""
    if isinstance(name, str):  # Spark raises for other types
        require(name in EVALUATOR_METRICS, "metricName", name,
                f"one of {', '.join(EVALUATOR_METRICS)}")  # fmt: skip
