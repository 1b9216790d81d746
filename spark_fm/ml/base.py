"""What the methods of a fitted model build on: Params, weights, output columns; driver only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import scipy.sparse as sp
from pyspark.ml import Model
from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm.errors import InvalidDataError, SparkFMError
from spark_fm.formats.vectors import rows_of
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import BINARY, Floats
from spark_fm.learner.weights import FMWeights, Posterior
from spark_fm.ml.accessors import FMParams, ModelParams
from spark_fm.scoring.columns import FeatureReader
from spark_fm.spark.broadcast import Broadcast, session_broadcast
from spark_fm.spark.schema import check_features
from spark_fm.spark.session import use_driver_interpreter

# By object: copies of a model share their broadcast.
_broadcasts: WeakKeyDictionary[Any, tuple[SparkSession, Broadcast]] = WeakKeyDictionary()


def broadcast_once(
    session: SparkSession, value: FMWeights | Posterior, *, n_bytes: int
) -> Broadcast:
    """Return the broadcast of a value, made on the first call in a session."""
    of_session, broadcast = _broadcasts.get(value, (None, None))
    if broadcast is None or of_session is not session:
        same: Any = replace(value)  # the entry must not keep its key alive
        broadcast = session_broadcast(session, same, n_bytes=n_bytes)
        _broadcasts[value] = (session, broadcast)
    return broadcast


class FittedModel(Model, ModelParams):
    """Params and trained weights."""

    _weights: FMWeights | None
    _origin: dict[str, Any] | None

    @property
    def weights(self) -> FMWeights:
        """Parameters and feature ids; raises SparkFMError for an empty shell."""
        if self._weights is None:
            raise SparkFMError("This model has no parameters: fit or load one.")
        return self._weights

    @property
    def origin(self) -> dict[str, Any] | None:
        """Where an imported model comes from, with its hyperparameters; else None."""
        return self._origin

    def _broadcast(self, session: SparkSession) -> Broadcast:
        """Return the broadcast weights."""
        return broadcast_once(session, self.weights, n_bytes=self.weights.table.nbytes)

    def _reader(self, dataset: DataFrame) -> FeatureReader:
        """Check the features column and handleInvalid; return how tasks read that column."""
        name, invalid = self.getFeaturesCol(), self.getHandleInvalid()
        check_features(dataset, name)
        use_driver_interpreter(dataset.sparkSession)
        return FeatureReader(name, invalid)  # type: ignore[arg-type]  # checked above

    def _predict_by_draws(self, posterior: Posterior, X: Any) -> tuple[Floats, Floats]:
        return posterior.predict(self._rows(X), self._loss)

    def _rows(self, X: Any) -> CsrBatch:
        """Return the rows of a matrix; raise InvalidDataError for those that cannot be scored."""
        rows, n_features = rows_of(X), self.weights.feature_dim
        if not sp.issparse(rows) and rows.shape[0] and rows.shape[1] != n_features:
            raise InvalidDataError(
                f"X has {rows.shape[1]} columns, the model has {n_features} features. "
                "Give each row all of them, or a SciPy sparse matrix with their indices."
            )
        batch = CsrBatch.from_matrix(rows)
        if self.getHandleInvalid() == "error" and not np.isfinite(batch.values).all():
            entry = int(np.argmin(np.isfinite(batch.values)))
            row = int(np.searchsorted(batch.indptr, entry, side="right")) - 1
            raise InvalidDataError(
                f"Row {row} of X has the value {batch.values[entry]} at feature "
                f"{batch.indices[entry]}; expected finite values. Clean them, or set "
                'handleInvalid to "keep" for NaN scores.'
            )
        return batch


# What Spark's own models write: a label of two values, a vector with an entry for each of
# them, a number. Spark leaves the type of a number out, and so reads any without it.
TWO_LABELS = {"type": "nominal", "num_vals": 2}
ENTRY_PER_LABEL = {"num_attrs": 2}
NUMBER: dict[str, Any] = {}
PROBABILITY = {"type": "numeric", "min": 0.0, "max": 1.0}
VALUE = {"type": "numeric"}


# Params of the columns that Spark's own models write.
SPARK_OUTPUTS = ("probabilityCol", "rawPredictionCol", "predictionCol")


@dataclass(frozen=True, slots=True)
class Output:
    """One output column."""

    name: str
    make: Callable[[Column], Column]  # from the struct of score and margin
    attributes: dict[str, Any]  # ``ml_attr`` metadata, as org.apache.spark.ml.attribute has them

    def column(self, scored: Column) -> Column:
        """Return the named column; null where the score is null."""
        return self.make(scored).alias(self.name, metadata={"ml_attr": self.attributes})


def outputs(params: FMParams) -> dict[str, Output]:
    """Return the output columns to write, by Param, in their order."""
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
        columns = {
            "scoreCol": Output(params.getScoreCol(), score, PROBABILITY),
            "predictedLabelCol": Output(params.getPredictedLabelCol(), label, TWO_LABELS),
            "probabilityCol": Output(params.getProbabilityCol(), probability, ENTRY_PER_LABEL),
            "rawPredictionCol": Output(params.getRawPredictionCol(), raw, ENTRY_PER_LABEL),
            "predictionCol": Output(params.getPredictionCol(), label, TWO_LABELS),
        }
    else:
        columns = {
            "scoreCol": Output(params.getScoreCol(), score, VALUE),
            "predictionCol": Output(params.getPredictionCol(), score, NUMBER),
        }
    return {param: output for param, output in columns.items() if output.name}
