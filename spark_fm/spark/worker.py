"""What every task does in its worker: check the version, run, and leave little to collect."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyspark import TaskContext

from spark_fm._version import __version__
from spark_fm.errors import VersionMismatchError


@dataclass(frozen=True)
class _Versioned:
    version: str = field(default_factory=lambda: __version__, init=False)  # the driver's


@dataclass(frozen=True)
class WorkerTask(_Versioned):
    """A generator over one partition's record batches, for ``mapInArrow``, or over its arrays.

    A frozen dataclass pickles small and is tested without Spark:
    ``list(SomeTask(...)(iter([batch])))``.
    """

    def __call__(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Run on a partition's batches, on a worker of the driver's version only."""
        check_version(self.version)
        yield from self.run(batches)
        freeze_loaded_modules()

    def run(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield what this task makes of the batches."""
        raise NotImplementedError


@dataclass(frozen=True)
class GroupTask(_Versioned):
    """A function of one group, or one of either side: for ``applyInArrow``.

    Made on the driver and called in a plain function, whose parameters PySpark counts.
    """

    def __call__(self, *groups: pa.Table) -> pa.Table:
        """Run on a group, on a worker of the driver's version only."""
        check_version(self.version)
        result = self.run(*groups)
        freeze_loaded_modules()
        return result

    def run(self, *groups: pa.Table) -> pa.Table:
        """Return what this task makes of the group."""
        raise NotImplementedError


def partition_number() -> int:
    """Return the number of this task's partition, 0 outside tasks."""
    context = TaskContext.get()
    return context.partitionId() if context is not None else 0


def check_version(driver_version: str) -> None:
    """Raise VersionMismatchError on a worker whose spark_fm differs from the driver's."""
    if driver_version != __version__:
        raise VersionMismatchError(
            f"The driver runs spark_fm {driver_version}, the worker on {socket.gethostname()} has "
            f"spark_fm {__version__}. Install the same version everywhere, or ship the wheel with "
            "the job (see docs/deploy.md)."
        )


# Objects that a task leaves behind without having loaded anything.
USUAL_OBJECTS = 20_000


def freeze_loaded_modules() -> None:
    """Exempt what a worker has loaded from garbage collection; called as a task ends.

    PySpark's workers collect fully after every task, which takes longer than a short task
    once Numba's hundreds of thousands of objects are there (50 to 100 ms against 1 ms).
    Frozen objects are still freed by their reference counts; only cycles among them stay.
    A worker does this once, or again when it has loaded much more.
    """
    if len(gc.get_objects()) > USUAL_OBJECTS:
        gc.collect()  # else cycles that are garbage already would stay for ever
        gc.freeze()
