"""Rows cut into blocks: every entry is there twice, by row and by feature."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.blocks import ALONE, CHUNK, BlockedRows, block_rows
from tests.builders import random_batch

N_FEATURES = 12
Entry = tuple[int, int, float]  # row, feature, value


def entries_by_row(blocked: BlockedRows, block: int) -> list[Entry]:
    found = []
    for place in range(blocked.places[block], blocked.places[block + 1]):
        for p in range(blocked.indptr[place], blocked.indptr[place + 1]):
            found.append((int(blocked.rows[place]), int(blocked.indices[p]), blocked.values[p]))
    return sorted(found)


def entries_by_feature(blocked: BlockedRows, block: int) -> list[Entry]:
    found = []
    for chunk in range(blocked.chunks[block], blocked.chunks[block + 1]):
        for p in range(blocked.chunk_starts[chunk], blocked.chunk_starts[chunk + 1]):
            row = blocked.rows[blocked.places[block] + blocked.entry_places[p]]
            feature = int(blocked.chunk_features[chunk])
            found.append((int(row), feature, blocked.entry_values[p]))
    return sorted(found)


def entries_of(batch: CsrBatch, rows: np.ndarray) -> list[Entry]:
    return sorted(
        (int(r), int(batch.indices[p]), batch.values[p])
        for r in rows
        for p in range(batch.indptr[r], batch.indptr[r + 1])
    )


@given(st.integers(0, 40), st.integers(1, 50), st.integers(0, 1000))
def test_blocks_hold_the_rows_of_positive_weight_in_both_orders(
    n_rows: int, size: int, seed: int
) -> None:
    batch = random_batch(n_rows, N_FEATURES, seed=seed, weighted=True)
    order = np.random.default_rng(seed).permutation(n_rows)

    blocked = BlockedRows.of(batch, order, size, N_FEATURES)

    cut = [order[start : start + size] for start in range(0, n_rows, size)]
    live = [rows[batch.weights[rows] > 0] for rows in cut]
    live = [rows for rows in live if len(rows)]
    assert blocked.n_blocks == len(live)
    for block, rows in enumerate(live):
        expected = entries_of(batch, rows)
        assert entries_by_row(blocked, block) == expected
        assert entries_by_feature(blocked, block) == expected
        counts = Counter(feature for _, feature, _ in expected)
        span = slice(*blocked.indptr[blocked.places[block : block + 2]])
        repeats = [counts[int(j)] for j in blocked.indices[span]]
        assert blocked.repeats[span].tolist() == repeats


def frequent() -> BlockedRows:
    X = np.zeros((3 * CHUNK, N_FEATURES))
    X[:, 2], X[0, 5], X[: CHUNK + 1, 7] = 1, 1, 1
    batch = CsrBatch.from_matrix(X)
    return BlockedRows.of(batch, np.arange(3 * CHUNK), 2 * CHUNK, N_FEATURES)


def test_a_frequent_feature_is_shared_by_chunks() -> None:
    blocked = frequent()

    assert np.diff(blocked.chunk_starts).max() == CHUNK
    assert blocked.shared_features.tolist() == [2, 7]
    assert blocked.shared_repeats.tolist() == [2 * CHUNK, CHUNK + 1]
    assert blocked.shared_counts.tolist() == [2, 2]
    assert blocked.shared_slots.tolist() == [0, 2]
    assert blocked.chunk_features.tolist() == [2, 2, 5, 7, 7, 2]
    assert blocked.chunk_slots.tolist() == [0, 1, ALONE, 2, 3, ALONE]
    assert (blocked.most_rows, blocked.most_slots) == (2 * CHUNK, 4)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 2), (1, 3), (0, 4)])
def test_some_of_the_blocks_are_what_their_rows_give(first: int, last: int) -> None:
    batch = random_batch(20, N_FEATURES, seed=3)
    whole = BlockedRows.of(batch, np.arange(20), 5, N_FEATURES)

    part = whole.between(first, last)

    again = BlockedRows.of(batch, np.arange(5 * first, 5 * last), 5, N_FEATURES)
    for name in BlockedRows.__slots__:
        np.testing.assert_array_equal(getattr(part, name), getattr(again, name))


def test_no_rows_make_no_blocks() -> None:
    batch = replace(random_batch(3, N_FEATURES, seed=3), weights=np.zeros(3, np.float32))

    blocked = BlockedRows.of(batch, np.arange(3), 2, N_FEATURES)

    assert (blocked.n_blocks, blocked.most_rows, blocked.most_slots) == (0, 0, 0)


@pytest.mark.parametrize(
    ("n_rows", "per_row", "expected"),
    [
        (0, 0, 1), (4_095, 20, 1), (90_570, 2, 22), (230_907, 10, 51), (60_000, 150, 3),
        (2**20 - 1, 2, 255), (2**20, 2, 1024), (2**20, 39, 1024), (10**8, 39, 1024),
    ],
)  # fmt: skip
def test_few_rows_train_in_more_blocks_than_many(n_rows: int, per_row: int, expected: int) -> None:
    assert block_rows(n_rows, n_rows * per_row) == expected
