"""Bring packed blocks to tasks: cut into the partitions that train, or all to each; driver."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any, TypeAlias
from uuid import uuid4

import pyarrow as pa
from numpy.typing import NDArray
from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.spark.broadcast import Broadcast
from spark_fm.spark.collect import (
    CHUNK_DDL,
    CHUNK_SCHEMA,
    MODEL_CHUNK,
    collect_models,
    models_of,
    rows_of,
    worker_errors,
)
from spark_fm.spark.local_tasks import run_local, workers_of_sql
from spark_fm.spark.session import SparkCluster, is_persisted, persisted
from spark_fm.spark.worker import WorkerTask
from spark_fm.training.local_files import remove_by_job
from spark_fm.training.packing import BLOCK_COLUMNS, BLOCK_DDL, VALIDATION
from spark_fm.training.shards import RowSelection
from spark_fm.training.tasks import LISTING_DDL, AssignTask, WriteShardsTask

log = logging.getLogger(__name__)

# Rounds that may be read again for want of files before these are given up.
MOST_MISSES = 3


class PartitionedBlocks:
    """Blocks in their partitions: in files of the executors, and in Spark where those are missing.

    The listing of the blocks is persisted, and computing it writes the files: when an
    executor is lost, Spark lists, and writes, its partitions again elsewhere.
    """

    def __init__(
        self,
        frame: DataFrame,
        cluster: SparkCluster,
        n_rounds: int,
        stack: ExitStack,
        store: str | None = None,
    ) -> None:
        self._cluster = cluster
        # Within the files of the packed rows, where there are any: they are removed together.
        self._key = uuid4().hex if store is None else f"{store}/{uuid4().hex}"
        self._removes_files = store is None
        self._frame = frame
        self._n_rounds = n_rounds
        self._stack = stack
        task = WriteShardsTask(store=self._key, n_rounds=n_rounds)
        listing = frame.mapInArrow(task, LISTING_DDL)
        self._listing = stack.enter_context(persisted(listing))
        self._sorted: DataFrame | None = None
        self._misses = 0 if is_persisted(self._listing) else MOST_MISSES
        self._has_files = False
        self.cores_are_busy = False  # tasks that wait for rounds found no core

    def selection(self, round_index: int, *, train_on_all: bool, validates: bool) -> RowSelection:
        """Return what a round reads, from files while tasks find them."""
        return RowSelection(
            round_index=round_index, n_rounds=self._n_rounds, train_on_all=train_on_all,
            validates=validates, store=self._key if self._misses < MOST_MISSES else None,
        )  # fmt: skip

    def without_files(self, selection: RowSelection) -> RowSelection:
        """Return a selection of the same rows from blocks, when a task did not find its files.

        The next round lists the blocks anew, which writes the files again where it runs. Its disk
        may be full, or tasks not scheduled where their rows are: after a few times files are given
        up.
        """
        self._misses += 1
        is_last = self._misses == MOST_MISSES
        log.log(
            logging.WARNING if is_last else logging.INFO,
            "a task did not find its rows in files of its machine (a full disk?); they are read "
            "from Spark's blocks%s", ", from now on, which takes longer" if is_last else "",
        )  # fmt: skip
        if not is_last:
            self._listing.unpersist()
            self._listing = self._stack.enter_context(persisted(self._listing))
        return replace(selection, store=None)

    @property
    def listing(self) -> DataFrame:
        """All blocks without their payload; computing it writes the files."""
        self._has_files = True
        return self._listing

    def write_files(self) -> float:
        """Write the files unless they are there, and return how long that took."""
        if self._has_files or self._misses >= MOST_MISSES:
            return 0.0
        started = time.perf_counter()
        with worker_errors():
            self.listing.count()
        return time.perf_counter() - started

    def rows(self, selection: RowSelection) -> DataFrame:
        """Return the blocks of a round, or their sizes when rows come from files."""
        if selection.store is not None:
            return self.listing
        selected = selection.selects(F.col("kind") == VALIDATION, F.col("round"))
        return self._sorted_blocks().where(selected).select("round", *BLOCK_COLUMNS)

    def remove_files(self, kind: object = None, *_: object) -> None:
        """Remove the files, on the machines that hold the listing.

        An exit callback: after an exception tasks may still be running, whose cores another
        job would wait for; ``remove_remaining_files`` is called when they have ended.
        """
        if kind is None and self._has_files:
            self._remove(lambda: self._listing)

    def remove_remaining_files(self) -> None:
        """Remove files from as many executors as a job reaches."""
        if self._has_files:
            n_tasks = self._cluster.task_slots
            self._remove(lambda: self._cluster.session.range(0, n_tasks, 1, n_tasks))

    def _sorted_blocks(self) -> DataFrame:
        if self._sorted is None:
            ordered = self._frame.sortWithinPartitions("round", "kind", "source", "seq")
            self._sorted = self._stack.enter_context(persisted(ordered, on_disk=True))
        return self._sorted

    def _remove(self, frame: Callable[[], DataFrame]) -> None:
        self._has_files = False
        if self._removes_files:
            remove_by_job(self._key, frame())


HASH_SEED = 42  # of Spark's hash partitioning
_WORD = 0xFFFFFFFF

ASSIGNED_DDL = f"{BLOCK_DDL}, key int, round int"


# Rows of BLOCK_COLUMNS; a table of places, where driver and tasks see the same files.
Blocks: TypeAlias = DataFrame | pa.Table


def block_frame(blocks: Blocks, cluster: SparkCluster) -> DataFrame:
    """Return blocks as a DataFrame."""
    if isinstance(blocks, DataFrame):
        return blocks
    # Not as an Arrow table: PySpark cuts one by arrow.maxRecordsPerBatch, and fails where that is 0
    # or -1, Spark's "no limit".
    with workers_of_sql(cluster.session):
        frame = cluster.session.createDataFrame(list(rows_of(blocks)), BLOCK_DDL)
    return frame.select(*BLOCK_COLUMNS)


def partition_blocks(
    blocks: DataFrame,
    n_partitions: int,
    n_rounds: int,
    preparation: Broadcast | None,
    store: str | None = None,
) -> DataFrame:
    """Return blocks in exactly ``n_partitions`` partitions, in no order.

    ``store`` is the key of the files that take their parts, where every task sees these.

    Blocks are assigned in turn within each source, so that partitions and rounds get
    equally many, whatever the source's own partitions were.
    """
    n_shuffled = _shuffle_partitions(n_partitions, shares_files=store is not None)
    keys = partition_keys(n_partitions, n_shuffled)
    task = AssignTask(keys, n_rounds, preparation, store)
    assigned = blocks.mapInArrow(task, ASSIGNED_DDL).select("key", "round", *BLOCK_COLUMNS)
    return _shuffled(assigned, "key", n_partitions, n_shuffled)


# From so many partitions of a shuffle on Spark no longer sends a task to where most of its input
# is. Below, where one executor has packed all rows, it alone would train: its tasks are short, and
# each next one waits for it.
SPREAD_PARTITIONS = 1000


def _shuffle_partitions(n_partitions: int, *, shares_files: bool) -> int:
    """Return into how many partitions to shuffle, so that any executor takes the tasks."""
    return n_partitions if shares_files else max(n_partitions, SPREAD_PARTITIONS)


def _shuffled(rows: DataFrame, key: str, n_partitions: int, n_shuffled: int) -> DataFrame:
    """Return the rows in the partitions of their ``partition_keys``."""
    shuffled = rows.repartition(n_shuffled, key)
    return shuffled if n_partitions == n_shuffled else shuffled.coalesce(n_partitions)


def partition_keys(n_partitions: int, n_shuffled: int) -> tuple[int, ...]:
    """Return for each partition an int by which Spark's hash partitioning sends rows there.

    ``repartition(n)`` without a column places rows by a random start, and a plain
    column of partition numbers collides; these keys give each partition its own. More
    shuffled partitions are joined by ``coalesce``: neighbours, in order.
    """
    keys = _keys_of(n_shuffled)
    return tuple(keys[-(-p * n_shuffled // n_partitions)] for p in range(n_partitions))


@lru_cache(4)
def _keys_of(n_shuffled: int) -> dict[int, int]:
    """Return an int for each partition of a shuffle, that Spark's hash partitioning sends there."""
    keys: dict[int, int] = {}
    for key in count():
        keys.setdefault(spark_hash(key) % n_shuffled, key)
        if len(keys) == n_shuffled:
            break
    return keys


def spark_hash(value: int) -> int:
    """Return Spark's 32-bit hash of an int column: MurmurHash3 x86 of one word, signed."""
    word = (value & _WORD) * 0xCC9E2D51 & _WORD
    word = _rotated(word, 15) * 0x1B873593 & _WORD
    mixed = _rotated(HASH_SEED ^ word, 13) * 5 + 0xE6546B64 & _WORD
    mixed ^= 4
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & _WORD
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & _WORD
    mixed ^= mixed >> 16
    return mixed - 2**32 if mixed >= 2**31 else mixed


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> 32 - by) & _WORD


def run_on_copies(
    task: WorkerTask,
    blocks: Blocks,
    number: int,
    cluster: SparkCluster,
    *,
    n_bytes: int,
    profile: ResourceProfile | None = None,
) -> dict[int, tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
    """Run a task on all blocks in each of as many partitions, in one job.

    Returns metadata and arrays by number of the model; ``n_bytes`` bounds those of all.
    """
    if isinstance(blocks, pa.Table):
        found = run_local(task, number, CHUNK_SCHEMA, cluster, rows=blocks)
        return models_of(rows_of(found.select(MODEL_CHUNK)))
    frame = copies(blocks, number, cluster).mapInArrow(task, CHUNK_DDL, profile=profile)
    return collect_models(frame, cluster, n_bytes)


def copies(rows: DataFrame, number: int, cluster: SparkCluster) -> DataFrame:
    """Return a frame whose partitions 0 to ``number - 1`` each hold all of a frame's rows.

    Notes
    -----
    Rows are written ``number`` times by a shuffle. A union of frames of one partition
    each would read them where they are, but Spark analyses it anew for each of them,
    and since 4.1 puts their rows into one partition (spark.sql.unionOutputPartitioning).
    """
    if number == 1:
        return rows.coalesce(1)
    n_shuffled = _shuffle_partitions(number, shares_files=cluster.tasks_share_files)
    keys = F.array(*(F.lit(key) for key in partition_keys(number, n_shuffled)))
    copied = rows.withColumn("copy", F.explode(keys))
    return _shuffled(copied, "copy", number, n_shuffled).drop("copy")
