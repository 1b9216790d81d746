"""Deal packed blocks out to an exact number of training partitions; driver only."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from uuid import uuid4

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_fm._version import __version__
from spark_fm.engine.blocks import TRAIN, VALIDATION
from spark_fm.engine.deal_task import DealTask
from spark_fm.engine.handles import Handle
from spark_fm.engine.row_windows import WantedRows
from spark_fm.engine.session import persisted, task_slots
from spark_fm.engine.window_store import remove_store

log = logging.getLogger(__name__)

# Exchanges that may be read again for want of files before these are given up.
MOST_MISSES = 3

HASH_SEED = 42  # of Spark's hash partitioning
_WORD = 0xFFFFFFFF

DEALT_DDL = (
    "kind int, source int, seq int, n_rows int, nnz bigint, name string, payload binary, "
    "report binary, key int, exchange int"
)


class DealtBlocks:
    """Dealt blocks, and which sets of them the executors hold in files, too.

    Parameters
    ----------
    frame : DataFrame
        As ``dealt_blocks`` gives it, persisted where the session can.
    stack : ExitStack
        What has to be released in the end.
    """

    def __init__(self, frame: DataFrame, stack: ExitStack) -> None:
        self._frame = frame
        # Blocks that went to the disk would be read from it whole for their sizes alone.
        self._listing = stack.enter_context(persisted(frame.drop("payload")))
        self._key = uuid4().hex
        self._stored: set[str] = set()
        self._misses = 0
        self._has_files = False

    def wanted(self, *, exchange: int, train_on_all: bool, validates: bool) -> WantedRows:
        """Return what an exchange reads, from files where all tasks wrote them."""
        self._has_files = True
        wanted = WantedRows(
            exchange=exchange, train_on_all=train_on_all, validates=validates, store=self._key
        )
        if self._misses >= MOST_MISSES:
            return wanted
        return replace(wanted, stored=frozenset(self._stored.intersection(wanted.sets.values())))

    def rows(self, wanted: WantedRows) -> DataFrame:
        """Return the blocks of an exchange, those in files without their payload."""
        in_exchange, is_validation = self._conditions(wanted)
        names = wanted.sets
        chosen = F.lit(False)
        bare = F.lit(False)
        for target, condition in ((TRAIN, in_exchange), (VALIDATION, is_validation)):
            if target in names:
                chosen = chosen | condition
                if names[target] in wanted.stored:
                    bare = bare | condition
        columns = ("kind", "source", "seq", "n_rows", "nnz")
        if wanted.stored == set(names.values()):
            nothing = F.lit(None).cast("binary").alias("payload")
            return self._listing.where(chosen).select(*columns, nothing)
        payload = F.when(~bare, F.col("payload")).alias("payload")
        return self._frame.where(chosen).select(*columns, payload)

    def note_kept(self, names: Iterable[str]) -> None:
        """Take in the sets that every task has in files now."""
        self._stored.update(names)

    def note_miss(self, wanted: WantedRows) -> WantedRows:
        """Return what to read in place of ``wanted``, whose files some task did not find.

        An executor was lost, or tasks do not come to where their rows are: after a few
        times files are given up.
        """
        self._misses += 1
        level = logging.WARNING if self._misses == MOST_MISSES else logging.INFO
        log.log(
            level, "a task did not find its rows on its machine; Spark's blocks are read again%s",
            ", from now on" if self._misses == MOST_MISSES else "",
        )  # fmt: skip
        return replace(wanted, stored=frozenset())

    def remove_files(self, kind: object = None, *_: object) -> None:
        """Remove the files, on the machines that hold the blocks.

        An exit callback: after an exception tasks may still be running, whose place
        another job would wait for; ``remove_left_files`` comes when they have ended.
        """
        if kind is None and self._has_files:
            self._remove(self._listing)

    def remove_left_files(self) -> None:
        """Remove files that are still there from as many executors as a job reaches."""
        if self._has_files:
            session = self._frame.sparkSession
            self._remove(session.range(0, task_slots(session), 1, task_slots(session)))

    def _remove(self, frame: DataFrame) -> None:
        self._has_files = False
        try:
            frame.mapInArrow(RemoveFiles(self._key), "removed int").count()
        except Exception as err:  # noqa: BLE001 - a clean-up must not hide what went before
            log.debug("files of this training set were not removed: %s", err)

    @staticmethod
    def _conditions(wanted: WantedRows) -> tuple[Column, Column]:
        is_validation = F.col("kind") == VALIDATION
        in_exchange = F.col("exchange") == wanted.exchange
        return (in_exchange if wanted.train_on_all else in_exchange & ~is_validation), is_validation


@dataclass(frozen=True)
class RemoveFiles:
    """Removes a training set's files from the machine of a task: for ``mapInArrow``."""

    key: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing."""
        for _ in batches:
            pass
        remove_store(self.key)
        yield from ()


def dealt_blocks(
    blocks: DataFrame, n_partitions: int, n_exchanges: int, ids: Handle | None
) -> DataFrame:
    """Return blocks in exactly ``n_partitions`` partitions, in a fixed order.

    Blocks are dealt in turn within each source, so that partitions and exchanges get
    equally many, whatever the source's own partitions were.
    """
    task = DealTask(
        version=__version__, keys=partition_keys(n_partitions), n_exchanges=n_exchanges, ids=ids
    )
    return (
        blocks.mapInArrow(task, DEALT_DDL)
        .select("key", "exchange", "kind", "source", "seq", "n_rows", "nnz", "payload")
        .repartition(n_partitions, "key")
        .sortWithinPartitions("exchange", "kind", "source", "seq")
    )


def partition_keys(n_partitions: int) -> tuple[int, ...]:
    """Return for each partition an int that Spark's hash partitioning sends there.

    ``repartition(n)`` without a column places rows by a random start, and a plain
    column of partition numbers collides; these keys give each partition its own.
    """
    keys: dict[int, int] = {}
    candidate = 0
    while len(keys) < n_partitions:
        keys.setdefault(spark_hash(candidate) % n_partitions, candidate)
        candidate += 1
    return tuple(keys[p] for p in range(n_partitions))


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
