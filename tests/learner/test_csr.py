"""Sparse rows: conversion, canonical form, stacking and taking."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.learner.csr import CsrBatch, canonical
from tests.builders import random_batch

ENTRY = st.tuples(st.integers(0, 8), st.integers(-8, 8))  # small integers add exactly
ROWS = st.lists(st.lists(ENTRY, max_size=7), max_size=6)


def batch_of(rows: list[list[tuple[int, int]]]) -> CsrBatch:
    entries = [entry for row in rows for entry in row]
    return CsrBatch.from_arrays(
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        np.array([j for j, _ in entries], np.int32),
        np.array([x for _, x in entries], np.float32),
        labels=np.arange(len(rows), dtype=np.float32),
        weights=np.arange(len(rows), dtype=np.float32),
    )


def sums_by_row(batch: CsrBatch) -> list[dict[int, float]]:
    sums = []
    for r in range(batch.n_rows):
        row: dict[int, float] = {}
        for p in range(batch.indptr[r], batch.indptr[r + 1]):
            row[int(batch.indices[p])] = row.get(int(batch.indices[p]), 0.0) + batch.values[p]
        sums.append(row)
    return sums


def assert_same(left: CsrBatch, right: CsrBatch) -> None:
    for name in ("indptr", "indices", "values", "labels", "weights"):
        a, b = getattr(left, name), getattr(right, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS)
def test_canonical_rows_increase_strictly_and_keep_every_sum(
    rows: list[list[tuple[int, int]]],
) -> None:
    batch = batch_of(rows)

    result = canonical(batch)

    assert sums_by_row(result) == sums_by_row(batch)
    for r in range(result.n_rows):
        assert (np.diff(result.indices[result.indptr[r] : result.indptr[r + 1]]) > 0).all()
    np.testing.assert_array_equal(result.labels, batch.labels)
    np.testing.assert_array_equal(result.weights, batch.weights)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS)
def test_canonical_twice_is_canonical_once(rows: list[list[tuple[int, int]]]) -> None:
    once = canonical(batch_of(rows))

    assert canonical(once) is once


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS, st.integers(0, 6))
def test_concat_of_a_cut_batch_is_the_batch(rows: list[list[tuple[int, int]]], cut: int) -> None:
    batch = batch_of(rows)
    numbers = np.arange(batch.n_rows)

    joined = CsrBatch.concat([batch.take(numbers[:cut]), batch.take(numbers[cut:])])

    assert_same(joined, batch)


def test_concat_of_nothing_is_a_batch_without_rows() -> None:
    empty = CsrBatch.concat([])

    assert (empty.n_rows, empty.nnz) == (0, 0)


def test_rows_between_two_numbers_are_those_that_take_gives() -> None:
    batch = random_batch(9, 5, seed=4)
    for start, stop in ((0, 9), (0, 4), (3, 7), (5, 5), (8, 9)):
        part, taken = batch.between(start, stop), batch.take(np.arange(start, stop))
        for name in ("indptr", "indices", "values", "labels", "weights"):
            np.testing.assert_array_equal(getattr(part, name), getattr(taken, name), name)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS, st.lists(st.integers(0, 5), max_size=9))
def test_take_copies_the_entries_that_numpy_takes(
    rows: list[list[tuple[int, int]]], numbers: list[int]
) -> None:
    batch = batch_of(rows)
    taken = np.array([n for n in numbers if n < batch.n_rows], np.int64)
    lengths = np.diff(batch.indptr)[taken]
    entries = np.concatenate(
        [np.arange(batch.indptr[r], batch.indptr[r + 1]) for r in taken] + [np.empty(0, np.int64)]
    )

    found = batch.take(taken)

    np.testing.assert_array_equal(np.diff(found.indptr), lengths)
    np.testing.assert_array_equal(found.indices, batch.indices[entries])
    np.testing.assert_array_equal(found.values, batch.values[entries])


def test_take_repeats_and_reorders_rows_like_numpy() -> None:
    batch = random_batch(8, 5, seed=1, weighted=True)
    rows = np.array([7, 0, 0, 3])

    taken = batch.take(rows)

    np.testing.assert_array_equal(dense(taken, 5), dense(batch, 5)[rows])
    np.testing.assert_array_equal(taken.labels, batch.labels[rows])
    np.testing.assert_array_equal(taken.weights, batch.weights[rows])


def dense(batch: CsrBatch, n_features: int) -> np.ndarray:
    matrix = sp.csr_matrix(
        (batch.values, batch.indices, batch.indptr), shape=(batch.n_rows, n_features)
    )
    return matrix.toarray()


def test_from_matrix_adds_repeated_entries_and_sorts() -> None:
    matrix = sp.csr_matrix(
        (np.array([1.0, 2.0, 4.0, 8.0]), np.array([3, 1, 3, 0]), np.array([0, 3, 4])), shape=(2, 5)
    )

    batch = CsrBatch.from_matrix(matrix)

    assert sums_by_row(batch) == [{1: 2.0, 3: 5.0}, {0: 8.0}]
    assert batch.indices.tolist() == [1, 3, 0]


def test_from_matrix_leaves_the_callers_matrix_as_it_was() -> None:
    matrix = sp.csr_matrix(
        (np.array([1, 2, 4], np.float32), np.array([3, 1, 3], np.int32), np.array([0, 3])),
        shape=(1, 5),
    )

    CsrBatch.from_matrix(matrix)

    assert matrix.indices.tolist() == [3, 1, 3]
    assert matrix.data.tolist() == [1, 2, 4]


@pytest.mark.parametrize("convert", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array])
def test_from_matrix_reads_every_sparse_kind_like_the_dense_array(convert: type) -> None:
    X = np.array([[0, 1.5, 0], [2, 0, -1], [0, 0, 0]])

    batch = CsrBatch.from_matrix(convert(X), labels=[1, 0, 1], weights=[1, 2, 3])

    assert_same(batch, CsrBatch.from_matrix(X, labels=[1, 0, 1], weights=[1, 2, 3]))
    np.testing.assert_array_equal(dense(batch, 3), X)


def test_from_matrix_takes_one_vector_as_one_row() -> None:
    batch = CsrBatch.from_matrix([0.0, 2.0, 3.0])

    assert (batch.n_rows, batch.indices.tolist()) == (1, [1, 2])


def test_absent_labels_are_zero_and_absent_weights_one() -> None:
    batch = CsrBatch.from_matrix(np.eye(3))

    np.testing.assert_array_equal(batch.labels, np.zeros(3, np.float32))
    np.testing.assert_array_equal(batch.weights, np.ones(3, np.float32))


def test_n_bytes_counts_all_five_arrays() -> None:
    batch = CsrBatch.from_matrix(np.eye(3))

    assert batch.n_bytes == 4 * 8 + 3 * 4 + 3 * 4 + 3 * 4 + 3 * 4
