"""The splits of files that tasks read, and their rows; driver and executors.

Heavy modules are imported inside functions: Spark plans in a Python process of its own, which
has to start fast.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyspark.sql.datasource import InputPartition

from spark_fm.datasource.options import ReadOptions
from spark_fm.errors import InvalidDataError

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_fm.formats.files import DataFile
    from spark_fm.formats.recordio.reader import RowBatch

log = logging.getLogger(__name__)

FILE_COST = 2**22  # opening a file counts as reading this much, as in Spark


@dataclass(frozen=True)
class FileSplit:
    """Bytes of a file: the records that start from ``start`` on and before ``stop``."""

    file: DataFile
    start: int
    stop: int
    is_compressed: bool


class SplitGroup(InputPartition):
    """The splits that one task reads."""

    def __init__(self, splits: Sequence[FileSplit], feature_dim: int) -> None:
        self.splits = tuple(splits)
        self.feature_dim = feature_dim


def files_of(options: ReadOptions) -> list[DataFile]:
    """Return the files that the options name."""
    from spark_fm.formats.files import glob_pattern, list_files

    files = list_files(options.paths, recursive=options.recursive)
    if not options.name_glob:
        return files
    pattern = glob_pattern(options.name_glob)
    return [file for file in files if pattern.fullmatch(posixpath.basename(file.inner))]


def packed_splits(files: Sequence[DataFile], split_bytes: int) -> list[list[FileSplit]]:
    """Cut large files into splits and put small ones together, in order."""
    groups: list[list[FileSplit]] = []
    room = 0
    for file in files:
        # Of a small file it shows when it is read.
        is_whole = file.is_compressed or (file.size > split_bytes and _starts_compressed(file))
        step = file.size if is_whole else split_bytes
        for start in range(0, file.size, step):
            stop = min(start + step, file.size)
            cost = stop - start + FILE_COST
            if not groups or cost > room:
                groups.append([])
                room = split_bytes + FILE_COST
            groups[-1].append(FileSplit(file, start, stop, is_whole))
            room -= cost
    return groups


def _starts_compressed(file: DataFile) -> bool:
    from spark_fm.formats.files import GZIP_BYTES

    with file.open() as stream:
        return stream.read(len(GZIP_BYTES)) == GZIP_BYTES


def first_width(files: Sequence[DataFile], options: ReadOptions) -> int:
    """Return the number of features that the first records claim, 0 without records.

    Raises InvalidDataError for records without a claim.
    """
    n_rows = 0
    for file in files[:8]:
        end = min(file.size, options.split_bytes)
        head = FileSplit(file, 0, end, file.is_compressed)
        lenient = replace(options, mode="DROPMALFORMED")
        for batch in _batches(head, lenient, chunk_bytes=2**18):
            known = batch.widths[batch.widths >= 0]
            if len(known):
                return int(known[0])
            n_rows += batch.n_rows
            if batch.n_rows:
                break
    if n_rows:
        raise InvalidDataError(
            f"None of the first {n_rows} records says how many features there are. Set the option "
            'featureDim, such as .option("featureDim", 100000).'
        )
    return 0


def _batches(split: FileSplit, options: ReadOptions, chunk_bytes: int) -> Iterator[RowBatch]:
    """Read a split, from one proven boundary to the next."""
    from spark_fm.formats.files import unzipped
    from spark_fm.formats.recordio.decode import REACH_BYTES, find_boundary
    from spark_fm.formats.recordio.reader import RecordReader

    size = split.file.size
    with split.file.open() as stream:

        def read_at(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        start, stop = 0, None
        if not split.is_compressed:
            start, stop = (
                find_boundary(
                    read_at, size, offset, max_record_bytes=options.max_record_bytes,
                    reach=min(REACH_BYTES, options.split_bytes),
                )
                for offset in (split.start, split.stop)
            )  # fmt: skip
            if start >= stop:
                return
        stream.seek(start)
        yield from RecordReader(
            unzipped(stream) if start == 0 else stream,
            source=split.file.path, offset=start, stop=None if stop == size else stop,
            on_malformed=None if options.mode == "FAILFAST" else (lambda malformed: None),
            with_texts=bool({"uid", "metadata"} & set(options.extra)),
            chunk_bytes=chunk_bytes, max_record_bytes=options.max_record_bytes,
            advice="Repair the file, or leave such records out by the option mode=DROPMALFORMED.",
        )  # fmt: skip


def read_split(split: FileSplit, options: ReadOptions, width: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a split as record batches of the source's schema."""
    from spark_fm.datasource.batches import RowTable

    n_malformed = 0
    for batch in _batches(split, options, chunk_bytes=2**22):
        table = RowTable.of(batch, width, is_set=bool(options.feature_dim), source=split.file.path)
        if table.reasons and options.mode == "FAILFAST":
            first = min(table.reasons)
            raise InvalidDataError(table.reasons[first])
        n_malformed += len(table.reasons)
        yield from table.record_batches(options)
    if n_malformed:
        log.warning("%s: %d malformed record(s), %s", split.file.path, n_malformed, options.mode)
