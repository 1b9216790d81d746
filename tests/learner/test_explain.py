"""Parts of margins against loops over all pairs in float64."""

from __future__ import annotations

import numpy as np
import pytest

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.explain import Explanations, explain
from tests import oracle
from tests.builders import planted_weights, random_batch

EXACT = 1e-12  # both sides add a few dozen float64 products, in another order


def pairs_of(model: oracle.Model, entries: oracle.Entries) -> list[tuple[int, int, float]]:
    """Return every pair's contribution, strongest first, equal ones by features."""
    parts = [
        (i, j, float(model.V[i] @ model.V[j]) * x * y)
        for a, (i, x) in enumerate(entries)
        for j, y in entries[a + 1 :]
    ]
    return sorted(parts, key=lambda part: (-abs(part[2]), part[0], part[1]))


def row_of(parts: Explanations, batch: CsrBatch, r: int) -> tuple[list, list]:
    """Return one row's (feature, contribution) and (feature, feature, contribution)."""
    linear = slice(parts.linear_starts[r], parts.linear_starts[r + 1])
    pairs = slice(parts.pair_starts[r], parts.pair_starts[r + 1])
    features = batch.indices[parts.linear_entries[linear]]
    both = batch.indices[parts.pair_entries[pairs]]
    return (
        list(zip(features.tolist(), parts.linear[linear].tolist(), strict=True)),
        [(a, b, c) for (a, b), c in zip(both.tolist(), parts.pairs[pairs].tolist(), strict=True)],
    )


@pytest.mark.parametrize("num_pairs", [0, 1, 3, 100])
@pytest.mark.parametrize("num_linear", [None, 0, 2])
def test_the_strongest_parts_and_the_rest_make_the_margin(
    num_pairs: int, num_linear: int | None
) -> None:
    weights = planted_weights(12, 3, seed=1)
    model = oracle.Model.of_table(weights.table, weights.bias)
    batch = random_batch(60, 12, seed=2, lengths=(0, 9))

    parts = explain(batch, weights.table, weights.bias, num_pairs=num_pairs, num_linear=num_linear)

    for r in range(batch.n_rows):
        entries = oracle.entries_of(batch, r)
        linear, pairs = row_of(parts, batch, r)
        all_linear = sorted(
            [(j, model.w[j] * x) for j, x in entries], key=lambda part: (-abs(part[1]), part[0])
        )
        all_pairs = pairs_of(model, entries)
        assert [part[0] for part in linear] == [part[0] for part in all_linear[:num_linear]]
        assert [part[:2] for part in pairs] == [part[:2] for part in all_pairs[:num_pairs]]
        for seen, expected in ((linear, all_linear), (pairs, all_pairs)):
            for one, other in zip(seen, expected, strict=False):
                assert one[-1] == pytest.approx(other[-1], abs=EXACT)
        rest = sum(part[2] for part in all_pairs[num_pairs:])
        assert parts.other_pairs[r] == pytest.approx(rest, abs=EXACT)
        total = (
            weights.bias + sum(part[1] for part in linear) + parts.other_linear[r]
            + sum(part[2] for part in pairs) + parts.other_pairs[r]
        )  # fmt: skip
        assert parts.margin[r] == pytest.approx(total, abs=EXACT)
        assert parts.margin[r] == pytest.approx(oracle.score(model, entries), abs=EXACT)


def test_nothing_is_left_over_when_every_part_is_listed() -> None:
    weights = planted_weights(12, 3, seed=3)
    batch = random_batch(60, 12, seed=4, lengths=(0, 9))

    parts = explain(batch, weights.table, weights.bias, num_pairs=36)

    assert not parts.other_pairs.any()
    assert not parts.other_linear.any()


def test_equal_parts_rank_by_feature() -> None:
    table = np.ones((7, 3), np.float32)
    table[2] = -1  # equal in size, other in sign
    batch = CsrBatch.from_matrix(np.array([[0, 1.0, 1, 1, 0, 1, 1]]))

    parts = explain(batch, table, 0.0, num_pairs=4, num_linear=3)
    linear, pairs = row_of(parts, batch, 0)

    assert linear == [(1, 1.0), (2, -1.0), (3, 1.0)]
    assert pairs == [(1, 2, -2.0), (1, 3, 2.0), (1, 5, 2.0), (1, 6, 2.0)]


def test_an_id_that_the_model_does_not_know_has_no_pairs() -> None:
    weights = planted_weights(3, 2, seed=5)
    features = np.array([2, 5, 9], np.int32)
    batch = CsrBatch.from_arrays(
        np.array([0, 4]), np.array([1, 2, 7, 9], np.int32), np.ones(4, np.float32)
    )

    parts = explain(batch, weights.table, 0.5, features=features)
    linear, pairs = row_of(parts, batch, 0)

    assert dict(linear) == {1: 0.0, 7: 0.0, 2: weights.table[0, 2], 9: weights.table[2, 2]}
    assert [part[0] for part in linear[2:]] == [1, 7]
    assert [part[:2] for part in pairs] == [(2, 9)]


@pytest.mark.parametrize("k", [1, 8, 17])
def test_a_row_with_784_entries_is_explained_exactly(k: int) -> None:
    weights = planted_weights(784, k, seed=k)
    batch = random_batch(2, 784, seed=6, lengths=(784, 784))
    scaled = weights.factors.astype(np.float64) * batch.values[:784, None]
    products = np.triu(scaled @ scaled.T, 1)

    parts = explain(batch, weights.table, 0.0, num_pairs=50)
    _, pairs = row_of(parts, batch, 0)

    order = np.argsort(-np.abs(products), axis=None, kind="stable")[:50]
    assert [(a, b) for a, b, _ in pairs] == list(zip(*np.unravel_index(order, (784, 784)),
                                                     strict=True))  # fmt: skip
    # 300,000 terms of about 1 add up: 1e-9 is a millionth of a millionth of their sizes.
    assert parts.other_pairs[0] == pytest.approx(
        products.sum() - sum(c for _, _, c in pairs), abs=1e-9
    )


def test_no_rows_have_no_parts() -> None:
    parts = explain(random_batch(0, 4, seed=7), np.ones((4, 3), np.float32), 1.0)

    assert parts.margin.shape == (0,)
    assert parts.linear_starts.tolist() == parts.pair_starts.tolist() == [0]
