"""The Gibbs sampler against float64 twins, exact posteriors and the joint distribution."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.gibbs.chain import Chain, ChainSpec
from spark_fm.learner.gibbs.fields import MOST_FIELDS, fields_of
from spark_fm.learner.gibbs.polya_gamma import polya_gamma
from spark_fm.learner.gibbs.posterior import (
    MeanModel,
    Member,
    distilled,
    mean_predictions,
)
from spark_fm.learner.gibbs.sampling import ChainPlan, ChainProgress, advance_chain
from spark_fm.learner.predict import margins
from spark_fm.learner.spec import LossName
from spark_fm.learner.weights import FMWeights, Posterior
from tests.builders import random_batch

N_FEATURES = 9


def chain_of(batch: CsrBatch, k: int, loss: LossName = "squared", **changes: object) -> Chain:
    fields = np.arange(N_FEATURES, dtype=np.int32) // 3
    return Chain(batch, fields, replace(ChainSpec(k, loss, (1, 2), 0.3), **changes))


def pair_score(row: dict[int, float], table: NDArray[np.float64], bias: float) -> float:
    """Score of a row as the sum over its pairs."""
    items = sorted(row.items())
    score = bias + sum(x * table[j, -1] for j, x in items)
    for at, (i, x) in enumerate(items):
        for j, y in items[at + 1 :]:
            score += x * y * float(table[i, :-1] @ table[j, :-1])
    return score


def rows_of(batch: CsrBatch) -> list[dict[int, float]]:
    return [
        dict(zip(batch.indices[a:b].tolist(), batch.values[a:b].tolist(), strict=True))
        for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)
    ]


def draw_features_twin(
    chain: Chain, table: NDArray[np.float64], normals: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw each feature's parameters in turn; return the new table and conditional means.

    The score is linear in theta_j: its slope z is taken as differences of scores.
    """
    rows, weights = rows_of(chain.batch), chain.batch.weights.astype(np.float64)
    table, means = table.copy(), table.copy()
    size = table.shape[1]
    for at, j in enumerate(chain.order):
        g = chain.fields[j]
        precision, right = np.diag(chain.precision[g]), chain.precision[g] * chain.mu[g]
        for row, y, weight in zip(rows, chain.batch.labels, weights, strict=True):
            if j not in row:
                continue
            without = table.copy()
            without[j] = 0
            rest = pair_score(row, without, chain.bias)
            z = np.empty(size)
            for c in range(size):
                one = without.copy()
                one[j, c] = 1
                z[c] = pair_score(row, one, chain.bias) - rest
            precision = precision + chain.alpha * weight * np.outer(z, z)
            right = right + chain.alpha * weight * z * (y - rest)
        means[j] = np.linalg.solve(precision, right)
        upper = np.linalg.cholesky(precision).T
        table[j] = means[j] + np.linalg.solve(upper, normals[at])
    return table, means


@pytest.mark.parametrize("k", [1, 3, 7, 8, 16])
def test_a_sweep_over_the_features_equals_its_float64_twin(k: int) -> None:
    batch = random_batch(40, N_FEATURES, seed=5, loss="squared", weighted=True)
    chain = chain_of(batch, k, use_bias=False, learns_priors=False)
    chain.alpha, chain.mu[:], chain.precision[:] = 2.5, 0.1, 3.0
    before = chain.table.astype(np.float64)
    normals = np.random.Generator(np.random.PCG64(np.random.SeedSequence((1, 2))))
    normals.normal(0.0, 0.3, (N_FEATURES, k))  # the first values come from the same generator
    drawn = normals.standard_normal((len(chain.order), k + 1), dtype=np.float32)

    chain.sweep()

    table, means = draw_features_twin(chain, before, drawn.astype(np.float64))
    np.testing.assert_allclose(chain.table, table, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(chain.means[chain.order], means[chain.order], rtol=2e-4, atol=2e-4)


def test_residuals_stay_those_of_the_scores() -> None:
    batch = random_batch(40, N_FEATURES, seed=5, loss="squared")
    chain = chain_of(batch, 3)

    for _ in range(10):
        chain.sweep()

    scores = [pair_score(row, chain.table.astype(np.float64), chain.bias) for row in rows_of(batch)]
    kept = chain._state[:, chain._residual].copy()
    np.testing.assert_allclose(kept, batch.labels - scores, atol=1e-4)
    np.testing.assert_allclose(kept, chain.batch.labels - scores, atol=1e-4)


@pytest.mark.parametrize("tilt", [0.0, 0.3, 3.0, 30.0, 1000.0])
@pytest.mark.parametrize("shape", [1.0, 3.0, 2.5, 0.3, 80.0])
def test_polya_gamma_draws_have_the_mean_and_variance_of_the_law(shape: float, tilt: float) -> None:
    n = 20_000
    draws = polya_gamma(np.full(n, shape), np.full(n, tilt), np.random.default_rng(3))

    # Polson, Scott and Windle (2013), section 2.3; the variance from the derivatives of eq. 3.
    mean, variance = shape / 4, shape / 24
    if tilt:
        mean = shape / (2 * tilt) * math.tanh(tilt / 2)
        half = 1 / math.cosh(tilt / 2) ** 2 if tilt < 700 else 0.0
        variance = shape / (4 * tilt**3) * (2 * math.tanh(tilt / 2) - tilt * half)
    assert draws.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert draws.var() == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("tilt", [0.0, 1.0, 4.0])
def test_polya_gamma_draws_have_the_laplace_transform_of_the_law(tilt: float) -> None:
    draws = polya_gamma(np.full(50_000, 1.0), np.full(50_000, tilt), np.random.default_rng(4))

    for t in (0.5, 2.0, 8.0):
        expected = math.cosh(tilt / 2) / math.cosh(math.sqrt((tilt**2 / 2 + t) / 2))
        seen = np.exp(-t * draws)
        assert seen.mean() == pytest.approx(expected, abs=5 * seen.std() / math.sqrt(50_000))


def one_hot(ids: list[int], labels: list[float]) -> CsrBatch:
    n = len(ids)
    return CsrBatch.from_arrays(
        np.arange(n + 1), np.array(ids, np.int32), np.ones(n, np.float32),
        labels=np.array(labels, np.float32),
    )  # fmt: skip


def test_without_pairs_the_draws_have_the_exact_posterior_of_a_linear_model() -> None:
    labels = [0.4, 1.2, -0.7, 2.0, 1.5]
    batch = one_hot([0, 0, 1, 1, 1], labels)
    spec = ChainSpec(2, "squared", (3,), 0.5, use_bias=False, learns_priors=False)
    chain = Chain(batch, np.zeros(2, np.int32), spec)
    chain.alpha, chain.precision[:] = 2.0, 4.0

    draws = []
    for _ in range(4000):
        chain.sweep()
        draws.append(chain.table.copy())

    seen = np.array(draws)
    for j, values in ((0, labels[:2]), (1, labels[2:])):
        precision = 4 + 2 * len(values)
        mean = 2 * sum(values) / precision
        assert seen[:, j, 2].mean() == pytest.approx(mean, abs=0.03)
        assert seen[:, j, 2].var() == pytest.approx(1 / precision, rel=0.1)
        assert chain.means[j, 2] == pytest.approx(mean, rel=1e-5)
        assert np.allclose(seen[:, j, :2].var(0), 1 / 4, rtol=0.1)  # nothing but the prior
        assert np.allclose(seen[:, j, :2].mean(0), 0, atol=0.04)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_draws_have_the_posterior_of_a_logistic_model(weight: float) -> None:
    batch = one_hot([0, 0, 0, 0, 0], [1, 1, 1, 1, 0])
    batch = replace(batch, weights=np.full(5, weight, np.float32))
    spec = ChainSpec(1, "logistic", (4,), 0.5, use_bias=False, learns_priors=False)
    chain = Chain(batch, np.zeros(1, np.int32), spec)
    chain.precision[:] = 0.5

    draws = []
    for _ in range(6000):
        chain.sweep()
        draws.append(float(chain.table[0, 1]))

    w = np.linspace(-8, 12, 20_001)
    log_density = weight * (-4 * np.logaddexp(0, -w) - np.logaddexp(0, w)) - 0.5 * w**2 / 2
    density = np.exp(log_density - log_density.max())
    mean = np.average(w, weights=density)
    deviation = math.sqrt(np.average((w - mean) ** 2, weights=density))
    assert np.mean(draws[100:]) == pytest.approx(mean, abs=0.06 * deviation)
    assert np.std(draws[100:]) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_parameters_and_labels_drawn_in_turn_have_their_joint_distribution(loss: LossName) -> None:
    # Geweke, "Getting it right: joint distribution tests of posterior simulators" (JASA 2004).
    generator = np.random.default_rng(6)
    batch = random_batch(12, N_FEATURES, seed=5, loss=loss)
    chain = chain_of(batch, 2, loss, use_bias=False, learns_priors=False)
    chain.precision[:], chain.alpha = 4.0, 1.0

    def labels_given(table: NDArray[np.float32]) -> NDArray[np.float64]:
        scores = margins(batch, table, 0.0).astype(np.float64)
        if loss == "squared":
            return scores + generator.standard_normal(batch.n_rows)
        return (generator.random(batch.n_rows) < 1 / (1 + np.exp(-scores))).astype(float)

    def figures(table: NDArray[np.float32], labels: NDArray[np.float64]) -> list[float]:
        seen = table[chain.order]
        pairs = float(seen[0, :2] @ seen[1, :2])
        return [
            float((seen[:, 2] ** 2).mean()), float((seen[:, :2] ** 2).mean()), pairs, pairs**2,
            float(labels.mean()), float((labels * margins(batch, table, 0.0)).mean()),
        ]  # fmt: skip

    in_turn, independent = [], []
    for _ in range(6000):
        chain._labels = labels_given(chain.table)
        chain.refresh()
        chain.sweep()
        in_turn.append(figures(chain.table, chain._labels))
        table = generator.normal(0, 0.5, chain.table.shape).astype(np.float32)
        independent.append(figures(table, labels_given(table)))

    batches = np.array(in_turn).reshape(60, 100, -1).mean(1)  # draws in turn are not independent
    means, error = batches.mean(0), batches.std(0) / math.sqrt(len(batches))
    expected = np.mean(independent, 0)
    error = np.sqrt(error**2 + np.var(independent, 0) / len(independent))
    assert np.all(np.abs(means - expected) < 4 * error), (means - expected) / error


def test_priors_drawn_in_turn_with_labels_have_their_joint_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Geweke (2004) again, of mu, lambda and alpha too, given the pooled precision: that one is
    # an empirical Bayes step, and has no joint distribution. Figures are bounded, or logarithms:
    # the noise has no mean.
    generator, k, pooled = np.random.default_rng(8), 2, 3.0
    batch = random_batch(6, N_FEATURES, seed=5, loss="squared")
    chain = chain_of(batch, k, use_bias=False)
    draw_gamma = Chain._gamma

    def gamma(self: Chain, shape: float, rate: NDArray[np.float64]) -> NDArray[np.float64]:
        is_pooled = shape == (1 + len(self.order)) / 2 and len(rate) == k + 1
        return np.full(k + 1, pooled) if is_pooled else draw_gamma(self, shape, rate)

    monkeypatch.setattr(Chain, "_gamma", gamma)
    n_fields = len(chain.mu)

    def labels_given(table: NDArray[np.float32], alpha: float) -> NDArray[np.float64]:
        noise = generator.standard_normal(batch.n_rows) / math.sqrt(alpha)
        return margins(batch, table, 0.0).astype(np.float64) + noise

    def figures(
        table: NDArray[np.float32], mu: NDArray[np.float64], precision: NDArray[np.float64],
        alpha: float, labels: NDArray[np.float64],
    ) -> list[float]:  # fmt: skip
        seen = np.tanh(table[chain.order])
        logs = np.log(precision)
        return [
            math.log(alpha), math.log(alpha) ** 2, float(logs[:, :k].mean()),
            float(logs[:, k].mean()), float((logs**2).mean()), float((np.tanh(mu) ** 2).mean()),
            float((np.tanh(mu[1]) * seen.mean(0)).mean()), float((seen[:, :k] ** 2).mean()),
            float((seen[:, k] ** 2).mean()), float((np.tanh(labels) ** 2).mean()),
        ]  # fmt: skip

    in_turn, independent = [], []
    for _ in range(8_000):
        chain._labels = labels_given(chain.table, chain.alpha)
        chain.refresh()
        chain.sweep()
        in_turn.append(figures(chain.table, chain.mu, chain.precision, chain.alpha, chain._labels))
        precision = generator.gamma(10, pooled / 10, (n_fields, k + 1))
        mu = generator.standard_normal((n_fields, k + 1)) / np.sqrt(precision)
        spread = 1 / np.sqrt(precision[chain.fields])
        normals = generator.standard_normal(chain.table.shape)
        table = (mu[chain.fields] + spread * normals).astype(np.float32)
        alpha = float(generator.gamma(0.5, 2.0))
        independent.append(figures(table, mu, precision, alpha, labels_given(table, alpha)))

    batches = np.array(in_turn).reshape(40, 200, -1).mean(1)
    error = np.sqrt(batches.var(0) / len(batches) + np.var(independent, 0) / len(independent))
    distance = (batches.mean(0) - np.mean(independent, 0)) / error
    assert np.all(np.abs(distance) < 4), distance


def test_priors_without_draws_are_their_conditional_means() -> None:
    batch = random_batch(60, N_FEATURES, seed=5, loss="squared")
    chain = chain_of(batch, 2, draws=False)
    before, mu = chain.table.astype(np.float64), chain.mu.copy()
    pooled = sum((before[j] - mu[chain.fields[j]]) ** 2 for j in chain.order)
    pooled = (1 + len(chain.order)) / (1 + pooled)

    chain._draw_priors()

    for g in range(3):
        values = np.array([before[j] for j in chain.order if chain.fields[j] == g])
        n = len(values)
        mean = values.sum(0) / (n + 1)
        squares = ((values - mean) ** 2).sum(0) + mean**2
        np.testing.assert_allclose(chain.mu[g], mean)
        np.testing.assert_allclose(chain.precision[g], (21 + n) / (20 / pooled + squares))


def test_a_seed_gives_one_chain_bit_for_bit() -> None:
    batch = random_batch(60, N_FEATURES, seed=5, loss="logistic")
    tables = []
    for seed in ((1, 2), (1, 2), (1, 3)):
        chain = chain_of(batch, 3, "logistic", seed=seed)
        for _ in range(5):
            chain.sweep()
        tables.append(chain.table)

    assert np.array_equal(tables[0], tables[1])
    assert not np.array_equal(tables[0], tables[2])


def test_rows_of_very_different_weights_stay_finite() -> None:
    batch = random_batch(4000, N_FEATURES, seed=5, loss="logistic")
    weights = np.where(np.arange(4000) % 2, 1.99, 0.01).astype(np.float32)
    chain = chain_of(replace(batch, weights=weights), 3, "logistic")

    for _ in range(20):
        chain.sweep()

    exact = [pair_score(row, chain.table.astype(np.float64), chain.bias) for row in rows_of(batch)]
    np.testing.assert_allclose(chain.scores(), exact, atol=0.01)


def test_a_column_of_few_levels_in_very_many_rows_keeps_its_precision() -> None:
    # Sums of a million equal products, of low rank beside the prior, in float32 alone would not.
    n = 1_000_000
    generator = np.random.default_rng(3)
    ids = generator.integers(0, 2, (n, 2)).astype(np.int32) + np.array([0, 2], np.int32)
    labels = (ids[:, 0] * 0.7 + (ids[:, 1] - 2) * 0.3).astype(np.float32)
    batch = CsrBatch.from_arrays(
        np.arange(0, 2 * n + 1, 2), ids.ravel(), np.ones(2 * n, np.float32),
        labels=(labels - labels.mean()) / labels.std(),
    )  # fmt: skip
    chain = Chain(batch, np.array([0, 0, 1, 1], np.int32), ChainSpec(8, "squared", (1,), 0.3))

    for _ in range(12):
        chain.sweep()

    error = np.std(chain.scores() - batch.labels)
    assert error < 0.05


def test_numbers_beyond_float32_end_the_chain() -> None:
    batch = random_batch(40, N_FEATURES, seed=5, loss="logistic")
    chain = chain_of(replace(batch, values=batch.values * np.float32(1e25)), 3, "logistic")

    with pytest.raises(TrainingDivergedError, match="beyond float32"):
        chain.sweep()


def test_features_without_rows_have_the_mean_of_their_field() -> None:
    batch = one_hot([0, 1, 2, 4, 5], [1, 2, 3, 4, 5])
    chain = Chain(
        batch, np.array([0, 0, 0, 1, 1, 1, 1], np.int32), ChainSpec(2, "squared", (1,), 1.0)
    )
    chain.sweep()

    table = chain.member(mean=False)

    assert np.array_equal(table[[3, 6]], np.float32(chain.mu[[1, 1]]))
    assert np.array_equal(table[:3], chain.table[:3])


# A chain from its start to its end --------------------------------------------------------


def plan_of(loss: LossName = "squared", **changes: object) -> ChainPlan:
    metric = "rmse" if loss == "squared" else "logloss"
    plan = ChainPlan(ChainSpec(3, loss, (1, 2), 0.3), 60, 8, 4, 1.0, metric, 0, 1e-4)
    return replace(plan, **changes)


def started(plan: ChainPlan, train: CsrBatch) -> ChainProgress:
    return ChainProgress.start(plan, train, N_FEATURES, sigma=0.3)


def rows_for(loss: LossName) -> tuple[CsrBatch, CsrBatch]:
    return random_batch(80, N_FEATURES, seed=5, loss=loss), random_batch(
        40, N_FEATURES, seed=6, loss=loss
    )


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_chain_taken_up_where_it_paused_ends_with_the_same_bits(loss: LossName) -> None:
    (train, validation), plan = rows_for(loss), plan_of(loss)
    whole, paused, n_pauses = started(plan, train), started(plan, train), 0
    advance_chain(whole, train, validation, plan)

    while not paused.finished:
        metadata, arrays = paused.without_kept().to_arrays()
        stored = json.loads(json.dumps(metadata)), {n: a.copy() for n, a in arrays.items()}
        part = ChainProgress.from_arrays(*stored)
        advance_chain(part, train, validation, plan, seconds=0.0)
        paused, n_pauses = part.after(paused), n_pauses + 1

    assert n_pauses == 3  # behind sweeps 24 and 49, and at the end
    expected, arrays = whole.to_arrays()
    found, others = paused.to_arrays()
    for each in (expected, found):
        for record in each["records"]:
            del record["train_seconds"], record["validate_seconds"]
    assert found == expected
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, others[name]), name


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_chain_ends_once_its_mean_stops_improving_and_is_the_same_until_then(
    loss: LossName,
) -> None:
    (train, validation), plan = rows_for(loss), plan_of(loss, tol=0.02)
    impatient = replace(plan, patience=3)
    whole, stopped = started(plan, train), started(impatient, train)
    advance_chain(whole, train, validation, plan)

    advance_chain(stopped, train, validation, impatient)

    assert stopped.finished
    n = len(stopped.records)
    assert plan.burn_in + 3 < n < plan.sweeps
    losses = [r.validation.mean_loss() for r in stopped.records[plan.burn_in :] if r.validation]
    assert min(losses[-3:]) > 0.95 * losses[-4]
    assert losses == [r.validation.mean_loss() for r in whole.records[plan.burn_in : n]
                      if r.validation]  # fmt: skip
    assert stopped.mean.n == n - plan.burn_in
    assert 1 <= len(stopped.members) < len(whole.members)
    assert 1 <= len(stopped.draws) < len(whole.draws)


def test_without_validation_rows_or_patience_a_chain_makes_all_its_sweeps() -> None:
    (train, validation), plan = rows_for("squared"), plan_of(sweeps=12)
    for rows, patience in ((None, 1), (validation, 0)):
        progress = started(plan, train)
        advance_chain(progress, train, rows, replace(plan, patience=patience))
        assert len(progress.records) == 12


def test_a_sweep_records_the_noise_the_priors_and_the_loss_of_its_draw() -> None:
    train, validation = rows_for("squared")
    plan = plan_of(sweeps=6, label_scale=2.0)
    progress = started(plan, train)
    advance_chain(progress, train, validation, plan)
    chain = Chain(train, fields_of(train, N_FEATURES), plan.spec)
    for _ in range(6):
        chain.sweep()

    sampled = progress.records[-1].sampled

    assert sampled is not None
    table = chain.table.astype(np.float64)
    scores = [pair_score(row, table, chain.bias) for row in rows_of(validation)]
    mean_square = np.average((scores - validation.labels) ** 2, weights=validation.weights)
    assert sampled["validationSampleLoss"] == pytest.approx(4 * mean_square, rel=1e-4)
    assert sampled["noise"] == 2 / math.sqrt(chain.alpha)
    used = chain.precision[np.unique(chain.fields)]
    linear, factors = (np.exp(np.log(part).mean()) for part in (used[:, 3], used[:, :3]))
    assert sampled["linearPrecision"] == pytest.approx(linear / 4)
    assert sampled["factorsPrecision"] == pytest.approx(factors / 2)


# Fields ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 11), max_size=4), max_size=8))
def test_fields_are_the_fewest_intervals_with_one_id_of_each_row(rows: list[set[int]]) -> None:
    ids = [sorted(row) for row in rows]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    flat = np.array([j for row in ids for j in row], np.int32)
    batch = CsrBatch.from_arrays(indptr, flat, np.ones(len(flat), np.float32))

    fields = fields_of(batch, 12)

    assert np.all(np.diff(fields) >= 0)
    assert all(len({int(fields[j]) for j in row}) == len(row) for row in ids)
    start, n_intervals = 0, 1  # greedily: an interval ends where the next id would clash
    for end in range(12):
        if any(sum(start <= j <= end for j in row) > 1 for row in ids):
            start, n_intervals = end, n_intervals + 1
    assert fields.max() + 1 == n_intervals


def test_rows_of_very_many_fields_are_one_group() -> None:
    n = MOST_FIELDS + 2
    batch = CsrBatch.from_arrays(
        np.array([0, n]), np.arange(n, dtype=np.int32), np.ones(n, np.float32)
    )

    assert not fields_of(batch, n).any()


# From members to a model ----------------------------------------------------------------


def members_of(n: int, k: int) -> list[Member]:
    generator = np.random.default_rng(8)
    return [
        Member(generator.normal(0, 0.4, (N_FEATURES, k + 1)).astype(np.float32), 0.1 * i)
        for i in range(n)
    ]


def test_the_mean_of_models_is_one_model() -> None:
    batch = random_batch(30, N_FEATURES, seed=5, loss="squared")
    members, mean = members_of(4, 2), MeanModel(9, np.ones(N_FEATURES, np.int64))
    for member in members:
        mean.add(member)

    model = mean.model(8)

    expected = np.mean([margins(batch, m.table, 0.0) + m.bias for m in members], axis=0)
    np.testing.assert_allclose(margins(batch, model.table, 0.0) + model.bias, expected, atol=1e-5)


def test_a_draw_has_the_prior_of_features_without_rows_and_leaves_the_chain_alone() -> None:
    batch = random_batch(200, N_FEATURES, seed=3)
    spec = ChainSpec(2, "squared", (1,), 0.3)
    fields = np.zeros(4000, np.int32)
    asked, alone = (Chain(batch, fields, spec) for _ in range(2))
    for _ in range(3):
        asked.sweep()
        alone.sweep()
        table = asked.draw()

    unseen = ~asked.is_seen
    assert np.array_equal(asked.table, alone.table)
    assert np.array_equal(table[~unseen], asked.table[~unseen])
    assert np.allclose(table[unseen].mean(0), asked.mu[0], atol=0.2 * asked.precision[0] ** -0.5)
    assert np.allclose(table[unseen].std(0), asked.precision[0] ** -0.5, rtol=0.1)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_predictions_of_draws_equal_their_float64_twin(loss: LossName) -> None:
    rng = np.random.default_rng(5)
    batch = random_batch(30, N_FEATURES, seed=5)
    ids = np.arange(0, N_FEATURES, 2, dtype=np.int32)
    tables = rng.normal(size=(4, len(ids), 3)).astype(np.float32)
    biases, noise = [1e6, 1e6 + 1, 1e6 - 1, 1e6], np.array([0.1, 0.2, 0.3, 0.4])
    if loss == "logistic":
        biases, noise = [0.1, 0.2, -0.3, 0.0], np.zeros(4)
    members = [FMWeights(b, t, N_FEATURES, ids) for b, t in zip(biases, tables, strict=True)]

    mean, std = Posterior(tuple(members), noise).predict(batch, loss)

    scores = np.zeros((30, 4))
    for at, member in enumerate(members):
        table = np.zeros((N_FEATURES, 3))
        table[ids] = member.table
        scores[:, at] = [pair_score(row, table, member.bias) for row in rows_of(batch)]
    if loss == "logistic":
        scores = 1 / (1 + np.exp(-scores))
    assert np.allclose(mean, scores.mean(1), rtol=1e-6)
    assert np.allclose(std, np.sqrt(scores.var(1) + (noise**2).mean()), rtol=1e-4)


def test_chains_may_be_merged_in_parts() -> None:
    batch = random_batch(30, N_FEATURES, seed=5, loss="squared")
    counts = np.arange(1, N_FEATURES + 1)
    whole, parts = MeanModel(12, counts), [MeanModel(12, counts), MeanModel(12, counts)]
    for i, member in enumerate(members_of(5, 2)):
        whole.add(member)
        parts[i % 2].add(member)
    parts[0].merge(parts[1])

    models = [mean.model(10) for mean in (whole, parts[0])]

    scores = [margins(batch, model.table, 0.0) + model.bias for model in models]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_leading_directions_are_the_closest_of_their_rank() -> None:
    members, counts = members_of(6, 3), np.arange(1, N_FEATURES + 1)
    mean = MeanModel(18, counts)
    for member in members:
        mean.add(member)

    roots = np.sqrt(counts)[:, None]
    pairs = sum(m.table[:, :-1] @ m.table[:, :-1].T for m in members) / 6 * roots * roots.T
    factors = mean.model(2).table[:, :-1] * roots
    values = np.linalg.eigvalsh(pairs)[::-1]
    left = np.linalg.norm(pairs - factors @ factors.T)
    assert left == pytest.approx(math.sqrt((values[2:] ** 2).sum()), rel=1e-4)


def test_a_distilled_regressor_of_many_fields_is_closer_than_the_leading_directions() -> None:
    batch = random_batch(600, N_FEATURES, seed=5, loss="squared")
    members, mean = members_of(12, 2), MeanModel(4, np.ones(N_FEATURES, np.int64))
    for member in members:
        mean.add(member)
    fields, start = np.arange(N_FEATURES, dtype=np.int32), mean.model(2)

    model = distilled(members, start, batch, fields, "squared", sweeps=8, seed=1)

    expected = mean_predictions(members, batch, "squared")
    errors = [
        np.std(mean_predictions([each], batch, "squared") - expected) for each in (model, start)
    ]
    assert errors[0] < errors[1]
    without = distilled(members, start, batch, fields, "squared", sweeps=2, seed=1, use_bias=False)
    assert without.bias == start.bias


def test_a_distilled_model_has_the_mean_predictions_of_the_members() -> None:
    batch = random_batch(400, N_FEATURES, seed=5, loss="logistic")
    base = members_of(1, 2)[0]
    generator = np.random.default_rng(9)
    members = [
        Member(base.table + generator.normal(0, 0.15, base.table.shape).astype(np.float32), 0.3)
        for _ in range(20)
    ]
    mean = MeanModel(4, np.ones(N_FEATURES, np.int64))
    for member in members:
        mean.add(member)

    fields = np.arange(N_FEATURES, dtype=np.int32) // 3

    model = distilled(members, mean.model(2), batch, fields, "logistic", sweeps=8, seed=1)

    expected = mean_predictions(members, batch, "logistic")
    errors = [
        np.abs(mean_predictions([each], batch, "logistic") - expected).mean()
        for each in (model, members[0])
    ]
    assert errors[0] < 0.01 < errors[1]
