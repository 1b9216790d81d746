"""A race chooses the learning rates that a training of its own would show to be best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spark_fm.learner import race as races
from spark_fm.learner import training
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.race import FACTORS, HEATS, race, race_epochs, with_factor
from spark_fm.learner.state import initial_state
from spark_fm.learner.statistics import row_draws
from spark_fm.learner.training import TrainingProgress, new_stopping
from tests.builders import feature_counts, planted_batch, planted_weights, started_state, train_spec

N_FEATURES = 12
GROUPS = ("bias", "linear", "factors")
METRIC = {"logistic": "logloss", "squared": "rmse"}


def rows_for(loss: str, n_rows: int, *, seed: int) -> CsrBatch:
    return planted_batch(
        planted_weights(N_FEATURES, 3, seed=5), n_rows, seed=seed, loss=loss, noise=0.5
    )


def hold(train, validation, spec, groups=GROUPS, metric=None, n_folds=1):
    return race(
        train, validation, spec, groups, metric=metric or METRIC[spec.loss],
        label_mean=label_mean(train), n_folds=n_folds,
    )  # fmt: skip


def label_mean(train: CsrBatch) -> float:
    return float(train.weights @ train.labels / train.weights.sum())


def best_alone(spec, train, validation, factor: float, epochs: int, mean=None) -> float:
    """Return what a training reaches that knows of no race."""
    spec = replace(with_factor(spec, GROUPS, factor), epochs=epochs)
    metric = METRIC[spec.loss]
    state = started_state(spec, train, N_FEATURES)
    if mean is not None:
        state = initial_state(spec, feature_counts(train, N_FEATURES), label_mean=mean)
    progress = TrainingProgress(
        state,
        new_stopping(spec, metric, patience=races.PATIENCE, tol=races.TIE),
    )
    for _ in training.advance(progress, train, validation, spec, metric=metric):
        pass
    return progress.stopping.best_value


@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("rate", [0.002, 0.3])
def test_the_winner_is_the_best_of_trainings_by_themselves(loss, rate):
    train, validation = rows_for(loss, 400, seed=1), rows_for(loss, 200, seed=2)
    spec = with_factor(train_spec(loss=loss), GROUPS, rate / 0.1)

    result = hold(train, validation, spec)

    (first, _), (last, n_finalists) = HEATS
    early = {f: best_alone(spec, train, validation, f, first) for f in FACTORS}
    finalists = sorted(FACTORS, key=early.__getitem__)[:n_finalists]
    values = {f: best_alone(spec, train, validation, f, last) for f in finalists}
    assert result.factor == min(values, key=values.__getitem__)
    tried = {each["factor"]: each["value"] for each in result.tried}
    assert tried == pytest.approx(early | values, rel=1e-6)


@pytest.mark.parametrize(("rate", "larger"), [(0.001, True), (20.0, False)])
def test_rates_far_too_small_or_too_large_are_left(rate, larger):
    train, validation = rows_for("logistic", 400, seed=1), rows_for("logistic", 200, seed=2)

    result = hold(train, validation, with_factor(train_spec(), GROUPS, rate / 0.1))

    assert (result.factor > 1) == larger
    assert (result.factor < 1) != larger


def test_the_optimizer_s_own_rates_win_a_tie():
    train, validation = rows_for("logistic", 200, seed=1), rows_for("logistic", 100, seed=2)
    spec = with_factor(train_spec(), GROUPS, 0.0)  # none of them learns

    assert hold(train, validation, spec).factor == 1.0


def test_only_the_rates_of_the_named_groups_vary():
    changed = with_factor(train_spec(), ["linear"], 0.5)

    assert changed == replace(train_spec(), linear=replace(train_spec().linear, lr=0.05))


def test_gaps_between_indices_change_nothing():
    train, validation = rows_for("squared", 300, seed=1), rows_for("squared", 100, seed=2)

    def spread(rows: CsrBatch) -> CsrBatch:
        return replace(rows, indices=rows.indices * np.int32(1000) + np.int32(7))

    spec = train_spec(loss="squared")
    assert hold(spread(train), spread(validation), spec) == hold(train, validation, spec)


def test_an_undefined_metric_leaves_the_optimizer_s_own_rates():
    train, validation = rows_for("logistic", 200, seed=1), rows_for("logistic", 100, seed=2)
    one_class = replace(validation, labels=np.ones_like(validation.labels))

    result = hold(train, one_class, train_spec(), metric="roc_auc")

    assert result.factor == 1.0
    assert {each["value"] for each in result.tried} == {None}


def test_a_candidate_that_diverges_has_no_value_and_does_not_win():
    train, validation = rows_for("squared", 300, seed=1), rows_for("squared", 100, seed=2)
    spec = with_factor(train_spec(loss="squared", optimizer="sgd"), GROUPS, 10)

    result = hold(train, validation, spec)

    assert result.tried[FACTORS.index(4.0)]["value"] is None
    assert result.factor < 1


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_few_rows_take_turns_at_judging_rates_and_epochs_and_the_linear_part(loss):
    train, validation = rows_for(loss, 60, seed=1), rows_for(loss, 10, seed=2)
    together = CsrBatch.concat([train, validation])
    fold = row_draws(together, races.FOLD_SEED) % np.uint64(3)
    spec = train_spec(loss=loss)

    result = hold(train, validation, spec, n_folds=3)

    def curves(factor: float, epochs: int) -> np.ndarray:
        """Return the mean metric over the folds, of all and of the linear part, by epoch."""
        of_factor = replace(with_factor(spec, GROUPS, factor), epochs=epochs)
        found = []
        for i in range(3):
            rest, part = together.take(np.flatnonzero(fold != i)), np.flatnonzero(fold == i)
            counts = feature_counts(rest, N_FEATURES)
            progress = TrainingProgress(
                initial_state(of_factor, counts, label_mean=label_mean(train)),
                new_stopping(spec, METRIC[loss], patience=0, tol=0),
            )
            metrics = []
            for _ in training.advance(progress, rest, None, of_factor, metric=METRIC[loss]):
                kinds = (progress.average, progress.average.linear_part())
                sums = [training.evaluate(each, together.take(part), spec) for each in kinds]
                metrics.append([each.values(loss)[METRIC[loss]] for each in sums])
            found.append(metrics)
        return np.mean(found, axis=0)

    epochs = {each["factor"]: each["epochs"] for each in result.tried}
    found = {factor: curves(factor, epochs[factor]) for factor in FACTORS}
    tried = {each["factor"]: each["value"] for each in result.tried}
    assert tried == pytest.approx({f: each[:, 0].min() for f, each in found.items()}, rel=1e-6)
    winner = found[result.factor]
    assert result.epochs == winner[:, 0].argmin() + 1
    assert [result.value, result.linear] == pytest.approx(winner[result.epochs - 1], rel=1e-6)


def test_where_enough_rows_are_held_out_a_race_chooses_rates_alone():
    train, validation = rows_for("logistic", 60, seed=1), rows_for("logistic", 30, seed=2)

    result = hold(train, validation, train_spec())

    assert (result.epochs, result.value, result.linear) == (0, None, None)


def test_folds_share_out_rows_of_equal_features():
    row = rows_for("logistic", 1, seed=1)

    folds = races._folds(CsrBatch.concat([row] * 400), 4)

    assert [judges.n_rows for _, judges in folds] == pytest.approx([100] * 4, abs=36)  # 4 sigma
    assert all(train.n_rows + judges.n_rows == 400 for train, judges in folds)


def test_it_trains_no_longer_than_it_says():
    train, validation = rows_for("logistic", 300, seed=1), rows_for("logistic", 100, seed=2)

    result = hold(train, validation, train_spec())

    assert sum(each["epochs"] for each in result.tried) <= race_epochs()
