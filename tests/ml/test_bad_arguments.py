"""Arguments that are no DataFrame, no model, or of another estimator are refused by name."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachineModel, register_udf, tune
from spark_fm.errors import InvalidDataError, InvalidParamError
from tests.ml.builders import fast_fm


@pytest.mark.parametrize("what", ["fit", "grid", "tune", "transform", "evaluate"])
def test_what_is_no_spark_dataframe_is_refused_by_its_type(
    train: DataFrame, classifier: FactorizationMachineModel, what: str
) -> None:
    fm = fast_fm()
    ways = {
        "fit": fm.fit,
        "grid": lambda rows: fm.fit(rows, [{fm.epochs: 1}]),
        "tune": lambda rows: tune(fm, rows, trials=1),
        "transform": classifier.transform,
        "evaluate": classifier.evaluate,
    }

    with pytest.raises(InvalidDataError, match=r"Got a builtins\.list; expected a Spark DataFrame"):
        ways[what]([1, 2])


@pytest.mark.parametrize("several", [False, True])
def test_params_of_another_estimator_are_refused_and_not_ignored(
    train: DataFrame, several: bool
) -> None:
    fm, other = fast_fm(), fast_fm()
    param_map = {other.epochs: 1}

    with pytest.raises(InvalidParamError, match=f"epochs of {other.uid}.*no effect on {fm.uid}"):
        fm.fit(train, [param_map] if several else param_map)
    with pytest.raises(InvalidParamError, match=f"epochs of {other.uid}"):
        fm.fitMultiple(train, [{}, param_map])


def test_a_warm_start_from_what_is_no_model_is_refused(train: DataFrame) -> None:
    with pytest.raises(InvalidParamError, match="warmStart=3 is a int; expected a Factorization"):
        fast_fm().fit(train, warmStart=3)


def test_only_a_fitted_model_becomes_a_function(spark: SparkSession) -> None:
    with pytest.raises(InvalidParamError, match="model is a FactorizationMachine; expected a"):
        register_udf(spark, "f", fast_fm())
