"""Send one Python value to all tasks of a job, by the best way the session has.

Classic: a broadcast variable, or a file where driver and tasks share one machine.
Connect: inside the task's closure while it is small, otherwise a file artifact, because
one message there may hold 128 MiB.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from pyspark.sql import SparkSession

from spark_fm.engine.handles import (
    ArtifactHandle,
    BroadcastHandle,
    FileHandle,
    Handle,
    InlineHandle,
)
from spark_fm.engine.local_files import shared_folder, write_value
from spark_fm.engine.session import is_connect, shares_files

FILE_BYTES = 2**20  # below, a broadcast is as fast
INLINE_BYTES = 24 * 2**20  # one plan may carry four of them


@contextmanager
def shipped(
    session: SparkSession, value: Any, *, n_bytes: int, at_once: bool = False
) -> Iterator[Handle]:
    """Make ``value`` available to tasks inside the block.

    Parameters
    ----------
    session : SparkSession
    value : object
        Anything that pickles; NumPy arrays cost one copy.
    n_bytes : int
        About its size, which decides how it travels.
    at_once : bool
        The task that takes it runs already and shares the driver's files.

    Notes
    -----
    On Connect a value over 24 MiB stays on the server's disk until the Spark session
    ends: Spark has no call that removes an artifact.
    """
    if at_once or (n_bytes >= FILE_BYTES and shares_files(session)):
        with shared_folder() as folder:
            write_value(folder / "value", value)
            yield FileHandle(str(folder / "value"))
    elif not is_connect(session):
        variable = session.sparkContext.broadcast(value)
        try:
            yield BroadcastHandle(variable)
        finally:
            variable.destroy()
    elif n_bytes <= INLINE_BYTES:
        yield InlineHandle(value)
    else:
        yield _artifact(session, value)


def lasting_handle(session: SparkSession, value: Any, *, n_bytes: int) -> Handle:
    """Return a handle that works for as long as the session: for lazy transformations.

    On Classic the value travels in the closure, which Spark itself turns into a
    broadcast variable above 1 MiB and frees with the plan.
    """
    if is_connect(session) and n_bytes > INLINE_BYTES:
        return _artifact(session, value)
    return InlineHandle(value)


def _artifact(session: SparkSession, value: Any) -> ArtifactHandle:
    with tempfile.TemporaryDirectory() as folder:
        name = f"spark_fm-{uuid4().hex}.bin"
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            pickle.dump(value, file, protocol=5)
        session.addArtifact(path, file=True)
    return ArtifactHandle(name)
