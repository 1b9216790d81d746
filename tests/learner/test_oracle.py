"""The judge is judged: gradients of the oracle against differences of its O(n^2) model."""

from __future__ import annotations

import numpy as np
import pytest

from spark_fm.learner.spec import GroupHyperparameters, LossName
from tests import oracle
from tests.builders import planted_weights, random_batch, train_spec

# Central differences with step 1e-6 of values near 1: 1e-10 from rounding, 1e-12 from the
# formula, and a margin of a hundred.
TOLERANCE = {"rtol": 1e-7, "atol": 1e-8}


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_slope_is_the_derivative_of_the_minimised_loss(loss: LossName) -> None:
    half = 0.5 if loss == "squared" else 1.0
    for value in (-3.0, -0.2, 0.0, 0.7, 4.0):
        for label in (0.0, 1.0):
            point = np.array([value])
            (expected,) = oracle.difference_quotients(
                lambda p=point, y=label: half * oracle.loss(loss, float(p[0]), y), point
            )
            assert oracle.slope(loss, value, label) == pytest.approx(expected, rel=1e-7, abs=1e-8)


def test_score_gradient_is_the_derivative_of_the_pair_sum() -> None:
    batch = random_batch(1, 6, seed=1, lengths=(5, 5))
    weights = planted_weights(6, 3, seed=2)
    model = oracle.Model.of_table(weights.table, weights.bias)
    entries = oracle.entries_of(batch, 0)

    by_w, by_v = oracle.score_gradient(model, entries)

    expected_w = oracle.difference_quotients(lambda: oracle.score(model, entries), model.w)
    expected_v = oracle.difference_quotients(lambda: oracle.score(model, entries), model.V)
    for i in range(6):
        np.testing.assert_allclose(by_w.get(i, 0.0), expected_w[i], **TOLERANCE)
        np.testing.assert_allclose(by_v.get(i, np.zeros(3)), expected_v[i], **TOLERANCE)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_one_sgd_step_of_size_one_is_the_gradient_of_the_objective(loss: LossName) -> None:
    batch = random_batch(1, 5, seed=3, lengths=(4, 4), loss=loss)
    batch.weights[:] = 3.0
    weights = planted_weights(5, 3, seed=4)
    model = oracle.Model.of_table(weights.table, weights.bias)
    one = GroupHyperparameters(1.0, 0.25)
    spec = train_spec(loss=loss, optimizer="sgd", bias=one, linear=one, factors=one)
    nothing = np.zeros((5, 0))
    start = oracle.Model.of_table(weights.table, weights.bias)
    twin = oracle.Twin(start, nothing, np.zeros(3), np.ones(5), np.zeros(5))

    oracle.train(twin, batch, [0], spec=spec)

    moves = (model.w - twin.model.w, model.V - twin.model.V)
    for move, target in zip(moves, (model.w, model.V), strict=True):
        expected = oracle.difference_quotients(lambda: oracle.objective(model, batch, spec), target)
        np.testing.assert_allclose(move, expected, **TOLERANCE)
    above = oracle.objective(oracle.Model(model.w0 + 1e-6, model.w, model.V), batch, spec)
    below = oracle.objective(oracle.Model(model.w0 - 1e-6, model.w, model.V), batch, spec)
    assert model.w0 - twin.model.w0 == pytest.approx((above - below) / 2e-6, rel=1e-7, abs=1e-8)


def test_epoch_average_of_equal_models_is_that_model() -> None:
    table = np.arange(6.0).reshape(2, 3)

    average = oracle.average_epochs([table] * 5)

    np.testing.assert_allclose(average, table, rtol=1e-12)  # weights add to one
