"""Training data that come through a pipe: standard input or a named one.

The driver forwards the bytes over a socket to one task, which makes rows of them as they
arrive; nothing is stored on the way. A pipe can be read once: a task that runs again fails
with an error that says so.
"""

from __future__ import annotations

import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, cast

import pyarrow as pa
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DoubleType, StructField, StructType

from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import name_of, open_stream, unzipped
from spark_fm.formats.vectors import VECTOR_TYPE
from spark_fm.spark.session import is_local_master, setting

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
CONNECT_SECONDS = 60.0
LOG_INTERVAL_SECONDS = 5.0
# Before each chunk its length, or one of these.
_HEADER = struct.Struct("<i")
_END, _FAILED = 0, -1
_READ, _REPORT = b"R", b"F"  # a task's request: to read the data, or to report its failure


class PipeServer:
    """Passes a pipe on to the first task that asks for it."""

    def __init__(self, path: str, host: str) -> None:
        """Serve ``-`` or a named pipe; tasks connect to ``host``, which is this machine."""
        self._path = path
        self.token = secrets.token_bytes(16)  # what a task sends to be let in
        self._socket = socket.create_server(("" if host != "127.0.0.1" else host, 0))
        self.address = (host, int(self._socket.getsockname()[1]))
        self._is_read = False
        self._failure = (
            f"{name_of(path)} can be read only once, and was needed again, as a task or an "
            "executor was lost. Start over, or store the data in files first."
        )
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Accept no more tasks."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if connection.recv(len(self.token), socket.MSG_WAITALL) != self.token:
                return
            if connection.recv(1) == _REPORT:
                with connection.makefile("rb") as report:
                    self._failure = report.read().decode()
            elif self._is_read:
                _send(connection, _FAILED, self._failure.encode())
            else:
                self._is_read = True
                try:
                    self._forward(connection)
                except ConnectionError:
                    raise  # the task went away
                except OSError as err:
                    text = f"{name_of(self._path)} cannot be read: {err}"
                    _send(connection, _FAILED, text.encode())

    def _forward(self, connection: socket.socket) -> None:
        shown = name_of(self._path)
        log.info("reading %s", shown)
        logged, n_bytes = time.monotonic(), 0
        with open_stream(self._path, buffering=0) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                _send(connection, len(chunk), chunk)
                n_bytes += len(chunk)
                if time.monotonic() - logged > LOG_INTERVAL_SECONDS:
                    logged = time.monotonic()
                    log.info("%s: %.0f MB so far", shown, n_bytes / 1e6)
        _send(connection, _END, b"")


def _send(connection: socket.socket, header: int, data: bytes) -> None:
    """Send a chunk after its length, or a failure's text after _FAILED and its length."""
    if header == _FAILED:
        data = _HEADER.pack(len(data)) + data
    connection.sendall(_HEADER.pack(header) + data)


class _PipeStream:
    """The bytes of a pipe as a task receives them."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._stream = connection.makefile("rb", buffering=CHUNK_BYTES)
        self._name = name
        self._n_left = 0  # bytes of the current chunk
        self._at_end = False

    def read(self, size: int) -> bytes:
        if self._at_end:
            return b""
        if not self._n_left:
            self._n_left = self._header()
            if self._n_left == _END:
                self._at_end = True
                return b""
            if self._n_left == _FAILED:
                text = self._receive(self._header(), at_least=1).decode("utf-8", "replace")
                raise InvalidDataError(text)
        data = self._receive(min(size, self._n_left), at_least=1)
        self._n_left -= len(data)
        return data

    def _header(self) -> int:
        return int(_HEADER.unpack(self._receive(_HEADER.size, at_least=_HEADER.size))[0])

    def _receive(self, size: int, *, at_least: int) -> bytes:
        try:
            data = self._stream.read(size)
        except ConnectionError:
            data = b""
        if len(data) < at_least:
            raise InvalidDataError(f"{self._name} broke off: the command that read it is gone.")
        return bytes(data)


@dataclass(frozen=True)
class PipeTask:
    """Make rows of a pipe: for ``mapInArrow`` over one row."""

    address: tuple[str, int]
    token: bytes
    name: str  # of the pipe, for messages
    read_rows: Callable[[BinaryIO], Iterator[tuple[pa.Array, pa.Array]]]  # labels, vectors
    label_col: str
    features_col: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            pass
        schema = pa.schema([(self.label_col, pa.float64()), (self.features_col, VECTOR_TYPE)])
        with self._connect(_READ) as connection:
            stream = unzipped(cast(BinaryIO, _PipeStream(connection, self.name)))
            try:
                for columns in self.read_rows(stream):
                    yield pa.RecordBatch.from_arrays(list(columns), schema=schema)
            except Exception as err:
                # For later attempts of this task: they cannot read it again to find out.
                with suppress(OSError, InvalidDataError), self._connect(_REPORT) as report:
                    report.sendall(str(err).encode())
                raise

    def _connect(self, request: bytes) -> socket.socket:
        try:
            connection = socket.create_connection(self.address, CONNECT_SECONDS)
        except OSError as err:
            raise InvalidDataError(
                f"{self.name} cannot be read: the task does not reach the driver at "
                f"{self.address[0]}:{self.address[1]} ({err}). Set spark.driver.host."
            ) from None
        connection.settimeout(None)  # whoever writes the pipe may take their time
        connection.sendall(self.token + request)
        return connection


@contextmanager
def piped(
    spark: SparkSession,
    path: str,
    read_rows: Callable[[BinaryIO], Iterator[tuple[pa.Array, pa.Array]]],
    columns: tuple[str, str],
) -> Iterator[DataFrame]:
    """Yield a DataFrame of a pipe's rows, readable once; ``columns`` name label and features."""
    host = "127.0.0.1" if is_local_master(spark) else setting(spark, "spark.driver.host", "")
    server = PipeServer(path, host or socket.gethostname())
    task = PipeTask(server.address, server.token, name_of(path), read_rows, *columns)
    schema = StructType(
        [StructField(columns[0], DoubleType()), StructField(columns[1], VectorUDT())]
    )
    try:
        yield spark.range(0, 1, 1, 1).mapInArrow(task, schema)
    finally:
        server.close()
