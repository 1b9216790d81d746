"""Params out of range end in an error that names Param, value and range."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm import FactorizationMachine
from spark_fm.errors import InvalidColumnError, InvalidParamError
from tests.ml.builders import fast_fm

NAN, INF = float("nan"), float("inf")
NO_SIZE = [-1.0, NAN, INF]
BAD_PARAMS: list[tuple[str, Any]] = [
    *[("numFactors", value) for value in (0, -1, 16385)],
    *[("featureDim", value) for value in (0, -1, 2**31)],
    *[("epochs", value) for value in (0, -1, 1_000_001)],
    *[("miniBatchSize", value) for value in (0, -1, 2**31)],
    *[("threshold", value) for value in (2.0, -0.1, NAN)],
    *[(group + "Lr", value) for group in ("bias", "linear", "factors") for value in NO_SIZE],
    *[(group + "Wd", value) for group in ("bias", "linear", "factors") for value in NO_SIZE],
    *[(f"{group}Init{what}", value)
      for group in ("bias", "linear", "factors")
      for what in ("Scale", "Sigma")
      for value in NO_SIZE],
    *[(f"{group}InitValue", value) for group in ("bias", "linear", "factors")
      for value in (NAN, INF)],
    *[(f"{group}InitMethod", "zeros") for group in ("bias", "linear", "factors")],
    *[("adagradInit", value) for value in NO_SIZE],
    *[("decayFrequencyPower", value) for value in (-0.1, 1.1, NAN)],
    *[("clipGradient", value) for value in (0.0, -1.0, NAN)],
    *[("eps", value) for value in NO_SIZE],
    *[("rescaleGrad", value) for value in (0.0, -1.0, NAN, INF)],
    *[("numWorkers", value) for value in (-1, 100_001)],
    *[("averagingsPerEpoch", value) for value in (-1, 1001)],
    *[("aggregationDepth", value) for value in (-1, 3)],
    ("device", "cuda"),
    *[("validationFraction", value) for value in (-0.1, 1.0, NAN)],
    ("patience", -1),
    ("checkpointInterval", 0),
    *[("tol", value) for value in NO_SIZE],
    ("seed", 2**63),
    ("predictorType", "classifier"),
    ("solver", "als"),
    ("optimizer", "lbfgs"),
    ("validationMetric", "rmse"),
    ("refit", "sometimes"),
    ("handleInvalid", "drop"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_PARAMS)
def test_a_param_out_of_range_is_an_error_naming_it_and_the_value(
    train: DataFrame, name: str, value: Any
) -> None:
    fm = fast_fm(**{name: value})

    with pytest.raises(InvalidParamError) as caught:
        fm.fit(train)

    assert str(caught.value).startswith(f"{name}={value!r} is not allowed: expected ")


def test_every_numeric_param_has_an_illegal_value_above() -> None:
    numeric = {
        param.name
        for param in fast_fm().params
        if param.typeConverter.__name__ in ("toInt", "toFloat")
    }

    assert numeric <= {name for name, _ in BAD_PARAMS}


def test_a_bad_param_is_found_before_any_job(train: DataFrame) -> None:
    failing = train.where(F.raise_error(F.lit("this row was evaluated")).isNull())

    with pytest.raises(InvalidParamError, match="epochs=0"):
        fast_fm(epochs=0).fit(failing)
    with pytest.raises(InvalidColumnError, match="labelCol='y'"):
        fast_fm(labelCol="y").fit(failing)


@pytest.mark.parametrize("mapping", [[("num_factors", "4")], "num_factors=4", None])
def test_hyperparameters_that_are_no_mapping_show_one(mapping: Any) -> None:
    with pytest.raises(InvalidParamError, match=r'hyperparameters are a .*{"feature_dim": "1000"'):
        FactorizationMachine.from_hyperparameters(mapping)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("numFactor", "; did you mean numFactors?"),
        ("num_factors", "; did you mean numFactors?"),
        ("label_col", "; did you mean labelCol?"),
        ("factorLr", "; did you mean factorsLr or factorsWd?"),
        ("xyz", ""),
    ],
)
def test_a_misspelt_param_is_told_with_the_nearest_names(name: str, hint: str) -> None:
    for call in (FactorizationMachine, FactorizationMachine().setParams):
        with pytest.raises(TypeError) as told:
            call(**{name: 1})
        assert str(told.value).endswith(f"got an unexpected keyword argument {name!r}{hint}")
