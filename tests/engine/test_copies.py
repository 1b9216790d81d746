"""Each task of a job has all rows, in a partition of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from spark_fm.engine.copies import Copies
from spark_fm.engine.task_context import partition_number


def sums(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    ids = [value for batch in batches for value in batch.column(0).to_pylist()]
    if ids:
        yield pa.RecordBatch.from_pydict(
            {"partition": [partition_number()], "rows": [len(ids)], "sum": [sum(ids)]}
        )


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 11])
def test_each_copy_is_a_partition_with_all_rows(spark: SparkSession, number: int) -> None:
    rows = spark.range(0, 10, 1, 3)
    copies = Copies(rows, spark)

    for _ in range(2):  # the second time it is there already
        found = copies.of(number).mapInArrow(sums, "partition long, rows long, sum long").collect()

        assert sorted(map(tuple, found)) == [(place, 10, 45) for place in range(number)]
