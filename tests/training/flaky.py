"""Tasks that fail on their first attempt, to see that a retry changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark import TaskContext

from spark_fm.spark.worker import partition_number
from spark_fm.training.local_files import remove_store, store_folder
from spark_fm.training.packing import PackTask
from spark_fm.training.tasks import AssignTask, LocalUpdateTask, RowReader, SingleTask

SLOW_SECONDS = 0.5


def _fail_first_attempt() -> None:
    context = TaskContext.get()
    if context.attemptNumber() == 0 and context.partitionId() == 0:
        raise RuntimeError("first attempt fails on purpose")


class FlakyPackTask(PackTask):
    """Packs on the second attempt."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        _fail_first_attempt()
        return super().__call__(batches)


class DoomedPackTask(PackTask):
    """Packs, and then always fails."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        list(super().__call__(batches))
        raise RuntimeError("packing fails on purpose")


class FlakyUpdateTask(LocalUpdateTask):
    """Trains, and then fails on the first attempt."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        results = list(super().__call__(batches))
        _fail_first_attempt()
        return iter(results)


class ForgetfulUpdateTask(LocalUpdateTask):
    """Trains on a machine that has lost the files of passes before."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if self.rows.store is not None:
            remove_store(self.rows.store)
        return super().__call__(batches)


class OnceForgetfulUpdateTask(LocalUpdateTask):
    """Trains, but partition 1 has lost its files in the first round of a training."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        of_first = self.updates[0].judges_start and partition_number() == 1
        if self.rows.store is not None and of_first:
            for file in store_folder(self.rows.store, 1).glob("1-*"):
                file.unlink()
        return super().__call__(batches)


class FlakySingleTask(SingleTask):
    """Trains, and then fails on the first attempt."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        results = list(super().__call__(batches))
        _fail_first_attempt()
        return iter(results)


class LostUpdateTask(LocalUpdateTask):
    """Trains, and then its process is lost on the first attempt."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        results = list(super().__call__(batches))
        context = TaskContext.get()
        if context.attemptNumber() == 0 and context.partitionId() == 0:
            os._exit(1)
        return iter(results)


class DoomedUpdateTask(LocalUpdateTask):
    """Its process is always lost."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        os._exit(1)


class EndlessUpdateTask(LocalUpdateTask):
    """Takes longer than anybody waits."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        time.sleep(600)
        return super().__call__(batches)


class SlowAssignTask(AssignTask):
    """Assigns rows slowly."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        time.sleep(SLOW_SECONDS)
        return super().__call__(batches)


class SlowRowReader(RowReader):
    """Reads rows slowly."""

    def read(self, *args: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return super().read(*args)
