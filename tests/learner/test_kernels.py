"""Compiled passes against the float64 twin, and what each hyperparameter promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters, LossName, OptimizerName
from spark_fm.learner.state import TrainState
from tests import oracle
from tests.builders import planted_batch, planted_weights, random_batch, train_spec, worn_state

N_FEATURES = 9
# Kernels add in float32, unit roundoff 6e-8: errors of about 30 updates of values near 1
# came to 2e-7 where measured; 25 times that leaves room for other processors' rounding.
CLOSE = {"rtol": 5e-6, "atol": 5e-6}

EXTRAS: dict[str, dict[str, object]] = {
    "plain": {},
    "decay": {
        "bias": GroupHyperparameters(0.1, 0.3),
        "linear": GroupHyperparameters(0.1, 0.2, "normal", init_sigma=0.1),
        "factors": GroupHyperparameters(0.1, 0.1, "normal", init_sigma=0.3),
    },
    "clip": {"clip_gradient": 0.25},
    "rescale": {"rescale_grad": 0.7},
}
EXTRAS["everything"] = EXTRAS["decay"] | EXTRAS["clip"] | EXTRAS["rescale"]


def spec_for(loss: LossName, optimizer: OptimizerName, size: int, extra: str) -> Hyperparameters:
    # eps 1e-3: with 1e-8, Adam turns the rounding of a gradient that is 0 into whole steps.
    changes = {"loss": loss, "optimizer": optimizer, "mini_batch_size": size, "eps": 1e-3}
    return train_spec(**changes, **EXTRAS[extra])


def assert_state_is(state: TrainState, twin: oracle.Twin) -> None:
    layout = state.layout
    seen = np.hstack([state.rows[:, : layout.n_synced], state.rows[:, [layout.n_updates]]])
    np.testing.assert_allclose(seen, twin.table(), **CLOSE)
    np.testing.assert_allclose(state.bias, twin.bias(), **CLOSE)


@pytest.mark.parametrize("extra", ["plain", "everything"])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_a_pass_equals_its_float64_twin(
    loss: LossName, optimizer: OptimizerName, size: int, extra: str
) -> None:
    spec = spec_for(loss, optimizer, size, extra)
    batch = random_batch(30, N_FEATURES, seed=5, loss=loss, weighted=True)
    state = worn_state(spec, N_FEATURES, seed=6)
    twin = oracle.Twin.of_state(state)
    order = np.random.default_rng(8).permutation(30)

    stats = train_inplace(state, batch, order, spec=spec, step_scale=0.5)

    expected = oracle.train(twin, batch, order, spec=spec, step_scale=0.5)
    assert_state_is(state, twin)
    assert (stats.loss_sum, stats.weight_sum) == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("extra", ["decay", "clip", "rescale"])
def test_each_gradient_option_alone_equals_its_twin(extra: str, size: int) -> None:
    spec = spec_for("logistic", "adagrad", size, extra)
    batch = random_batch(25, N_FEATURES, seed=9, loss="logistic")
    state = worn_state(spec, N_FEATURES, seed=10)
    twin = oracle.Twin.of_state(state)

    train_inplace(state, batch, np.arange(25), spec=spec)

    oracle.train(twin, batch, range(25), spec=spec)
    assert_state_is(state, twin)


def test_a_mini_batch_may_touch_more_features_than_its_first_buffer_holds() -> None:
    n_features = 1260  # the kernel starts with room for 1024
    rng = np.random.default_rng(11)
    indices = np.concatenate([np.arange(250 * r, 250 * r + 260) for r in range(5)])
    batch = CsrBatch.from_arrays(
        np.arange(6) * 260,
        indices,
        rng.uniform(-0.1, 0.1, len(indices)).astype(np.float32),
        labels=rng.integers(0, 2, 5).astype(np.float32),
    )
    spec = spec_for("logistic", "adagrad", 5, "everything")
    state = worn_state(spec, n_features, seed=12)
    twin = oracle.Twin.of_state(state)

    train_inplace(state, batch, np.arange(5), spec=spec)

    oracle.train(twin, batch, range(5), spec=spec)
    assert_state_is(state, twin)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_a_row_of_weight_zero_changes_nothing(optimizer: OptimizerName) -> None:
    spec = spec_for("squared", optimizer, 1, "everything")
    batch = random_batch(10, N_FEATURES, seed=13)
    batch.weights[3] = 0
    batch.values[batch.indptr[3] : batch.indptr[4]] = np.nan
    batch.labels[3] = np.nan
    state, without = (worn_state(spec, N_FEATURES, seed=14) for _ in range(2))

    stats = train_inplace(state, batch, np.arange(10), spec=spec)

    expected = train_inplace(without, batch, np.delete(np.arange(10), 3), spec=spec)
    np.testing.assert_array_equal(state.rows, without.rows)
    np.testing.assert_array_equal(state.bias, without.bias)
    assert (stats.loss_sum, stats.weight_sum) == (expected.loss_sum, expected.weight_sum)


def test_a_row_of_weight_zero_changes_nothing_in_a_mini_batch_of_given_rescale() -> None:
    spec = spec_for("squared", "adagrad", 4, "everything")
    batch = random_batch(8, N_FEATURES, seed=15)
    batch.weights[[3, 7]] = 0
    batch.values[batch.indptr[3] : batch.indptr[4]] = np.nan
    live = np.array([0, 1, 2, 4, 5, 6])
    state, without = (worn_state(spec, N_FEATURES, seed=16) for _ in range(2))

    train_inplace(state, batch, np.arange(8), spec=spec)

    for chunk in (live[:3], live[3:]):
        train_inplace(without, batch, chunk, spec=spec)
    np.testing.assert_array_equal(state.rows, without.rows)
    np.testing.assert_array_equal(state.bias, without.bias)


@pytest.mark.parametrize("size", [1, 4])
def test_a_mini_batch_or_row_of_weight_zero_alone_leaves_even_adams_clock(size: int) -> None:
    spec = spec_for("logistic", "adam", size, "everything")
    batch = random_batch(4, N_FEATURES, seed=17, loss="logistic")
    batch.weights[:] = 0
    state = worn_state(spec, N_FEATURES, seed=18)
    before = state.copy()

    stats = train_inplace(state, batch, np.arange(4), spec=spec)

    np.testing.assert_array_equal(state.rows, before.rows)
    np.testing.assert_array_equal(state.bias, before.bias)
    assert (stats.loss_sum, stats.weight_sum) == (0.0, 0.0)


def test_a_row_of_weight_three_moves_three_times_as_far() -> None:
    spec = spec_for("logistic", "sgd", 1, "decay")
    batch = random_batch(1, N_FEATURES, seed=19, lengths=(4, 4), loss="logistic")
    heavy_batch = replace(batch, weights=np.array([3.0], np.float32))
    state, heavy = (worn_state(spec, N_FEATURES, seed=20) for _ in range(2))
    before = state.copy()

    train_inplace(state, batch, np.arange(1), spec=spec)
    train_inplace(heavy, heavy_batch, np.arange(1), spec=spec)

    k = spec.k
    move, heavy_move = (s.rows[:, : k + 1] - before.rows[:, : k + 1] for s in (state, heavy))
    # Both moves are differences of values below 2, rounded to 1.2e-7.
    np.testing.assert_allclose(heavy_move, 3 * move, rtol=0, atol=1e-6)
    assert np.abs(move).max() > 1e-3
    assert heavy.bias[0] - before.bias[0] == pytest.approx(3 * (state.bias[0] - before.bias[0]))


@pytest.mark.parametrize("size", [1, 4])
def test_touches_count_weighted_entries(size: int) -> None:
    spec = spec_for("logistic", "adagrad", size, "plain")
    batch = random_batch(20, N_FEATURES, seed=21, loss="logistic", weighted=True)
    state = worn_state(spec, N_FEATURES, seed=22)
    before = state.rows[:, state.layout.n_updates].copy()

    train_inplace(state, batch, np.arange(20), spec=spec)

    per_entry = np.repeat(batch.weights, np.diff(batch.indptr))
    expected = np.bincount(batch.indices, per_entry, minlength=N_FEATURES)
    np.testing.assert_array_equal(state.rows[:, state.layout.n_updates] - before, expected)


@pytest.mark.parametrize("size", [1, 4])
def test_untouched_features_and_padding_stay_bit_equal(size: int) -> None:
    spec = spec_for("logistic", "adagrad", size, "everything")
    batch = random_batch(20, 5, seed=23, loss="logistic")
    state = worn_state(spec, N_FEATURES, seed=24)
    before = state.copy()

    train_inplace(state, batch, np.arange(20), spec=spec)

    np.testing.assert_array_equal(state.rows[5:], before.rows[5:])
    end = state.layout.n_updates + 1
    np.testing.assert_array_equal(state.rows[:, end:], before.rows[:, end:])
    np.testing.assert_array_equal(
        state.rows[:, state.layout.decay], before.rows[:, state.layout.decay]
    )


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_use_bias_off_keeps_the_bias_zero(optimizer: OptimizerName, size: int) -> None:
    spec = replace(spec_for("logistic", optimizer, size, "everything"), use_bias=False)
    batch = random_batch(20, N_FEATURES, seed=25, loss="logistic")
    state = worn_state(spec, N_FEATURES, seed=26)

    train_inplace(state, batch, np.arange(20), spec=spec)

    assert state.bias[0] == 0.0


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_use_linear_off_keeps_linear_weights_zero(optimizer: OptimizerName, size: int) -> None:
    spec = replace(spec_for("logistic", optimizer, size, "everything"), use_linear=False)
    batch = random_batch(20, N_FEATURES, seed=27, loss="logistic")
    state = worn_state(spec, N_FEATURES, seed=28)

    train_inplace(state, batch, np.arange(20), spec=spec)

    np.testing.assert_array_equal(state.rows[:, spec.k], 0.0)


def test_rows_are_visited_in_the_given_order() -> None:
    spec = spec_for("logistic", "adagrad", 1, "plain")
    batch = random_batch(12, N_FEATURES, seed=29, loss="logistic")
    order = np.random.default_rng(30).permutation(12)
    state, sorted_state = (worn_state(spec, N_FEATURES, seed=31) for _ in range(2))

    train_inplace(state, batch, order, spec=spec)

    train_inplace(sorted_state, batch.take(order), np.arange(12), spec=spec)
    np.testing.assert_array_equal(state.rows, sorted_state.rows)
    np.testing.assert_array_equal(state.bias, sorted_state.bias)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_passes_over_planted_data_recover_most_of_the_signal(optimizer: OptimizerName) -> None:
    truth = planted_weights(20, 3, seed=32)
    batch = planted_batch(truth, 1500, seed=33, loss="squared", noise=0.1)
    step = {"adagrad": 0.2, "sgd": 0.05, "adam": 0.01}[optimizer]
    rate = GroupHyperparameters(step, 0.0, "normal", init_sigma=0.1)
    spec = train_spec(loss="squared", optimizer=optimizer, bias=rate, linear=rate, factors=rate)
    state = worn_state(spec, 20, seed=34)

    losses = [
        train_inplace(state, batch, np.arange(1500), spec=spec).loss_sum / 1500 for _ in range(15)
    ]

    # Labels vary by about 3; what no model can explain is the noise, 0.01.
    assert losses[-1] < 0.05 * float(np.var(batch.labels))


def test_a_table_without_rows_and_an_order_without_rows_do_no_harm() -> None:
    spec = spec_for("logistic", "adagrad", 4, "plain")
    state = worn_state(spec, 0, seed=35)
    batch = random_batch(3, 0, seed=36, loss="logistic")

    stats = train_inplace(state, batch, np.empty(0, np.int64), spec=spec)

    assert (stats.loss_sum, stats.weight_sum) == (0.0, 0.0)


# Less than a vector register, whole ones, and both: each new width is a kernel to compile.
@pytest.mark.parametrize("mini_batch_size", [1, 4])
@pytest.mark.parametrize(
    ("k", "optimizer"),
    [(3, "adagrad"), (3, "sgd"), (3, "adam"), (16, "adam"), (11, "adagrad")],
)
def test_rows_of_one_feature_leave_the_factors_as_they_are(k, optimizer, mini_batch_size):
    """Their gradient is zero; Adam would make a whole step of a rounding error."""
    rng = np.random.default_rng(k)
    n_rows, n_features = 300, 7
    batch = CsrBatch.from_arrays(
        np.arange(n_rows + 1), rng.integers(0, n_features, n_rows).astype(np.int32),
        np.ones(n_rows, np.float32), labels=rng.integers(0, 2, n_rows).astype(np.float32),
    )  # fmt: skip
    spec = train_spec(
        k=k, loss="logistic", optimizer=optimizer, mini_batch_size=mini_batch_size,
        factors=GroupHyperparameters(0.1, 0.0, "normal", init_sigma=0.3), clip_gradient=None,
    )  # fmt: skip
    state = worn_state(spec, n_features, seed=k)
    if optimizer == "adam":
        state.rows[:, k + 1 : 3 * (k + 1)] = 0
    before = state.rows[:, :k].copy()

    train_inplace(state, batch, np.arange(n_rows), spec=spec)

    np.testing.assert_array_equal(state.rows[:, :k], before)
