"""The default solver: which of the two trains, what it is compared by, and what the user sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import TrainingDivergedError
from spark_fm.ml.params import PARAMS, ParamRow
from spark_fm.spark.schema import internal_rows
from spark_fm.training import trainer
from spark_fm.training.callbacks import EpochReport
from tests.ml.builders import VALUES, K, frame_of, rating_rows

# What may be set with either solver; every other Param of a training is SGD's own.
OF_BOTH = {
    "numFactors", "useBias", "seed", "featureDim", "standardization", "validationFraction",
    "validationMetric", "refit", "handleInvalid", "solver",
}  # fmt: skip


def default_fm(**changes: object) -> FactorizationMachine:
    """Return an estimator that leaves everything of a solver to itself."""
    params = {"predictorType": "regressor", "numFactors": K, "seed": 7}
    return FactorizationMachine(**{**params, **changes})


@pytest.fixture(scope="module")
def stars(spark: SparkSession) -> DataFrame:
    """2,100 ratings, on which averaging over models pays."""
    return frame_of(spark, rating_rows(2300, seed=1)).coalesce(1)


@pytest.fixture(scope="module")
def rated(stars: DataFrame) -> FactorizationMachineModel:
    return default_fm().fit(stars)


@pytest.mark.connect
def test_ratings_are_trained_as_gibbs_sampling_trains_them(
    rated: FactorizationMachineModel, stars: DataFrame
) -> None:
    sampled = default_fm(solver="gibbs").fit(stars)

    assert np.array_equal(rated.weights.table, sampled.weights.table)
    assert rated.weights.bias == sampled.weights.bias
    assert rated.summary is not None
    assert sampled.summary is not None
    assert rated.summary.objectiveHistory == sampled.summary.objectiveHistory
    assert sampled.summary.solvers.empty


def test_what_sgd_does_better_is_trained_as_sgd_trains_it(
    stars: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SGD_LEAD", -1e6)  # the lead that Gibbs sampling must have
    model, by_sgd = default_fm().fit(stars), default_fm(solver="sgd").fit(stars)

    assert model.summary is not None
    assert by_sgd.summary is not None
    assert model.summary.solvers["chosen"].tolist() == [True, False]
    assert np.array_equal(model.weights.table, by_sgd.weights.table)
    assert model.summary.objectiveHistory == by_sgd.summary.objectiveHistory


@pytest.mark.connect
def test_rows_that_neither_solver_can_train_are_an_error(stars: DataFrame) -> None:
    scaled = F.transform(vector_to_array("features"), lambda x: x * 1e19)
    rows = stars.withColumn("features", array_to_vector(scaled))

    with pytest.raises(TrainingDivergedError, match="scale the features"):
        default_fm(standardization=False).fit(rows)


@pytest.mark.connect
def test_the_summary_compares_the_solvers(rated: FactorizationMachineModel, tmp_path: Path) -> None:
    rated.save(str(tmp_path / "model"))
    summary = FactorizationMachineModel.load(str(tmp_path / "model")).summary

    assert summary is not None
    tried = summary.solvers.set_index("solver")
    assert summary.facts["solver"] == "gibbs"
    assert tried["chosen"].to_dict() == {"sgd": False, "gibbs": True}
    assert tried.loc["gibbs", "value"] < tried.loc["sgd", "value"]
    assert tried.loc["gibbs", "loss"] == summary.history["validationLoss"].iloc[-1]
    assert (tried["seconds"] > 0).all()
    assert "by Gibbs sampling" in repr(summary)


def test_a_grid_chooses_for_each_model_as_a_fit_alone(
    rated: FactorizationMachineModel, stars: DataFrame
) -> None:
    machine = default_fm()

    grid = dict(machine.fitMultiple(stars, [{}, {machine.solver: "sgd"}, {machine.epochs: 2}]))

    assert np.array_equal(grid[0].weights.table, rated.weights.table)
    assert [grid[n].summary.facts["solver"] for n in range(3)] == ["gibbs", "sgd", "sgd"]


@pytest.mark.connect
def test_a_validation_column_judges_and_is_never_trained_on(stars: DataFrame) -> None:
    held_out = stars.selectExpr("*", "xxhash64(features) % 5 = 0 AS held_out")

    summary = default_fm(validationIndicatorCol="held_out").fit(held_out).summary

    assert summary is not None
    assert summary.facts["solver"] == "gibbs"
    assert not summary.facts["refit"]
    assert summary.history["validation_r2"].iloc[-1] > 0


@pytest.mark.parametrize(
    "row", [row for row in PARAMS if row.name != "keepPosterior"], ids=lambda row: row.name
)
def test_a_param_that_only_sgd_has_chooses_it(row: ParamRow) -> None:
    name = row.name
    value = 0.125 if name == "validationFraction" else VALUES[name]
    if name in ("featureDim", "solver", "validationMetric", "predictorType"):
        value = {"featureDim": 20, "solver": "auto", "validationMetric": "f1",
                 "predictorType": "binary_classifier"}[name]  # fmt: skip
    beside = {"sageMakerTraining": {"standardization": False}}.get(name, {})
    machine = default_fm(**{"predictorType": "binary_classifier", **beside, name: value})

    expected = (
        "auto" if name in OF_BOTH or row.feeds.partition(".")[0] in ("", "columns") else "sgd"
    )
    assert machine._train_config().solver == expected


@pytest.mark.parametrize("change", [{"validationFraction": 0.05}, {"numFactors": 800}])
def test_too_few_judges_and_too_much_work_leave_sgd_alone(
    stars: DataFrame, change: dict[str, object]
) -> None:
    summary = default_fm(**change).fit(stars).summary

    assert summary is not None
    assert summary.facts["solver"] == "sgd"
    assert summary.solvers.empty


def test_a_warm_start_goes_on_by_sgd(rated: FactorizationMachineModel, stars: DataFrame) -> None:
    summary = default_fm().fit(stars, warmStart=rated).summary

    assert summary is not None
    assert summary.facts["solver"] == "sgd"


def test_callbacks_hear_of_the_chosen_solver_alone(stars: DataFrame) -> None:
    config = default_fm()._train_config(stars)
    heard: list[EpochReport] = []

    def hear(report: EpochReport) -> bool:
        heard.append(report)
        return True

    with trainer.open_trainer(internal_rows(stars, config.columns), config) as opened:
        [outcome] = opened.train([config], callbacks=[hear])

    assert isinstance(outcome, trainer.TrainResult)
    assert outcome.summary["solver"] == "gibbs"
    assert [report.row() for report in heard] == outcome.history
    assert len(heard) == 50
