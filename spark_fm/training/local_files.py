"""Files of a training set in Spark's own folders of a machine: executors, and their removal.

Spark names to its workers the folders in which the executor keeps its blocks, and removes them when
the executor ends: files that a killed driver or task leaves behind go with them. Those of a killed
executor go with the next training on the machine (``spark/leftovers.py``).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pyarrow as pa
from pyspark.sql import DataFrame

from spark_fm.learner.state import ALIGNMENT
from spark_fm.spark.leftovers import PREFIX, executor_process, mark, remove_leftovers
from spark_fm.spark.worker import WorkerTask

log = logging.getLogger(__name__)

# Fraction of the disk that files leave free where Spark could keep the rows: it spills, too.
FREE_FRACTION = 0.1

Place = tuple[str, int]  # of a block: its file, and where in it the block starts


class BlockFile:
    """Takes the bytes of blocks, for as long as the disk has room for them.

    Each attempt of a task has a file of its own, whose name comes with the rows that name the
    blocks: those of the attempt that Spark takes name a complete file.
    """

    def __init__(self, key: str, partition: int, *, free_fraction: float | None = None) -> None:
        self.folder = store_folder(key, partition)
        self._path = self.folder / f"{uuid4().hex}.blocks"
        self._free_fraction = free_fraction
        self._file: IO[bytes] | None = None
        self._size = 0
        self.error: OSError | None = None  # why it takes no more

    def __enter__(self) -> BlockFile:
        """Make no file yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        if self._file is not None:
            self._file.close()

    def add(self, payload: Any) -> Place | None:
        """Append bytes and return their place; None where there is no room, from then on."""
        if self.error is not None:
            return None
        start = self._size
        try:
            if self._file is None:
                make_store_folder(self.folder)
                self._file = self._path.open("xb", buffering=0)
            check_room(self.folder, len(payload), self._free_fraction)
            padding = -len(payload) % ALIGNMENT
            for part in (payload, bytes(padding)):
                view = memoryview(part)
                while len(view):
                    view = view[self._file.write(view) :]
        except OSError as err:
            self.error = err
            return None
        self._size += len(payload) + padding
        return str(self._path), start

    def remove(self) -> None:
        """Remove the file; what is mapped of it stays."""
        self._path.unlink(missing_ok=True)


def check_room(folder: Path, n_bytes: int, free_fraction: float | None = None) -> None:
    """Raise OSError where so many more bytes would leave the disk too full."""
    disk = shutil.disk_usage(folder)
    free_fraction = FREE_FRACTION if free_fraction is None else free_fraction
    if disk.free - n_bytes < free_fraction * disk.total:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def store_folder(key: str, partition: int) -> Path:
    """Return the folder of a partition's files of the training set ``key``."""
    folders = local_folders()
    return folders[partition % len(folders)] / f"{PREFIX}{key}"


def make_store_folder(folder: Path) -> None:
    """Make the folder of a training set, the first time with the removal of dead ones."""
    if folder.is_dir():
        return
    whole = next(part for part in (folder, folder.parent) if part.name.startswith(PREFIX))
    with suppress(FileExistsError):  # another task was first
        whole.mkdir(parents=True)
        mark(whole, executor_process())
        remove_leftovers(whole.parent)
    folder.mkdir(parents=True, exist_ok=True)


def remove_store(key: str) -> None:
    """Remove all files of a training set from this machine."""
    for folder in local_folders():
        shutil.rmtree(folder / f"{PREFIX}{key}", ignore_errors=True)


def local_folders() -> list[Path]:
    """Return the folders that Spark keeps for itself on this machine."""
    names = [name for name in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if name]
    return [Path(name) for name in names] or [Path(tempfile.gettempdir())]


@dataclass(frozen=True)
class RemoveFiles(WorkerTask):
    """Remove a training set's files from the machine of a task."""

    store: str

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing."""
        for _ in batches:
            pass
        remove_store(self.store)
        yield from ()


def remove_by_job(key: str, frame: DataFrame) -> None:
    """Remove a training set's files from the machines that a job on ``frame`` runs on."""
    try:
        frame.mapInArrow(RemoveFiles(key), "removed int").count()
    except Exception as err:  # noqa: BLE001 - a clean-up must not hide what went before
        log.debug("files of this training set were not removed: %s", err)
