"""Writing matrices: what is written, and what is refused."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.errors import InvalidDataError
from spark_fm.formats.recordio import writer
from spark_fm.recordio import write_records
from tests.formats.test_encode import DENSE_ROW, EMPTY_ROW, SPARSE_ROW, parse, payloads

FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]
DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint64", "float32", "float64"]
TABLE = np.array([[0, 2, 0, 3], [0, 0, 0, 0], [1, 0, 0, 0]])


def written(X: Any, y: Any = None) -> bytes:
    file = io.BytesIO()
    write_records(file, X, y)
    return file.getvalue()


def rows_in(data: bytes) -> list[tuple[dict[int, float], list[int], list[float]]]:
    """Return features by index, shape and label of each record."""
    found = []
    for payload in payloads(data):
        record = parse(payload)
        tensor = record.features["values"].float32_tensor
        keys = tensor.keys if tensor.shape else range(len(tensor.values))
        features = dict(zip(keys, tensor.values, strict=True))
        labels = list(record.label["values"].float32_tensor.values) if record.label else []
        found.append((features, list(tensor.shape), labels))
    return found


def one_sparse(index: int, width: int) -> sp.csr_array:
    return sp.csr_array(([1.0], np.array([index], np.int64), [0, 1]), shape=(1, width))


# --- What is written ---


def test_rows_have_the_bytes_of_the_sdk() -> None:
    assert written(sp.csr_array([[0, 2, 0, 3]]), [1]) == SPARSE_ROW
    assert written([[1.5, 16]], [1]) == DENSE_ROW
    assert written(sp.csr_array((1, 4)), [1]) == EMPTY_ROW


@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_sparse_class_gives_the_same_bytes(form: str, kind: str) -> None:
    matrix = getattr(sp, f"{form}_{kind}")(TABLE.astype(np.float64))
    assert written(matrix, [1, 0, 1]) == written(sp.csr_array(TABLE), [1, 0, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_of_real_numbers_becomes_float32(dtype: str) -> None:
    table = TABLE.astype(dtype)
    expected = table.astype(np.float32)
    y = np.array([0, 1, 1], dtype)
    assert written(table, y) == written(expected, y.astype(np.float32))
    assert written(sp.csc_matrix(table), y) == written(sp.csr_array(expected), [0, 1, 1])


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">f8", ">i4", "longdouble"])
def test_unusual_types_of_dense_numbers_become_float32(dtype: str) -> None:
    assert written(TABLE.astype(dtype), np.ones(3, dtype)) == written(TABLE, [1, 1, 1])


@pytest.mark.parametrize("shape", [(3, 1), (1, 3)])
def test_sparse_labels_are_labels(shape: tuple[int, int]) -> None:
    labels = np.array([1.0, 0.0, 2.0])

    assert written(TABLE, sp.csr_array(labels.reshape(shape))) == written(TABLE, labels)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300), st.integers(-9, 9)), max_size=40),
    st.booleans(),
)
def test_rows_equal_those_of_the_matrix(
    entries: list[tuple[int, int, int]], labelled: bool
) -> None:
    rows, columns, values = np.array(entries, np.int64).reshape(-1, 3).T
    matrix = sp.coo_matrix((values.astype(float), (rows, columns)), shape=(5, 301))
    y = np.arange(5) if labelled else None
    sums: list[dict[int, float]] = [{} for _ in range(5)]
    for row, column, value in entries:
        sums[row][column] = sums[row].get(column, 0.0) + value
    for r, (features, shape, label) in enumerate(rows_in(written(matrix, y))):
        assert list(features) == sorted(sums[r])  # in order, and with zeros that are stored
        assert features == sums[r]
        assert shape == [301]
        assert label == ([r] if labelled else [])


@pytest.mark.parametrize(("rows", "entries"), [(1, 10**6), (2, 3), (3, 1), (100, 5)])
def test_chunks_do_not_show_in_the_bytes(
    rows: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    X = _random(rng)
    y = rng.normal(size=23)
    whole, dense = written(X, y), written(X.toarray(), y)
    monkeypatch.setattr(writer, "CHUNK_ROWS", rows)
    monkeypatch.setattr(writer, "CHUNK_ENTRIES", entries)
    assert written(X, y) == whole
    assert written(X.toarray(), y) == dense


def _random(rng: np.random.Generator) -> sp.csr_matrix:
    table = rng.normal(size=(23, 9))
    table[rng.random((23, 9)) < 0.6] = 0
    table[[0, 11, 22]] = 0
    return sp.csr_matrix(table)


def test_repeated_and_unsorted_entries_are_summed_and_the_matrix_stays() -> None:
    X = sp.csr_matrix(
        (np.array([1.0, 2.0, 4.0]), np.array([5, 2, 5]), np.array([0, 3])), shape=(1, 9)
    )
    before = [array.copy() for array in (X.indptr, X.indices, X.data)]
    assert rows_in(written(X)) == [({2: 2.0, 5: 5.0}, [9], [])]
    for array, old in zip((X.indptr, X.indices, X.data), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_indices_changed_behind_scipys_back_are_still_sorted() -> None:
    X = sp.csr_matrix([[0.0, 2.0, 3.0]])
    assert X.has_canonical_format  # remembered by SciPy from here on
    X.indices[:] = [2, 1]
    assert rows_in(written(X)) == [({1: 3.0, 2: 2.0}, [3], [])]


def test_stored_zeros_are_written() -> None:
    X = sp.csr_array(([0.0, 7.0], [0, 2], [0, 2]), shape=(1, 3))
    assert rows_in(written(X)) == [({0: 0.0, 2: 7.0}, [3], [])]


def test_largest_index_of_a_vector_is_written() -> None:
    data = written(one_sparse(2**31 - 2, 2**31 - 1))
    assert rows_in(data) == [({2**31 - 2: 1.0}, [2**31 - 1], [])]


@pytest.mark.parametrize("X", [[1.5, 16], (1.5, 16), np.array([1.5, 16]), pd.Series([1.5, 16])])
def test_one_dimension_is_one_row(X: Any) -> None:
    assert written(X, [1]) == DENSE_ROW
    assert written(X, 1) == DENSE_ROW


def test_tables_of_pandas_and_matrices_of_numpy_are_dense_rows() -> None:
    frame = pd.DataFrame({"a": [1.5], "b": [16]}, index=["row"])
    assert written(frame, pd.DataFrame({"y": [1]})) == DENSE_ROW
    assert written(np.asmatrix([[1.5, 16]]), pd.Series([1], index=[7])) == DENSE_ROW


@pytest.mark.parametrize(
    "X", [sp.csr_matrix((0, 4)), np.empty((0, 3)), [], pd.DataFrame(), sp.coo_array((0, 2))]
)
@pytest.mark.parametrize("y", [None, []])
def test_no_rows_are_no_bytes(X: Any, y: Any) -> None:
    file = io.BytesIO()
    assert write_records(file, X, y) == 0
    assert file.getvalue() == b""


@pytest.mark.parametrize(
    "y", [[1, 0, 1], (1, 0, 1), np.array([[1], [0], [1]]), np.array([True, False, True])]
)
def test_labels_may_be_lists_columns_and_flags(y: Any) -> None:
    assert [label for _, _, label in rows_in(written(TABLE, y))] == [[1], [0], [1]]


def test_without_labels_no_label_is_written() -> None:
    assert all(not parse(payload).label for payload in payloads(written(TABLE)))


# --- What is refused ---


@pytest.mark.parametrize("y", [[1, 0], [1, 0, 1, 1], 1, np.ones((4, 1)), []])
def test_number_of_labels_is_that_of_rows_not_of_columns(y: Any) -> None:
    with pytest.raises(InvalidDataError, match=r"y has \d labels but X has 3 rows"):
        written(TABLE, y)


@pytest.mark.parametrize("y", [np.ones((3, 2)), np.ones((1, 3)), np.ones((3, 1, 1))])
def test_labels_of_another_shape_are_refused(y: np.ndarray) -> None:
    with pytest.raises(InvalidDataError, match=re.escape(f"y has shape {y.shape}")):
        written(TABLE, y)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "is nan: only finite"),
        (np.inf, "is inf: only finite"),
        (-np.inf, "is -inf: only finite"),
        (1e39, r"is 1e\+39, too large for float32"),
        (-3.5e38, r"is -3\.5e\+38, too large for float32"),
    ],
)
@pytest.mark.parametrize("chunk_rows", [1, 100])
@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array, sp.coo_matrix, sp.csc_array])
def test_bad_value_is_named_with_row_and_column(
    convert: Any, chunk_rows: int, value: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHUNK_ROWS", chunk_rows)
    X = TABLE.astype(np.float64)
    X[2, 3] = value
    with pytest.raises(InvalidDataError, match="X in row 2, column 3 " + message):
        written(convert(X))


@pytest.mark.parametrize(("value", "message"), [(np.nan, "is nan"), (1e39, "too large")])
def test_bad_label_is_named_with_its_row_before_anything_is_written(
    value: float, message: str
) -> None:
    file = io.BytesIO()
    with pytest.raises(InvalidDataError, match=f"Label of row 1 .*{message}"):
        write_records(file, TABLE, [0, value, 1])
    assert file.getvalue() == b""


def test_sum_of_repeated_entries_that_overflows_is_refused() -> None:
    X = sp.csr_array(([3e38, 3e38], [1, 1], [0, 2]), shape=(1, 3))
    with pytest.raises(InvalidDataError, match=r"row 0, column 1 is 6e\+38, too large"):
        written(X)


@pytest.mark.parametrize(
    ("X", "dtype"),
    [
        (np.array([[1j]]), "complex128"),
        (sp.csr_array(np.array([[1j]])), "complex128"),
        ([["a", "b"]], "<U1"),
        (np.array([["1.5"]], object), "object"),
        (np.array([["2020-01-01"]], "datetime64[D]"), "datetime64"),
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), "object"),
        ("text", "<U4"),
        (None, "object"),
        ({1: 2}, "object"),
    ],
)
def test_other_types_are_refused_with_their_name(X: Any, dtype: str) -> None:
    with pytest.raises(InvalidDataError, match=f"X has dtype {dtype}.*float, integer and bool"):
        written(X)


@pytest.mark.parametrize("y", [["a", "b", "c"], [1j, 0, 0], [None, 1, 0]])
def test_other_types_of_labels_are_refused(y: Any) -> None:
    with pytest.raises(InvalidDataError, match=r"y has dtype .*float, integer and bool"):
        written(TABLE, y)


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="X of type list is not a table of numbers"):
        written([[1, 2], [3]])


@pytest.mark.parametrize("X", [np.float32(3), np.zeros((2, 2, 2))])
def test_other_numbers_of_dimensions_are_refused(X: Any) -> None:
    with pytest.raises(InvalidDataError, match=r"X has (0|3) dimensions"):
        written(X)


@pytest.mark.parametrize("X", [np.zeros((2, 0)), sp.csr_matrix((2, 0)), [[], []]])
def test_rows_without_columns_are_refused(X: Any) -> None:
    with pytest.raises(InvalidDataError, match="X has 2 rows but no columns"):
        written(X)


def test_masked_entries_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="X has masked entries"):
        written(np.ma.masked_equal(TABLE, 3))
    assert written(np.ma.masked_equal(TABLE, 99)) == written(TABLE)


def test_index_too_large_for_a_vector_is_refused() -> None:
    with pytest.raises(InvalidDataError, match="Feature index 2147483647 in row 0"):
        written(one_sparse(2**31 - 1, 2**40))


@pytest.mark.parametrize("index", [4, -1])
def test_index_outside_the_matrix_is_refused(index: int) -> None:
    X = sp.csr_array(TABLE)
    X.indices[2] = index
    with pytest.raises(InvalidDataError, match=f"Feature index {index} in row 2"):
        written(X)


def test_neither_spark_nor_pandas_is_imported() -> None:
    code = (
        "import sys, spark_fm.recordio\n"
        "assert not {'pyspark', 'pandas'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
