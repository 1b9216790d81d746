"""Large values between driver and tasks of one machine, through files; both ends.

Through the JVM a value is copied half a dozen times each way. On a local master driver
and tasks see the same folders.
"""

from __future__ import annotations

import mmap
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from spark_fm.learner.state import ALIGNMENT


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Make a folder that only this user can read, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="spark_fm-", ignore_cleanup_errors=True) as name:
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
    whole = read_bytes(path)
    stop = 8 + int.from_bytes(whole[:8], "little")
    n_head, sizes = pickle.loads(whole[8:stop])
    head, place, views = whole[stop : stop + n_head], stop + n_head, []
    for size in sizes:
        place += -place % ALIGNMENT
        views.append(whole[place : place + size])
        place += size
    return pickle.loads(head, buffers=views)
