"""CSR arrays to bytes of recordIO-protobuf."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.recordio.framing import HEADER_SIZE, MAGIC_BYTES, MAX_PAYLOAD
from spark_fm.formats.recordio.reader import Rows
from spark_fm.formats.vectors import as_float32, raise_value
from spark_fm.learner.csr import frozen
from spark_fm.learner.jit import njit

# Protobuf tags: field number * 8 + wire type 2, a length and that many bytes.
_FEATURES_TAG = 0x0A  # Record.features = 1
_TENSOR_TAG = 0x12  # Value.float32_tensor = 2
_VALUES_TAG = 0x0A  # Float32Tensor.values = 1
_KEYS_TAG = 0x12  # Float32Tensor.keys = 2
_SHAPE_TAG = 0x1A  # Float32Tensor.shape = 3

# A map entry: field 1, the key "values", then the tag of field 2, the value.
_ENTRY_HEAD = np.frombuffer(b"\x0a\x06values\x12", np.uint8)
# Record.label = 2 up to the float itself: its lengths are the same in each record.
_LABEL_HEAD = np.frombuffer(b"\x12\x12\x0a\x06values\x12\x08\x12\x06\x0a\x04", np.uint8)
_MAGIC = np.frombuffer(MAGIC_BYTES, np.uint8)
_ENTRY_SIZE = len(_ENTRY_HEAD)
_LABEL_SIZE = len(_LABEL_HEAD) + 4


def encode_csr(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer[Any]],
    values: NDArray[np.float32],
    n_features: int,
    labels: NDArray[np.float32] | None = None,
    *,
    first_row: int = 0,
) -> bytes:
    """Return sparse rows as framed records with a shape of ``n_features``.

    Indices, int32 or int64, are written as they are: neither sorted nor added up; zeros are
    written too. ``first_row`` is the number of the first row in errors. Raises InvalidDataError
    for a record too long for a frame, a negative index, and arrays that do not fit together.
    """
    n_rows = len(indptr) - 1
    used = slice(indptr[0], indptr[-1])
    return encode_rows(
        indptr,
        indices[used],
        values,
        np.full(n_rows, n_features, np.int64),
        np.zeros(n_rows, np.bool_),
        labels,
        first_row=first_row,
    )


def encode_dense(
    X: NDArray[np.float32], labels: NDArray[np.float32] | None = None, *, first_row: int = 0
) -> bytes:
    """Return the rows of a matrix as framed records without keys and shape."""
    n_rows, width = X.shape
    return encode_rows(
        np.arange(n_rows + 1, dtype=np.int64) * width,
        np.empty(0, np.int32),
        X.reshape(-1),
        np.full(n_rows, width, np.int64),
        np.ones(n_rows, np.bool_),
        labels,
        first_row=first_row,
    )


def encode_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer[Any]],
    values: NDArray[np.float32],
    widths: NDArray[np.int64],
    is_dense: NDArray[np.bool_],
    labels: NDArray[np.float32] | None = None,
    *,
    first_row: int = 0,
) -> bytes:
    """Return rows, some dense and some sparse, as framed records.

    ``indices`` are those of the sparse rows only, one after another; ``widths`` are written
    for sparse rows. O(rows + entries) time; memory twice that of the result. Raises
    InvalidDataError as `encode_csr` does.
    """
    indptr = np.ascontiguousarray(indptr, np.int64)
    indices = np.ascontiguousarray(indices)
    if indices.dtype not in (np.int32, np.int64):
        indices = indices.astype(np.int64)
    is_dense = np.ascontiguousarray(is_dense, np.bool_)
    _check_fit(indptr, indices, values, widths, is_dense, labels)

    n_rows = len(indptr) - 1
    has_labels = labels is not None
    inputs = [
        frozen(indptr),
        frozen(indices),
        frozen(np.ascontiguousarray(widths, np.int64)),
        frozen(is_dense),
    ]
    key_sizes = np.empty(n_rows, np.int64)
    size = int(_measure(*inputs, has_labels, key_sizes))
    if size < 0:
        row = -size - 1
        raise InvalidDataError(
            f"Row {first_row + row} has {indptr[row + 1] - indptr[row]} values, too many for one "
            f"record: a record has up to {MAX_PAYLOAD} bytes, 4 of them for a value and, in a "
            f"sparse row, up to 5 for its index. Leave zeros out, or hash the features into fewer."
        )
    out = np.empty(size, np.uint8)
    # As integers: floats would pass through arithmetic registers, which may change NaNs.
    numbers = frozen(np.ascontiguousarray(values, np.float32).view(np.uint32))
    targets = np.empty(0) if labels is None else labels
    targets = frozen(np.ascontiguousarray(targets, np.float32).view(np.uint32))
    _fill(*inputs, numbers, targets, has_labels, frozen(key_sizes), out)
    return out.tobytes()


def _check_fit(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer[Any]],
    values: NDArray[np.float32],
    widths: NDArray[np.int64],
    is_dense: NDArray[np.bool_],
    labels: NDArray[np.float32] | None,
) -> None:
    """Raise if the kernels would read outside the arrays."""
    n_rows = len(indptr) - 1
    lengths = np.diff(indptr)
    if n_rows < 0 or indptr[0] < 0 or indptr[-1] > len(values) or (lengths < 0).any():
        raise InvalidDataError(
            f"Row pointers do not fit {len(values)} values: they must start at 0 or later, "
            f"never fall, and end at {len(values)} at the latest."
        )
    for name, array in (("widths", widths), ("dense flags", is_dense), ("labels", labels)):
        if array is not None and len(array) != n_rows:
            raise InvalidDataError(
                f"There are {len(array)} {name} for {n_rows} rows: pass one a row."
            )
    n_keys = int(lengths[~is_dense].sum())
    if len(indices) != n_keys:
        raise InvalidDataError(
            f"The sparse rows have {n_keys} values but {len(indices)} indices: each value "
            f"needs one index."
        )
    if n_keys and int(indices.min()) < 0:
        raise InvalidDataError(
            f"Feature index {int(indices.min())} is negative: the first feature has index 0."
        )


def _count_varint(number):  # type: ignore[no-untyped-def]
    """Return the bytes of a number, seven bits in each."""
    n_bytes = 1
    while number >= 128:
        number >>= 7
        n_bytes += 1
    return n_bytes


_varint_size = njit(_count_varint, variant="varint-size")


def _store_varint(out, at, number):  # type: ignore[no-untyped-def]
    """Write a number at an offset and return the offset behind it."""
    while number >= 128:
        out[at] = (number & 127) | 128
        number >>= 7
        at += 1
    out[at] = number
    return at + 1


_put_varint = njit(_store_varint, variant="put-varint")


def _store_float(out, at, bits):  # type: ignore[no-untyped-def]
    """Write the four bytes of a float, lowest first on any machine."""
    out[at] = bits & 255
    out[at + 1] = (bits >> 8) & 255
    out[at + 2] = (bits >> 16) & 255
    out[at + 3] = bits >> 24
    return at + 4


_put_float = njit(_store_float, variant="put-float")


def _nested_sizes(n_values, n_key_bytes, width, dense):  # type: ignore[no-untyped-def]
    """Return the bytes of a tensor, of the value around it and of the map entry around that."""
    tensor = 0
    if n_values > 0:
        tensor += 1 + _varint_size(4 * n_values) + 4 * n_values
    if n_key_bytes > 0:
        tensor += 1 + _varint_size(n_key_bytes) + n_key_bytes
    if not dense:
        tensor += 2 + _varint_size(width)
    value = 1 + _varint_size(tensor) + tensor
    entry = _ENTRY_SIZE + _varint_size(value) + value
    return tensor, value, entry


_sizes = njit(_nested_sizes, variant="record-sizes")


def _measure_rows(indptr, indices, widths, is_dense, has_labels, key_sizes):  # type: ignore[no-untyped-def]
    """Fill in the bytes of each row's keys; return those of all frames, or -1 - row."""
    total = 0
    q = 0
    for r in range(len(indptr) - 1):
        n_values = indptr[r + 1] - indptr[r]
        n_key_bytes = 0
        if not is_dense[r]:
            for p in range(q, q + n_values):
                n_key_bytes += _varint_size(np.int64(indices[p]))
            q += n_values
        key_sizes[r] = n_key_bytes
        entry = _sizes(n_values, n_key_bytes, widths[r], is_dense[r])[2]
        payload = 1 + _varint_size(entry) + entry
        if has_labels:
            payload += _LABEL_SIZE
        if payload > MAX_PAYLOAD:
            return -1 - r
        total += HEADER_SIZE + ((payload + 3) & ~3)
    return total


_measure = njit(_measure_rows, tag="record-measure")


def _fill_rows(  # type: ignore[no-untyped-def]
    indptr, indices, widths, is_dense, values, labels, has_labels, key_sizes, out
):
    """Write the frames of all rows into a buffer of the measured size."""
    at = 0
    q = 0
    for r in range(len(indptr) - 1):
        n_values = indptr[r + 1] - indptr[r]
        tensor, value, entry = _sizes(n_values, key_sizes[r], widths[r], is_dense[r])
        payload = 1 + _varint_size(entry) + entry
        if has_labels:
            payload += _LABEL_SIZE
        for i in range(4):
            out[at + i] = _MAGIC[i]
        at = _put_float(out, at + 4, payload)
        end = at + payload

        out[at] = _FEATURES_TAG
        at = _put_varint(out, at + 1, entry)
        for i in range(_ENTRY_SIZE):
            out[at + i] = _ENTRY_HEAD[i]
        at = _put_varint(out, at + _ENTRY_SIZE, value)
        out[at] = _TENSOR_TAG
        at = _put_varint(out, at + 1, tensor)
        if n_values > 0:
            out[at] = _VALUES_TAG
            at = _put_varint(out, at + 1, 4 * n_values)
            for p in range(indptr[r], indptr[r + 1]):
                at = _put_float(out, at, values[p])
        if not is_dense[r]:
            if n_values > 0:
                out[at] = _KEYS_TAG
                at = _put_varint(out, at + 1, key_sizes[r])
                for p in range(q, q + n_values):
                    at = _put_varint(out, at, np.int64(indices[p]))
                q += n_values
            out[at] = _SHAPE_TAG
            at = _put_varint(out, at + 1, _varint_size(widths[r]))
            at = _put_varint(out, at, widths[r])

        if has_labels:
            for i in range(_LABEL_SIZE - 4):
                out[at + i] = _LABEL_HEAD[i]
            at = _put_float(out, at + _LABEL_SIZE - 4, labels[r])
        while (end & 3) != 0:  # all frames are whole words, so offsets count like lengths
            out[end] = 0
            end += 1
        at = end


_fill = njit(_fill_rows, tag="record-fill")


def encode_records(rows: Rows, *, first_row: int = 0) -> bytes:
    """Return rows of known widths as framed records, dense ones dense, NaN labels left out.

    Raises InvalidDataError for a number that is not finite as float32.
    """
    values, wrong = as_float32(rows.values)
    if wrong is not None:
        row = int(np.searchsorted(rows.indptr, wrong, "right")) - 1
        raise_value(rows.values[wrong], f"Row {first_row + row}, feature {rows.indices[wrong]}")
    has_label = ~np.isnan(rows.labels)
    labels, wrong = as_float32(np.where(has_label, rows.labels, 0))
    if wrong is not None:
        raise_value(rows.labels[wrong], f"Label of row {first_row + wrong}")
    # Some rows may have a label and others none: a call for each run of rows that are alike.
    cuts = np.flatnonzero(np.diff(has_label)) + 1
    return b"".join(
        _encode_run(
            rows, start, stop, values, labels[start:stop] if has_label[start] else None, first_row
        )
        for start, stop in pairwise([0, *cuts.tolist(), rows.n_rows])
        if start < stop
    )


def _encode_run(
    rows: Rows, start: int, stop: int, values: NDArray[np.float32],
    labels: NDArray[np.float32] | None, first_row: int,
) -> bytes:  # fmt: skip
    indptr = rows.indptr[start : stop + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    is_dense = rows.is_dense[start:stop]
    in_sparse = np.repeat(~is_dense, np.diff(indptr))
    return encode_rows(
        indptr - indptr[0], rows.indices[entries][in_sparse], values[entries],
        rows.widths[start:stop], is_dense, labels, first_row=first_row + start,
    )  # fmt: skip
