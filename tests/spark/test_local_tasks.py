"""Tasks of a local master that run without a query."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from spark_fm.errors import SparkFMError
from spark_fm.spark.local_tasks import run_local
from spark_fm.spark.session import SparkCluster
from spark_fm.spark.worker import WorkerTask, partition_number

pytestmark = pytest.mark.spark
SCHEMA = pa.schema([("partition", pa.int64()), ("sum", pa.int64()), ("daemon", pa.int64())])


@dataclass(frozen=True)
class Sums(WorkerTask):
    """The sum of a column, with the numbers of the partition and of the workers' daemon."""

    fails: bool = False

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if self.fails:
            raise SparkFMError("no sums today")
        total = sum(value for batch in batches for value in batch.column(0).to_pylist())
        columns = [pa.array([value]) for value in (partition_number(), total, os.getppid())]
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def test_each_task_takes_all_rows(spark: SparkSession) -> None:
    rows = pa.table({"x": list(range(10))})

    found = run_local(Sums(), 3, SCHEMA, SparkCluster.of(spark), rows=rows)

    assert found["partition"].to_pylist() == [0, 1, 2]
    assert found["sum"].to_pylist() == [45, 45, 45]


def test_tasks_need_no_rows(spark: SparkSession) -> None:
    found = run_local(Sums(), 2, SCHEMA, SparkCluster.of(spark))

    assert found["sum"].to_pylist() == [0, 0]


def test_the_workers_are_those_of_sql(spark: SparkSession) -> None:
    variables = dict(spark.sparkContext.environment)
    ours = run_local(Sums(), 1, SCHEMA, SparkCluster.of(spark))["daemon"].to_pylist()

    query = spark.range(0, 4, 1, 1).mapInArrow(Sums(), "partition long, sum long, daemon long")

    assert query.toArrow()["daemon"].to_pylist() == ours
    assert spark.sparkContext.environment == variables


def test_an_error_of_a_task_is_raised_as_it_is(spark: SparkSession) -> None:
    with pytest.raises(SparkFMError, match=r"^no sums today$"):
        run_local(Sums(fails=True), 1, SCHEMA, SparkCluster.of(spark))
