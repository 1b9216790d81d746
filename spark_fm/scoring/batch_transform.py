"""Batch transform on a cluster: a Spark task for each file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import SparkSession

from spark_fm.formats.batch_transform import Outcome, Transform, Work, transform_file
from spark_fm.formats.models.native import SavedModel, read_model
from spark_fm.spark.worker import WorkerTask

OUTCOME_DDL = "file long, rows long, error string"
_SCHEMA = pa.schema([("file", pa.int64()), ("rows", pa.int64()), ("error", pa.string())])

_loaded: dict[tuple[str, float | None], SavedModel] = {}  # of a worker process: the last one


@dataclass(frozen=True)
class TransformTask(WorkerTask):
    """Score the files whose indices come in: for ``mapInArrow``; executors."""

    model: str  # path of a saved model that executors can read
    threshold: float | None  # in place of the model's
    job: Transform
    works: tuple[Work, ...]

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome of each file; an invalid file does not fail the task."""
        for batch in batches:
            for file in batch.column(0).to_pylist():
                outcome = transform_file(self._load(), self.job, self.works[file])
                row = [[file], [outcome.n_rows], [outcome.error]]
                yield pa.RecordBatch.from_arrays(
                    [pa.array(*each) for each in zip(row, _SCHEMA.types, strict=True)],
                    schema=_SCHEMA,
                )

    def _load(self) -> SavedModel:
        key = (self.model, self.threshold)
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = read_model(self.model).with_threshold(self.threshold)
        return _loaded[key]


def transform_files(
    spark: SparkSession, task: TransformTask, works: Sequence[Work]
) -> list[Outcome]:
    """Score files as a Spark job, and return their outcomes in order."""
    files = spark.range(0, len(works), 1, len(works))
    rows = sorted(files.mapInArrow(task, OUTCOME_DDL).collect(), key=lambda row: row["file"])
    return [
        Outcome(work.file.path, row["rows"], row["error"])
        for work, row in zip(works, rows, strict=True)
    ]
