"""Tables of numbers as lines of text with a space between two numbers.

Numbers are written with the fewest digits that give the same float32 back, and read
without a detour over float64, which rounds some of them twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from numpy.typing import NDArray

from spark_fm.errors import ModelFormatError

BLOCK_ROWS = 2**16
BLOCK_BYTES = 16 * 2**20
_WRITE = csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")


def write_lines(
    file: BinaryIO, n_rows: int, columns_of: Callable[[slice], list[NDArray[Any]]]
) -> None:
    """Write rows as lines, block by block.

    Parameters
    ----------
    file : binary file object
    n_rows : int
    columns_of : callable
        Returns the columns of a range of rows; int32 or float32.
    """
    for start in range(0, n_rows, BLOCK_ROWS):
        columns = columns_of(slice(start, min(start + BLOCK_ROWS, n_rows)))
        arrays = [pa.array(np.ascontiguousarray(column)) for column in columns]
        names = [str(i) for i in range(len(arrays))]
        csv.write_csv(pa.table(arrays, names=names), file, _WRITE)


def read_lines(
    text: memoryview, *, n_columns: int, has_ids: bool = False, source: str
) -> list[NDArray[Any]]:
    """Return the columns of lines: float32, or int32 and then float32.

    Parameters
    ----------
    text : memoryview
        Whole lines, with nothing else.
    n_columns : int
        Numbers in every line.
    has_ids : bool
        Whether the first number of a line is an int32.
    source : str
        Name for messages.

    Raises
    ------
    ModelFormatError
        For a line with other than ``n_columns`` numbers; NaN and infinities are read.
    """
    types = [pa.int32() if has_ids and i == 0 else pa.float32() for i in range(n_columns)]
    if not len(text):
        return [np.zeros(0, kind.to_pandas_dtype()) for kind in types]
    names = [str(i) for i in range(n_columns)]
    try:
        table = csv.read_csv(
            pa.BufferReader(pa.py_buffer(text)),
            # One thread, because only then an error says in which row it is.
            csv.ReadOptions(
                column_names=names, use_threads=False,
                block_size=min(max(BLOCK_BYTES, 64 * n_columns), 2**30),
            ),
            csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(
                column_types=dict(zip(names, types, strict=True)), null_values=[],
                strings_can_be_null=False,
            ),
        )  # fmt: skip
    except pa.ArrowException as err:
        raise ModelFormatError(f"{source} is damaged: {_reason(err)}.") from err
    return [column.to_numpy() for column in table.columns]


def _reason(err: Exception) -> str:
    """Return Arrow's reason in one line of bounded length."""
    return " ".join(str(err).split()).rstrip(".")[:300]
