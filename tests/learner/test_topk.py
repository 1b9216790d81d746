"""Scores as inner products against the O(n^2) sum over pairs; the best k against a sort."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.topk import CANDIDATE_ROWS, CONTEXT_ROWS, best_candidates, factor_sums
from tests import oracle
from tests.builders import planted_weights, random_batch


def sorted_best(
    contexts: NDArray[np.float32], candidates: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return places and products of the best k by a stable sort of all, in float64."""
    products = contexts.astype(np.float64) @ candidates.astype(np.float64).T
    places = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return places, np.take_along_axis(products, places, axis=1)


def draw(shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 8, 17])
def test_the_margin_of_a_sum_splits_into_two_parts_and_an_inner_product(k: int) -> None:
    weights = planted_weights(12, k, seed=k)
    model = oracle.Model.of_table(weights.table, weights.bias)
    contexts, items = (random_batch(15, 6, seed=seed, lengths=(0, 5)) for seed in (1, 2))
    items = CsrBatch(items.indptr, items.indices + 6, items.values, items.labels, items.weights)

    context_sums, context_own = factor_sums(contexts, weights.table)
    item_sums, item_own = factor_sums(items, weights.table)

    for c in range(contexts.n_rows):
        for i in range(items.n_rows):
            both = oracle.entries_of(contexts, c) + oracle.entries_of(items, i)
            margin = weights.bias + context_own[c] + item_own[i] + context_sums[c] @ item_sums[i]
            # The sums are rounded to float32 once each.
            allowed = 4 * 6e-8 * oracle.magnitude(model, both)
            assert abs(margin - oracle.score(model, both)) <= allowed


def test_ids_that_the_model_does_not_know_add_nothing() -> None:
    weights = planted_weights(3, 2, seed=5)
    features = np.array([2, 5, 9], np.int32)
    ones = np.ones(4, np.float32)
    rows = CsrBatch.from_arrays(np.array([0, 4]), np.array([1, 2, 7, 9], np.int32), ones)
    known = CsrBatch.from_arrays(np.array([0, 2]), np.array([0, 2], np.int32), ones[:2])

    seen, expected = (
        factor_sums(rows, weights.table, features=features),
        factor_sums(known, weights.table),
    )

    np.testing.assert_array_equal(seen[0], expected[0])
    np.testing.assert_array_equal(seen[1], expected[1])


@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize("width", [2, 17, 65])
def test_the_best_are_those_of_a_stable_sort(k: int, width: int) -> None:
    contexts = draw((CONTEXT_ROWS + 3, width), seed=1)
    candidates = draw((CANDIDATE_ROWS + 101, width), seed=2)

    best = best_candidates(contexts, candidates, k)

    places, products = sorted_best(contexts, candidates, k)
    assert (best.counts == k).all()
    np.testing.assert_array_equal(best.rows, places)
    np.testing.assert_allclose(best.products, products, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [9, 33, 65])
def test_equal_candidates_rank_by_place_wherever_blocks_are_cut(width: int) -> None:
    n = 2 * CANDIDATE_ROWS + 37
    candidates = np.repeat(draw((1, width), seed=3), n, axis=0)
    candidates[::5] -= 100  # far worse for contexts with a positive last number
    contexts = np.abs(draw((CONTEXT_ROWS + 1, width), seed=4))

    best = best_candidates(contexts, candidates, 12)

    expected = [place for place in range(n) if place % 5][:12]
    assert (best.rows == expected).all()
    assert (best.products == best.products[:, :1]).all()


def test_products_that_float32_cannot_tell_apart_are_ranked_right() -> None:
    width, n = 17, 500
    candidates = np.repeat(draw((1, width), seed=5), n, axis=0)
    rng = np.random.default_rng(6)
    # Large terms that cancel, and a small one that decides.
    candidates[:, 0], candidates[:, 1] = 1e4, -1e4
    candidates[:, 2] = rng.permutation(n) * 1e-5
    contexts = np.ones((3, width), np.float32)

    best = best_candidates(contexts, candidates, 20)

    np.testing.assert_array_equal(best.rows[0], np.argsort(-candidates[:, 2])[:20])


def test_hidden_candidates_do_not_come_up() -> None:
    contexts, candidates = draw((40, 5), seed=7), draw((CANDIDATE_ROWS + 200, 5), seed=8)
    rng = np.random.default_rng(9)
    everything = np.arange(len(candidates))
    hidden = [np.sort(rng.choice(everything, n, replace=False)) for n in rng.integers(0, 2200, 40)]
    hidden[3], hidden[4] = everything, everything[:0]
    starts = np.concatenate([[0], np.cumsum([len(rows) for rows in hidden])])

    best = best_candidates(contexts, candidates, 7, hidden=(starts, np.concatenate(hidden)))

    for r, rows in enumerate(hidden):
        left = np.setdiff1d(everything, rows)
        places, _ = sorted_best(contexts[r : r + 1], candidates[left], 7)
        assert best.counts[r] == min(7, len(left))
        np.testing.assert_array_equal(best.rows[r, : best.counts[r]], left[places[0]])


def test_fewer_candidates_than_asked_for_are_all_ranked() -> None:
    contexts, candidates = draw((3, 4), seed=10), draw((5, 4), seed=11)

    best = best_candidates(contexts, candidates, 9)

    assert best.counts.tolist() == [5, 5, 5]
    np.testing.assert_array_equal(best.rows, sorted_best(contexts, candidates, 5)[0])


def test_no_candidates_or_no_contexts_give_nothing() -> None:
    some, none = draw((3, 4), seed=12), np.zeros((0, 4), np.float32)

    assert best_candidates(some, none, 2).counts.tolist() == [0, 0, 0]
    assert best_candidates(none, some, 2).counts.shape == (0,)


def test_a_product_that_is_no_number_is_left_out() -> None:
    candidates = np.array([[1.0], [np.nan], [3.0]], np.float32)

    best = best_candidates(np.ones((1, 1), np.float32), candidates, 3)

    assert best.rows[0, : best.counts[0]].tolist() == [2, 0]
