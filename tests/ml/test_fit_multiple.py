"""Many models of the same rows: packed once, trained in shared passes, each as if alone."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import ml100k_regression, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import InvalidParamError
from spark_fm.training import rounds, trainer
from tests.ml.builders import fast_fm


def assert_same_model(a: FactorizationMachineModel, b: FactorizationMachineModel) -> None:
    assert a.weights.bias == b.weights.bias
    np.testing.assert_array_equal(a.weights.table, b.weights.table)


def maps_of(fm: FactorizationMachine, choices: list[dict[str, Any]]) -> list[dict[Any, Any]]:
    return [{fm.getParam(name): value for name, value in chosen.items()} for chosen in choices]


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """Count the calls of a function, which still runs."""
    calls: list[int] = []
    original = getattr(module, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, spy)
    return calls


@pytest.mark.parametrize("workers", [0, 2])
def test_every_model_is_the_one_that_fit_gives(train: DataFrame, workers: int) -> None:
    given = {"biasLr": 0.2, "linearLr": 0.2, "factorsLr": 0.2}  # races: test_race.py
    fm = fast_fm(validationFraction=0.2, numWorkers=workers, epochs=3, **given)
    choices = [
        {},
        {"factorsLr": 0.05, "linearLr": 0.01},
        {"numFactors": 3, "epochs": 2},
        {"optimizer": "sgd", "refit": "never"},
        {"optimizer": "adam", "averageEpochs": False},
        {"factorsWd": 0.5, "patience": 1, "tol": 0.5},
        {"seed": 9},
        {"validationFraction": 0.0},
    ]

    together = dict(fm.fitMultiple(train, maps_of(fm, choices)))

    assert sorted(together) == list(range(len(choices)))
    for number, chosen in enumerate(maps_of(fm, choices)):
        alone = fm.fit(train, chosen)
        assert_same_model(together[number], alone)
        kept = ("trainLoss", "validation_logloss")
        for name in kept:
            if name in alone.summary.history:
                assert list(together[number].summary.history[name]) == list(
                    alone.summary.history[name]
                )


def test_models_of_a_regressor_share_rows_with_labels_of_their_own_units(
    ratings: DataFrame,
) -> None:
    fm = fast_fm(predictorType="regressor")
    maps = maps_of(fm, [{"standardizeLabel": True}, {"standardizeLabel": False}])

    together = dict(fm.fitMultiple(ratings, maps))

    for number, chosen in enumerate(maps):
        assert_same_model(together[number], fm.fit(ratings, chosen))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_grid_packs_the_rows_once(
    train: DataFrame, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings = counted(monkeypatch, trainer, "pack")
    fm = fast_fm(numWorkers=workers)

    fm.fit(train, maps_of(fm, [{"factorsLr": rate} for rate in (0.01, 0.1, 0.2)]))

    assert len(packings) == 1


def test_another_seed_is_packed_apart_because_its_validation_rows_are_others(
    train: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings = counted(monkeypatch, trainer, "pack")
    fm = fast_fm()

    fm.fit(train, maps_of(fm, [{"seed": 1}, {"seed": 2}, {"seed": 1, "epochs": 1}]))

    assert len(packings) == 2


def test_models_in_partitions_share_every_pass(
    train: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counted(monkeypatch, rounds, "run_round")
    fm = fast_fm(numWorkers=2, averagingsPerEpoch=2, epochs=3, refit="never")

    fm.fit(train)
    alone = len(passes)
    fm.fit(train, maps_of(fm, [{"factorsLr": rate} for rate in (0.01, 0.1, 0.2)]))

    assert len(passes) == 2 * alone


def test_a_model_that_stops_early_leaves_the_others_to_their_ends(train: DataFrame) -> None:
    fm = fast_fm(validationFraction=0.2, numWorkers=2, averagingsPerEpoch=1, epochs=6)
    maps = maps_of(fm, [{"patience": 1, "tol": 0.9}, {"patience": 0}])

    stopped, whole = fm.fit(train, maps)

    assert stopped.summary.totalIterations < whole.summary.totalIterations == 6


def test_one_model_that_explodes_rolls_back_without_disturbing_the_others(
    train: DataFrame,
) -> None:
    fm = fast_fm(numWorkers=2, averagingsPerEpoch=2, optimizer="sgd")
    maps = maps_of(fm, [{"factorsLr": 1e8, "linearLr": 1e8, "biasLr": 1e8}, {}])

    wild, calm = fm.fit(train, maps)

    assert wild.summary.facts["rejectedAttempts"] > 0
    assert_same_model(calm, fm.fit(train))


def test_a_wrong_value_in_one_map_is_named_before_any_job(
    train: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings = counted(monkeypatch, trainer, "pack")
    fm = fast_fm()

    with pytest.raises(InvalidParamError, match="numFactors=0"):
        fm.fit(train, maps_of(fm, [{}, {"numFactors": 0}]))
    assert not packings


def test_threads_get_each_model_once(train: DataFrame) -> None:
    fm = fast_fm()
    models = fm.fitMultiple(train, maps_of(fm, [{"epochs": n} for n in (1, 2, 3, 4)]))
    found: list[tuple[int, int]] = []

    def take() -> None:
        for number, model in models:
            found.append((number, model.summary.totalIterations))

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(found) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_nothing_is_trained_before_the_first_model_is_asked_for(
    train: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    packings = counted(monkeypatch, trainer, "pack")
    fm = fast_fm()

    models = fm.fitMultiple(train, maps_of(fm, [{}, {}]))

    assert not packings
    next(models)
    next(models)
    assert len(packings) == 1
    with pytest.raises(StopIteration):
        next(models)


def test_more_models_than_memory_holds_at_once_are_trained_in_turn(
    train: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    fm = fast_fm(numWorkers=2)
    maps = maps_of(fm, [{"factorsLr": rate} for rate in (0.01, 0.1, 0.2)])
    together = fm.fit(train, maps)

    monkeypatch.setattr(trainer, "trained_together", lambda plans: 1)

    for one, other in zip(together, fm.fit(train, maps), strict=True):
        assert_same_model(one, other)


def test_a_grid_on_movielens_gives_the_models_of_separate_fits(
    spark: SparkSession, data_folder: object
) -> None:
    rows = ml100k_regression().train
    frame = to_frame(spark, rows, 2).cache()
    fm = FactorizationMachine(predictorType="regressor", numFactors=8, epochs=3, seed=2)
    maps = maps_of(fm, [{"factorsWd": 0.012}, {"factorsWd": 0.1}, {"numFactors": 4}])

    together = fm.fit(frame, maps)

    for model, chosen in zip(together, maps, strict=True):
        assert_same_model(model, fm.fit(frame, chosen))
