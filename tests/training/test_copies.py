"""Each task of a job has all rows, in a partition of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from spark_fm.spark.session import SparkCluster
from spark_fm.spark.worker import partition_number
from spark_fm.training.partitions import copies


def sums(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    ids = [value for batch in batches for value in batch.column(0).to_pylist()]
    if ids:
        yield pa.RecordBatch.from_pydict(
            {"partition": [partition_number()], "rows": [len(ids)], "sum": [sum(ids)]}
        )


@pytest.mark.parametrize(
    ("number", "on_cluster"),
    [(1, False), (2, False), (3, False), (5, False), (11, False), (1, True), (3, True), (11, True)],
)
def test_each_copy_is_a_partition_with_all_rows(
    spark: SparkSession, number: int, on_cluster: bool
) -> None:
    rows = spark.range(0, 10, 1, 3)
    cluster = SparkCluster.of(spark)
    if on_cluster:
        cluster = replace(cluster, local_cores=0)

    frame = copies(rows, number, cluster).mapInArrow(sums, "partition long, rows long, sum long")

    assert sorted(map(tuple, frame.collect())) == [(place, 10, 45) for place in range(number)]
