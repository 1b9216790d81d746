"""Whole libsvm and libfm files: streams to rows and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.batches import Rows, summed
from spark_fm.formats.lines import FIRST_INDEX, LineParser, TextFormat, shortened
from spark_fm.formats.streams import GZIP_ERRORS

CHUNK_BYTES = 2**22
MAX_LINE_BYTES = 2**28


def read_text(
    stream: BinaryIO, parser: LineParser, *, source: str, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Rows]:
    """Yield the rows of a stream of lines, in bounded memory.

    Parameters
    ----------
    stream : binary file
        Only ``read`` is called.
    parser : LineParser
    source : str
        Name for messages.
    chunk_bytes : int

    Raises
    ------
    InvalidDataError
        Naming file, line number and reason, at the first line that cannot be read.
    """
    n_lines, rest = 0, b""
    while True:
        try:
            taken = stream.read(chunk_bytes)
        except GZIP_ERRORS as err:
            raise InvalidDataError(
                f"{source}: the compressed data are damaged after line {n_lines}: {err}."
            ) from None
        whole, newline, rest = (rest + taken).rpartition(b"\n")
        if not taken:
            whole, rest = rest, b""
        elif not newline:
            if len(rest) > MAX_LINE_BYTES:
                raise InvalidDataError(
                    f"{source}: line {n_lines + 1} has more than {MAX_LINE_BYTES:,} bytes. Is it "
                    "a text file?"
                )
            continue
        lines = whole.decode("utf-8", "replace").split("\n")
        yield _parsed(lines, parser, source, first_line=n_lines + 1)
        n_lines += len(lines)
        if not taken:
            return


def _parsed(lines: list[str], parser: LineParser, source: str, first_line: int) -> Rows:
    found = parser.parse(pa.array(lines, pa.string()))
    if found.errors:
        row = min(found.errors)
        position = int(found.positions[row])
        raise InvalidDataError(
            f"{source}: line {first_line + position}, {shortened(lines[position].strip())!r}: "
            f"{found.errors[row]}."
        )
    indptr, indices, values = summed(found.indptr.astype(np.int64), found.indices, found.values)
    width = parser.num_features or -1
    labels = np.where(found.has_label, found.labels, np.nan)
    n = found.n_rows
    return Rows(indptr, indices, values, labels, np.full(n, width), np.zeros(n, np.bool_))


def text_lines(rows: Rows, text_format: TextFormat, *, first_row: int = 0) -> bytes:
    """Return rows as lines.

    Parameters
    ----------
    rows : Rows
    text_format : {"libsvm", "libfm"}
    first_row : int
        What errors call the first row.

    Returns
    -------
    bytes
        Numbers are the shortest decimals that give the same number again: the same
        float32 where all numbers of the batch are such, else the same float64. Zeros of
        dense rows are left out.

    Raises
    ------
    InvalidDataError
        For a row without a label, which a line cannot say.
    """
    unlabelled = np.isnan(rows.labels)
    if unlabelled.any():
        raise InvalidDataError(
            f"Row {first_row + int(unlabelled.argmax())} has no label, which a line of "
            f"{text_format} needs. Choose a number for such rows (--missing-label 0)."
        )
    if not rows.n_rows:
        return b""
    lengths = np.diff(rows.indptr)
    kept = ~np.repeat(rows.is_dense, lengths) | (rows.values != 0)
    starts = np.concatenate([[0], np.cumsum(kept)])[rows.indptr]
    names = pc.cast(pa.array(rows.indices[kept].astype(np.int64) + FIRST_INDEX[text_format]),
                    pa.string())  # fmt: skip
    pairs = pc.binary_join_element_wise(names, _decimals(rows.values[kept]), ":")
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pairs), " ")
    labels = _decimals(rows.labels)
    ends = pa.array(np.where(np.diff(starts) > 0, " ", ""))
    lines = pc.binary_join_element_wise(labels, ends, joined, "")
    return ("\n".join(lines.to_pylist()) + "\n").encode()


def _decimals(numbers: NDArray[np.float64]) -> pa.Array:
    with np.errstate(over="ignore"):
        small = numbers.astype(np.float32)
    fits = np.array_equal(small, numbers, equal_nan=True)
    return pc.cast(pa.array(small if fits else numbers), pa.string())
