"""Pack partitions of files that the tasks read themselves; executors.

To read one more format, give ``FORMATS`` what reads a range of a file, and ``spark/scans.py`` the
class by which Spark's plans name the format.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from spark_fm.formats.ranges import parquet_rows, text_lines
from spark_fm.formats.vectors import vector_column
from spark_fm.spark.scans import FileRange, Scan, ScanColumn, plain_type
from spark_fm.spark.worker import WorkerTask, partition_number
from spark_fm.training.local_files import local_folders
from spark_fm.training.packing import WINDOW_ROWS, PackTask, report_row

if TYPE_CHECKING:
    from spark_fm.formats.text import LineParser

COMPRESSED = {".gz", ".gzip", ".bz2", ".zst", ".lz4", ".snappy", ".deflate", ".xz"}
UNREAD = "unread"  # name of the report of a partition that could not be read in this way


class UnreadableError(Exception):
    """A task cannot read its partition as Spark would: the frame must give the rows."""


@dataclass(frozen=True)
class PackScanTask(WorkerTask):
    """Read and pack the partition of a scan that has the number of the task's partition."""

    scan: Scan
    task: PackTask

    def run(self, _: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what the packing task yields, or a report that says why there is nothing."""
        number = partition_number()
        try:
            yield from self.task.run(read_partition(self.scan, number))
        except UnreadableError as err:
            report = {"reason": str(err), "folders": [str(path) for path in local_folders()]}
            yield report_row(number, 0, UNREAD, json.dumps(report).encode())


def read_partition(scan: Scan, number: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a partition, as the frame would give them.

    Raises
    ------
    UnreadableError
        For whatever goes wrong, so that the frame is read, and its error is the caller's.
    """
    try:
        for batch in _source_batches(scan, number):
            columns = {name: _column(batch, column) for name, column in scan.columns.items()}
            columns["source"] = pa.array(np.full(batch.num_rows, number, np.int32))
            yield pa.RecordBatch.from_pydict(columns)
    except Exception as err:
        raise UnreadableError(f"{type(err).__name__}: {err}") from err


def _source_batches(scan: Scan, number: int) -> Iterator[pa.RecordBatch]:
    partition = scan.partitions[number]
    if isinstance(partition, bytes):
        read, _ = pickle.loads(scan.function)
        cell = pa.RecordBatch.from_pydict({"partition": pa.array([partition], pa.binary())})
        return iter(read(iter([cell])))
    return chain.from_iterable(_range_batches(scan, part) for part in partition)


def _range_batches(scan: Scan, part: FileRange) -> Iterator[pa.RecordBatch]:
    now = os.stat(part.path)
    if (now.st_size, now.st_mtime_ns // 10**6) != (part.size, part.modified):
        raise UnreadableError(f"{part.path} has changed since it was listed")
    return FORMATS[scan.format](part, scan)


def _column(batch: pa.RecordBatch, column: ScanColumn) -> pa.Array:
    values = batch.column(batch.schema.names.index(column.name))
    kind = plain_type(values.type)
    if kind != column.type:
        raise UnreadableError(f"{column.name!r} is {kind} in a file, {column.type} in the frame")
    if values.type != kind:
        values = values.cast(kind)
    return values.cast(pa.float64(), safe=False) if column.to_double else values


def _parquet_batches(part: FileRange, scan: Scan) -> Iterator[pa.RecordBatch]:
    names = [column.name for column in scan.columns.values()]
    return parquet_rows(part.path, part.start, part.stop, names=names, batch_rows=WINDOW_ROWS)


def _text_of(part: FileRange) -> Iterator[bytes]:
    if Path(part.path).suffix.lower() in COMPRESSED:
        raise UnreadableError(f"{part.path} is compressed")
    return text_lines(part.path, part.start, part.stop)


def _libsvm_batches(part: FileRange, scan: Scan) -> Iterator[pa.RecordBatch]:
    # Here and not above: workers that read other formats need not import it.
    from spark_fm.formats.text import LineParser

    parser = LineParser("libsvm", num_features=scan.width)
    return (_libsvm_rows(text, parser) for text in _text_of(part))


def _parsed_batches(part: FileRange, scan: Scan) -> Iterator[pa.RecordBatch]:
    """Yield what the scan's function makes of lines, where Spark would see the same ones."""
    from spark_fm.formats.text import lines_of

    parse = pickle.loads(scan.function)
    for text in _text_of(part):
        if b"\r" in text and _LONE_RETURN.search(text):
            raise UnreadableError(f"{part.path} has lines that end with \\r alone")
        yield from parse(iter([pa.RecordBatch.from_pydict({"value": lines_of(text)})]))


_LONE_RETURN = re.compile(rb"\r(?!\n)")
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")


def _libsvm_rows(text: bytes, parser: LineParser) -> pa.RecordBatch:
    """Return rows of lines that Spark would read in the same way; it refuses more than we do."""
    from spark_fm.formats.text import lines_of

    rows = parser.parse(lines_of(text))
    ends = rows.indptr[1:-1]
    steps = np.diff(rows.indices)
    steps[ends[(ends > 0) & (ends < len(rows.indices))] - 1] = 1
    if (
        rows.errors
        or text.count(b":") != len(rows.indices)
        or not text.isascii()
        or b"#" in text
        or _CONTROL.search(text)
        or not (np.isfinite(rows.labels).all() and np.isfinite(rows.values).all())
        or (steps <= 0).any()
    ):
        raise UnreadableError("a line is unusual")
    nowhere = np.zeros(rows.n_rows, np.bool_)
    features = vector_column(
        rows.indptr, rows.indices, rows.values, rows.sizes(parser.num_features),
        is_dense=nowhere, is_null=nowhere,
    )  # fmt: skip
    return pa.RecordBatch.from_arrays([pa.array(rows.labels), features], ["label", "features"])


# What yields the rows of a range of a file: the columns of the scan at least.
FORMATS: dict[str, Callable[[FileRange, Scan], Iterator[pa.RecordBatch]]] = {
    "parquet": _parquet_batches,
    "libsvm": _libsvm_batches,
    "text": _parsed_batches,
}
