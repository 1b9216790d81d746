"""The estimator as a stage: fitted, nested, saved, overwritten, loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import (
    FeatureHasher,
    OneHotEncoder,
    SQLTransformer,
    StringIndexer,
    VectorAssembler,
)
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import Rows, a9a
from spark_fm import FactorizationMachine, FactorizationMachineModel
from tests.adult import CATEGORIES, adult_frame
from tests.ml.builders import OUTPUTS, column, fast_fm

COLUMNS = list(CATEGORIES)
# ROC AUC of the held-out rows; labels assigned at random give 0.5, one column alone under 0.8.
GOOD_AREA = 0.87


def one_hot(columns: list[str]) -> list[Any]:
    indexed, encoded = [f"{c}_index" for c in columns], [f"{c}_one_hot" for c in columns]
    return [
        StringIndexer(inputCols=columns, outputCols=indexed, handleInvalid="keep"),
        OneHotEncoder(inputCols=indexed, outputCols=encoded, dropLast=False),
        VectorAssembler(inputCols=encoded, outputCol="features"),
    ]


def hashing(columns: list[str]) -> list[Any]:
    return [FeatureHasher(inputCols=columns, outputCol="features", numFeatures=2**12)]


@pytest.fixture(scope="module")
def people(spark: SparkSession) -> tuple[DataFrame, DataFrame]:
    """3,000 training and 1,000 held-out rows of UCI Adult, 14 raw columns with nulls."""
    split = a9a()
    parts = [(split.train, 3000), (split.test, 1000)]
    return tuple(
        adult_frame(spark, Rows(rows.X[:n], rows.y[:n]), n_partitions=1).cache()
        for rows, n in parts
    )


@pytest.fixture(scope="module")
def fitted(people: tuple[DataFrame, DataFrame]) -> PipelineModel:
    return Pipeline(stages=[*one_hot(COLUMNS), fast_fm(epochs=6)]).fit(people[0])


def area(model: PipelineModel, rows: DataFrame) -> float:
    return BinaryClassificationEvaluator().evaluate(model.transform(rows))


def scores(model: Any, rows: DataFrame) -> np.ndarray:
    return column(model.transform(rows), "score")


def test_raw_columns_become_a_good_model(
    fitted: PipelineModel, people: tuple[DataFrame, DataFrame]
) -> None:
    test = people[1]

    scored = fitted.transform(test)

    assert area(fitted, test) > GOOD_AREA
    assert scored.columns[: len(test.columns)] == test.columns
    assert scored.columns[-6:] == ["features", *OUTPUTS]
    assert scored.count() == 1000


def test_hashed_columns_become_a_good_model(people: tuple[DataFrame, DataFrame]) -> None:
    train, test = people

    model = Pipeline(stages=[*hashing(COLUMNS), fast_fm(epochs=6)]).fit(train)

    assert area(model, test) > GOOD_AREA
    assert model.stages[-1].numFeatures == 2**12


def test_a_value_unknown_in_training_is_scored(
    spark: SparkSession, fitted: PipelineModel, people: tuple[DataFrame, DataFrame]
) -> None:
    strange = people[1].limit(5).na.fill("never seen").replace("sex-1", "never seen")

    assert np.isfinite(scores(fitted, strange)).all()


def test_a_pipeline_is_saved_overwritten_and_loaded(
    people: tuple[DataFrame, DataFrame], tmp_path: Path
) -> None:
    pipeline = Pipeline(stages=[*hashing(COLUMNS), fast_fm(epochs=1, seed=3)])
    path = str(tmp_path / "pipeline")

    pipeline.save(path)
    pipeline.getStages()[-1].setEpochs(2)
    pipeline.write().overwrite().save(path)
    loaded = Pipeline.load(path)

    machine = loaded.getStages()[-1]
    assert isinstance(machine, FactorizationMachine)
    assert (machine.uid, machine.getEpochs(), machine.getSeed()) == (
        pipeline.getStages()[-1].uid, 2, 3,
    )  # fmt: skip
    train, test = people
    expected = scores(pipeline.fit(train), test)
    assert np.array_equal(scores(loaded.fit(train), test), expected)


def test_a_pipeline_model_is_saved_overwritten_and_loaded(
    fitted: PipelineModel, people: tuple[DataFrame, DataFrame], tmp_path: Path
) -> None:
    path = str(tmp_path / "model")

    fitted.save(path)
    fitted.write().overwrite().save(path)
    loaded = PipelineModel.load(path)

    assert isinstance(loaded.stages[-1], FactorizationMachineModel)
    assert loaded.uid == fitted.uid
    assert loaded.stages[-1].summary == fitted.stages[-1].summary
    assert np.array_equal(scores(loaded, people[1]), scores(fitted, people[1]))


def test_a_pipeline_inside_a_pipeline_fits_and_comes_back(
    people: tuple[DataFrame, DataFrame], tmp_path: Path
) -> None:
    train, test = people
    inner = Pipeline(stages=[*hashing(COLUMNS), fast_fm(epochs=4)])
    after = SQLTransformer(statement="SELECT *, score > 0.9 AS is_sure FROM __THIS__")
    outer = Pipeline(stages=[inner, after])

    outer.save(str(tmp_path / "estimator"))
    model = Pipeline.load(str(tmp_path / "estimator")).fit(train)
    model.save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))

    assert isinstance(loaded.stages[0], PipelineModel)
    assert area(loaded, test) > GOOD_AREA
    sure = loaded.transform(test).where("is_sure")
    assert 0 < sure.count() < 1000
    assert column(sure, "score").min() > 0.9
    assert np.array_equal(scores(loaded, test), scores(model, test))


def test_a_fitted_machine_is_a_transformer_of_a_later_pipeline(
    fitted: PipelineModel, people: tuple[DataFrame, DataFrame]
) -> None:
    train, test = people
    model = fitted.stages[-1].copy()._set(scoreCol="first_score", predictedLabelCol="")
    model._set(probabilityCol="", rawPredictionCol="", predictionCol="")
    second = fast_fm(epochs=1, featuresCol="both", standardization=False)
    assembler = VectorAssembler(inputCols=["first_score", "features"], outputCol="both")

    stacked = Pipeline(stages=[*fitted.stages[:-1], model, assembler, second]).fit(train)

    assert area(stacked, test) > GOOD_AREA


def test_params_given_to_fit_and_transform_reach_the_stage(
    people: tuple[DataFrame, DataFrame],
) -> None:
    train, test = people
    machine = fast_fm(epochs=3)
    pipeline = Pipeline(stages=[*hashing(COLUMNS), machine])

    model = pipeline.fit(train, {machine.epochs: 1, machine.scoreCol: "s"})

    assert model.stages[-1].summary.totalIterations == 1
    assert "s" in model.transform(test).columns
    assert "t" in model.transform(test, {machine.scoreCol: "t"}).columns
