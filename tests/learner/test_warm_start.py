"""First parameters that a model gives, in its own units and those of a training."""

from __future__ import annotations

import numpy as np
import pytest

from spark_fm.learner.predict import margins
from spark_fm.learner.spec import Scaling
from spark_fm.learner.standardization import Standardization
from spark_fm.learner.state import initial_state
from spark_fm.learner.training import (
    TrainingProgress,
    TrainingState,
    WarmStart,
    advance,
    new_stopping,
    warm_state_inplace,
)
from spark_fm.learner.weights import FMWeights
from tests.builders import planted_batch, planted_weights, started_state, train_spec

N = 12
HALVED = Standardization(
    np.array([3], np.int32), np.array([0.5], np.float32), np.array([2.0], np.float32)
)


def training_state_of(spec, seed, ids=None, standardization=None):
    batch = planted_batch(planted_weights(N, spec.k, seed=seed), 60, seed=seed)
    run = TrainingProgress(
        started_state(spec, batch, N), new_stopping(spec, "rmse", patience=0, tol=0.0)
    )
    for _ in advance(run, batch, None, spec, metric="rmse"):
        pass
    return TrainingState.of(
        run,
        fingerprint="",
        metric="rmse",
        scaling=Scaling(),
        ids=ids,
        history=[],
        standardization=standardization or Standardization(),
    )


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_scores_of_the_first_state_are_the_model_s_in_other_units(scale):
    spec = train_spec(loss="squared", optimizer="sgd")
    model = planted_weights(N, spec.k, seed=1)
    batch = planted_batch(model, 30, seed=2)
    state = initial_state(spec, np.ones(N), label_mean=0.0)

    warm_state_inplace(
        state,
        WarmStart(model),
        spec,
        ids=None,
        scaling=Scaling(label=scale),
        standardization=Standardization(),
    )

    started = FMWeights(float(state.bias[0]), state.parameters(), N)
    np.testing.assert_allclose(
        scale * started.margins(batch), model.margins(batch), rtol=1e-5, atol=1e-5
    )


def test_a_model_of_some_ids_fills_their_rows_and_leaves_the_others():
    spec = train_spec(optimizer="sgd")
    model = planted_weights(3, spec.k, seed=1)
    known = FMWeights(model.bias, model.table, 100, np.array([5, 7, 90], np.int32))
    ids = np.array([1, 5, 7, 60, 90], np.int32)
    state = initial_state(spec, np.ones(5), label_mean=0.0)
    drawn = state.parameters()

    warm_state_inplace(
        state, WarmStart(known), spec, ids=ids, scaling=Scaling(), standardization=Standardization()
    )

    np.testing.assert_array_equal(state.parameters()[[1, 2, 4]], model.table)
    np.testing.assert_array_equal(state.parameters()[[0, 3]], drawn[[0, 3]])


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_statistics_of_a_kept_training_are_taken_over_for_its_features(optimizer):
    spec = train_spec(loss="squared", optimizer=optimizer)
    kept_ids = np.arange(0, 2 * N, 2, dtype=np.int32)
    training_state = training_state_of(spec, seed=3, ids=kept_ids)
    model = FMWeights(0.5, planted_weights(N, spec.k, seed=4).table, 2 * N, kept_ids)
    ids = np.arange(2 * N, dtype=np.int32)
    state = initial_state(spec, np.ones(2 * N), label_mean=0.0)
    fresh = state.rows[1::2].copy()

    warm_state_inplace(
        state,
        WarmStart(model, training_state),
        spec,
        ids=ids,
        scaling=Scaling(),
        standardization=Standardization(),
    )

    columns = slice(spec.k + 1, state.layout.n_synced)
    np.testing.assert_array_equal(
        state.rows[kept_ids][:, columns], training_state.arrays["state"][:, columns]
    )
    np.testing.assert_array_equal(state.rows[1::2], fresh)
    assert state.bias[1:].tolist() == training_state.metadata["run"]["bias"][1:]
    assert state.bias[0] == 0.5


def test_statistics_of_another_optimizer_begin_anew():
    training_state = training_state_of(train_spec(loss="squared", optimizer="adam"), seed=3)
    spec = train_spec(loss="squared", optimizer="adagrad", adagrad_init=0.7)
    state = initial_state(spec, np.ones(N), label_mean=0.0)
    start = WarmStart(planted_weights(N, spec.k, seed=4), training_state)

    warm_state_inplace(
        state, start, spec, ids=None, scaling=Scaling(), standardization=Standardization()
    )

    assert np.all(state.rows[:, spec.k + 1 : spec.k + 3] == np.float32(0.7))


@pytest.mark.parametrize("part", ["bias", "linear"])
def test_a_part_that_is_switched_off_stays_off(part):
    spec = train_spec(optimizer="sgd", **{f"use_{part}": False})
    state = initial_state(spec, np.ones(N), label_mean=0.3)

    start = WarmStart(planted_weights(N, spec.k, seed=4))
    warm_state_inplace(
        state, start, spec, ids=None, scaling=Scaling(), standardization=Standardization()
    )

    values = state.bias[:1] if part == "bias" else state.rows[:, spec.k]
    assert not values.any()


def test_a_snapshot_comes_back_from_plain_data_as_the_same_run():
    import json

    training_state = training_state_of(train_spec(loss="squared", optimizer="adam"), seed=5)
    copied = TrainingState(json.loads(json.dumps(training_state.metadata)), training_state.arrays)

    one, other = training_state.progress(), copied.progress()

    np.testing.assert_array_equal(one.state.synced_columns(), other.state.synced_columns())
    np.testing.assert_array_equal(one.state.bias, other.state.bias)
    assert one.history == other.history
    assert one.stopping.best_epoch == other.stopping.best_epoch


def test_a_training_continues_only_on_the_same_rows_and_in_the_same_form():
    spec = train_spec(loss="squared", optimizer="adam")
    training_state = training_state_of(spec, seed=5)
    same = {
        "fingerprint": "", "layout": training_state.layout, "metric": "rmse", "scaling": Scaling(),
        "standardization": Standardization(), "n_features": N,
    }  # fmt: skip
    assert training_state.continues(**same)

    others = {
        "fingerprint": "x", "metric": "mae", "scaling": Scaling(2.0), "n_features": N + 1,
        "standardization": HALVED,
        "layout": training_state_of(train_spec(loss="squared", optimizer="sgd"), seed=5).layout,
    }  # fmt: skip
    for name, value in others.items():
        assert not training_state.continues(**{**same, name: value}), name


def test_a_model_goes_on_with_standardized_features_where_it_stood():
    model = planted_weights(N, 3, seed=4)
    spec = train_spec(k=3, loss="squared")
    batch = planted_batch(model, 20, seed=5)
    state = started_state(spec, planted_batch(model, 60, seed=9), N)

    warm_state_inplace(
        state, WarmStart(model), spec, ids=None, scaling=Scaling(), standardization=HALVED
    )

    seen = margins(HALVED.apply(batch), state.parameters(), float(state.bias[0]))
    np.testing.assert_allclose(seen, model.margins(batch), atol=1e-5)


@pytest.mark.parametrize(("before", "takes_over"), [(Standardization(), False), (HALVED, True)])
def test_statistics_of_gradients_of_other_features_begin_anew(before, takes_over):
    spec = train_spec(k=3, loss="squared")
    kept = training_state_of(spec, seed=3, standardization=before)
    model = FMWeights(0.0, kept.progress().state.parameters(), N)
    state = started_state(spec, planted_batch(model, 60, seed=9), N)
    fresh = state.copy()

    warm_state_inplace(
        state, WarmStart(model, kept), spec, ids=None, scaling=Scaling(), standardization=HALVED
    )

    same = np.array_equal(state.rows[:, 4:6], fresh.rows[:, 4:6])
    assert same != takes_over


def test_factors_that_a_model_lacks_are_drawn_because_zeros_have_no_gradient():
    model = planted_weights(N, 3, seed=4)
    table = model.table.copy()
    table[:, :-1] = 0
    spec = train_spec(k=3, loss="squared")
    state = started_state(spec, planted_batch(model, 60, seed=9), N)
    drawn = state.rows[:, :3].copy()

    warm_state_inplace(
        state, WarmStart(FMWeights(model.bias, table, N)), spec, ids=None, scaling=Scaling(),
        standardization=Standardization(),
    )  # fmt: skip

    assert drawn.any()
    np.testing.assert_array_equal(state.rows[:, :3], drawn)
    np.testing.assert_array_equal(state.rows[:, 3], table[:, 3])
