"""Score vectors by all members of a posterior: the task of the executors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql.types import DoubleType, StructField, StructType

from spark_fm.learner.spec import LossName
from spark_fm.learner.weights import Posterior
from spark_fm.scoring.columns import FeatureReader, with_bad_rows
from spark_fm.spark.broadcast import Broadcast
from spark_fm.spark.worker import WorkerTask

MEAN_AND_STD = StructType([StructField("mean", DoubleType()), StructField("std", DoubleType())])


@dataclass(frozen=True)
class PosteriorTask(WorkerTask):
    """Predict arrays of vectors: for ``with_structs``."""

    posterior: Broadcast  # Posterior
    loss: LossName
    reader: FeatureReader

    @property
    def features_col(self) -> str:
        """Name of the column that it reads."""
        return self.reader.features_col

    def run(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield a struct of mean and standard deviation for each array of vectors."""
        posterior: Posterior = self.posterior.load()
        for column in columns:
            rows, bad = self.reader.read(column, posterior.members[0].feature_dim)
            values = posterior.predict(rows, self.loss)
            yield pa.StructArray.from_arrays(
                [with_bad_rows(each, bad) for each in values],
                fields=[pa.field(name, pa.float64()) for name in MEAN_AND_STD.names],
                mask=pa.array(bad),
            )
