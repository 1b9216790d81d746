"""Blocks land in exactly the partitions that were asked for."""

from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from pyspark.sql import functions as F

from spark_fm.learner.csr import CsrBatch
from spark_fm.training import rounds
from spark_fm.training.packing import TRAIN, block_row, read_blocks
from spark_fm.training.partitions import partition_keys, spark_hash
from spark_fm.training.tasks import AssignTask


def test_the_hash_is_the_one_spark_partitions_by(spark):
    values = [0, 1, 2, 41, -1, 2**31 - 1]
    frame = spark.createDataFrame([(v,) for v in values], "v int").select("v", F.hash("v"))

    assert {v: h for v, h in frame.collect()} == {v: spark_hash(v) for v in values}


@pytest.mark.parametrize(("n_partitions", "n_shuffled"), [(1, 1), (7, 7), (32, 32), (7, 1000)])
def test_each_key_gets_a_partition_of_its_own(spark, n_partitions, n_shuffled):
    keys = partition_keys(n_partitions, n_shuffled)
    frame = spark.createDataFrame([(k,) for k in keys], "key int").repartition(n_shuffled, "key")
    if n_shuffled > n_partitions:
        frame = frame.coalesce(n_partitions)

    places = frame.select("key", F.spark_partition_id()).collect()

    assert {key: place for key, place in places} == {k: p for p, k in enumerate(keys)}


def numbered_rows(first: int, n_rows: int) -> CsrBatch:
    return CsrBatch.from_arrays(
        np.arange(n_rows + 1), np.zeros(n_rows, np.int32), np.ones(n_rows, np.float32),
        labels=np.arange(first, first + n_rows, dtype=np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n_sources", "n_blocks", "n_rows"), [(1, 32, 700), (3, 8, 65), (200, 8, 3), (300, 20, 1)]
)
def test_every_row_is_assigned_once_and_shares_are_even(n_sources, n_blocks, n_rows):
    n_partitions, n_rounds = 4, 64
    task = AssignTask(
        keys=(10, 11, 12, 13), n_rounds=n_rounds, preparation=None
    )  # fmt: skip
    blocks = [
        block_row(TRAIN, source, seq, numbered_rows((source * n_blocks + seq) * n_rows, n_rows))
        for source in range(n_sources)
        for seq in range(n_blocks)
    ]

    labels, shares = [], np.zeros((n_partitions, n_rounds))
    for batch in task(iter(blocks)):
        ((_, _, _, rows),) = read_blocks([batch])
        labels += rows.labels.tolist()
        key, round_index = (batch.column(name)[0].as_py() for name in ("key", "round"))
        shares[key - 10, round_index] += rows.n_rows

    total = n_sources * n_blocks * n_rows
    assert sorted(labels) == list(range(total))
    fair = total / shares.size
    assert abs(shares.sum(1) / n_rounds - fair).max() <= 0.05 * fair
    # Three-gap theorem: counts of golden multiples differ by a few blocks at most.
    assert abs(shares - fair).max() <= max(0.5 * fair, 3 * max(1, n_rows / n_rounds))


@pytest.mark.parametrize(
    ("executors", "is_crowded"),
    [({"a": 4}, True), ({"a": 3, "b": 1}, True), ({"a": 3, "b": 2}, False)],
)
def test_an_executor_with_more_than_its_share_of_partitions_is_named(executors, is_crowded, caplog):
    cluster = SimpleNamespace(tasks_share_files=False, n_executors=lambda: 2)

    with caplog.at_level(logging.WARNING, "spark_fm"):
        rounds._warn_of_crowding(Counter(executors), cluster)

    said = f"{executors['a']} of {sum(executors.values())} training partitions are on one of 2"
    assert (said in caplog.text) == is_crowded
