"""Strengths by feature and group against loops over pairs in float64."""

from __future__ import annotations

import numpy as np

from spark_fm.learner.explain import LINEAR, PAIRS, TOTAL, FeatureEffects, GroupEffects
from tests import oracle
from tests.builders import planted_weights, random_batch

N, K = 12, 3
EXACT = 1e-10  # sums over 80 rows of a few float64 products, in another order


def pair(model: oracle.Model, one: tuple[int, float], other: tuple[int, float]) -> float:
    (i, x), (j, y) = one, other
    return float(model.V[i] @ model.V[j]) * x * y


def test_feature_sums_equal_loops_over_pairs() -> None:
    weights = planted_weights(N, K, seed=1)
    model = oracle.Model.of_table(weights.table, weights.bias)
    batches = [random_batch(40, N, seed=seed, lengths=(0, 8)) for seed in (2, 3)]

    effects = FeatureEffects(weights.table)
    for batch in batches:
        effects.add(batch)

    sums, counts = np.zeros((N, 3)), np.zeros(N)
    for batch in batches:
        for r in range(batch.n_rows):
            entries = oracle.entries_of(batch, r)
            for one in entries:
                linear = model.w[one[0]] * one[1]
                pairs = sum(pair(model, one, other) for other in entries if other != one)
                sums[one[0]] += np.abs([linear, pairs, linear + pairs])
                counts[one[0]] += 1
    np.testing.assert_allclose(effects.sums, sums, rtol=0, atol=EXACT)
    np.testing.assert_array_equal(effects.counts, counts)


def test_the_total_is_how_far_the_margin_moves_without_the_feature() -> None:
    weights = planted_weights(N, K, seed=4)
    model = oracle.Model.of_table(weights.table, weights.bias)
    batch = random_batch(1, N, seed=5, lengths=(8, 8))
    entries = oracle.entries_of(batch, 0)

    effects = FeatureEffects(weights.table)
    effects.add(batch)

    for feature, _ in entries:
        without = [entry for entry in entries if entry[0] != feature]
        moved = abs(oracle.score(model, entries) - oracle.score(model, without))
        assert abs(effects.sums[feature, TOTAL] - moved) < EXACT


def test_group_sums_equal_loops_over_pairs() -> None:
    weights = planted_weights(N, K, seed=6)
    model = oracle.Model.of_table(weights.table, weights.bias)
    group_of = np.array([0, 0, 0, 0, 2, 2, 2, -1, -1, 1, 1, 1], np.int32)
    batches = [random_batch(40, N, seed=seed, lengths=(0, 9)) for seed in (7, 8)]

    effects = GroupEffects(weights.table, group_of, 3)
    for batch in batches:
        effects.add(batch)

    linear, pairs = np.zeros(3), np.zeros((3, 3))
    for batch in batches:
        for r in range(batch.n_rows):
            entries = oracle.entries_of(batch, r)
            row_linear, row_pairs = np.zeros(3), np.zeros((3, 3))
            for a, one in enumerate(entries):
                g = group_of[one[0]]
                if g >= 0:
                    row_linear[g] += model.w[one[0]] * one[1]
                for other in entries[a + 1 :]:
                    h = group_of[other[0]]
                    if g >= 0 and h >= 0:
                        row_pairs[min(g, h), max(g, h)] += pair(model, one, other)
            linear += np.abs(row_linear)
            pairs += np.abs(row_pairs)
    np.testing.assert_allclose(effects.linear, linear, rtol=0, atol=EXACT)
    np.testing.assert_allclose(effects.pairs, pairs, rtol=0, atol=EXACT)


def test_unknown_ids_add_to_nothing() -> None:
    weights = planted_weights(4, K, seed=9)
    features = np.array([1, 3, 6, 10], np.int32)
    batch = random_batch(30, 12, seed=10, lengths=(0, 9))
    known = np.isin(batch.indices, features)
    lengths = np.add.reduceat(np.append(known, 0), batch.indptr[:-1]) * (np.diff(batch.indptr) > 0)
    places = np.searchsorted(features, batch.indices[known]).astype(np.int32)
    only_known = type(batch)(
        np.concatenate([[0], np.cumsum(lengths)]), places, batch.values[known], batch.labels,
        batch.weights,
    )  # fmt: skip
    groups = np.array([0, 1, 0, 1], np.int32)

    with_unknown = FeatureEffects(weights.table, features)
    with_unknown.add(batch)
    without = FeatureEffects(weights.table)
    without.add(only_known)
    by_group = GroupEffects(weights.table, groups, 2, features=features)
    by_group.add(batch)
    by_group_without = GroupEffects(weights.table, groups, 2)
    by_group_without.add(only_known)

    assert with_unknown.sums[:, [LINEAR, PAIRS]].any()
    np.testing.assert_array_equal(with_unknown.sums, without.sums)
    np.testing.assert_array_equal(with_unknown.counts, without.counts)
    np.testing.assert_array_equal(by_group.pairs, by_group_without.pairs)
    np.testing.assert_array_equal(by_group.linear, by_group_without.linear)
