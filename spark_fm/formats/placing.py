"""Local files that appear under their name only when they are complete."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from spark_fm.errors import InvalidParamError


def local_path(path: object, name: str) -> str:
    """Return a path as text, or raise if it is none or lies on another machine."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "://" in text:
        raise InvalidParamError(
            f"{name} must be a path of this machine, got {path!r}. For a remote place, write "
            f"to a local path and copy it there, or pass write_records an open file object."
        )
    return text


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Give a path to write to, and move it to its place only when all went well."""
    path = os.path.realpath(path)  # a link stays one, and its target gets the data
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "This is a folder; name a file in it", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "There is no such folder; make it first", folder)
    if os.path.exists(path) and not os.path.isfile(path):
        yield path  # a pipe or a device cannot be replaced
        return
    # In the same folder, as files move in one step within a file system only.
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
