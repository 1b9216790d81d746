"""Columns that a model adds to a DataFrame, each with its ml_attr metadata; driver only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column
from pyspark.sql import functions as F

from spark_fm.ml.getters import FMParams
from spark_fm.ml.params import BINARY

# What Spark's own models write: a label of two values, a vector with an entry for each of
# them, a number. Spark leaves the type of a number out, and so reads any without it.
TWO_LABELS = {"type": "nominal", "num_vals": 2}
ENTRY_PER_LABEL = {"num_attrs": 2}
NUMBER: dict[str, Any] = {}
PROBABILITY = {"type": "numeric", "min": 0.0, "max": 1.0}
VALUE = {"type": "numeric"}


@dataclass(frozen=True, slots=True)
class Output:
    """One output column.

    Parameters
    ----------
    name : str
    make : callable
        From the struct of score and margin to the output.
    attributes : dict
        Its ``ml_attr`` metadata, as ``org.apache.spark.ml.attribute`` lays them out.
    """

    name: str
    make: Callable[[Column], Column]
    attributes: dict[str, Any]

    def column(self, scored: Column) -> Column:
        """Return the named column; null where the score is null."""
        return self.make(scored).alias(self.name, metadata={"ml_attr": self.attributes})


def outputs(params: FMParams) -> dict[str, Output]:
    """Return the outputs that have a name, by Param, in the order they are written."""
    threshold = params.getThreshold()

    def score(scored: Column) -> Column:
        return scored["score"]

    def label(scored: Column) -> Column:
        # A null score stays null.
        return F.when(scored["score"].isNull(), None).otherwise(
            (scored["score"] >= threshold).cast("double")
        )

    def pair(low: Column, high: Column) -> Column:
        return F.when(high.isNull(), None).otherwise(array_to_vector(F.array(low, high)))

    def probability(scored: Column) -> Column:
        return pair(1.0 - scored["score"], scored["score"])

    def raw(scored: Column) -> Column:
        return pair(-scored["margin"], scored["margin"])

    if params.getPredictorType() == BINARY:
        found = {
            "scoreCol": Output(params.getScoreCol(), score, PROBABILITY),
            "predictedLabelCol": Output(params.getPredictedLabelCol(), label, TWO_LABELS),
            "probabilityCol": Output(params.getProbabilityCol(), probability, ENTRY_PER_LABEL),
            "rawPredictionCol": Output(params.getRawPredictionCol(), raw, ENTRY_PER_LABEL),
            "predictionCol": Output(params.getPredictionCol(), label, TWO_LABELS),
        }
    else:
        found = {
            "scoreCol": Output(params.getScoreCol(), score, VALUE),
            "predictionCol": Output(params.getPredictionCol(), score, NUMBER),
        }
    return {param: output for param, output in found.items() if output.name}
