"""Fits by Gibbs sampling: ordinary models, with the summary and the limits of their solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import InvalidParamError
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
        ("checkpointDir", "somewhere"),
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
