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
LOOK_SECONDS = 1.0
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
    """Answer orders until the driver says stop, its folder is gone, or it is gone itself.

    An order is a pickled task for ``mapInArrow``, and an answer all that it yields. Orders
    say everything, so that a second attempt of this task goes on where the first was lost.

    Parameters
    ----------
    version : str
    folder : str
    driver : int
        Process that gives the orders, on this machine.
    """

    version: str
    folder: str
    driver: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing, in the end."""
        check_version(self.version)
        rows, partition, folder = list(batches), partition_number(), Path(self.folder)
        for number, order in self._orders(partition):
            try:
                _answer(order, rows, answer_file(folder, number, partition))
            except FileNotFoundError:
                # Another attempt may have answered, or the driver was interrupted: then the
                # order has been withdrawn, and what it names may be gone.
                if order_file(folder, number).exists():
                    raise
        yield from ()

    def _orders(self, partition: int) -> Iterator[tuple[int, bytes]]:
        """Yield the orders that this partition has not answered yet, with their numbers."""
        folder, done, looked = Path(self.folder), -1, time.monotonic()
        with suppress(FileNotFoundError):
            place(presence_file(folder, partition), b"")
        while STOP not in (names := _names_in(folder)):
            number = max((int(m[1]) for m in map(_ORDER.fullmatch, names) if m), default=-1)
            order = b""
            if number > done and not answer_file(folder, number, partition).exists():
                with suppress(FileNotFoundError):  # by now all may have answered it
                    order = order_file(folder, number).read_bytes()
            if order:
                yield number, order
                done = number
                continue
            time.sleep(POLL_SECONDS)
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if not _is_alive(self.driver):
                    return


def _answer(order: bytes, rows: list[pa.RecordBatch], path: Path) -> None:
    draft = _draft(path)
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, PIECE_SCHEMA) as writer:
        for batch in cloudpickle.loads(order)(iter(rows)):
            writer.write_batch(batch)
    draft.replace(path)


def _names_in(folder: Path) -> list[str]:
    """Return the names of a folder's files; STOP alone where the folder is gone."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return [STOP]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
