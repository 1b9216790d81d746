"""Ranges of files: rows and lines shared out as Spark does it, each to one range; executors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

CHUNK_BYTES = 2**22  # of text at a time


def parquet_rows(
    path: str, start: int, stop: int, *, names: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield columns of the row groups of a Parquet file whose middle lies in a range.

    Raises
    ------
    ValueError
        When a column is not there, or another is called like it but for the case.
    """
    import pyarrow.parquet as pq

    # Spark compares files with the checksums that Hadoop keeps beside them.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        there = [name.lower() for name in file.schema_arrow.names]
        for name in names:
            # Spark may not tell them apart.
            if name not in file.schema_arrow.names or there.count(name.lower()) != 1:
                raise ValueError(f"{path} has not one column {name!r}")
        groups = [
            number for number in range(file.metadata.num_row_groups)
            if start <= _middle(file.metadata.row_group(number)) < stop
        ]  # fmt: skip
        if groups:
            yield from file.iter_batches(
                batch_rows, row_groups=groups, columns=names, use_threads=False
            )


def _middle(group: Any) -> int:
    """Return the middle of a row group, by which Parquet's Java library assigns it to a range."""
    first = group.column(0)
    pages = (first.data_page_offset, first.dictionary_page_offset)
    size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return int(min(page for page in pages if page is not None) + size // 2)


def text_lines(path: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield the whole lines that start in a range of a file or right behind it, many at a time.

    Those that start where the range does are of the one before, unless it is the first.
    """
    with open(path, "rb") as file:
        if start:
            file.seek(start)
            file.readline()
        while (left := stop + 1 - file.tell()) > 0:
            text = file.read(min(left, CHUNK_BYTES))
            if not text:
                return
            yield text + (b"" if text.endswith(b"\n") else file.readline())
