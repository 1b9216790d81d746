"""Params out of range end in an error that names Param, value and range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm import FactorizationMachine, FactorizationMachineModel
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


# What no value of another Param makes right is refused at once, the rest when fit begins.
IN_FIT = {("validationMetric", "rmse")}


@pytest.mark.parametrize(("name", "value"), [each for each in BAD_PARAMS if each not in IN_FIT])
def test_a_param_out_of_range_is_refused_when_it_is_set(name: str, value: Any) -> None:
    fm = FactorizationMachine()
    calls: list[Callable[[], Any]] = [
        lambda: FactorizationMachine(**{name: value}),
        lambda: fm.setParams(**{name: value}),
        lambda: getattr(fm, f"set{name[0].upper()}{name[1:]}")(value),
        lambda: fm.set(fm.getParam(name), value),
        lambda: fm.copy({fm.getParam(name): value}),
    ]

    for call in calls:
        with pytest.raises(InvalidParamError) as caught:
            call()
        assert str(caught.value).startswith(f"{name}={value!r} is not allowed: expected ")
    assert not fm.isSet(name)


def test_what_another_param_must_agree_with_is_an_error_of_fit(train: DataFrame) -> None:
    fm = fast_fm(validationMetric="rmse")  # of a regressor, which a later call may make of it

    with pytest.raises(InvalidParamError, match="validationMetric='rmse' is not allowed"):
        fm.fit(train)


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", 1.5), ("handleInvalid", "drop"), ("device", "cuda")]
)
def test_a_model_refuses_values_when_they_are_set_too(name: str, value: object) -> None:
    with pytest.raises(InvalidParamError, match=f"{name}={value!r} is not allowed"):
        FactorizationMachineModel()._set(**{name: value})


def test_every_numeric_param_has_an_illegal_value_above() -> None:
    numeric = {
        param.name
        for param in fast_fm().params
        if param.typeConverter.__name__ in ("toInt", "toFloat")
    }

    assert numeric <= {name for name, _ in BAD_PARAMS}


def test_a_bad_param_is_found_before_any_job(train: DataFrame) -> None:
    failing = train.where(F.raise_error(F.lit("this row was evaluated")).isNull())

    with pytest.raises(InvalidParamError, match="validationMetric='rmse'"):
        fast_fm(validationMetric="rmse").fit(failing)
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
        ("maxIter", "; use epochs."),
        ("factor_size", "; use numFactors."),
        ("n_factors", "; use numFactors."),
        ("k", "; use numFactors."),
        ("n_iter", "; use epochs."),
        ("num_boost_round", "; use epochs."),
        ("random_state", "; use seed."),
        ("batch_size", "; use miniBatchSize, in rows."),
        ("early_stopping_rounds", "; use patience."),
        (
            "learning_rate",
            "; use biasLr, linearLr and factorsLr, or leave them unset: held-out rows choose them.",
        ),
        ("lambda", "; use linearWd and factorsWd, the decay of each update."),
    ],
)
def test_a_misspelt_param_is_told_with_the_nearest_names(name: str, hint: str) -> None:
    for call in (FactorizationMachine, FactorizationMachine().setParams):
        with pytest.raises(TypeError) as told:
            call(**{name: 1})
        assert str(told.value).endswith(f"got an unexpected keyword argument {name!r}{hint}")
