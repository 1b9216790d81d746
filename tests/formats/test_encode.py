"""Encoding rows: golden bytes, agreement with protobuf, frames, and arrays that do not fit."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.errors import InvalidDataError
from spark_fm.formats.recordio import framing
from spark_fm.formats.recordio.encode import encode_csr, encode_dense, encode_rows
from spark_fm.formats.recordio.record_pb2 import Record

# Written by SageMaker's own SDK.
SPARSE_ROW = bytes.fromhex(
    "0a23d7ce330000000a1d0a0676616c75657312131211"
    "0a080000004000004040120201031a0104"
    "12120a0676616c756573120812060a040000803f00"
)
DENSE_ROW = bytes.fromhex(
    "0a23d7ce2c0000000a160a0676616c756573120c120a"
    "0a080000c03f00008041"
    "12120a0676616c756573120812060a040000803f"
)
EMPTY_ROW = bytes.fromhex(
    "0a23d7ce250000000a0f0a0676616c7565731205"
    "12031a0104"
    "12120a0676616c756573120812060a040000803f000000"
)
ONE = np.ones(1, np.float32)
MAX_INDEX = 2**31 - 2


def payloads(data: bytes) -> list[bytes]:
    """Split frames with nothing but the format's description."""
    found, at = [], 0
    while at < len(data):
        magic, length = struct.unpack_from("<II", data, at)
        assert magic == 0xCED7230A
        assert length < 2**29  # also: not a part of a record
        end = at + 8 + length
        padding = -length % 4
        assert data[end : end + padding] == bytes(padding)
        found.append(data[at + 8 : end])
        assert len(found[-1]) == length
        at = end + padding
    assert at == len(data)
    return found


def parse(payload: bytes) -> Record:
    record = Record()
    record.ParseFromString(payload)
    return record


def csr(rows: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        np.array([key for row in rows for key in row], np.int64),
        np.array([value for row in rows for value in row.values()], np.float32),
    )


FLOAT = st.floats(width=32)  # zeros, NaN and infinity too: this layer writes what it gets
# Around each length of a varint.
KEY = st.one_of(
    st.integers(0, MAX_INDEX),
    st.sampled_from([0, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**28 - 1, 2**28, MAX_INDEX]),
)
SPARSE = st.dictionaries(KEY, FLOAT, max_size=40)
DENSE = st.lists(FLOAT, max_size=40)
LABELS = st.one_of(st.none(), st.floats(width=32))


def bits(numbers: object) -> bytes:
    return np.asarray(list(numbers), np.float32).tobytes()  # type: ignore[call-overload]


def test_sparse_row_has_the_bytes_of_the_sdk() -> None:
    row = csr([{1: 2.0, 3: 3.0}])
    assert encode_csr(*row, 4, ONE) == SPARSE_ROW


def test_dense_row_has_the_bytes_of_the_sdk() -> None:
    assert encode_dense(np.array([[1.5, 16]], np.float32), ONE) == DENSE_ROW


def test_empty_sparse_row_has_the_bytes_of_the_sdk() -> None:
    assert encode_csr(*csr([{}]), 4, ONE) == EMPTY_ROW


def test_mixed_rows_have_the_bytes_of_the_sdk() -> None:
    data = encode_rows(
        np.array([0, 2, 4, 4]),
        np.array([1, 3], np.int32),
        np.array([1.5, 16, 2, 3], np.float32),
        np.array([2, 4, 4]),
        np.array([True, False, False]),
        np.ones(3, np.float32),
    )
    assert data == DENSE_ROW + SPARSE_ROW + EMPTY_ROW


@settings(derandomize=True, deadline=None)
@given(st.lists(SPARSE, max_size=8), st.booleans(), st.sampled_from([np.int32, np.int64]))
def test_sparse_rows_are_read_back_by_protobuf(
    rows: list[dict[int, float]], labelled: bool, dtype: type
) -> None:
    indptr, indices, values = csr(rows)
    labels = np.arange(len(rows), dtype=np.float32) - 1 if labelled else None
    found = payloads(encode_csr(indptr, indices.astype(dtype), values, 2**31 - 1, labels))
    assert len(found) == len(rows)
    for r, (payload, row) in enumerate(zip(found, rows, strict=True)):
        record = parse(payload)
        tensor = record.features["values"].float32_tensor
        assert list(tensor.keys) == list(row)
        assert bits(tensor.values) == bits(row.values())
        assert list(tensor.shape) == [2**31 - 1]
        assert set(record.features) == {"values"}
        assert set(record.label) == ({"values"} if labelled else set())
        if labelled:
            assert list(record.label["values"].float32_tensor.values) == [r - 1]
        assert not record.HasField("uid")
        assert not record.HasField("metadata")


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.one_of(SPARSE, DENSE), FLOAT), max_size=8))
def test_mixed_rows_are_read_back_by_protobuf(rows: list[tuple[object, float]]) -> None:
    entries = [
        (list(row), list(row.values())) if isinstance(row, dict) else ([], row) for row, _ in rows
    ]
    data = encode_rows(
        np.concatenate([[0], np.cumsum([len(v) for _, v in entries])]).astype(np.int64),
        np.array([key for keys, _ in entries for key in keys], np.int32),
        np.array([value for _, values in entries for value in values], np.float32),
        np.array([1000 + r for r in range(len(rows))], np.int64),
        np.array([isinstance(row, list) for row, _ in rows], np.bool_),
        np.array([label for _, label in rows], np.float32),
    )
    for r, (payload, (keys, values)) in enumerate(zip(payloads(data), entries, strict=True)):
        record = parse(payload)
        tensor = record.features["values"].float32_tensor
        assert list(tensor.keys) == keys
        assert bits(tensor.values) == bits(values)
        assert list(tensor.shape) == ([] if isinstance(rows[r][0], list) else [1000 + r])
        assert bits(record.label["values"].float32_tensor.values) == bits([rows[r][1]])


@settings(derandomize=True, deadline=None)
@given(SPARSE, KEY, LABELS)
def test_bytes_are_those_of_protobuf(
    row: dict[int, float], width: int, label: float | None
) -> None:
    record = Record()
    tensor = record.features["values"].float32_tensor
    tensor.SetInParent()
    tensor.values.extend(row.values())
    tensor.keys.extend(row)
    tensor.shape.append(width)
    if label is not None:
        record.label["values"].float32_tensor.values.append(label)
    labels = None if label is None else np.array([label], np.float32)
    assert payloads(encode_csr(*csr([row]), width, labels)) == [record.SerializeToString()]


@pytest.mark.parametrize("n_values", [0, 1, 27, 28, 31, 32, 4090, 4096, 530_000])
def test_lengths_of_any_number_of_bytes_nest(n_values: int) -> None:
    X = np.arange(2 * n_values, dtype=np.float32).reshape(2, n_values)
    for payload, row in zip(payloads(encode_dense(X)), X, strict=True):
        found = parse(payload).features["values"].float32_tensor.values
        np.testing.assert_array_equal(np.fromiter(found, np.float32), row)


def test_no_rows_are_no_bytes() -> None:
    assert encode_csr(*csr([]), 4) == b""
    assert encode_dense(np.empty((0, 3), np.float32)) == b""


def test_unsorted_and_repeated_indices_are_written_as_given() -> None:
    data = encode_csr(
        np.array([0, 3]), np.array([5, 2, 5], np.int32), np.array([1, 0, 3], np.float32), 9
    )
    tensor = parse(payloads(data)[0]).features["values"].float32_tensor
    assert (list(tensor.keys), list(tensor.values)) == ([5, 2, 5], [1, 0, 3])


def test_slice_of_rows_may_start_behind_the_first_entry() -> None:
    indptr, indices, values = csr([{0: 9.0}, {1: 2.0, 3: 3.0}, {2: 8.0}])
    assert encode_csr(indptr[1:3], indices, values, 4, ONE) == SPARSE_ROW


def test_magic_in_a_value_is_not_escaped() -> None:
    value = np.frombuffer(framing.MAGIC_BYTES, "<f4").reshape(1, 1)
    (payload,) = payloads(encode_dense(value.astype(np.float32)))
    assert framing.MAGIC_BYTES in payload


def test_callers_arrays_may_be_read_only_or_strided() -> None:
    X = np.arange(8, dtype=np.float32).reshape(2, 4)
    frozen = X.copy()
    frozen.flags.writeable = False
    expected = encode_dense(X)
    assert encode_dense(frozen) == expected
    assert encode_dense(np.asfortranarray(X)) == expected
    assert encode_dense(np.repeat(X, 2, axis=1)[:, ::2]) == expected


@pytest.mark.parametrize(
    ("indptr", "indices", "n_labels", "message"),
    [
        ([0, 3], [0, 1], 1, "Row pointers do not fit"),
        ([0, 2, 1], [0, 1], 2, "Row pointers do not fit"),
        ([-1, 2], [0, 1], 1, "Row pointers do not fit"),
        ([], [], 0, "Row pointers do not fit"),
        ([0, 2], [0], 1, "2 values but 1 indices"),
        ([0, 2], [0, -4], 1, "index -4 is negative"),
        ([0, 2], [0, 1], 2, "2 labels for 1 rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    indptr: list[int], indices: list[int], n_labels: int, message: str
) -> None:
    with pytest.raises(InvalidDataError, match=message):
        encode_rows(
            np.array(indptr, np.int64),
            np.array(indices, np.int32),
            np.zeros(2, np.float32),
            np.full(max(0, len(indptr) - 1), 4),
            np.zeros(max(0, len(indptr) - 1), np.bool_),
            np.zeros(n_labels, np.float32),
        )


def test_row_too_long_for_a_frame_is_refused_before_memory_is_taken() -> None:
    n_values = framing.MAX_PAYLOAD // 4
    zeros = np.broadcast_to(np.zeros(1, np.float32), (n_values,))  # 4 bytes of memory
    with pytest.raises(InvalidDataError, match=f"Row 7 has {n_values} values, too many"):
        encode_dense(zeros.reshape(1, -1), first_row=7)


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (1, 4), (4, 4), (5, 8), (7, 8)])
def test_payloads_are_padded_to_whole_words(length: int, expected: int) -> None:
    assert framing.padded(length) == expected
