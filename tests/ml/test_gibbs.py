"""Fits by Gibbs sampling: ordinary models, with the summary and the limits of their solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import InvalidParamError, TrainingDivergedError
from spark_fm.spark.schema import internal_rows
from spark_fm.training import gibbs
from spark_fm.training.callbacks import Progress
from spark_fm.training.trainer import open_trainer
from tests.ml.builders import column, fast_fm

pytestmark = pytest.mark.connect


def sampler(**changes: Any) -> FactorizationMachine:
    return fast_fm(**{"solver": "gibbs", "epochs": 8, **changes})


@pytest.fixture(scope="module")
def sampled_classifier(train: DataFrame) -> FactorizationMachineModel:
    """A classifier with held-out rows, trained again on all of them."""
    return sampler(validationFraction=0.2).fit(train)


@pytest.fixture(scope="module")
def sampled_regressor(ratings: DataFrame) -> FactorizationMachineModel:
    """A regressor with held-out rows, not trained again."""
    machine = sampler(predictorType="regressor", validationFraction=0.2, refit="never", epochs=20)
    return machine.fit(ratings)


def test_the_result_is_an_ordinary_model(
    sampled_classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path
) -> None:
    model = sampled_classifier

    assert (model.weights.k, model.numFeatures) == (4, 20)
    scores = column(model.transform(train), "score")
    assert np.std(scores) > 0.05
    model.save(str(tmp_path / "model"))
    loaded = FactorizationMachineModel.load(str(tmp_path / "model"))
    assert np.array_equal(column(loaded.transform(train), "score"), scores)


def test_the_summary_has_a_row_a_sweep_and_what_was_held_out(
    sampled_classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path
) -> None:
    summary = sampled_classifier.summary

    assert summary is not None
    assert summary.totalIterations == 8
    assert summary.bestEpoch == 7
    assert summary.facts["solver"] == "gibbs"
    assert summary.facts["refit"]
    assert summary.history["validationLoss"].iloc[-1] < summary.baseline
    assert summary.race.empty
    assert summary.warnings == []
    assert "8 epochs" in repr(summary)
    summary.plot(str(tmp_path / "summary.png"))


def test_a_regressor_learns_the_pairs(
    sampled_regressor: FactorizationMachineModel, ratings: DataFrame
) -> None:
    errors = sampled_regressor.evaluate(ratings).metrics

    summary = sampled_regressor.summary
    assert summary is not None
    assert not summary.facts["refit"]
    assert errors["r2"] > 0.8
    assert summary.history["validation_r2"].iloc[-1] > 0.5


def test_the_history_has_the_noise_the_priors_and_the_draw_and_no_learning_rates(
    sampled_classifier: FactorizationMachineModel, sampled_regressor: FactorizationMachineModel
) -> None:
    of_both = {"validationSampleLoss", "linearPrecision", "factorsPrecision"}
    for model, columns in ((sampled_classifier, of_both), (sampled_regressor, {*of_both, "noise"})):
        assert model.summary is not None
        history = model.summary.history
        assert columns <= set(history)
        assert (history[sorted(columns)] > 0).all(axis=None)
        assert not {"biasLr", "linearLr", "factorsLr", "stepScale", "rejected"} & set(history)
    assert "noise" not in sampled_classifier.summary.history
    last = sampled_regressor.summary.history.iloc[-1]
    assert last["validationLoss"] < last["validationSampleLoss"]


def test_patience_that_is_set_ends_chains_and_those_of_the_refit_as_late(
    ratings: DataFrame,
) -> None:
    fixed = {"predictorType": "regressor", "epochs": 60, "patience": 2, "tol": 0.9}
    machine = sampler(**fixed, validationFraction=0.2)

    alone = machine.fit(ratings, {machine.refit: "never"}).summary
    refit = machine.fit(ratings, {machine.refit: "always"}).summary

    assert alone.totalIterations == refit.totalIterations == refit.facts["refitEpochs"] == 27
    assert alone.bestEpoch == 26


@pytest.fixture
def short_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chains pause wherever they may: after 24, 49, ... sweeps"""
    monkeypatch.setattr(gibbs, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(gibbs, "LONGEST_SECONDS", 0.0)


@pytest.mark.usefixtures("short_jobs")
def test_sweeps_are_shown_and_heard_of_while_the_chains_run(
    ratings: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    run, show = gibbs.run_on_copies, Progress.__call__
    monkeypatch.setattr(
        gibbs, "run_on_copies", lambda *args, **sizes: events.append("job") or run(*args, **sizes)
    )
    monkeypatch.setattr(
        Progress, "__call__",
        lambda self, report, of="": events.append(report.record.epoch) or show(self, report, of),
    )  # fmt: skip
    heard: list[int] = []
    machine = sampler(predictorType="regressor", epochs=40)
    config = machine._train_config(ratings)

    with open_trainer(internal_rows(ratings, config.columns), config) as trainer:
        trainer.train([config], callbacks=[lambda r: heard.append(r.record.epoch) or True])

    # The last sweep has the metrics of the one model, which a third job makes.
    assert events == ["job", *range(23), "job", *range(23, 39), "job", 39]
    assert heard == list(range(40))


@pytest.mark.usefixtures("short_jobs")
def test_a_listener_that_says_no_ends_chains_past_their_burn_in(ratings: DataFrame) -> None:
    config = sampler(predictorType="regressor", epochs=100)._train_config(ratings)
    heard: list[int] = []

    with open_trainer(internal_rows(ratings, config.columns), config) as trainer:
        [outcome] = trainer.train([config], callbacks=[lambda r: heard.append(r.record.epoch)])

    assert len(outcome.history) == 49
    assert heard == list(range(49))


@pytest.mark.usefixtures("short_jobs")
@pytest.mark.parametrize(
    ("refit", "fails", "heard_by_job"),
    [
        ("always", None, [0, 0, 0, 40, 40, 40]),  # the pilot run's, before the refit begins
        ("always", 5, [0, 0, 0, 40, 40]),
        ("never", None, [0, 0, 0, 0, 23, 39]),
        ("never", 5, [0, 0, 0, 0, 23]),
    ],
)
def test_each_sweep_of_the_history_is_heard_of_once_after_a_pilot_run_even_if_chains_fail(
    ratings: DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    refit: str,
    fails: int | None,
    heard_by_job: list[int],
) -> None:
    machine = sampler(predictorType="regressor", epochs=40, validationFraction=0.2, refit=refit)
    config = machine._train_config(ratings)
    heard: list[int] = []
    before: list[int] = []  # how many were heard of when a job began
    run = gibbs.run_on_copies

    def counted(*arguments: Any, **sizes: Any) -> Any:
        before.append(len(heard))
        if len(before) == fails:
            raise TrainingDivergedError("the factors are no longer finite")
        return run(*arguments, **sizes)

    monkeypatch.setattr(gibbs, "run_on_copies", counted)

    with open_trainer(internal_rows(ratings, config.columns), config) as trainer:
        trainer.train([config], callbacks=[lambda r: heard.append(r.record.epoch) or True])

    assert before == heard_by_job
    assert heard == list(range(40))


def test_neither_partitions_nor_grids_change_a_chain(ratings: DataFrame) -> None:
    machine = sampler(predictorType="regressor", epochs=4)
    expected = machine.fit(ratings.coalesce(1)).weights.table

    grid = list(machine.fitMultiple(ratings.coalesce(1), [{}, {machine.epochs: 3}]))

    assert np.array_equal(machine.fit(ratings.coalesce(1)).weights.table, expected)
    assert np.array_equal(dict(grid)[0].weights.table, expected)
    assert not np.array_equal(machine.setSeed(8).fit(ratings.coalesce(1)).weights.table, expected)


def test_weights_count_a_row_as_often(ratings: DataFrame) -> None:
    machine = sampler(predictorType="regressor", epochs=30, weightCol="w")
    doubtful = ratings.withColumn("w", F.lit(1.0)).union(
        ratings.withColumn("label", -F.col("label")).withColumn("w", F.lit(1e-6))
    )

    model = machine.fit(doubtful)

    assert model.evaluate(ratings).metrics["r2"] > 0.8


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("sageMakerTraining", True),
        ("useLinear", False),
        ("numWorkers", 2),
        ("device", "gpu"),
        ("keepTrainingState", True),
        ("numFactors", 129),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(
    train: DataFrame, param: str, value: object
) -> None:
    machine = sampler(**{param: value, "refit": "never", "featureDim": 20})

    with pytest.raises(InvalidParamError, match=f'{param}=.*with solver="gibbs"'):
        machine.fit(train)


def test_a_warm_start_is_refused(
    train: DataFrame, sampled_classifier: FactorizationMachineModel
) -> None:
    with pytest.raises(InvalidParamError, match=r"solver='gibbs' is not allowed.*warmStart"):
        sampler().fit(train, warmStart=sampled_classifier)
