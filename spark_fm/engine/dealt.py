"""Dealt blocks where exchanges read them: files of the executors, or Spark; driver only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from uuid import uuid4

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm._version import __version__
from spark_fm.engine.blocks import VALIDATION
from spark_fm.engine.row_windows import WantedRows
from spark_fm.engine.session import is_persisted, persisted, task_slots
from spark_fm.engine.store_task import LISTED, LISTING_DDL, RemoveFiles, StoreTask

log = logging.getLogger(__name__)

# Exchanges that may be read again for want of files before these are given up.
MOST_MISSES = 3


class DealtBlocks:
    """Dealt blocks: in files of the executors, and in Spark where these are missing.

    Parameters
    ----------
    frame : DataFrame
        As ``dealt_blocks`` gives it.
    n_exchanges : int
    stack : ExitStack
        Takes what has to be released in the end.

    Notes
    -----
    The listing of the blocks is persisted, and computing it writes the files: when an
    executor is lost, Spark lists, and writes, its partitions again elsewhere.
    """

    def __init__(self, frame: DataFrame, n_exchanges: int, stack: ExitStack) -> None:
        self._key = uuid4().hex
        self._frame = frame
        self._n_exchanges = n_exchanges
        self._stack = stack
        task = StoreTask(version=__version__, store=self._key, n_exchanges=n_exchanges)
        listing = frame.mapInArrow(task, LISTING_DDL)
        self._listing = stack.enter_context(persisted(listing))
        self._sorted: DataFrame | None = None
        self._misses = 0 if is_persisted(self._listing) else MOST_MISSES
        self._has_files = False
        self.cores_are_busy = False  # tasks that wait for exchanges found no core

    def wanted(self, exchange: int, *, train_on_all: bool, validates: bool) -> WantedRows:
        """Return what an exchange reads, from files while tasks find them."""
        return WantedRows(
            exchange=exchange, n_exchanges=self._n_exchanges, train_on_all=train_on_all,
            validates=validates, store=self._key if self._misses < MOST_MISSES else None,
        )  # fmt: skip

    def without_files(self, wanted: WantedRows) -> WantedRows:
        """Return how to read the same rows from blocks, when a task did not find its files.

        Its disk is full, or tasks do not come to where their rows are: after a few times
        files are given up.
        """
        self._misses += 1
        is_last = self._misses == MOST_MISSES
        log.log(
            logging.WARNING if is_last else logging.INFO,
            "a task did not find its rows in files of its machine (a full disk?); they are read "
            "from Spark's blocks%s", ", from now on, which takes longer" if is_last else "",
        )  # fmt: skip
        return replace(wanted, store=None)

    @property
    def listing(self) -> DataFrame:
        """All blocks without their payload; computing it writes the files."""
        self._has_files = True
        return self._listing

    def rows(self, wanted: WantedRows) -> DataFrame:
        """Return the blocks of an exchange, or their sizes when rows come from files."""
        if wanted.store is not None:
            return self.listing
        chosen = wanted.covers(F.col("kind") == VALIDATION, F.col("exchange"))
        return self._sorted_blocks().where(chosen).select(*LISTED, "payload")

    def remove_files(self, kind: object = None, *_: object) -> None:
        """Remove the files, on the machines that hold the listing.

        An exit callback: after an exception tasks may still be running, whose place
        another job would wait for; ``remove_left_files`` comes when they have ended.
        """
        if kind is None and self._has_files:
            self._remove(lambda: self._listing)

    def remove_left_files(self) -> None:
        """Remove files that are still there from as many executors as a job reaches."""
        session = self._frame.sparkSession
        if self._has_files:
            self._remove(lambda: session.range(0, task_slots(session), 1, task_slots(session)))

    def _sorted_blocks(self) -> DataFrame:
        if self._sorted is None:
            ordered = self._frame.sortWithinPartitions("exchange", "kind", "source", "seq")
            self._sorted = self._stack.enter_context(persisted(ordered, on_disk=True))
        return self._sorted

    def _remove(self, frame: Callable[[], DataFrame]) -> None:
        self._has_files = False
        try:
            frame().mapInArrow(RemoveFiles(self._key), "removed int").count()
        except Exception as err:  # noqa: BLE001 - a clean-up must not hide what went before
            log.debug("files of this training set were not removed: %s", err)
