"""Layout of a state row, first values, and what travels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from spark_fm.learner.spec import GroupHyperparameters, InitMethod, OptimizerName
from spark_fm.learner.state import Layout, TrainState, aligned_rows, initial_state
from tests import oracle
from tests.builders import train_spec, worn_state

OPTIMIZERS: list[OptimizerName] = ["adagrad", "sgd", "adam"]
SEEN = np.full(4000, 5)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 16, 64, 1024])
@pytest.mark.parametrize(
    ("optimizer", "n_statistics"),
    [("sgd", lambda k: 0), ("adagrad", lambda k: 2), ("adam", lambda k: 2 * (k + 1))],
)
def test_columns_follow_the_documented_order(
    optimizer: OptimizerName, n_statistics, k: int
) -> None:  # type: ignore[no-untyped-def]
    layout = Layout(k, optimizer)

    assert layout.n_statistics == n_statistics(k)
    assert layout.n_synced == k + 1 + n_statistics(k)
    assert layout.decay == layout.n_synced
    assert layout.n_updates == layout.decay + 1
    assert layout.stride > layout.n_updates
    assert layout.bytes_per_feature == 4 * layout.stride


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_row_is_whole_groups_of_eight(optimizer: OptimizerName) -> None:
    for layout in (Layout(k, optimizer) for k in range(1, 40)):
        used = layout.n_updates + 1
        assert layout.stride % 8 == 0, layout
        assert layout.stride - used < 8, layout


@pytest.mark.parametrize("n_rows", [0, 1, 7])
def test_tables_start_a_cache_line(n_rows: int) -> None:
    for stride in (4, 8, 24):
        rows = aligned_rows(n_rows, stride)
        assert rows.shape == (n_rows, stride)
        assert rows.dtype == np.float32
        assert rows.ctypes.data % 64 == 0 or n_rows == 0


def test_every_state_is_aligned_and_contiguous() -> None:
    state = worn_state(train_spec(), 5, seed=1)
    again = TrainState.from_synced(state.layout, state.synced_columns(), state.bias)

    for one in (state, state.copy(), again):
        assert one.rows.ctypes.data % 64 == 0
        assert one.rows.flags.c_contiguous
        assert one.rows.shape == (5, state.layout.stride)


@pytest.mark.parametrize("group", ["linear", "factors"])
def test_normal_first_values_have_mean_zero_and_the_given_sigma(group: str) -> None:
    values = drawn(group, "normal", init_sigma=0.5)

    # Five standard errors of mean and deviation.
    assert abs(values.mean()) < 5 * 0.5 / math.sqrt(values.size)
    assert abs(values.std() - 0.5) < 5 * 0.5 / math.sqrt(2 * values.size)
    assert np.abs(values).max() > 1.0


@pytest.mark.parametrize("group", ["linear", "factors"])
def test_uniform_first_values_fill_the_given_range(group: str) -> None:
    values = drawn(group, "uniform", init_scale=0.5)

    assert np.abs(values).max() <= 0.5
    assert values.min() < -0.49
    assert values.max() > 0.49
    assert abs(values.mean()) < 5 * 0.5 / math.sqrt(3 * values.size)  # five standard errors


@pytest.mark.parametrize("group", ["linear", "factors"])
@pytest.mark.parametrize(("value", "expected"), [(0.25, 0.25), (-2.0, -2.0), (None, 0.0)])
def test_constant_first_values_are_the_given_value(
    group: str, value: float | None, expected: float
) -> None:
    assert (drawn(group, "constant", init_value=value) == expected).all()


def drawn(group: str, method: InitMethod, **values: float | None) -> np.ndarray:
    spec = train_spec(**{group: GroupHyperparameters(0.1, 0.0, method, **values)})  # type: ignore[arg-type]
    state = initial_state(spec, SEEN, label_mean=0.5)
    return state.rows[:, : spec.k] if group == "factors" else state.rows[:, spec.k]


@pytest.mark.parametrize("method", ["normal", "uniform", "constant"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unseen_features_start_at_exactly_zero(
    optimizer: OptimizerName, method: InitMethod
) -> None:
    group = GroupHyperparameters(0.1, 0.0, method, init_sigma=1.0, init_scale=1.0, init_value=1.0)
    spec = train_spec(optimizer=optimizer, linear=group, factors=group)
    counts = np.array([3, 0, 1, 0])

    parameters = initial_state(spec, counts, label_mean=0.5).parameters()

    np.testing.assert_array_equal(parameters[[1, 3]], 0.0)
    assert (parameters[[0, 2]] != 0).all()


def test_same_seed_gives_bit_equal_first_values_and_another_seed_others() -> None:
    first, again = (initial_state(train_spec(seed=3), SEEN, label_mean=0.5) for _ in range(2))
    other = initial_state(train_spec(seed=4), SEEN, label_mean=0.5)

    np.testing.assert_array_equal(first.rows, again.rows)
    assert (first.rows[:, 0] != other.rows[:, 0]).all()


@pytest.mark.parametrize("k", [1, 3])
def test_first_values_of_a_feature_do_not_depend_on_how_many_follow(k: int) -> None:
    spec = train_spec(k=k)

    few = initial_state(spec, SEEN[:10], label_mean=0.5)

    many = initial_state(spec, SEEN, label_mean=0.5)
    np.testing.assert_array_equal(few.rows, many.rows[:10])


def test_groups_draw_independently_of_each_other() -> None:
    constant = replace(train_spec(), factors=GroupHyperparameters(0.1, 0.0))

    without = initial_state(constant, SEEN, label_mean=0.5)

    drawn_too = initial_state(train_spec(), SEEN, label_mean=0.5)
    np.testing.assert_array_equal(without.rows[:, 3], drawn_too.rows[:, 3])


@pytest.mark.parametrize("use_linear", [True, False])
def test_use_linear_off_starts_linear_weights_at_zero(use_linear: bool) -> None:
    state = initial_state(train_spec(use_linear=use_linear), SEEN, label_mean=0.5)

    assert (state.rows[:, 3] != 0).any() == use_linear


@pytest.mark.parametrize(
    ("loss", "mean", "expected"),
    [("squared", 3.5, 3.5), ("squared", -2.0, -2.0), ("logistic", 0.2, math.log(0.25))],
)
def test_an_unset_bias_starts_at_the_mean_label_or_its_log_odds(
    loss: str, mean: float, expected: float
) -> None:
    state = initial_state(train_spec(loss=loss), SEEN, label_mean=mean)

    assert state.bias[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_one_class_only_starts_with_a_finite_bias_of_the_right_sign(mean: float) -> None:
    state = initial_state(train_spec(), SEEN, label_mean=mean)

    assert math.isfinite(state.bias[0])
    assert (state.bias[0] > 10) == (mean == 1.0)


@pytest.mark.parametrize(
    ("group", "low", "high"),
    [
        (GroupHyperparameters(0.1, 0.0, "constant", init_value=0.75), 0.75, 0.75),
        (GroupHyperparameters(0.1, 0.0, "constant", init_value=0.0), 0.0, 0.0),
        (GroupHyperparameters(0.1, 0.0, "uniform", init_scale=0.5), -0.5, 0.5),
        (GroupHyperparameters(0.1, 0.0, "normal", init_sigma=0.0), 0.0, 0.0),
    ],
)
def test_a_set_bias_method_wins_over_the_mean_label(
    group: GroupHyperparameters, low: float, high: float
) -> None:
    state = initial_state(train_spec(loss="squared", bias=group), SEEN, label_mean=100.0)

    assert low <= state.bias[0] <= high


def test_use_bias_off_starts_the_bias_at_zero() -> None:
    spec = train_spec(loss="squared", use_bias=False)

    assert initial_state(spec, SEEN, label_mean=9.0).bias[0] == 0.0


def test_adagrad_sums_start_at_adagrad_init_everywhere() -> None:
    state = initial_state(train_spec(adagrad_init=0.125), np.array([0, 4]), label_mean=0.5)

    np.testing.assert_array_equal(state.rows[:, 4:6], 0.125)
    assert state.bias[1] == 0.125


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_other_optimizers_start_from_no_statistics(optimizer: OptimizerName) -> None:
    state = initial_state(train_spec(optimizer=optimizer), SEEN[:3], label_mean=0.5)

    np.testing.assert_array_equal(state.rows[:, 4 : state.layout.n_synced], 0.0)
    np.testing.assert_array_equal(state.bias[1:], 0.0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_decay_scale_falls_with_the_features_frequency(power: float) -> None:
    counts = np.array([0, 1, 10, 1000, 250_000])

    state = initial_state(train_spec(decay_frequency_power=power), counts, label_mean=0.5)

    expected = [oracle.first_decay_scale(int(c), power) for c in counts]
    scales = state.rows[:, state.layout.decay]
    np.testing.assert_allclose(scales, expected, rtol=1e-6)  # stored as float32


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_travels_rebuilds_the_state_with_touches_at_zero(optimizer: OptimizerName) -> None:
    state = worn_state(train_spec(optimizer=optimizer), 6, seed=2)
    end = state.layout.n_updates

    again = TrainState.from_synced(state.layout, state.synced_columns(), state.bias)

    np.testing.assert_array_equal(again.rows[:, :end], state.rows[:, :end])
    np.testing.assert_array_equal(again.rows[:, end:], 0.0)
    np.testing.assert_array_equal(again.bias, state.bias)


def test_copies_share_nothing_with_the_state() -> None:
    state = worn_state(train_spec(), 4, seed=3)
    copy, parameters, synced_columns = state.copy(), state.parameters(), state.synced_columns()
    again = TrainState.from_synced(state.layout, synced_columns, state.bias)
    before = parameters.copy()

    state.rows[:] = -1
    state.bias[:] = -1

    for table in (copy.rows[:, :4], parameters, synced_columns[:, :4], again.rows[:, :4]):
        np.testing.assert_array_equal(table, before)
    assert -1 not in (copy.bias[0], again.bias[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 3, 5])
def test_one_bad_number_in_parameters_or_statistics_is_seen(column: int, bad: float) -> None:
    state = worn_state(train_spec(), 6, seed=4)
    finite_before = state.is_finite()

    state.rows[4, column] = bad

    assert finite_before
    assert not state.is_finite()


def test_opposite_infinities_do_not_hide_each_other() -> None:
    state = worn_state(train_spec(), 6, seed=5)
    state.rows[0, 0], state.rows[1, 0] = np.inf, -np.inf

    assert not state.is_finite()


def test_a_bad_bias_is_seen() -> None:
    state = worn_state(train_spec(), 2, seed=6)
    state.bias[1] = np.nan

    assert not state.is_finite()


def test_huge_but_finite_parameters_count_as_finite() -> None:
    state = worn_state(train_spec(), 6, seed=7)
    state.rows[:, :4] = np.float32(3e38)

    assert state.is_finite()
