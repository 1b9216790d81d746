"""Packed blocks: a few thousand training rows as one row of binary columns.

Runs on executors (and on the driver for the schemas). A block's payload is the five
arrays of a CsrBatch one after the other, little-endian 4-byte words::

    labels | weights | row lengths | indices | values
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from spark_fm.errors import InvalidDataError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import TablePositions

TRAIN, VALIDATION, REPORT = 0, 1, 2

BLOCK_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.int32()),
        pa.field("source", pa.int32()),
        pa.field("seq", pa.int32()),
        pa.field("n_rows", pa.int32()),
        pa.field("nnz", pa.int64()),
        pa.field("name", pa.string()),
        pa.field("payload", pa.binary()),
        pa.field("report", pa.binary()),
    ]
)
BLOCK_DDL = (
    "kind int, source int, seq int, n_rows int, nnz bigint, name string, payload binary, "
    "report binary"
)


def encode(batch: CsrBatch) -> bytes:
    """Return the payload of a block."""
    lengths = np.diff(batch.indptr).astype("<i4")
    return b"".join(
        part.tobytes()
        for part in (batch.labels, batch.weights, lengths, batch.indices, batch.values)
    )


def payload_bytes(n_rows: int, nnz: int) -> int:
    """Return the size of a block's payload."""
    return 12 * n_rows + 8 * nnz


def decode(payload: bytes | memoryview, n_rows: int, nnz: int) -> CsrBatch:
    """Return the rows of a block; labels, weights, indices and values are views."""
    words = np.frombuffer(payload, np.uint8)
    cuts = np.cumsum([0, n_rows, n_rows, n_rows, nnz, nnz]) * 4
    if len(words) != cuts[-1]:
        raise ValueError(f"a block of {n_rows} rows and {nnz} entries holds {len(words)} bytes")
    labels, weights, lengths, indices, values = (
        words[start:stop].view(dtype)
        for start, stop, dtype in zip(
            cuts[:-1], cuts[1:], ("<f4", "<f4", "<i4", "<i4", "<f4"), strict=True
        )
    )
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return CsrBatch(indptr, indices, values, labels, weights)


def block_row(kind: int, source: int, seq: int, batch: CsrBatch) -> pa.RecordBatch:
    """Return the record batch of one block."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([kind], pa.int32()),
            pa.array([source], pa.int32()),
            pa.array([seq], pa.int32()),
            pa.array([batch.n_rows], pa.int32()),
            pa.array([batch.nnz], pa.int64()),
            pa.array([None], pa.string()),
            pa.array([encode(batch)], pa.binary()),
            pa.array([None], pa.binary()),
        ],
        schema=BLOCK_SCHEMA,
    )


def report_row(source: int, seq: int, name: str, report: bytes) -> pa.RecordBatch:
    """Return the record batch of one piece of a packing report."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([REPORT], pa.int32()),
            pa.array([source], pa.int32()),
            pa.array([seq], pa.int32()),
            pa.array([0], pa.int32()),
            pa.array([0], pa.int64()),
            pa.array([name], pa.string()),
            pa.array([None], pa.binary()),
            pa.array([report], pa.binary()),
        ],
        schema=BLOCK_SCHEMA,
    )


def read_blocks(batches: Iterable[pa.RecordBatch]) -> Iterable[tuple[int, int, int, CsrBatch]]:
    """Yield ``(kind, source, seq, rows)`` of every data block in record batches."""
    for batch in batches:
        columns = [batch.column(batch.schema.get_field_index(name)) for name in
                   ("kind", "source", "seq", "n_rows", "nnz")]  # fmt: skip
        numbers = [np.asarray(column) for column in columns]
        payloads = batch.column(batch.schema.get_field_index("payload"))
        for i in range(batch.num_rows):
            kind, source, seq, n_rows, nnz = (int(column[i]) for column in numbers)
            if kind == REPORT:
                continue
            yield kind, source, seq, decode(payloads[i].as_buffer(), n_rows, nnz)


def checked(rows: CsrBatch, n_features: int) -> CsrBatch:
    """Return the batch; raise when an index is no row of the table.

    Kernels do not check indices, and blocks that are packed again may hold others when
    the source gives other rows each time it is read.
    """
    if rows.nnz and not 0 <= int(rows.indices.min()) <= int(rows.indices.max()) < n_features:
        raise InvalidDataError(
            "The training rows changed between two passes over them: a feature turned up that the "
            "first pass did not see. Cache the DataFrame, or write it out and read it back."
        )
    return rows


def renumbered(rows: CsrBatch, positions: TablePositions | None) -> CsrBatch:
    """Return the batch with feature ids replaced by rows of the table."""
    if positions is None:
        return rows
    places = positions.of(rows.indices)
    return CsrBatch(rows.indptr, places, rows.values, rows.labels, rows.weights)
