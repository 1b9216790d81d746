"""Each task of a job has all rows, in a partition of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from spark_fm.spark.worker import partition_number
from spark_fm.training.partitions import copies


def sums(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    ids = [value for batch in batches for value in batch.column(0).to_pylist()]
    if ids:
        yield pa.RecordBatch.from_pydict(
            {"partition": [partition_number()], "rows": [len(ids)], "sum": [sum(ids)]}
        )


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 11])
def test_each_copy_is_a_partition_with_all_rows(spark: SparkSession, number: int) -> None:
    rows = spark.range(0, 10, 1, 3)

    frame = copies(rows, number).mapInArrow(sums, "partition long, rows long, sum long")

    assert sorted(map(tuple, frame.collect())) == [(place, 10, 45) for place in range(number)]
