"""Send one Python value to all tasks of a job, by the best way the session has.

Classic: a broadcast variable, or a file where driver and tasks share one machine.
Connect: inside the task's closure while it is small, otherwise a file artifact, because
one message there may hold 128 MiB.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from pyspark.sql import SparkSession

from spark_fm.learner.state import ALIGNMENT
from spark_fm.spark.leftovers import PREFIX, mark
from spark_fm.spark.session import SparkCluster, is_connect

FILE_BYTES = 2**20  # below, a broadcast is as fast
INLINE_BYTES = 24 * 2**20  # one plan may carry four of them


@contextmanager
def broadcast(
    cluster: SparkCluster, value: Any, *, n_bytes: int, to_running_tasks: bool = False
) -> Iterator[Broadcast]:
    """Make ``value``, anything that pickles, available to tasks inside the block.

    ``n_bytes``, about its size, decides how it travels; ``to_running_tasks`` means that the
    tasks run already and share the driver's files. On Connect a value over 24 MiB stays on
    the server's disk until the session ends: Spark has no call that removes an artifact.
    """
    if to_running_tasks or (n_bytes >= FILE_BYTES and cluster.shares_files):
        with shared_folder() as folder:
            write_value(folder / "value", value)
            yield FileBroadcast(str(folder / "value"))
    elif not cluster.is_connect:
        variable = cluster.session.sparkContext.broadcast(value)
        try:
            yield VariableBroadcast(variable)
        finally:
            variable.destroy()
    elif n_bytes <= INLINE_BYTES:
        yield ClosureBroadcast(value)
    else:
        yield _artifact(cluster.session, value)


def session_broadcast(session: SparkSession, value: Any, *, n_bytes: int) -> Broadcast:
    """Return a broadcast that lasts as long as the session: for lazy transformations.

    On Classic the value travels in the closure, which Spark itself turns into a
    broadcast variable above 1 MiB and frees with the plan.
    """
    if is_connect(session) and n_bytes > INLINE_BYTES:
        return _artifact(session, value)
    return ClosureBroadcast(value)


def _artifact(session: SparkSession, value: Any) -> ArtifactBroadcast:
    with tempfile.TemporaryDirectory() as folder:
        name = f"spark_fm-{uuid4().hex}.bin"
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            pickle.dump(value, file, protocol=5)
        session.addArtifact(path, file=True)
    return ArtifactBroadcast(name)


class Broadcast(Protocol):
    """A value on its way; ``load`` returns it on a worker. Treat it as read-only."""

    def load(self) -> Any:
        """Return the value."""


class ClosureBroadcast:
    """A value that travels inside the task's closure."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def load(self) -> Any:
        """Return the value."""
        return self._value


class VariableBroadcast:
    """A value in a Spark broadcast variable (Classic)."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def load(self) -> Any:
        """Return the value, unpickled once a worker process."""
        return self._variable.value


class FileBroadcast:
    """A value in a file of the one machine that driver and tasks share."""

    def __init__(self, path: str) -> None:
        self._path = path

    def load(self) -> Any:
        """Map the file and return the value; its arrays are read-only."""
        return read_value(Path(self._path))


class ArtifactBroadcast:
    """A value in a file artifact of the Spark session (Connect)."""

    def __init__(self, name: str) -> None:
        self._name = name

    def load(self) -> Any:
        """Read and return the value."""
        from pyspark import SparkFiles

        with open(SparkFiles.get(self._name), "rb") as file:
            # Written a moment ago by this session's driver and by nobody else.
            return pickle.load(file)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        mark(Path(name), os.getpid())
        yield Path(name)


def write_buffers(folder: str, buffers: Iterable[memoryview]) -> str:
    """Write a new file and return its name."""
    name = uuid4().hex
    with open(Path(folder) / name, "wb") as file:
        for buffer in buffers:
            file.write(buffer)
    return name


def read_bytes(path: Path) -> memoryview:
    """Return the bytes of a file, mapped: they outlive its name."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def write_value(path: Path, value: Any) -> None:
    """Write a value that pickles; the data of its arrays follow the pickle, aligned."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    table = pickle.dumps((len(head), [view.nbytes for view in views]))
    with open(path, "wb") as file:
        file.write(len(table).to_bytes(8, "little"))
        file.write(table)
        file.write(head)
        for view in views:
            file.write(bytes(-file.tell() % ALIGNMENT))
            file.write(view)


def read_value(path: Path) -> Any:
    """Return what ``write_value`` wrote; its arrays are read-only views of the file."""
    content = read_bytes(path)
    stop = 8 + int.from_bytes(content[:8], "little")
    n_head, sizes = pickle.loads(content[8:stop])
    head, offset, views = content[stop : stop + n_head], stop + n_head, []
    for size in sizes:
        offset += -offset % ALIGNMENT
        views.append(content[offset : offset + size])
        offset += size
    return pickle.loads(head, buffers=views)
