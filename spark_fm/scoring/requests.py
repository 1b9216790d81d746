"""Columns of requests to vectors, and of scores to responses; tasks run on executors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, DataType, StringType

from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.formats.content_types import REGISTRY
from spark_fm.formats.requests import Cells, decode_cells
from spark_fm.formats.vectors import VECTOR_TYPE, vector_column
from spark_fm.spark.udf import arrow_function, has_arrow_udf, pandas_function
from spark_fm.spark.worker import WorkerTask, check_version


@dataclass(frozen=True)
class VectorsTask(WorkerTask):
    """Decode cells that hold requests."""

    content_type: str
    feature_dim: int
    one_each: bool  # a vector per cell, otherwise an array of vectors
    handle_invalid: Literal["error", "keep"]  # "keep": a cell that cannot be read becomes null

    def run(self, columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        """Yield an array of vectors, or of lists of them, for each array of cells."""
        for column in columns:
            cells = self.read(_bytes_of(column))
            is_null = (cells.counts == 0) if self.one_each else np.zeros(cells.rows.n_rows, bool)
            rows = cells.rows
            indptr = rows.indptr
            if self.one_each:  # cells without a row get an empty one
                indptr = np.concatenate([[0], indptr[np.cumsum(cells.counts)]])
            n = len(indptr) - 1
            vectors = vector_column(
                indptr, rows.indices, rows.values.astype(np.float64),
                np.full(n, self.feature_dim), is_dense=np.zeros(n, bool), is_null=is_null,
            )  # fmt: skip
            yield vectors if self.one_each else _lists_of(vectors, cells)

    def read(self, cells: list[bytes | None]) -> Cells:
        """Decode the cells; raise for an invalid one if that is an error."""
        decoded = decode_cells(cells, self.content_type, self.feature_dim, one_each=self.one_each)
        if decoded.reasons and self.handle_invalid == "error":
            index, reason = next(iter(decoded.reasons.items()))
            raise InvalidDataError(
                f"A request cannot be read ({(cells[index] or b'')[:60]!r}): {reason} Or set "
                'handle_invalid="keep", which makes it null.'
            )
        return decoded

    def read_one(self, cell: bytes | str | None) -> SparseVector | list[SparseVector] | None:
        """Return the vector or vectors of a cell: for PySpark 4.0, which has no Arrow UDFs."""
        check_version(self.version)
        cells = self.read([cell.encode() if isinstance(cell, str) else _as_bytes(cell)])
        rows = cells.rows
        if not rows.n_rows:
            return None
        vectors = [
            Vectors.sparse(self.feature_dim, rows.indices[cut], rows.values[cut].astype(float))
            for cut in map(slice, rows.indptr[:-1].tolist(), rows.indptr[1:].tolist())
        ]
        return vectors[0] if self.one_each else vectors


def _bytes_of(column: pa.Array) -> list[bytes | None]:
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_binary(kind)
            or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)):  # fmt: skip
        raise _wrong_kind(kind)
    return cast("list[bytes | None]", column.cast(pa.large_binary()).to_pylist())


def _as_bytes(cell: object) -> bytes | None:
    if cell is None or isinstance(cell, bytes):
        return cell
    if isinstance(cell, bytearray):
        return bytes(cell)
    raise _wrong_kind(type(cell).__name__)


def _wrong_kind(kind: object) -> InvalidColumnError:
    return InvalidColumnError(
        f"The column of requests has type {kind}; expected string or binary. Cast it, or pass "
        "another column."
    )


def _lists_of(vectors: pa.StructArray, cells: Cells) -> pa.ListArray:
    """Return a list of vectors for each cell, null where a cell has none."""
    ends = np.concatenate([[0], np.cumsum(cells.counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(ends), vectors, type=pa.list_(VECTOR_TYPE), mask=pa.array(cells.counts == 0)
    )


def vectors_of(task: VectorsTask, column: Column) -> Column:
    """Return the column of vectors, or of arrays of them, in a column of requests."""
    returns: DataType = VectorUDT() if task.one_each else ArrayType(VectorUDT())
    if not has_arrow_udf():
        return F.udf(task.read_one, returns)(column)
    return cast(Column, arrow_function("decode", task, returns)(column))


def responses_of(accept: str, score: Column, label: Column | None) -> Column:
    """Return the column of responses, one for each row with a score, else null."""
    parts = [part.cast("double") for part in (score, label) if part is not None]
    content_type = REGISTRY[accept]
    returns = StringType() if content_type.is_text else BinaryType()

    def encode(columns: Iterator[Any]) -> Iterator[pa.Array]:
        for each in columns:
            arrays = each if isinstance(each, tuple) else (each,)
            is_null = np.logical_or.reduce([np.asarray(part.is_null()) for part in arrays])
            numbers = [np.asarray(part.fill_null(0)) for part in arrays]
            rows = encoded(accept, numbers, is_null)
            yield pa.array(rows, pa.binary()).cast(
                pa.string() if content_type.is_text else pa.binary()
            )

    def encode_pandas(batches: Iterator[Any]) -> Iterator[pd.Series[Any]]:
        # Null and NaN are one in pandas: both become null.
        for each in batches:
            series = each if isinstance(each, tuple) else (each,)
            numbers = [part.to_numpy(np.float64) for part in series]
            is_null = np.logical_or.reduce([np.isnan(part) for part in numbers])
            rows: list[Any] = encoded(accept, numbers, is_null)
            if content_type.is_text:
                rows = [None if row is None else row.decode() for row in rows]
            yield pd.Series(rows, dtype=object)

    if has_arrow_udf():
        encoder = arrow_function("encode", encode, returns, len(parts))
    else:
        encoder = pandas_function("encode", encode_pandas, returns, len(parts))
    return cast(Column, encoder(*parts))


def encoded(accept: str, parts: list[Any], is_null: Any) -> list[bytes | None]:
    """Return the responses of rows, None for null ones."""
    numbers = [part[~is_null].astype(np.float32) for part in parts]
    bodies = iter(REGISTRY[accept].responses(numbers[0], numbers[1] if len(numbers) > 1 else None))
    return [None if null else next(bodies) for null in is_null.tolist()]
