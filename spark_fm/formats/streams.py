"""Streams of bytes: files, standard input and named pipes, gzip-compressed or not."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from typing import IO, Any, BinaryIO, cast

STDIN = "-"
GZIP_BYTES = b"\x1f\x8b"
GZIP_SUFFIXES = (".gz", ".gzip")
# What reading damaged or cut gzip data raises.
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


def is_stream(path: str) -> bool:
    """Tell whether a path is standard input or a named pipe, which can be read once."""
    if path == STDIN:
        return True
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def name_of(path: str) -> str:
    """Return what a stream is called in messages."""
    return "standard input" if path == STDIN else path


def opened(path: str, *, buffering: int = -1) -> BinaryIO:
    """Open standard input or a local path; closing it leaves standard input open."""
    return open(os.dup(sys.stdin.fileno()) if path == STDIN else path, "rb", buffering)


def unzipped(stream: IO[bytes]) -> BinaryIO:
    """Return the stream, or what it decompresses to when it starts like a gzip file."""
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(cast(Any, _Readable(stream)), 2**20)
    if stream.peek(2)[:2] == GZIP_BYTES:
        return cast(BinaryIO, _Gunzip(stream))
    return cast(BinaryIO, stream)


class _Gunzip:
    """Decompress a stream; all that comes before damage is given out before the error."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._file = gzip.GzipFile(fileobj=stream)
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end."""
        taken = bytearray()
        while len(taken) < size and self._error is None:
            try:
                part = self._file.read1(size - len(taken))
            except GZIP_ERRORS as err:
                self._error = err
                break
            if not part:
                break
            taken += part
        if not taken and self._error is not None:
            raise self._error
        return bytes(taken)


class _Readable(io.RawIOBase):
    """A file object of any kind behind the interface that buffering needs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        taken = self._stream.read(len(buffer))
        buffer[: len(taken)] = taken
        return len(taken)
