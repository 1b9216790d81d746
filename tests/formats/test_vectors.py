"""Spark's vector structs and arrays become CSR arrays, without Spark."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.formats.vectors import read_vectors

VECTOR = pa.struct(
    [
        pa.field("type", pa.int8(), nullable=False),
        pa.field("size", pa.int32()),
        pa.field("indices", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("values", pa.list_(pa.field("element", pa.float64(), nullable=False))),
    ]
)
SIZE = 6


def sparse(entries: dict[int, float]) -> dict[str, object]:
    return {
        "type": 0,
        "size": SIZE,
        "indices": sorted(entries),
        "values": [entries[i] for i in sorted(entries)],
    }


def dense(entries: dict[int, float]) -> dict[str, object]:
    values = [entries.get(i, 0.0) for i in range(SIZE)]
    return {"type": 1, "size": None, "indices": None, "values": values}


def rows_of(column: object) -> list[dict[int, float]]:
    read = read_vectors(column)
    return [
        dict(zip(read.indices[a:b].tolist(), read.values[a:b].tolist(), strict=True))
        for a, b in zip(read.indptr[:-1], read.indptr[1:], strict=True)
    ]


entries = st.dictionaries(st.integers(0, SIZE - 1), st.floats(-9, 9).filter(bool), max_size=SIZE)


@given(st.lists(st.tuples(st.sampled_from(["sparse", "dense", "null"]), entries), max_size=8))
def test_mixed_vectors_give_their_non_zeros_in_order(items):
    made = {"sparse": sparse, "dense": dense, "null": lambda _: None}
    column = pa.array([made[kind](row) for kind, row in items], VECTOR)

    assert rows_of(column) == [{} if kind == "null" else row for kind, row in items]
    read = read_vectors(column)
    assert read.is_null.tolist() == [kind == "null" for kind, _ in items]
    assert read.sizes.tolist() == [0 if kind == "null" else SIZE for kind, _ in items]
    assert not read.is_broken.any()


@given(st.lists(entries, min_size=3, max_size=9), st.integers(0, 2), st.integers(0, 3))
def test_a_slice_gives_only_its_own_rows(rows, start, length):
    column = pa.array([sparse(row) for row in rows], VECTOR).slice(start, length)

    assert rows_of(column) == rows[start : start + length]


@given(st.lists(st.one_of(st.none(), st.lists(st.floats(-9, 9), max_size=5)), max_size=6))
def test_arrays_are_dense_vectors(lists):
    column = pa.array(lists, pa.list_(pa.float64()))

    expected = [{i: x for i, x in enumerate(values or []) if x != 0} for values in lists]
    assert rows_of(column) == expected
    assert read_vectors(column).is_null.tolist() == [values is None for values in lists]


def test_float32_arrays_keep_their_values():
    column = pa.array([[0.5, 0.0, -2.0]], pa.list_(pa.float32()))

    assert rows_of(column) == [{0: 0.5, 2: -2.0}]


def test_a_null_array_element_reads_as_nan():
    read = read_vectors(pa.array([[1.0, None]], pa.list_(pa.float64())))

    assert read.indices.tolist() == [0, 1]
    assert np.isnan(read.values[1])


def test_a_vector_with_unequal_lengths_is_marked_and_emptied():
    broken = {"type": 0, "size": SIZE, "indices": [1, 2], "values": [1.0]}
    column = pa.array([sparse({0: 1.0}), broken, sparse({3: 2.0})], VECTOR)

    assert rows_of(column) == [{0: 1.0}, {}, {3: 2.0}]
    assert read_vectors(column).is_broken.tolist() == [False, True, False]


def test_all_sparse_rows_are_read_without_a_copy():
    column = pa.array([sparse({0: 1.0, 4: 2.0}), sparse({1: 3.0})], VECTOR)

    read = read_vectors(column)

    assert read.values.base is not None
    assert not read.values.flags.owndata
