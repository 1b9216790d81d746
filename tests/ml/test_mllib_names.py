"""The estimator under MLlib's names takes MLlib's Params, and trains as ours does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import FMClassifier as TheirClassifier
from pyspark.ml.regression import FMRegressor as TheirRegressor
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import DataFrame

from spark_fm import FactorizationMachine, FMClassifier, FMRegressor
from spark_fm.errors import InvalidParamError
from spark_fm.ml.mllib import TRANSLATED
from tests.ml.builders import fast_fm

FAST = {"maxIter": 2, "factorSize": 4, "validationFraction": 0.0, "seed": 7}
THEIRS: dict[str, Any] = {
    "maxIter": 3, "stepSize": 0.3, "regParam": 0.02, "factorSize": 5, "fitIntercept": False,
    "fitLinear": False, "initStd": 0.07,
}  # fmt: skip


def test_mllib_s_names_set_our_params() -> None:
    fm = FMClassifier(**THEIRS, tol=0.01, seed=9, featuresCol="x")

    assert set(THEIRS) == set(TRANSLATED)
    for theirs, ours in TRANSLATED.items():
        assert [fm.getOrDefault(name) for name in ours] == [THEIRS[theirs]] * len(ours)
    assert (fm.getTol(), fm.getSeed(), fm.getFeaturesCol()) == (0.01, 9, "x")


@pytest.mark.parametrize("name", TRANSLATED)
@pytest.mark.parametrize("stage", [FMClassifier, FMRegressor])
def test_mllib_s_setters_and_getters_are_there(stage: Any, name: str) -> None:
    accessor = f"{name[0].upper()}{name[1:]}"
    fm = stage()

    assert getattr(fm, f"set{accessor}")(THEIRS[name]) is fm
    assert getattr(fm, f"get{accessor}")() == THEIRS[name]


def test_a_grid_takes_mllib_s_params() -> None:
    fm = FMClassifier()

    grid = ParamGridBuilder().addGrid(fm.maxIter, [1, 2]).addGrid(fm.factorSize, [4]).build()

    assert [fm.copy(each).getEpochs() for each in grid] == [1, 2]
    with pytest.raises(AttributeError, match="biasLr, linearLr, factorsLr are Params of their own"):
        _ = fm.stepSize


@pytest.mark.connect
def test_they_train_as_the_machine_does(train: DataFrame, ratings: DataFrame) -> None:
    classifier, regressor = FMClassifier(**FAST).fit(train), FMRegressor(**FAST).fit(ratings)

    assert np.array_equal(classifier.factors, fast_fm().fit(train).factors)
    expected = fast_fm(predictorType="regressor").fit(ratings)
    assert np.array_equal(regressor.factors, expected.factors)
    assert regressor.transform(ratings).columns[-2:] == ["score", "prediction"]


@pytest.mark.connect
@pytest.mark.parametrize("stage", [FMClassifier, FMRegressor])
def test_they_are_saved_and_loaded(stage: Any, tmp_path: Path, spark: object) -> None:
    fm = stage(**FAST)

    Pipeline(stages=[fm]).save(str(tmp_path / "pipeline"))
    [loaded] = Pipeline.load(str(tmp_path / "pipeline")).getStages()

    assert type(loaded) is stage
    assert loaded.getPredictorType() == fm.getPredictorType()
    assert (loaded.getEpochs(), loaded.getNumFactors()) == (2, 4)


@pytest.mark.parametrize("name", ["maxItr", "step_size", "factorSiz"])
def test_a_misspelt_name_of_mllib_is_told_with_the_right_one(name: str) -> None:
    right = {"maxItr": "maxIter", "step_size": "stepSize", "factorSiz": "factorSize"}[name]

    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'; .*{right}"):
        FMClassifier(**{name: 1})


@pytest.mark.connect
@pytest.mark.parametrize("peer", [TheirClassifier, TheirRegressor])
def test_every_param_of_mllib_is_taken_or_answered(peer: Any, spark: object) -> None:
    ours = FMClassifier if peer is TheirClassifier else FMRegressor
    for name in {param.name for param in peer().params} - set(TRANSLATED):
        if not ours().hasParam(name):
            with pytest.raises(TypeError, match=f"'{name}'; use "):
                ours(**{name: 1})


def test_two_names_of_one_param_are_refused() -> None:
    for params in ({"maxIter": 3, "epochs": 3}, {"stepSize": 0.1, "factorsLr": 0.2}):
        with pytest.raises(TypeError, match="Give one of them"):
            FMClassifier(**params)


@pytest.mark.parametrize(
    ("stage", "params", "told"),
    [
        (FMClassifier, {"solver": "adamW"}, 'optimizer="adam"'),
        (FMRegressor, {"solver": "gd"}, 'optimizer="sgd"'),
        (FMClassifier, {"predictorType": "regressor"}, '"binary_classifier"'),
        (FMRegressor, {"validationMetric": "logloss"}, "'rmse'"),
        (FMClassifier, {"maxIter": 0}, "1 to 1,000,000"),
        (FMClassifier, {"stepSize": -1.0}, ">= 0"),
    ],
)
def test_wrong_values_are_told_at_once(stage: Any, params: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidParamError, match=told):
        stage(**params)


def test_the_machine_itself_keeps_to_its_own_names() -> None:
    with pytest.raises(TypeError, match="'maxIter'; use epochs"):
        FactorizationMachine(maxIter=3)
