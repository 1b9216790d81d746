"""A search on planted rows: its trials, pruning, and how it resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from spark_fm import FactorizationMachine, tune
from spark_fm.errors import (
    CheckpointError,
    InvalidDataError,
    InvalidParamError,
    ModelTooLargeError,
    TrainingDivergedError,
)
from spark_fm.ml import tuning
from spark_fm.ml.trials import COMPLETE, PRUNED, TOO_LARGE
from spark_fm.training import trainer
from tests.ml.builders import K, fast_fm, frame_of, planted_frame, rating_rows

pytestmark = pytest.mark.spark

# Weak steps learn nothing in these epochs; one optimizer and K factors, so one kernel.
SPACE = {"factorsLr": (0.001, 1.0, "log"), "linearLr": (0.001, 1.0, "log")}


def machine(**changes):
    others = {"optimizer": "adagrad", "epochs": 12, "validationFraction": 0.25, "patience": 0}
    fixed = {"biasLr": 0.2, "linearWd": 0.005, "factorsWd": 0.012, "decayFrequencyPower": 0.5,
             "factorsInitSigma": 0.1, "adagradInit": 1.0}  # fmt: skip
    return fast_fm(**{**others, **fixed, **changes})


@pytest.fixture(scope="module")
def rows(spark):
    return planted_frame(spark, 600, seed=3)


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """A search of 8 trials that nothing interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return tune(machine(), rows, trials=8, space=SPACE, parallel=3, folder=folder), folder


def lines(trials):
    """Return trials as text, without their seconds."""
    found = [json.loads(trial.to_json()) for trial in trials]
    return [json.dumps({**trial, "seconds": 0}) for trial in found]


def test_the_first_trial_is_the_estimator_and_the_best_is_not_worse(rows, whole):
    result, _ = whole
    plain = machine(refit="never").fit(rows).summary

    first = result.trials[0]
    assert first.params == plain.race.query("chosen")[list(SPACE)].iloc[0].to_dict()
    assert first.curve == [row["validation_logloss"] for row in plain.rows]
    assert result.best.value <= first.value
    assert result.best.value == min(t.value for t in result.trials if t.state == COMPLETE)


def test_the_model_is_that_of_the_best_params_refit_included(rows, whole):
    result, folder = whole
    again = FactorizationMachine(**result.bestParams).fit(rows)

    assert again.weights.table.tobytes() == result.model.weights.table.tobytes()
    assert result.model.summary.facts["refit"]
    assert json.loads((folder / "best.json").read_text()) == result.bestParams
    assert result.bestParams["seed"] == 7


def test_a_search_that_keeps_the_first_trial_ends_with_the_model_of_a_fit(rows):
    weak = {"factorsLr": (1e-6, 1e-5, "log"), "linearLr": (1e-6, 1e-5, "log")}

    result = tune(machine(), rows, trials=2, space=weak)

    assert result.best.number == 0
    assert not SPACE.keys() & result.bestParams.keys()  # a race chooses them again
    assert np.array_equal(result.model.weights.table, machine().fit(rows).weights.table)


def test_the_folder_has_the_table_and_the_picture(whole):
    result, folder = whole

    assert (folder / "trials.csv").read_text() == result.frame.to_csv(index=False)
    assert list(result.frame["number"]) == list(range(8))
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_trials_are_those_of_the_fits_that_they_stand_for(rows, whole):
    result, _ = whole
    trial = next(t for t in result.trials[1:] if t.state == COMPLETE)
    alone = machine(refit="never", **trial.params).fit(rows).summary

    assert trial.curve == [row["validation_logloss"] for row in alone.rows]
    assert trial.metrics["accuracy"] == alone.rows[trial.best_epoch]["validation_accuracy"]


@pytest.mark.parametrize("kept", [0, 3, 5])
def test_a_killed_search_resumes_as_if_it_had_not_been(rows, whole, tmp_path, kept):
    """Killed while it wrote a line, in the middle of a round too."""
    result, folder = whole
    written = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_text("".join(written[: kept + 1]) + written[kept + 1][:40])

    again = tune(machine(), rows, trials=8, space=SPACE, parallel=3, folder=tmp_path)

    assert lines(again.trials) == lines(result.trials)
    assert (tmp_path / "trials.jsonl").read_text().count("\n") == 9
    assert again.model.weights.table.tobytes() == result.model.weights.table.tobytes()


def test_more_trials_later_are_those_of_one_long_search(rows, whole, tmp_path):
    result, _ = whole
    tune(machine(), rows, trials=4, space=SPACE, parallel=3, folder=tmp_path)
    again = tune(machine(), rows, trials=8, space=SPACE, parallel=3, folder=tmp_path)

    assert lines(again.trials) == lines(result.trials)


def test_a_finished_search_trains_the_best_model_only(rows, whole, monkeypatch):
    result, folder = whole
    asked = []
    train = trainer.Trainer.train

    def counted(self, requests, **more):
        asked.append(len(requests))
        return train(self, requests, **more)

    monkeypatch.setattr(trainer.Trainer, "train", counted)
    again = tune(machine(), rows, trials=8, space=SPACE, parallel=3, folder=folder)

    assert asked == [1]
    assert lines(again.trials) == lines(result.trials)


@pytest.mark.parametrize(
    ("changes", "space", "says"),
    [
        ({"seed": 8}, SPACE, "params seed is 7 there and 8 here"),
        ({"factorsWd": 0.5}, SPACE, "params factorsWd is 0.012 there and 0.5 here"),
        ({}, {**SPACE, "linearLr": (0.001, 0.5)}, "space linearLr is"),
    ],
)
def test_another_search_in_the_folder_is_refused(rows, whole, changes, space, says):
    with pytest.raises(CheckpointError, match=says):
        tune(machine(**changes), rows, trials=8, space=space, folder=whole[1])


def test_other_rows_are_refused(spark, whole):
    with pytest.raises(CheckpointError, match="the rows, or the partitions they come in"):
        tune(machine(), planted_frame(spark, 600, seed=4), space=SPACE, folder=whole[1])


def test_what_is_done_with_the_best_model_may_change(rows, whole):
    result, folder = whole
    again = tune(machine(refit="never", threshold=0.3), rows, trials=8, space=SPACE, parallel=3,
                 folder=folder)  # fmt: skip

    assert lines(again.trials) == lines(result.trials)
    assert not again.model.summary.facts["refit"]
    assert again.model.getThreshold() == 0.3


def test_stopping_hopeless_trials_saves_epochs_and_keeps_the_best(rows, monkeypatch):
    stopped = tune(machine(), rows, trials=12, space=SPACE, parallel=3)
    monkeypatch.setattr(tuning, "GRACE_EPOCHS", 10**6)
    full = tune(machine(), rows, trials=12, space=SPACE, parallel=3)

    epochs = [sum(len(trial.curve) for trial in one.trials) for one in (stopped, full)]
    assert any(trial.state == PRUNED for trial in stopped.trials)
    assert epochs[1] == 12 * 12
    assert epochs[0] < 0.85 * epochs[1]
    assert stopped.best.number == full.best.number
    for short, long in zip(stopped.trials, full.trials, strict=True):
        assert short.curve == long.curve[: len(short.curve)]


def test_all_trials_share_one_packing(rows, monkeypatch):
    packings = []
    packed = trainer.pack

    def counted(*args):
        packings.append(args)
        return packed(*args)

    monkeypatch.setattr(trainer, "pack", counted)
    tune(machine(epochs=2), rows, trials=5, space=SPACE, parallel=2)

    assert len(packings) == 1


def test_a_metric_to_be_large_is_searched_upwards(rows):
    result = tune(machine(epochs=3, validationMetric="accuracy"), rows, trials=6, space=SPACE)

    assert result.best.value == max(trial.value for trial in result.trials)
    assert result.metric == "accuracy"


def test_a_regressor_is_tuned_by_rmse(spark):
    ratings = planted_frame(spark, 300, seed=5, loss="squared")
    result = tune(machine(epochs=3, predictorType="regressor"), ratings, trials=3, space=SPACE)

    assert result.metric == "rmse"
    assert {"rmse", "mae", "r2"} <= set(result.frame.columns)


def test_no_round_begins_after_max_seconds(rows):
    result = tune(machine(epochs=2), rows, trials=9, space=SPACE, parallel=2, max_seconds=0)

    assert len(result.trials) == 2


def test_tpe_trials_do_not_depend_on_interruptions(rows, tmp_path):
    pytest.importorskip("optuna")
    settings = {"space": SPACE, "sampler": "tpe", "parallel": 4}
    long = tune(machine(epochs=2), rows, trials=16, **settings)
    tune(machine(epochs=2), rows, trials=14, folder=tmp_path, **settings)
    again = tune(machine(epochs=2), rows, trials=16, folder=tmp_path, **settings)

    assert lines(again.trials) == lines(long.trials)


def test_a_model_too_large_for_the_memory_is_a_trial_without_a_model(rows, monkeypatch):
    make_plan = trainer.make_plan

    def small(request, *args, **more):
        if request.spec.k > 4:
            raise ModelTooLargeError("too large")
        return make_plan(request, *args, **more)

    monkeypatch.setattr(trainer, "make_plan", small)
    result = tune(machine(epochs=2), rows, trials=8, space={"numFactors": [4, 8]}, parallel=4)

    for trial in result.trials:
        assert (trial.state == TOO_LARGE) == (trial.params["numFactors"] == 8)
        assert bool(trial.curve) == (trial.params["numFactors"] == 4)
    assert {trial.state for trial in result.trials} == {COMPLETE, TOO_LARGE}


def test_a_search_without_any_model_says_so(rows, monkeypatch):
    diverged = TrainingDivergedError("no learning rate")
    monkeypatch.setattr(
        tuning.Trainer, "train", lambda self, requests, **more: [diverged] * len(requests)
    )
    with pytest.raises(TrainingDivergedError, match=r"None of 3 trials .*'diverged': 3"):
        tune(machine(), rows, trials=3, space=SPACE)


@pytest.mark.parametrize(
    ("changes", "settings", "says"),
    [
        ({}, {"trials": 0}, "trials=0"),
        ({}, {"parallel": 0}, "parallel=0"),
        ({}, {"sampler": "grid"}, "sampler='grid'"),
        ({"validationFraction": 0.0}, {}, r"validationFraction=0\.0 leaves no rows"),
        ({}, {"space": {"factorsLr": (-1, 1)}}, r"factorsLr=-1\.0"),
        ({}, {"space": {"decayFrequencyPower": (0, 2)}}, r"decayFrequencyPower=2\.0"),
        ({}, {"space": {"optimizer": ["adagrad", "lion"]}}, "optimizer='lion'"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_job(rows, changes, settings, says):
    with pytest.raises(InvalidParamError, match=says):
        tune(machine(**changes), rows, **settings)


def test_too_few_rows_to_hold_any_out_are_refused(spark):
    with pytest.raises(InvalidDataError, match="No rows were held out"):
        tune(machine(validationFraction=0.01), planted_frame(spark, 4, seed=1), space=SPACE)


def test_the_final_model_is_by_the_solver_that_does_better(spark, tmp_path):
    rows = frame_of(spark, rating_rows(2300, seed=1)).coalesce(1)
    estimator = FactorizationMachine(predictorType="regressor", numFactors=K, seed=7)

    result = tune(estimator, rows, trials=2, folder=tmp_path)

    again = FactorizationMachine(**result.bestParams).fit(rows)
    assert result.bestParams["solver"] == result.model.getSolver() == "gibbs"
    assert result.bestParams == json.loads((tmp_path / "best.json").read_text())
    assert np.array_equal(again.weights.table, result.model.weights.table)
    assert [trial.state for trial in result.trials] == [COMPLETE] * 2
