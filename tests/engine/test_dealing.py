"""Blocks land in exactly the partitions that were asked for."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F

from spark_fm.engine.dealing import partition_keys, spark_hash


def test_the_hash_is_the_one_spark_partitions_by(spark):
    values = [0, 1, 2, 41, -1, 2**31 - 1]
    frame = spark.createDataFrame([(v,) for v in values], "v int").select("v", F.hash("v"))

    assert {v: h for v, h in frame.collect()} == {v: spark_hash(v) for v in values}


@pytest.mark.parametrize("n_partitions", [1, 2, 7, 32])
def test_each_key_gets_a_partition_of_its_own(spark, n_partitions):
    keys = partition_keys(n_partitions)
    frame = spark.createDataFrame([(k,) for k in keys], "key int").repartition(n_partitions, "key")

    places = frame.select("key", F.spark_partition_id()).collect()

    assert {key: place for key, place in places} == {k: p for p, k in enumerate(keys)}
