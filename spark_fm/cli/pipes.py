"""Training data that come through a pipe: standard input or a named one.

The driver passes the bytes on over a socket to one task, which makes rows of them as
they come; nothing is stored on the way. A pipe can be read once: a task that is run again
is told so.
"""

from __future__ import annotations

import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DoubleType, StructField, StructType

from spark_fm.datasource.batches import RowTable
from spark_fm.datasource.recordio import ReadOptions
from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import name_of, open_input, unzipped
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.formats.recordio.reader import RecordReader
from spark_fm.formats.text import LineParser, read_text
from spark_fm.formats.vectors import VECTOR_TYPE, vector_column
from spark_fm.spark.session import is_local_master, setting

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
CONNECT_SECONDS = 60.0
SECONDS_A_LINE = 5.0
_LENGTH = struct.Struct("<i")
_END, _FAILED = 0, -1
_READ, _REPORT = b"R", b"F"  # what a task wants: the data, or to say why it fails


class PipeServer:
    """Passes a pipe on to the first task that asks for it.

    Parameters
    ----------
    path : str
        ``-`` or a named pipe of this machine.
    host : str
        Where tasks find this machine.
    """

    def __init__(self, path: str, host: str) -> None:
        self._path = path
        self._token = secrets.token_bytes(16)
        self._socket = socket.create_server(("" if host != "127.0.0.1" else host, 0))
        self.address = (host, int(self._socket.getsockname()[1]))
        self._is_read = False
        self._failure = (
            f"{name_of(path)} can be read only once, and was needed again, as a task or an "
            "executor was lost. Start over, or store the data in files first."
        )
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def token(self) -> bytes:
        """What a task says to be let in."""
        return self._token

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
            if connection.recv(len(self._token), socket.MSG_WAITALL) != self._token:
                return
            if connection.recv(1) == _REPORT:
                with connection.makefile("rb") as report:
                    self._failure = report.read().decode()
            elif self._is_read:
                _send(connection, _FAILED, self._failure.encode())
            else:
                self._is_read = True
                try:
                    self._pass_on(connection)
                except ConnectionError:
                    raise  # the task went away
                except OSError as err:
                    text = f"{name_of(self._path)} cannot be read: {err}"
                    _send(connection, _FAILED, text.encode())

    def _pass_on(self, connection: socket.socket) -> None:
        shown = name_of(self._path)
        log.info("reading %s", shown)
        told, n_bytes = time.monotonic(), 0
        with open_input(self._path, buffering=0) as stream:
            while taken := stream.read(CHUNK_BYTES):
                _send(connection, len(taken), taken)
                n_bytes += len(taken)
                if time.monotonic() - told > SECONDS_A_LINE:
                    told = time.monotonic()
                    log.info("%s: %.0f MB so far", shown, n_bytes / 1e6)
        _send(connection, _END, b"")


def _send(connection: socket.socket, word: int, data: bytes) -> None:
    if word == _FAILED:
        data = _LENGTH.pack(len(data)) + data
    connection.sendall(_LENGTH.pack(word) + data)


class _Received:
    """The bytes of a pipe as a task gets them."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._stream = connection.makefile("rb", buffering=CHUNK_BYTES)
        self._name = name
        self._left = 0
        self._at_end = False

    def read(self, size: int) -> bytes:
        if self._at_end:
            return b""
        if not self._left:
            self._left = self._word()
            if self._left == _END:
                self._at_end = True
                return b""
            if self._left == _FAILED:
                text = self._take(self._word(), at_least=1).decode("utf-8", "replace")
                raise InvalidDataError(text)
        taken = self._take(min(size, self._left), at_least=1)
        self._left -= len(taken)
        return bytes(taken)

    def _word(self) -> int:
        return int(_LENGTH.unpack(self._take(_LENGTH.size, at_least=_LENGTH.size))[0])

    def _take(self, size: int, at_least: int) -> bytes:
        try:
            taken = self._stream.read(size)
        except ConnectionError:
            taken = b""
        if len(taken) < at_least:
            raise InvalidDataError(f"{self._name} broke off: the command that read it is gone.")
        return bytes(taken)


@dataclass(frozen=True)
class PipeTask:
    """Make rows of a pipe: for ``mapInArrow`` over one row.

    Parameters
    ----------
    address : tuple of str and int
    token : bytes
    name : str
        Of the pipe, for messages.
    file_format : str
        libsvm, libfm or recordio-protobuf.
    num_features : int
        0: what records say, or as long as each line needs.
    label_col, features_col : str
    """

    address: tuple[str, int]
    token: bytes
    name: str
    file_format: str
    num_features: int
    label_col: str
    features_col: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield label and features."""
        for _ in batches:
            pass
        schema = pa.schema([(self.label_col, pa.float64()), (self.features_col, VECTOR_TYPE)])
        with self._connected(_READ) as connection:
            stream = unzipped(cast(BinaryIO, _Received(connection, self.name)))
            rows = self._records if self.file_format == RECORDIO else self._lines
            try:
                for columns in rows(stream):
                    yield pa.RecordBatch.from_arrays(list(columns), schema=schema)
            except Exception as err:
                # For attempts of this task to come: they cannot read it again to find out.
                with suppress(OSError, InvalidDataError), self._connected(_REPORT) as report:
                    report.sendall(str(err).encode())
                raise

    def _connected(self, wish: bytes) -> socket.socket:
        try:
            connection = socket.create_connection(self.address, CONNECT_SECONDS)
        except OSError as err:
            raise InvalidDataError(
                f"{self.name} cannot be read: the task does not reach the driver at "
                f"{self.address[0]}:{self.address[1]} ({err}). Set spark.driver.host."
            ) from None
        connection.settimeout(None)  # whoever writes the pipe may take their time
        connection.sendall(self.token + wish)
        return connection

    def _records(self, stream: BinaryIO) -> Iterator[tuple[Any, Any]]:
        width = self.num_features
        options = ReadOptions.of({"path": self.name})
        for batch in RecordReader(stream, source=self.name):
            if not width and (batch.widths >= 0).any():
                width = int(batch.widths[batch.widths >= 0][0])
            is_set = bool(self.num_features)
            table = RowTable.of(batch, width, is_set=is_set, source=self.name)
            if table.reasons:
                raise InvalidDataError(table.reasons[min(table.reasons)])
            for found in table.record_batches(options):
                yield found.column(0), found.column(1)

    def _lines(self, stream: BinaryIO) -> Iterator[tuple[Any, Any]]:
        parser = LineParser(cast(Any, self.file_format), self.num_features)
        for rows in read_text(stream, parser, source=self.name):
            sizes = rows.widths if self.num_features else rows.tops()
            nothing = np.zeros(rows.n_rows, np.bool_)
            features = vector_column(
                rows.indptr, rows.indices, rows.values, sizes, is_dense=nothing, is_null=nothing
            )
            yield pa.array(rows.labels, pa.float64()), features


@contextmanager
def piped(
    spark: SparkSession, path: str, file_format: str, num_features: int, columns: tuple[str, str]
) -> Iterator[DataFrame]:
    """Yield a DataFrame of a pipe's rows, which can be read once, inside the block.

    Parameters
    ----------
    spark : SparkSession
    path : str
    file_format : str
    num_features : int
    columns : tuple of str
        Names of label and features.
    """
    host = "127.0.0.1" if is_local_master(spark) else setting(spark, "spark.driver.host", "")
    server = PipeServer(path, host or socket.gethostname())
    task = PipeTask(
        server.address, server.token, name_of(path), file_format, num_features, *columns
    )

    schema = StructType(
        [StructField(columns[0], DoubleType()), StructField(columns[1], VectorUDT())]
    )
    try:
        yield spark.range(0, 1, 1, 1).mapInArrow(task, schema)
    finally:
        server.close()
