"""The units of features, labels and weights make no difference to what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import Rows, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel

N_LEVELS = 8


def interactions(seed: int) -> Rows:
    """Three one-hot fields whose pairs have values of their own."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(0, 1, (3 * N_LEVELS, 2))
    levels = np.random.default_rng(seed).integers(0, N_LEVELS, (600, 3))
    ids = levels + np.arange(3) * N_LEVELS
    X = sp.csr_matrix((np.ones(ids.size), ids.ravel(), np.arange(0, ids.size + 1, 3)))
    total = vectors[ids].sum(1)
    y = ((total**2).sum(1) - (vectors[ids] ** 2).sum((1, 2))) / 2
    return Rows(X, y)


@pytest.fixture(scope="module")
def frame(spark: SparkSession) -> DataFrame:
    return to_frame(spark, interactions(seed=1), 2).withColumn("weight", 1 + F.rand(5)).cache()


def machine(**params: Any) -> FactorizationMachine:
    fixed = {"numFactors": 4, "seed": 2, "predictorType": "regressor"}
    fixed |= dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.2)  # no race
    return FactorizationMachine(**{**fixed, **params})


def r2(model: FactorizationMachineModel, scale: float = 1.0, offset: float = 0.0) -> float:
    test = interactions(seed=2)
    labels = test.y * scale + offset
    spark = SparkSession.active()
    value = model.evaluate(to_frame(spark, Rows(test.X, labels), 1)).metrics["r2"]
    # By float64 arithmetic on the columns that transform writes, too.
    scored = model.transform(to_frame(spark, Rows(test.X, labels), 1)).toPandas()
    error = np.sum((scored["score"] - scored["label"]) ** 2)
    assert value == pytest.approx(1 - error / np.sum((labels - labels.mean()) ** 2), abs=1e-3)
    return float(value)


@pytest.fixture(scope="module")
def as_given(frame: DataFrame) -> float:
    value = r2(machine().fit(frame))
    assert value > 0.97
    return value


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e12])
def test_labels_of_any_unit_are_learned_as_well(
    frame: DataFrame, as_given: float, scale: float
) -> None:
    model = machine().fit(frame.withColumn("label", F.col("label") * scale))

    assert r2(model, scale) == pytest.approx(as_given, abs=0.01)


@pytest.mark.parametrize("offset", [1e4, -1e8, 1e8])
def test_labels_far_from_zero_are_learned_as_well(
    frame: DataFrame, as_given: float, offset: float
) -> None:
    model = machine().fit(frame.withColumn("label", F.col("label") + offset))

    assert r2(model, offset=offset) == pytest.approx(as_given, abs=0.01)


@pytest.mark.parametrize("scale", [1e-300, 1e-46, 1e300])
def test_weights_of_any_unit_give_the_same_model(frame: DataFrame, scale: float) -> None:
    plain = machine(weightCol="weight").fit(frame)
    scaled = machine(weightCol="weight").fit(frame.withColumn("weight", F.col("weight") * scale))

    np.testing.assert_allclose(scaled.weights.table, plain.weights.table, atol=1e-5)
    assert scaled.bias == pytest.approx(plain.bias, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1e4])
def test_features_of_any_unit_are_learned_as_well(
    spark: SparkSession, as_given: float, scale: float
) -> None:
    train, test = interactions(seed=1), interactions(seed=2)
    model = machine().fit(to_frame(spark, Rows(train.X * scale, train.y), 2))

    score = model.predict(test.X * scale)

    error = np.sum((score - test.y) ** 2) / np.sum((test.y - test.y.mean()) ** 2)
    assert 1 - error == pytest.approx(as_given, abs=0.01)


def test_a_table_of_measurements_far_from_zero_is_learned_as_when_standardized_by_hand(
    spark: SparkSession,
) -> None:
    rng = np.random.default_rng(7)
    Z = rng.normal(0, 1, (800, 5))
    y = Z[:, 0] * Z[:, 1] + Z[:, 2]
    X = Z * [3, 0.01, 200, 1, 1] + [60, 0.5, -9000, 20, 0]
    train, test = slice(0, 500), slice(500, 800)

    def error(matrix: np.ndarray, **params: Any) -> float:
        frame = to_frame(spark, Rows(sp.csr_matrix(matrix[train]), y[train]), 2)
        score = machine(**params).fit(frame).predict(matrix[test])
        return float(np.mean((score - y[test]) ** 2) / np.var(y[test]))

    assert error(Z, standardization=False) < 0.01
    assert error(X) < 0.01
    assert error(X, standardization=False) > 0.1


def test_a_column_far_from_zero_is_named_with_what_to_do(spark: SparkSession) -> None:
    rng = np.random.default_rng(7)
    days = rng.normal(20_000, 8, (300, 1))
    X = np.hstack([rng.normal(5, 1, (300, 1)), days, np.full((300, 1), 9.0)])

    def warnings(matrix: np.ndarray) -> list[str]:
        frame = to_frame(spark, Rows(sp.csr_matrix(matrix), rng.normal(size=300)), 1)
        return machine(epochs=1, validationFraction=0.0).fit(frame).summary.warnings

    [told] = warnings(X)
    assert told.startswith("Feature 1 of 'features' has the mean 19998")
    assert "Subtract a constant" in told
    assert warnings(X - [0, 20_000, 0]) == []


def test_numbers_that_float32_cannot_hold_are_told(spark: SparkSession) -> None:
    rng = np.random.default_rng(7)
    X, y = rng.normal(size=(300, 2)), rng.normal(size=300)

    def warnings(matrix: np.ndarray, labels: np.ndarray) -> list[str]:
        frame = to_frame(spark, Rows(sp.csr_matrix(matrix), labels), 1)
        return machine(epochs=1, validationFraction=0.0).fit(frame).summary.warnings

    for scale in (1e-40, 1e-300):
        [told] = warnings(X * [1, scale], y)
        assert told.startswith("300 values of 'features' are between -1.2e-38 and 1.2e-38")
    [told] = warnings(X, y * 1e-36)
    assert told.startswith("Labels are about 1")
    assert warnings(X * [1, 1e-30], y * 1e-30) == []


def test_workers_standardize_as_a_single_task_does(spark: SparkSession) -> None:
    rng = np.random.default_rng(7)
    X = rng.normal(50, 3, (900, 4))
    y = (X[:, 0] - 50) * (X[:, 1] - 50) / 9
    frame = to_frame(spark, Rows(sp.csr_matrix(X[:600]), y[:600]), 3)

    errors = [
        np.mean((machine(numWorkers=n, refit="never").fit(frame).predict(X[600:]) - y[600:]) ** 2)
        for n in (1, 3)
    ]

    assert errors[0] < 0.2 * np.var(y[600:])
    assert errors[1] < 1.5 * errors[0]


def test_models_without_linear_weights_or_bias_are_scaled_but_not_centred(
    spark: SparkSession,
) -> None:
    rng = np.random.default_rng(7)
    X = rng.normal(50, 3, (300, 4))
    frame = to_frame(spark, Rows(sp.csr_matrix(X), X[:, 0]), 2)

    model = machine(useLinear=False, epochs=2).fit(frame)

    assert not model.linear.any()
    assert machine(useBias=False, epochs=2).fit(frame).bias == 0


def test_a_training_goes_on_with_standardized_features_as_if_it_had_not_stopped(
    spark: SparkSession,
) -> None:
    rng = np.random.default_rng(7)
    X = rng.normal(50, 3, (300, 4))
    frame = to_frame(spark, Rows(sp.csr_matrix(X), X[:, 0] * X[:, 1]), 2)
    whole = machine(epochs=4, patience=0, keepTrainingState=True).fit(frame)

    half = machine(epochs=2, patience=0, keepTrainingState=True).fit(frame)
    resumed = machine(epochs=2, patience=0, keepTrainingState=True).fit(frame, warmStart=half)

    np.testing.assert_array_equal(resumed.weights.table, whole.weights.table)
    assert resumed.bias == whole.bias


def test_standardization_is_off_as_sagemaker_trains_and_cannot_be_asked_for(
    frame: DataFrame,
) -> None:
    estimator = machine(sageMakerTraining=True, featureDim=24)

    assert not estimator._train_config(frame).standardization
    with pytest.raises(Exception, match=r"standardization=True is not allowed.*sageMakerTraining"):
        estimator.setStandardization(True).fit(frame)


def test_a_drawn_initial_bias_is_small_at_any_unit_of_the_labels(frame: DataFrame) -> None:
    tiny = frame.withColumn("label", F.col("label") * 1e-12)
    params = {"biasInitMethod": "normal", "epochs": 1, "biasLr": 0.0}

    biases = [machine(**params).fit(rows).bias for rows in (frame, tiny)]

    assert biases[1] == pytest.approx(biases[0] * 1e-12, rel=1e-4)


def test_an_initial_bias_of_the_caller_s_is_in_label_units(frame: DataFrame) -> None:
    far = frame.withColumn("label", F.col("label") + 100)

    model = machine(biasInitValue=90.0, biasLr=0.0, epochs=1).fit(far)

    assert model.bias == pytest.approx(90.0, abs=1e-6)


def test_equal_labels_are_told_and_have_no_r2_at_any_weights(frame: DataFrame) -> None:
    equal = frame.withColumn("label", F.lit(0.1))

    model = machine(weightCol="weight").fit(equal)

    assert np.isnan(model.evaluate(equal).metrics["r2"])
    ones = machine(weightCol="weight", predictorType="binary_classifier", epochs=1)
    told = ones.fit(frame.withColumn("label", F.lit(1.0))).summary.warnings
    assert any("Every label is 1" in text for text in told)


def test_one_hot_models_with_and_without_standardization_share_passes(frame: DataFrame) -> None:
    from spark_fm.training import single_task

    shared: list[int] = []
    train = single_task.SingleTask

    def counting(parts: Any, *rest: Any) -> Any:
        shared.append(len(parts))
        return train(parts, *rest)

    estimator = machine(epochs=1, validationFraction=0.0)
    maps = [{estimator.standardization: flag} for flag in (True, False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single_task, "SingleTask", counting)
        list(estimator.fitMultiple(frame, maps))

    assert shared == [2]
