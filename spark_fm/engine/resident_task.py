"""The task that serves exchange after exchange within one Spark job: for ``mapInArrow``.

Starting a job costs Spark about 0.3 s, as much as arithmetic on a million entries. On a
machine whose tasks see the driver's files, one job can serve them all: the driver puts an
order into a folder, each task answers it there, and waits for the next.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark import cloudpickle

from spark_fm.engine.pieces import PIECE_SCHEMA
from spark_fm.engine.task_context import partition_number
from spark_fm.engine.version import check_version

STOP = "stop"
POLL_SECONDS = 0.002
_ORDER = re.compile(r"order-(\d+)")


def order_file(folder: Path, number: int) -> Path:
    """Return where the driver puts an order."""
    return folder / f"order-{number}"


def answer_file(folder: Path, number: int, partition: int) -> Path:
    """Return where a task puts what it has to say to an order."""
    return folder / f"answer-{number}-{partition}"


def presence_file(folder: Path, partition: int) -> Path:
    """Return the file by which a task tells that it runs."""
    return folder / f"here-{partition}"


def place(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    draft = _draft(path)
    draft.write_bytes(content)
    draft.replace(path)


def _draft(path: Path) -> Path:
    # Two attempts of a task are two processes.
    return path.with_name(f".{path.name}-{os.getpid()}")


@dataclass(frozen=True)
class ResidentTask:
    """Answer orders until the driver says stop, or its folder is gone.

    An order is a pickled task for ``mapInArrow``, and an answer all that it yields. Orders
    say everything, so that a second attempt of this task goes on where the first was lost.

    Parameters
    ----------
    version : str
    folder : str
    """

    version: str
    folder: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing, in the end."""
        check_version(self.version)
        rows, partition, folder = list(batches), partition_number(), Path(self.folder)
        try:
            place(presence_file(folder, partition), b"")
            for number, order in self._orders(partition):
                task = cloudpickle.loads(order)
                path = answer_file(folder, number, partition)
                draft = _draft(path)
                with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(
                    sink, PIECE_SCHEMA
                ) as writer:  # fmt: skip
                    for batch in task(iter(rows)):
                        writer.write_batch(batch)
                draft.replace(path)
        except FileNotFoundError:
            if folder.exists():
                raise
            # The driver has gone on without an answer: it failed, or was interrupted.
        yield from ()

    def _orders(self, partition: int) -> Iterator[tuple[int, bytes]]:
        """Yield the orders that this partition has not answered yet, with their numbers."""
        folder, done = Path(self.folder), -1
        while STOP not in (names := os.listdir(folder)):
            number = max((int(m[1]) for m in map(_ORDER.fullmatch, names) if m), default=-1)
            order = b""
            if number > done and not answer_file(folder, number, partition).exists():
                with suppress(FileNotFoundError):  # by now all may have answered it
                    order = order_file(folder, number).read_bytes()
            if order:
                yield number, order
                done = number
            else:
                time.sleep(POLL_SECONDS)
