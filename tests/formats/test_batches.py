"""How wide rows are, and which do not fit, against loops over rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.formats.recordio.reader import Rows, summed

# A row: its indices, what it claims, and whether it is dense.
row = st.tuples(st.sets(st.integers(0, 9), max_size=5), st.integers(-1, 11), st.booleans())
table = st.lists(row, max_size=8)


def rows_of(table: list[tuple[set[int], int, bool]]) -> Rows:
    indices = [index for found, _, _ in table for index in sorted(found)]
    return Rows(
        np.cumsum([0, *(len(found) for found, _, _ in table)]),
        np.array(indices, np.int32),
        np.ones(len(indices)),
        np.zeros(len(table)),
        np.array([claim for _, claim, _ in table], np.int64),
        np.array([is_dense for _, _, is_dense in table], np.bool_),
    )


def top(found: set[int]) -> int:
    return max(found, default=-1) + 1


@given(table)
def test_a_row_reaches_to_its_largest_index(table: list[tuple[set[int], int, bool]]) -> None:
    assert rows_of(table).tops().tolist() == [top(found) for found, _, _ in table]


@given(table)
def test_rows_need_what_they_have_and_claim(table: list[tuple[set[int], int, bool]]) -> None:
    needed = [max(top(found), claim) for found, claim, _ in table]
    assert rows_of(table).n_features == max([0, *needed])


@given(table, st.integers(0, 11))
def test_rows_fit_a_width_that_was_found_if_they_claim_no_other(
    table: list[tuple[set[int], int, bool]], width: int
) -> None:
    fits = [claim in (-1, width) and top(found) <= width for found, claim, _ in table]
    assert rows_of(table).misfits(width, is_set=False).tolist() == [not fit for fit in fits]


@given(table, st.integers(0, 11))
def test_sparse_rows_fit_a_width_that_was_set_whatever_they_claim(
    table: list[tuple[set[int], int, bool]], width: int
) -> None:
    fits = [
        (claim in (-1, width) or not is_dense) and top(found) <= width
        for found, claim, is_dense in table
    ]
    assert rows_of(table).misfits(width, is_set=True).tolist() == [not fit for fit in fits]


@pytest.mark.parametrize("is_set", [True, False])
def test_the_largest_index_of_a_vector_does_not_overflow(is_set: bool) -> None:
    rows = rows_of([({2**31 - 2}, -1, False)])

    assert rows.n_features == 2**31 - 1
    assert not rows.misfits(2**31 - 1, is_set=is_set).any()


entries = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.1, 0.7, -1e8, 1e8])), max_size=6)


@given(st.lists(entries, max_size=6))
def test_entries_are_sorted_and_added_up_in_their_order_within_each_row(
    rows: list[list[tuple[int, float]]],
) -> None:
    expected: list[dict[int, float]] = []
    for row in rows:
        expected.append({})
        for index, value in row:
            expected[-1][index] = expected[-1].get(index, 0.0) + value
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([index for row in rows for index, _ in row], np.int32)
    values = np.array([value for row in rows for _, value in row], np.float64)
    given_values = values.copy()

    starts, ids, numbers = summed(indptr, indices, values)

    found = [
        list(zip(ids[a:b].tolist(), numbers[a:b].tolist(), strict=True))
        for a, b in pairwise(starts)
    ]
    assert found == [sorted(row.items()) for row in expected]
    np.testing.assert_array_equal(values, given_values)  # the caller's are left alone
