"""Parquet files with a label and a column of Spark vectors, without Spark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.formats.columns import column_named
from spark_fm.formats.recordio.reader import Rows, summed
from spark_fm.formats.vectors import VECTOR_TYPE, read_vectors, vector_column

BATCH_ROWS = 2**14
GROUP_BYTES = 2**26  # of a row group, before compression
# What Spark writes into the footer, so that its readers know a struct for a vector.
_SPARK_SCHEMA_KEY = b"org.apache.spark.sql.parquet.row.metadata"


def _field(name: str, kind: Any, *, nullable: bool = True) -> dict[str, Any]:
    return {"name": name, "type": kind, "nullable": nullable, "metadata": {}}


def _list_of(kind: str) -> dict[str, Any]:
    return {"type": "array", "elementType": kind, "containsNull": False}


_VECTOR_UDT = {
    "type": "udt",
    "class": "org.apache.spark.ml.linalg.VectorUDT",
    "pyClass": "pyspark.ml.linalg.VectorUDT",
    "sqlType": {
        "type": "struct",
        "fields": [
            _field("type", "byte", nullable=False),
            _field("size", "integer"),
            _field("indices", _list_of("integer")),
            _field("values", _list_of("double")),
        ],
    },
}


def read_parquet(
    file: Any, *, label_col: str, features_col: str, source: str,
    advance: Callable[[float], None] = lambda fraction: None,
) -> Iterator[Rows]:  # fmt: skip
    """Yield the rows of a Parquet file, in bounded memory.

    ``features_col`` holds Spark's vectors, or lists of float or double; without a column
    ``label_col`` rows have no labels. Case does not count in these names, unless columns differ
    in it alone. ``advance`` is called with the fraction read so far.
    """
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowException as err:
        raise InvalidDataError(f"{source} is no Parquet file: {err}") from None
    schema = parquet.schema_arrow
    features_col = column_named(features_col, "--features-col", schema.names) or features_col
    label_col = column_named(label_col, "--label-col", schema.names) or label_col
    _check_columns(schema, label_col, features_col, source)
    columns = [name for name in (label_col, features_col) if name in schema.names]
    n_read = 0
    batches = parquet.iter_batches(BATCH_ROWS, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as err:
            raise InvalidDataError(f"{source} is damaged after row {n_read}: {err}") from None
        if batch is None:
            return
        yield _rows(batch, label_col, features_col, source, n_read)
        n_read += batch.num_rows
        advance(n_read / max(1, parquet.metadata.num_rows))


def _check_columns(schema: pa.Schema, label_col: str, features_col: str, source: str) -> None:
    names = ", ".join(schema.names)
    if features_col not in schema.names:
        raise InvalidColumnError(
            f"{source} has no column {features_col!r} of features; there are {names}. Name it "
            "with --features-col."
        )
    kind = schema.field(features_col).type
    is_vector = pa.types.is_struct(kind) and {f.name for f in kind} == {f.name for f in VECTOR_TYPE}
    is_floats = pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)
    if not (is_vector or is_floats):
        raise InvalidColumnError(
            f"{source}: column {features_col!r} has type {kind}; it must hold Spark's vectors, or "
            "lists of float or double."
        )
    if label_col in schema.names:
        kind = schema.field(label_col).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)
                or pa.types.is_boolean(kind)):  # fmt: skip
            raise InvalidColumnError(
                f"{source}: column {label_col!r} has type {kind}; labels are numbers."
            )


def _rows(
    batch: pa.RecordBatch, label_col: str, features_col: str, source: str, first_row: int
) -> Rows:
    column = batch.column(batch.schema.get_field_index(features_col))
    vectors = read_vectors(column, keep_zeros=True)
    bad = vectors.is_null | vectors.is_broken
    if bad.any():
        raise InvalidDataError(
            f"{source}: row {first_row + int(bad.argmax())} has a null or broken vector in "
            f"column {features_col!r}."
        )
    at = batch.schema.get_field_index(label_col)
    labels = np.full(batch.num_rows, np.nan)
    if at >= 0:
        labels = batch.column(at).cast(pa.float64()).to_numpy(zero_copy_only=False)
    indptr, indices, values = summed(vectors.indptr, vectors.indices, vectors.values)
    return Rows(indptr, indices, values, labels, vectors.sizes, vectors.is_dense)


class ParquetSink:
    """Write rows as a Parquet file that Spark reads with a vector column."""

    def __init__(self, file: BinaryIO, *, label_col: str, features_col: str) -> None:
        fields = [_field(label_col, "double"), _field(features_col, _VECTOR_UDT)]
        spark_schema = json.dumps({"type": "struct", "fields": fields}).encode()
        self._schema = pa.schema(
            [(label_col, pa.float64()), (features_col, VECTOR_TYPE)],
            metadata={_SPARK_SCHEMA_KEY: spark_schema},
        )
        self._writer = pq.ParquetWriter(file, self._schema)
        self._waiting: list[pa.RecordBatch] = []

    def write(self, rows: Rows) -> None:
        """Write rows, whose widths must be known."""
        features = vector_column(
            rows.indptr, rows.indices, rows.values, rows.widths,
            is_dense=rows.is_dense, is_null=np.zeros(rows.n_rows, np.bool_),
        )  # fmt: skip
        labels = pa.array(rows.labels, pa.float64(), mask=np.isnan(rows.labels))
        self._waiting.append(pa.RecordBatch.from_arrays([labels, features], schema=self._schema))
        if sum(batch.nbytes for batch in self._waiting) > GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is waiting, and the footer."""
        self._flush()
        self._writer.close()

    def discard(self) -> None:
        """Let go of the file, finished or not."""
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, schema=self._schema))
            self._waiting = []
