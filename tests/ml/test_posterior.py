"""Draws of the posterior: predictions with standard deviations that hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachine, FactorizationMachineModel, load
from spark_fm.errors import InvalidColumnError, InvalidDataError, InvalidParamError
from spark_fm.formats.models.native import read_model
from tests.ml.builders import K, fast_fm, frame_of, rating_rows

pytestmark = pytest.mark.connect

ROWS = rating_rows(2400, seed=1)


@pytest.fixture(scope="module")
def stars(spark: SparkSession) -> DataFrame:
    """2,000 ratings; 400 others are kept back."""
    return frame_of(spark, ROWS[:2000]).coalesce(1)


@pytest.fixture(scope="module")
def rated(stars: DataFrame) -> FactorizationMachineModel:
    machine = FactorizationMachine(
        predictorType="regressor", numFactors=K, seed=7, keepPosterior=True
    )
    return machine.fit(stars)


@pytest.fixture(scope="module")
def classified(train: DataFrame) -> FactorizationMachineModel:
    return fast_fm(keepPosterior=True, epochs=20).fit(train)


def matrix(rows: list[tuple[float, Any]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([v.toArray() for _, v in rows]), np.array([label for label, _ in rows])


def test_intervals_hold_the_labels_they_promise(rated: FactorizationMachineModel) -> None:
    X, y = matrix(ROWS[2000:])

    mean, std = rated.posterior.predict(X, return_std=True)

    for width, share in ((1.0, 0.683), (1.645, 0.9)):
        covered = np.mean(np.abs(y - mean) <= width * std)
        assert abs(covered - share) < 0.06  # three standard deviations of the share of 400 rows
    assert 0.6 < rated.posterior.noise.mean() < 0.85
    assert (std > rated.posterior.noise.min()).all()


def test_the_mean_is_close_to_the_score_of_the_model(rated: FactorizationMachineModel) -> None:
    X, _ = matrix(ROWS[2000:])

    mean = rated.posterior.predict(X)

    assert mean.dtype == np.float64
    assert np.std(mean - rated.predict(X)) < 0.2 * np.std(mean)


def test_transform_adds_both_columns(rated: FactorizationMachineModel, stars: DataFrame) -> None:
    X, _ = matrix(ROWS[:50])
    rows = stars.limit(50)

    scored = rated.posterior.transform(rows)
    found = scored.select("score", "score_std").toPandas()

    assert scored.columns == [*rows.columns, "score", "score_std"]
    mean, std = rated.posterior.predict(X, return_std=True)
    assert np.allclose(found["score"], mean)
    assert np.allclose(found["score_std"], std)
    assert rated.posterior.transform(rows, stdCol="s").columns[-1] == "s"
    with pytest.raises(InvalidColumnError, match="stdCol"):
        rated.posterior.transform(rows.withColumn("s", F.lit(1)), stdCol="s")


def test_bad_rows_are_treated_as_the_model_treats_them(
    spark: SparkSession, rated: FactorizationMachineModel
) -> None:
    rows = frame_of(spark, [(1.0, None), (1.0, Vectors.sparse(100, [1], [1.0]))])

    keeps = rated.copy({rated.handleInvalid: "keep"}).posterior.transform(rows)
    skips = rated.copy({rated.handleInvalid: "skip"}).posterior.transform(rows)

    assert [row["score_std"] is None for row in keeps.collect()] == [True, False]
    assert skips.count() == 1
    with pytest.raises(InvalidDataError, match="99 columns"):
        rated.posterior.predict(np.ones((1, 99)))


def test_the_posterior_is_saved_with_the_model(
    rated: FactorizationMachineModel, tmp_path: Path
) -> None:
    X, _ = matrix(ROWS[2000:])
    rated.save(str(tmp_path / "model"))

    loaded = FactorizationMachineModel.load(str(tmp_path / "model")).posterior

    assert loaded is not None
    assert repr(loaded) == repr(rated.posterior)
    assert len(loaded) == 40
    for found, expected in zip(
        loaded.predict(X, return_std=True), rated.posterior.predict(X, return_std=True), strict=True
    ):
        assert np.array_equal(found, expected)


def test_without_spark_a_loaded_model_predicts_by_its_draws(
    rated: FactorizationMachineModel, tmp_path: Path
) -> None:
    X, _ = matrix(ROWS[2000:])
    rated.copy({rated.handleInvalid: "keep"}).save(str(tmp_path / "model"))
    expected = rated.posterior.predict(X, return_std=True)

    loaded = load(tmp_path / "model").posterior
    mean, std = loaded.predict([None, *X.tolist()], return_std=True)

    assert len(loaded) == 40
    assert np.array_equal(loaded.noise, rated.posterior.noise)
    assert np.isnan([mean[0], std[0]]).all()
    assert np.array_equal((mean[1:], std[1:]), expected)
    assert np.array_equal(loaded.predict(X), expected[0])
    assert read_model(str(tmp_path / "model")).posterior is None  # a server needs none


def test_draws_of_a_classifier_vary_in_probability(
    classified: FactorizationMachineModel, train: DataFrame
) -> None:
    found = classified.posterior.transform(train).select("score", "score_std").toPandas()

    assert found["score"].between(0, 1).all()
    assert found["score_std"].between(0, 0.5).all()
    assert (found["score_std"] > 0).all()
    assert (classified.posterior.noise == 0).all()


def test_keeping_it_changes_no_model_and_others_have_none(
    rated: FactorizationMachineModel, stars: DataFrame
) -> None:
    machine = FactorizationMachine(predictorType="regressor", numFactors=K, seed=7, solver="gibbs")

    plain = machine.fit(stars)

    assert plain.posterior is None
    assert np.array_equal(plain.weights.table, rated.weights.table)
    with pytest.raises(InvalidParamError, match=r"solver='sgd'.*keepPosterior=True"):
        fast_fm(solver="sgd", keepPosterior=True)._train_config()
