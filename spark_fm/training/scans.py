"""Pack partitions of files that the tasks read themselves; executors.

To read one more format, give ``FORMATS`` what reads a range of a file, and ``spark/scans.py`` the
class by which Spark's plans name the format.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from spark_fm.spark.scans import FileRange, Scan, ScanColumn, plain_type
from spark_fm.spark.worker import WorkerTask
from spark_fm.training.local_files import local_folders
from spark_fm.training.packing import WINDOW_ROWS, PackTask, report_row

UNREAD = "unread"  # name of the report of a partition that could not be read in this way


class UnreadableError(Exception):
    """A task cannot read its partition as Spark would: the frame must give the rows."""


@dataclass(frozen=True)
class PackScanTask(WorkerTask):
    """Read and pack the partition of a scan that has the number of the only row."""

    scan: Scan
    task: PackTask

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what the packing task yields, or a report that says why there is nothing."""
        [number] = [int(each.as_py()) for batch in batches for each in batch.column(0)]
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
    names = [column.name for column in scan.columns.values()]
    return chain.from_iterable(_range_batches(scan.format, part, names) for part in partition)


def _range_batches(kind: str, part: FileRange, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    now = os.stat(part.path)
    if (now.st_size, now.st_mtime_ns // 10**6) != (part.size, part.modified):
        raise UnreadableError(f"{part.path} has changed since it was listed")
    return FORMATS[kind](part, names)


def _column(batch: pa.RecordBatch, column: ScanColumn) -> pa.Array:
    values = batch.column(batch.schema.names.index(column.name))
    kind = plain_type(values.type)
    if kind != column.type:
        raise UnreadableError(f"{column.name!r} is {kind} in a file, {column.type} in the frame")
    if values.type != kind:
        values = values.cast(kind)
    return values.cast(pa.float64(), safe=False) if column.to_double else values


def read_parquet(part: FileRange, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a range of a Parquet file: of the row groups whose middle lies in it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(part.path) as file:
        there = [name.lower() for name in file.schema_arrow.names]
        for name in names:
            # Spark may not tell them apart.
            if name not in file.schema_arrow.names or there.count(name.lower()) != 1:
                raise UnreadableError(f"{part.path} has not one column {name!r}")
        groups = [
            number for number in range(file.metadata.num_row_groups)
            if part.start <= _middle(file.metadata.row_group(number)) < part.stop
        ]  # fmt: skip
        if groups:
            yield from file.iter_batches(
                WINDOW_ROWS, row_groups=groups, columns=list(names), use_threads=False
            )


def _middle(group: Any) -> int:
    """Return the middle of a row group, by which Parquet's Java library assigns it to a range."""
    first = group.column(0)
    pages = (first.data_page_offset, first.dictionary_page_offset)
    size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return int(min(page for page in pages if page is not None) + size // 2)


# What yields the rows of a range of a file: the columns of these names at least.
FORMATS: dict[str, Callable[[FileRange, Sequence[str]], Iterator[pa.RecordBatch]]] = {
    "parquet": read_parquet,
}
