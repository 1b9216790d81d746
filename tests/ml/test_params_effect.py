"""Every Param changes something that can be seen: weights, history, plan or output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm import FactorizationMachine, FactorizationMachineModel
from tests.ml.builders import N_FEATURES, column, fast_fm

OUTPUTS = ["predictionCol", "probabilityCol", "rawPredictionCol", "scoreCol", "predictedLabelCol"]


@dataclass
class Effect:
    """A Param's two values, in the setting where the second must differ from the first.

    Parameters
    ----------
    one, other : object
    setting : dict
        Other Params of both fits.
    on_ratings : bool
        Train a regressor.
    """

    one: Any
    other: Any
    setting: dict[str, Any] = field(default_factory=dict)
    on_ratings: bool = False


def init(group: str, method: str) -> dict[str, Any]:
    return {f"{group}InitMethod": method}


# Params whose change moves the trained weights.
ON_WEIGHTS: dict[str, Effect] = {
    "labelCol": Effect("label", "opposite"),
    "weightCol": Effect(None, "weight"),
    "featuresCol": Effect("features", "halved"),
    "useBias": Effect(True, False),
    "useLinear": Effect(True, False),
    "optimizer": Effect("adagrad", "sgd"),
    "shuffle": Effect(True, False),
    "seed": Effect(7, 8),
    "adagradInit": Effect(1.0, 0.1),
    "miniBatchSize": Effect(1, 16),
    "biasLr": Effect(0.1, 0.2),
    "linearLr": Effect(0.1, 0.2),
    "factorsLr": Effect(0.1, 0.2),
    "biasWd": Effect(0.0, 0.5),
    "linearWd": Effect(0.0, 0.5),
    "factorsWd": Effect(0.0, 0.5),
    "decayFrequencyPower": Effect(0.0, 1.0),
    "clipGradient": Effect(None, 0.05),
    "eps": Effect(1e-8, 0.5),
    "rescaleGrad": Effect(None, 0.5, {"miniBatchSize": 16}),
    "averageEpochs": Effect(True, False, {"epochs": 2}),
    "sageMakerTraining": Effect(False, True, {"miniBatchSize": 16, "shuffle": False}),
    "standardizeLabel": Effect(True, False, on_ratings=True),
    "biasInitMethod": Effect("constant", "normal"),
    "biasInitScale": Effect(0.1, 0.2, init("bias", "uniform")),
    "biasInitSigma": Effect(0.1, 0.2, init("bias", "normal")),
    "biasInitValue": Effect(None, 0.7),
    "linearInitMethod": Effect("constant", "uniform"),
    "linearInitScale": Effect(0.1, 0.2, init("linear", "uniform")),
    "linearInitSigma": Effect(0.1, 0.2, init("linear", "normal")),
    "linearInitValue": Effect(0.0, 0.3),
    "factorsInitMethod": Effect("normal", "uniform"),
    "factorsInitScale": Effect(0.1, 0.2, init("factors", "uniform")),
    "factorsInitSigma": Effect(0.1, 0.2),
    "factorsInitValue": Effect(0.1, 0.2, init("factors", "constant")),
    "validationFraction": Effect(0.0, 0.3, {"refit": "never"}),
    "validationIndicatorCol": Effect(None, "held_out"),
    "refit": Effect("never", "always", {"validationFraction": 0.3}),
    "numWorkers": Effect(1, 2),
    "averagingsPerEpoch": Effect(1, 3, {"numWorkers": 2}),
}

# Params whose effect has a test of its own, below, in test_checkpoints.py, in
# test_warm_start.py or in training/test_devices.py.
OWN_TEST = {
    "aggregationDepth", "checkpointDir", "checkpointInterval", "device", "epochs", "featureDim",
    "handleInvalid", "keepTrainingState", "numFactors", "patience", "predictorType",
    "threshold", "tol", "validationMetric", *OUTPUTS,
}  # fmt: skip


@pytest.fixture(scope="module")
def small(train: DataFrame) -> DataFrame:
    """The training set with everything that a Param may point at."""
    row = F.col("features").cast("string")
    return train.withColumns(
        {
            "opposite": 1 - F.col("label"),
            "weight": F.when(F.col("label") > 0, 3.0).otherwise(1.0),
            "held_out": F.crc32(row) % 4 == 0,
            "halved": _halved(),
        }
    )


def _halved() -> Any:
    from pyspark.ml.functions import vector_to_array

    return F.transform(vector_to_array("features"), lambda x: x / 2)


@pytest.fixture(scope="module")
def fitted(small: DataFrame, ratings: DataFrame) -> Any:
    """Fit once for each distinct setting."""
    models: dict[str, FactorizationMachineModel] = {}

    def fit(*, on_ratings: bool = False, **params: Any) -> FactorizationMachineModel:
        if on_ratings:
            params["predictorType"] = "regressor"
        key = repr(sorted(params.items()))
        if key not in models:
            fm = fast_fm(**{"epochs": 1, **params})
            models[key] = fm.fit(ratings if on_ratings else small)
        return models[key]

    return fit


def test_every_param_has_its_effect_tested() -> None:
    names = {param.name for param in FactorizationMachine().params}

    assert set(ON_WEIGHTS) | OWN_TEST == names
    assert not set(ON_WEIGHTS) & OWN_TEST


def as_array(model: FactorizationMachineModel) -> np.ndarray:
    return np.concatenate([[model.bias], model.weights.table.ravel()])


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_the_param_moves_the_weights(fitted: Any, name: str) -> None:
    effect = ON_WEIGHTS[name]
    params = {key: value for key, value in effect.setting.items() if value is not None}

    first = fitted(on_ratings=effect.on_ratings, **params, **given(name, effect.one))
    second = fitted(on_ratings=effect.on_ratings, **params, **given(name, effect.other))

    assert not np.array_equal(as_array(first), as_array(second))


def given(name: str, value: Any) -> dict[str, Any]:
    """Return the Param by name, or nothing when the value is that of an unset one."""
    default = fast_fm().getParam(name)
    unset = value is None or (fast_fm().extractParamMap().get(default) == value)
    return {} if unset else {name: value}


# Where the effect is known exactly ------------------------------------------------------


def test_a_learning_rate_of_zero_freezes_its_group(fitted: Any) -> None:
    frozen = fitted(biasLr=0.0, linearLr=0.0, factorsLr=0.0, biasInitValue=0.25)

    assert frozen.bias == 0.25
    assert (frozen.linear == 0).all()
    assert frozen.factors.std() == pytest.approx(0.02, rel=0.3)  # factorsInitSigma, 80 draws


def test_without_bias_and_linear_these_are_zero(fitted: Any) -> None:
    assert fitted(useBias=False).bias == 0
    assert (fitted(useLinear=False).linear == 0).all()


def test_num_factors_is_the_width_of_the_factors(fitted: Any) -> None:
    assert fitted().factors.shape == (N_FEATURES, 4)
    assert fitted(numFactors=3).factors.shape == (N_FEATURES, 3)


def test_feature_dim_is_the_length_of_the_vectors(fitted: Any) -> None:
    assert fitted().numFeatures == N_FEATURES
    assert fitted(featureDim=25).numFeatures == 25


def test_predictor_type_chooses_loss_and_outputs(fitted: Any, small: DataFrame) -> None:
    regressor = FactorizationMachine(
        predictorType="regressor", numFactors=4, epochs=1, validationFraction=0.2
    ).fit(small)

    assert "validation_rmse" in regressor.summary.history
    assert regressor.transform(small).columns[-1] == "score"
    assert fitted().transform(small).columns[-1] == "predicted_label"


def test_epochs_is_the_most_passes(fitted: Any) -> None:
    assert fitted().summary.totalIterations == 1
    assert fitted(epochs=3).summary.totalIterations == 3


def test_aggregation_depth_merges_on_executors(fitted: Any) -> None:
    driver, executors = (fitted(numWorkers=2, aggregationDepth=depth) for depth in (1, 2))

    assert not driver.summary.facts["mergedOnExecutors"]
    assert executors.summary.facts["mergedOnExecutors"]
    np.testing.assert_allclose(as_array(executors), as_array(driver), rtol=1e-4, atol=1e-6)


def test_workers_and_averagings_are_as_many_as_asked_for(fitted: Any) -> None:
    facts = fitted(numWorkers=2, averagingsPerEpoch=3).summary.facts

    assert (facts["numWorkers"], facts["averagingsPerEpoch"]) == (2, 3)


STOPPING = {"epochs": 12, "validationFraction": 0.3, "refit": "never", "factorsLr": 0.5}


def test_patience_and_tol_stop_training(fitted: Any) -> None:
    never = fitted(**STOPPING, patience=0).summary
    soon = fitted(**STOPPING, patience=1, tol=0.5).summary
    later = fitted(**STOPPING, patience=3, tol=0.5).summary

    assert never.totalIterations == 12
    assert soon.totalIterations == 2  # nothing gets twice as good in an epoch
    assert later.totalIterations == 4
    for summary in (never, soon, later):  # what tol ignores is still the better model
        assert summary.bestEpoch == summary.history["validationLoss"].idxmin()
    assert fitted(**STOPPING, patience=1, tol=0.0).summary.totalIterations > 2


@pytest.mark.parametrize(
    ("metric", "pick"), [("logloss", np.argmin), ("accuracy", np.argmax), ("f1", np.argmax)]
)
def test_the_validation_metric_chooses_the_best_epoch(fitted: Any, metric: str, pick: Any) -> None:
    summary = fitted(**STOPPING, patience=0, tol=0.0, validationMetric=metric).summary

    assert summary.bestEpoch == pick(summary.history[f"validation_{metric}"])


def test_refit_trains_on_the_held_out_rows_too(fitted: Any) -> None:
    held, again = (fitted(validationFraction=0.3, refit=how) for how in ("never", "always"))

    assert (held.summary.facts["refit"], again.summary.facts["refit"]) == (False, True)
    assert fitted(validationFraction=0.3).summary.facts["refit"]  # "auto", few rows
    indicated = fitted(validationIndicatorCol="held_out", refit="always").summary
    assert not indicated.facts["refit"]  # the user's own validation rows stay out


def test_the_indicator_column_says_which_rows_are_held_out(fitted: Any, small: DataFrame) -> None:
    facts = fitted(validationIndicatorCol="held_out").summary.facts

    assert facts["numValidationRows"] == small.where("held_out").count() > 0


def test_a_weight_of_three_counts_as_three_rows(fitted: Any) -> None:
    plain, weighted = (fitted(**params).summary.facts for params in ({}, {"weightCol": "weight"}))

    share = plain["labelMean"]
    assert weighted["labelMean"] == pytest.approx(3 * share / (3 * share + 1 - share))


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_param_names_an_output(fitted: Any, small: DataFrame, name: str) -> None:
    model = fitted().copy()
    before = model.transform(small).columns

    after = model._set(**{name: "renamed"}).transform(small).columns

    assert "renamed" in after
    assert "renamed" not in before


def test_threshold_chooses_the_label(fitted: Any, small: DataFrame) -> None:
    model = fitted().copy()

    labels = {
        threshold: column(model._set(threshold=threshold).transform(small), "predicted_label")
        for threshold in (0.0, 1.0)
    }

    assert labels[0.0].all()
    assert not labels[1.0].any()


def test_handle_invalid_chooses_what_becomes_of_a_bad_row(fitted: Any, small: DataFrame) -> None:
    frame = small.select(F.lit(None).cast(small.schema["features"].dataType).alias("features"))
    model = fitted().copy()

    kept = model._set(handleInvalid="keep").transform(frame.limit(3))
    skipped = model._set(handleInvalid="skip").transform(frame.limit(3))

    assert np.isnan(column(kept, "score")).tolist() == [True] * 3
    assert skipped.count() == 0
