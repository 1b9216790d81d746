"""A training continues from a model, bit for bit if its state was kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import ml100k_regression, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import InvalidDataError, InvalidParamError
from tests.ml.builders import fast_fm, frame_of, planted_frame

STILL = {"biasLr": 0.0, "linearLr": 0.0, "factorsLr": 0.0}


def assert_same_model(a: FactorizationMachineModel, b: FactorizationMachineModel) -> None:
    assert a.weights.bias == b.weights.bias
    np.testing.assert_array_equal(a.weights.table, b.weights.table)


def keeping(**changes: Any) -> FactorizationMachine:
    fixed = {"keepTrainingState": True, "validationFraction": 0.2, "patience": 0}
    return fast_fm(**{**fixed, **changes})


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_five_and_five_epochs_are_ten_bit_for_bit(
    train: DataFrame, tmp_path: Path, workers: int, optimizer: str
) -> None:
    def fm(epochs: int) -> FactorizationMachine:
        return keeping(
            epochs=epochs, optimizer=optimizer, numWorkers=workers, averagingsPerEpoch=2,
            factorsLr=0.05, linearLr=0.05,
        )  # fmt: skip

    whole = fm(10).fit(train)
    path = str(tmp_path / "half")
    fm(5).fit(train).save(path)

    continued = fm(5).fit(train, warmStart=path)

    assert_same_model(whole, continued)
    assert whole.summary.bestEpoch == continued.summary.bestEpoch
    for name in ("epoch", "trainLoss", "validation_logloss"):
        assert list(whole.summary.history[name]) == list(continued.summary.history[name])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_regressor_continues_bit_for_bit_too(ratings: DataFrame, workers: int) -> None:
    def fm(epochs: int) -> FactorizationMachine:
        return keeping(epochs=epochs, predictorType="regressor", numWorkers=workers)

    half = fm(2).fit(ratings)

    assert_same_model(fm(4).fit(ratings), fm(2).fit(ratings, warmStart=half))


def test_a_warm_start_does_not_change_its_model(train: DataFrame) -> None:
    half = keeping(epochs=2).fit(train)
    table, state = half.weights.table.copy(), half.trainingState.arrays["state"].copy()

    keeping(epochs=2).fit(train, warmStart=half)

    np.testing.assert_array_equal(half.weights.table, table)
    np.testing.assert_array_equal(half.trainingState.arrays["state"], state)
    assert half.summary.totalIterations == 2


def test_the_state_is_kept_and_saved_only_when_asked_for(train: DataFrame, tmp_path: Path) -> None:
    sizes = {}
    for keep in (False, True):
        model = fast_fm(keepTrainingState=keep, epochs=1).fit(train)
        assert (model.trainingState is not None) == keep
        path = tmp_path / str(keep)
        model.save(str(path))
        loaded = FactorizationMachineModel.load(str(path))
        assert (loaded.trainingState is not None) == keep
        sizes[keep] = sum(f.stat().st_size for f in (path / "data").glob("*.parquet"))

    assert sizes[True] > 1.5 * sizes[False]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
def test_with_learning_rates_of_zero_the_model_stays_what_it_was(
    train: DataFrame, ratings: DataFrame, kind: str, workers: int
) -> None:
    frame = train if kind == "binary_classifier" else ratings
    model = fast_fm(predictorType=kind, epochs=3).fit(frame)

    still = fast_fm(predictorType=kind, numWorkers=workers, **STILL).fit(frame, warmStart=model)

    np.testing.assert_allclose(still.weights.table, model.weights.table, rtol=1e-6)
    assert still.bias == pytest.approx(model.bias, rel=1e-6)


def test_training_begins_where_the_model_stood(train: DataFrame) -> None:
    fm = fast_fm(epochs=10)
    cold = fm.fit(train)

    warm = fast_fm(epochs=2, factorsLr=0.01, linearLr=0.01).fit(train, warmStart=cold)

    first, last = cold.summary.history["trainLoss"].iloc[[0, -1]]
    begun = warm.summary.history["trainLoss"][0]
    assert abs(begun - last) < 0.3 * abs(first - last)


def test_new_features_are_initialised_and_known_ones_kept(
    spark: SparkSession, train: DataFrame
) -> None:
    model = fast_fm(epochs=3).fit(train)
    wider = frame_of(
        spark, [(float(i % 2), Vectors.sparse(30, [i % 20, 25], [1.0, 1.0])) for i in range(40)]
    )

    still = fast_fm(**STILL, factorsInitSigma=0.3).fit(wider, warmStart=model)
    moved = fast_fm(factorsInitSigma=0.3).fit(wider, warmStart=model)

    assert still.numFeatures == moved.numFeatures == 30
    by_id = {int(j): row for j, row in zip(ids_of(still), still.weights.table, strict=True)}
    known = {int(j): row for j, row in zip(ids_of(model), model.weights.table, strict=True)}
    for feature, row in known.items():
        np.testing.assert_array_equal(by_id[feature], row)
    assert np.abs(by_id[25][:-1]).max() > 0
    assert not np.array_equal(moved.weights.table, still.weights.table)


def ids_of(model: FactorizationMachineModel) -> np.ndarray:
    return np.arange(model.numFeatures) if model.features is None else model.features


def test_features_of_the_model_that_the_rows_lack_are_not_forgotten(
    spark: SparkSession, train: DataFrame
) -> None:
    model = fast_fm(epochs=3).fit(train)
    few = frame_of(spark, [(float(i % 2), Vectors.sparse(20, [0], [1.0])) for i in range(40)])

    warm = fast_fm(epochs=2).fit(few, warmStart=model)

    rest = np.setdiff1d(ids_of(model), [0])
    rows = np.searchsorted(ids_of(warm), rest)
    np.testing.assert_array_equal(
        warm.weights.table[rows], model.weights.table[np.searchsorted(ids_of(model), rest)]
    )


def test_dense_rows_shorter_than_the_model_to_go_on_from_are_an_error(spark: SparkSession) -> None:
    def dense(size: int) -> DataFrame:
        rows = [(float(i % 2), Vectors.dense([float(i), *[1.0] * (size - 1)])) for i in range(20)]
        return frame_of(spark, rows)

    model = fast_fm(epochs=1).fit(dense(3))

    with pytest.raises(InvalidDataError, match=r"arrays of 2 values, and the model .* 3 features"):
        fast_fm(epochs=1).fit(dense(2), warmStart=model)
    assert fast_fm(epochs=1).fit(dense(4), warmStart=model).numFeatures == 4


def test_a_table_of_some_ids_takes_in_new_ones(spark: SparkSession) -> None:
    def frame(first: int) -> DataFrame:
        size = 5_000_000
        rows = [
            (float(i % 2), Vectors.sparse(size, [first + i % 2, 4_000_000 + i % 3], [1.0, 1.0]))
            for i in range(40)
        ]
        return frame_of(spark, rows)

    model = fast_fm().fit(frame(10))

    for workers in (0, 2):
        warm = fast_fm(**STILL, numWorkers=workers).fit(frame(3000), warmStart=model)
        assert warm.features.tolist() == [10, 11, 3000, 3001, 4_000_000, 4_000_001, 4_000_002]
        np.testing.assert_array_equal(warm.weights.table[:2], model.weights.table[:2])


def test_other_rows_take_over_the_statistics_and_count_epochs_anew(
    spark: SparkSession, train: DataFrame
) -> None:
    model = keeping(epochs=3).fit(train)
    other = planted_frame(spark, 100, seed=8)

    warm = keeping(epochs=2).fit(other, warmStart=model)
    without = keeping(epochs=2).fit(
        other, warmStart=FactorizationMachineModel(model.weights, None, None)
    )

    assert list(warm.summary.history["epoch"]) == [0, 1]
    assert not np.array_equal(warm.weights.table, without.weights.table)


def test_all_models_of_a_grid_go_on_from_the_same(train: DataFrame) -> None:
    model = fast_fm(epochs=3).fit(train)
    fm = fast_fm(epochs=1)
    maps = [{fm.factorsLr: 0.0, fm.linearLr: 0.0, fm.biasLr: 0.0}, {fm.factorsLr: 0.1}]

    still, moved = fm.fit(train, maps, warmStart=model)

    np.testing.assert_array_equal(still.weights.table, model.weights.table)
    assert_same_model(moved, fm.fit(train, maps[1], warmStart=model))


def test_the_number_of_factors_is_the_model_s(train: DataFrame) -> None:
    model = fast_fm(epochs=1).fit(train)

    warm = FactorizationMachine(epochs=1, validationFraction=0.0).fit(train, warmStart=model)

    assert warm.getNumFactors() == model.getNumFactors() == 4
    with pytest.raises(InvalidParamError, match="numFactors=5 does not fit warmStart, a model of"):
        fast_fm(numFactors=5).fit(train, warmStart=model)


def test_a_model_of_the_other_kind_is_refused(train: DataFrame, ratings: DataFrame) -> None:
    model = fast_fm(predictorType="regressor", epochs=1).fit(ratings)

    with pytest.raises(InvalidParamError, match="predictorType='binary_classifier' does not fit"):
        fast_fm().fit(train, warmStart=model)


def test_a_state_to_keep_excludes_a_refit(train: DataFrame) -> None:
    with pytest.raises(InvalidParamError, match=r"refit='always'.*keepTrainingState"):
        fast_fm(keepTrainingState=True, refit="always").fit(train)
    assert not keeping(epochs=1).fit(train).summary.facts["refit"]


def test_movielens_continues_bit_for_bit(spark: SparkSession, data_folder: object) -> None:
    frame = to_frame(spark, ml100k_regression().train, 2).cache()

    def fm(epochs: int) -> FactorizationMachine:
        return FactorizationMachine(
            predictorType="regressor", numFactors=8, seed=4, epochs=epochs, patience=0,
            keepTrainingState=True,
        )  # fmt: skip

    assert_same_model(fm(10).fit(frame), fm(5).fit(frame, warmStart=fm(5).fit(frame)))
