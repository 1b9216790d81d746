"""All epochs in one process: reproducible, resumable, and safe from wild steps."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner import training
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import (
    CHUNK_ROWS,
    SHUFFLED_AT_ONCE,
    SHUFFLED_CHUNKS,
    RowOrder,
    round_order,
    shuffled_order,
)
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters, LossName, OptimizerName
from spark_fm.learner.state import TrainState
from spark_fm.learner.training import (
    EpochRecord,
    Parameters,
    TrainingProgress,
    loss_limit,
    new_stopping,
)
from tests import oracle
from tests.builders import planted_batch, planted_weights, raw_counts, started_state, train_spec

N_FEATURES = 12
METRIC = {"logistic": "logloss", "squared": "rmse"}


def rows_for(loss: LossName, n_rows: int = 200, *, seed: int = 1) -> CsrBatch:
    truth = planted_weights(N_FEATURES, 3, seed=5)
    return planted_batch(truth, n_rows, seed=seed, loss=loss, noise=0.5)


def new_run(
    spec: Hyperparameters, train: CsrBatch, *, patience: int = 0, tol: float = 0.0
) -> TrainingProgress:
    n_features = max(N_FEATURES, int(train.indices.max()) + 1)
    stopping = new_stopping(spec, METRIC[spec.loss], patience=patience, tol=tol)
    return TrainingProgress(started_state(spec, train, n_features), stopping)


def finish(
    run: TrainingProgress,
    train: CsrBatch,
    spec: Hyperparameters,
    validation: CsrBatch | None = None,
) -> TrainingProgress:
    for _ in training.advance(run, train, validation, spec, metric=METRIC[spec.loss]):
        pass
    return run


def fit(
    spec: Hyperparameters, train: CsrBatch, validation: CsrBatch | None = None
) -> TrainingProgress:
    return finish(new_run(spec, train), train, spec, validation)


def assert_bit_equal(left: TrainingProgress, right: TrainingProgress) -> None:
    np.testing.assert_array_equal(left.state.synced_columns(), right.state.synced_columns())
    np.testing.assert_array_equal(left.state.bias, right.state.bias)
    a, b = left.result(), right.result()
    np.testing.assert_array_equal(a.table, b.table)
    assert a.bias == b.bias
    assert [untimed(r) for r in left.history] == [untimed(r) for r in right.history]
    assert (left.epoch, left.finished) == (right.epoch, right.finished)
    assert repr(left.stopping) == repr(right.stopping)  # as text: an unset best value is NaN


def untimed(record: EpochRecord) -> dict[str, object]:
    return {name: v for name, v in record.to_dict().items() if not name.endswith("_seconds")}


# -- reproducibility ------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_same_seed_gives_bit_equal_weights(optimizer: OptimizerName) -> None:
    spec, train = train_spec(optimizer=optimizer), rows_for("logistic")

    assert_bit_equal(fit(spec, train), fit(spec, train))


def test_another_seed_gives_other_weights() -> None:
    train = rows_for("logistic")

    one, other = (fit(train_spec(seed=seed), train).result() for seed in (7, 8))

    assert not np.array_equal(one.table, other.table)


def test_epochs_and_partitions_each_have_their_own_order() -> None:
    spec = train_spec()
    rounds = [{}, {"round_index": 1}, {"partition": 1}, {"shard": 1}]

    orders = [RowOrder(e, **p).order(spec, 50) for e in (0, 1) for p in rounds]

    assert len({tuple(order.tolist()) for order in orders}) == 8
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))


def test_shuffle_off_visits_rows_in_order() -> None:
    spec = train_spec(shuffle=False, epochs=2, average_epochs=False)
    train = rows_for("logistic")
    by_hand = started_state(spec, train, N_FEATURES)

    run = fit(spec, train)

    for _ in range(2):
        train_inplace(by_hand, train, np.arange(train.n_rows), spec=spec)
    np.testing.assert_array_equal(run.result().table, by_hand.parameters())
    assert run.result().bias == by_hand.bias[0]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_resumed_run_is_bit_equal_to_one_in_one_go(
    optimizer: OptimizerName, stop_after: int
) -> None:
    spec = train_spec(optimizer=optimizer, epochs=6)
    train, validation = rows_for("logistic"), rows_for("logistic", seed=90)
    begun = new_run(spec, train, patience=3, tol=1e-3)
    epochs = training.advance(begun, train, validation, spec, metric="logloss")
    for _ in islice(epochs, stop_after):
        pass

    facts, arrays = begun.to_arrays()
    resumed = TrainingProgress.from_arrays(
        begun.state.layout, json.loads(json.dumps(facts)), arrays
    )
    finish(resumed, train, spec, validation)

    whole = finish(new_run(spec, train, patience=3, tol=1e-3), train, spec, validation)
    assert_bit_equal(resumed, whole)


def test_a_run_saved_before_its_first_epoch_trains_like_a_new_one() -> None:
    spec, train = train_spec(), rows_for("logistic")
    fresh = new_run(spec, train)

    facts, arrays = fresh.to_arrays()
    resumed = TrainingProgress.from_arrays(
        fresh.state.layout, json.loads(json.dumps(facts)), arrays
    )

    assert_bit_equal(finish(resumed, train, spec), fit(spec, train))


def test_a_rescued_run_resumes_with_its_smaller_step() -> None:
    spec = wild_spec("squared", "adagrad", epochs=4)
    train = raw_counts(80, 4, seed=2, loss="squared")
    begun = new_run(spec, train)
    next(training.advance(begun, train, None, spec, metric="rmse"))

    facts, arrays = begun.to_arrays()
    resumed = finish(TrainingProgress.from_arrays(begun.state.layout, facts, arrays), train, spec)

    assert_bit_equal(resumed, fit(spec, train))
    assert resumed.step_scale < 1


def test_history_before_since_stays_behind() -> None:
    spec, train = train_spec(epochs=3), rows_for("logistic")

    facts, _ = fit(spec, train).to_arrays(since=2)

    assert [record["epoch"] for record in facts["history"]] == [2]


def test_out_of_time_a_run_still_makes_one_epoch_and_is_not_finished() -> None:
    spec, train = train_spec(epochs=3), rows_for("logistic")
    run = new_run(spec, train)

    records = list(training.advance(run, train, None, spec, metric="logloss", seconds=0.0))

    assert [record.epoch for record in records] == [0]
    assert (run.epoch, run.finished) == (1, False)


def test_calls_that_are_always_out_of_time_come_to_an_end() -> None:
    spec, train = train_spec(epochs=3), rows_for("logistic")
    run = new_run(spec, train)

    calls = [
        len(list(training.advance(run, train, None, spec, metric="logloss", seconds=0.0)))
        for _ in range(3)
    ]

    assert calls == [1, 1, 1]
    assert_bit_equal(finish(run, train, spec), fit(spec, train))


# -- stopping and averaging -----------------------------------------------------------


@pytest.mark.parametrize("average", [True, False])
def test_patience_stops_and_the_best_epoch_is_kept(average: bool) -> None:
    train = rows_for("logistic")
    against = rows_for("logistic", seed=90)
    against.labels[:] = 1 - against.labels  # the better the fit, the worse the metric
    spec = train_spec(epochs=10, average_epochs=average)

    run = finish(new_run(spec, train, patience=3), train, spec, against)

    first = fit(replace(spec, epochs=1), train)
    assert len(run.history) == 4  # the best one and three without improvement
    assert run.finished
    assert run.stopping.best_epoch == 0
    np.testing.assert_array_equal(run.result().table, first.result().table)
    assert run.result().bias == first.result().bias


def test_improvements_below_tol_use_up_patience() -> None:
    spec, train = train_spec(epochs=10), rows_for("logistic")

    run = finish(
        new_run(spec, train, patience=2, tol=10.0), train, spec, rows_for("logistic", seed=90)
    )

    assert len(run.history) == 3


def test_validation_metrics_are_those_of_the_candidate() -> None:
    spec, train = train_spec(loss="squared", epochs=2), rows_for("squared")
    validation = rows_for("squared", 60, seed=90)

    run = fit(spec, train, validation)

    best = run.result()
    model = oracle.Model.of_table(best.table, best.bias)
    raw = oracle.scores(model, validation)
    expected = oracle.metrics("squared", raw, validation.labels, validation.weights)
    seen = run.history[run.stopping.best_epoch].validation
    assert seen is not None
    assert seen.values("squared") == pytest.approx(expected, rel=1e-5)  # float32 scores


def test_without_validation_rows_the_last_epoch_is_kept() -> None:
    spec, train = train_spec(average_epochs=False), rows_for("logistic")

    run = fit(spec, train, train.take(np.empty(0, np.int64)))

    np.testing.assert_array_equal(run.result().table, run.state.parameters())
    assert all(record.validation is None for record in run.history)


def test_epoch_average_is_the_polynomial_decay_average_of_the_models() -> None:
    spec, train = train_spec(epochs=5), rows_for("logistic")
    run = new_run(spec, train)
    tables, biases = [], []
    for _ in training.advance(run, train, None, spec, metric="logloss"):
        tables.append(run.state.parameters().astype(np.float64))
        biases.append(float(run.state.bias[0]))

    result = run.result()

    # Four float32 updates of values near 1, 6e-8 each and their shares.
    np.testing.assert_allclose(result.table, oracle.average_epochs(tables), rtol=0, atol=1e-6)
    assert result.bias == pytest.approx(oracle.average_epochs(biases), rel=1e-12)


def test_rounds_come_in_another_order_each_epoch_unless_rows_stay_in_theirs() -> None:
    orders = [round_order(train_spec(), 8, epoch).tolist() for epoch in range(5)]

    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert round_order(train_spec(), 8, 3).tolist() == orders[3]
    assert round_order(train_spec(shuffle=False), 8, 3).tolist() == list(range(8))


def test_the_best_candidate_does_not_move_with_later_epochs() -> None:
    candidate = Parameters(np.ones((2, 4), np.float32), 1.0)
    copy = candidate.copy()
    state = new_run(train_spec(), rows_for("logistic")).state

    candidate.move_towards_inplace(replace_rows(state, 2), 3, 1.0)

    np.testing.assert_array_equal(copy.table, 1.0)
    assert copy.bias == 1.0


def replace_rows(state: TrainState, n_rows: int) -> TrainState:
    return TrainState(state.layout, state.rows[:n_rows], state.bias)


def test_losses_are_reported_in_the_callers_unit_of_the_label() -> None:
    spec, train = train_spec(loss="squared", epochs=2), rows_for("squared")
    validation = rows_for("squared", seed=90)

    def losses(label_scale: float) -> list[tuple[float, float]]:
        run = new_run(spec, train)
        records = training.advance(
            run, train, validation, spec, metric="rmse", label_scale=label_scale
        )
        return [(r.train_loss, r.validation.mean_loss()) for r in records if r.validation]

    # Scores and labels are scaled by a power of two: exact.
    np.testing.assert_allclose(losses(4.0), np.array(losses(1.0)) * 16, rtol=1e-12)


def test_train_loss_falls_on_planted_data() -> None:
    spec, train = train_spec(loss="squared", epochs=10), rows_for("squared", 600)

    run = fit(spec, train)

    assert run.history[-1].train_loss < 0.5 * run.history[0].train_loss


# -- the safety net -------------------------------------------------------------------


def wild_spec(
    loss: LossName, optimizer: OptimizerName, *, epochs: int = 3, lr: float = 1e6
) -> Hyperparameters:
    rate = GroupHyperparameters(lr, 0.0)
    factors = GroupHyperparameters(lr, 0.0, "normal", init_sigma=0.01)
    return train_spec(
        loss=loss, optimizer=optimizer, bias=rate, linear=rate, factors=factors, epochs=epochs
    )


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_wild_steps_on_raw_counts_end_finite_with_a_smaller_step(
    loss: LossName, optimizer: OptimizerName
) -> None:
    train = raw_counts(120, 4, seed=3, loss=loss)

    run = fit(wild_spec(loss, optimizer), train)

    assert run.state.is_finite()
    assert np.isfinite(run.result().table).all()
    assert run.step_scale < 1
    assert sum(record.n_rejected for record in run.history) > 0
    assert run.history[-1].step_scale == run.step_scale
    assert all(record.train_loss <= run.loss_limit for record in run.history)


@pytest.mark.parametrize("lr", [1e2, 1e6])
@pytest.mark.parametrize("n_rows", [1, 2, 5])
@pytest.mark.parametrize(
    ("loss", "optimizer"), [("squared", "adagrad"), ("squared", "sgd"), ("logistic", "sgd")]
)
def test_wild_steps_on_a_few_rows_end_finite(
    loss: LossName, optimizer: OptimizerName, n_rows: int, lr: float
) -> None:
    X = np.random.default_rng(4).integers(0, 5, (n_rows, 4))
    X[:, 0] = 1
    train = CsrBatch.from_matrix(X, labels=np.arange(n_rows) % 2)

    run = fit(wild_spec(loss, optimizer, epochs=6, lr=lr), train)

    assert np.isfinite(run.result().table).all()


def test_an_epoch_that_ends_exploded_is_rejected_although_its_mean_loss_is_low() -> None:
    # The loss of a row is taken before its update, so the last update shows only later.
    train = CsrBatch.from_matrix(np.full((1, 2), 3.0), labels=[1.0])
    spec = wild_spec("squared", "sgd", epochs=1)

    run = fit(spec, train)

    best = run.result()
    (raw,) = oracle.scores(oracle.Model.of_table(best.table, best.bias), train)
    assert (raw - 1.0) ** 2 <= run.loss_limit


def test_a_rejected_epoch_leaves_no_trace_but_the_smaller_step() -> None:
    train = raw_counts(120, 4, seed=3, loss="squared")
    spec = wild_spec("squared", "adagrad", epochs=1)
    run = fit(spec, train)
    calm = new_run(spec, train)
    calm.step_scale = run.step_scale

    finish(calm, train, spec)

    assert calm.history[0].n_rejected == 0
    np.testing.assert_array_equal(calm.state.synced_columns(), run.state.synced_columns())
    np.testing.assert_array_equal(calm.state.bias, run.state.bias)


def test_rows_that_no_step_can_learn_raise_with_the_remedy() -> None:
    train = CsrBatch.from_matrix(np.full((3, 2), 1e30), labels=[1, 0, 1])

    with pytest.raises(TrainingDivergedError, match="scale the features") as caught:
        fit(train_spec(), train)

    assert "factorsLr=0.1" in str(caught.value)
    assert "epoch 0" in str(caught.value)
    assert isinstance(caught.value, ArithmeticError)


def test_steady_training_is_never_rejected() -> None:
    run = fit(train_spec(epochs=5), rows_for("logistic"))

    assert [(r.step_scale, r.n_rejected) for r in run.history] == [(1.0, 0)] * 5


def test_loss_limit_is_ten_times_the_loss_of_the_start_or_of_nothing_plus_one() -> None:
    train = rows_for("squared")
    spec = train_spec(loss="squared")
    state = started_state(spec, train, N_FEATURES)
    raw = oracle.scores(oracle.Model.of_table(state.parameters(), state.bias[0]), train)
    start, nothing = np.mean((raw - train.labels) ** 2), np.mean(train.labels**2)

    limit = loss_limit(state, train, spec)

    assert limit == pytest.approx(10 * (max(start, nothing) + 1), rel=1e-5)  # float32 scores


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_rows_of_weight_zero_only_train_to_the_first_model(loss: LossName) -> None:
    spec, train = train_spec(loss=loss), rows_for(loss)
    train.weights[:] = 0

    run = fit(spec, train)

    first = started_state(spec, train, N_FEATURES)
    np.testing.assert_array_equal(run.result().table, first.parameters())


@pytest.mark.parametrize(
    "n_rows", [0, 1, SHUFFLED_AT_ONCE, SHUFFLED_AT_ONCE + 1, SHUFFLED_AT_ONCE + 5 * CHUNK_ROWS]
)
def test_every_row_is_visited_once(n_rows):
    order = shuffled_order(np.random.default_rng(0), n_rows)

    np.testing.assert_array_equal(np.sort(order), np.arange(n_rows))


def test_stretches_of_a_large_set_hold_rows_from_everywhere_in_mixed_order():
    n_rows = 4 * SHUFFLED_AT_ONCE
    order = shuffled_order(np.random.default_rng(0), n_rows)

    stretch = order[: SHUFFLED_CHUNKS * CHUNK_ROWS]
    chunks = np.unique(stretch // CHUNK_ROWS)
    assert len(chunks) == SHUFFLED_CHUNKS
    assert chunks.min() < n_rows / CHUNK_ROWS / 4
    assert chunks.max() > n_rows / CHUNK_ROWS * 3 / 4
    # Neighbours in the order are as often of one piece as chance has it.
    same = np.mean(stretch[1:] // CHUNK_ROWS == stretch[:-1] // CHUNK_ROWS)
    assert abs(same - 1 / SHUFFLED_CHUNKS) < 0.01
