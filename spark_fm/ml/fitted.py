"""What the methods of a fitted model build on: its parameters, and their way to workers."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pyspark.sql import DataFrame, SparkSession

from spark_fm.errors import SparkFMError
from spark_fm.learner.spec import require
from spark_fm.learner.weights import FMWeights
from spark_fm.ml.getters import FMParams
from spark_fm.scoring.columns import FeatureReader
from spark_fm.spark.broadcast import Handle, lasting_handle
from spark_fm.spark.schema import check_features
from spark_fm.spark.session import use_driver_interpreter

# Shipped weights by weights object: copies of a model share them.
_handles: WeakKeyDictionary[FMWeights, tuple[SparkSession, Handle]] = WeakKeyDictionary()


class FittedModel(FMParams):
    """Params with the weights that a training found."""

    _weights: FMWeights | None

    @property
    def weights(self) -> FMWeights:
        """Parameters and feature ids; raises SparkFMError for an empty shell."""
        if self._weights is None:
            raise SparkFMError("This model has no parameters: fit or load one.")
        return self._weights

    def _handle(self, session: SparkSession) -> Handle:
        weights = self.weights
        kept = _handles.get(weights)
        if kept is not None and kept[0] is session:
            return kept[1]
        value = (weights.table, weights.bias, weights.features, weights.feature_dim)
        handle = lasting_handle(session, value, n_bytes=weights.table.nbytes)
        _handles[weights] = (session, handle)
        return handle

    def _reader(self, dataset: DataFrame) -> FeatureReader:
        """Check a DataFrame's features column and say how tasks read it."""
        name, invalid = self.getFeaturesCol(), self.getHandleInvalid()
        require(invalid in ("error", "skip", "keep"), "handleInvalid", invalid,
                '"error", "skip" or "keep"')  # fmt: skip
        check_features(dataset.schema, name)
        use_driver_interpreter(dataset.sparkSession)
        return FeatureReader(name, invalid)  # type: ignore[arg-type]  # checked above
