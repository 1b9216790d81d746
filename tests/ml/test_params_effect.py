"""Every Param arrives where it is used, and changes something that can be seen.

Params that are hyperparameters are fields of ``Hyperparameters``, each of which moves the weights:
``tests/learner/test_hyperparameters.py``. Here are shown the way there, and what the rest does.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from spark_fm import FactorizationMachine, FactorizationMachineModel
from tests.ml.builders import N_FEATURES, OUTPUTS, VALUES, column, fast_fm

OUTPUT_PARAMS = [
    "predictionCol", "probabilityCol", "rawPredictionCol", "scoreCol", "predictedLabelCol",
]  # fmt: skip
# Where each Param arrives that training reads.
FIELDS = {
    "predictorType": "spec.loss",
    "numFactors": "spec.k",
    "optimizer": "spec.optimizer",
    "epochs": "spec.epochs",
    "seed": "spec.seed",
    "shuffle": "spec.shuffle",
    "useBias": "spec.use_bias",
    "useLinear": "spec.use_linear",
    "miniBatchSize": "spec.mini_batch_size",
    "adagradInit": "spec.adagrad_init",
    "decayFrequencyPower": "spec.decay_frequency_power",
    "clipGradient": "spec.clip_gradient",
    "eps": "spec.eps",
    "rescaleGrad": "spec.rescale_grad",
    "averageEpochs": "spec.average_epochs",
    "sageMakerTraining": "spec.sagemaker",
    **{
        f"{group}{suffix}": f"spec.{group}.{field}"
        for group in ("bias", "linear", "factors")
        for suffix, field in {
            "Lr": "lr", "Wd": "wd", "InitMethod": "init_method", "InitSigma": "init_sigma",
            "InitScale": "init_scale", "InitValue": "init_value",
        }.items()
    },
    "featuresCol": "columns.features",
    "labelCol": "columns.label",
    "weightCol": "columns.weight",
    "validationIndicatorCol": "columns.validation",
    "featureDim": "feature_dim",
    "numWorkers": "num_workers",
    "averagingsPerEpoch": "averagings",
    "aggregationDepth": "aggregation_depth",
    "validationFraction": "validation_fraction",
    "validationMetric": "metric",
    "patience": "patience",
    "tol": "tol",
    "refit": "refit",
    "handleInvalid": "handle_invalid",
    "standardization": "standardization",
    "standardizeLabel": "standardize_label",
    "keepTrainingState": "keep_snapshot",
    "keepPosterior": "keep_posterior",
    "checkpointDir": "checkpoint_dir",
    "checkpointInterval": "checkpoint_interval",
    "device": "device",
    "solver": "solver",
}  # fmt: skip
# What else a Param's value decides where another one is unset.
DERIVED = {
    "predictorType": {"metric": "rmse"},
    "optimizer": {f"spec.{group}.lr": 0.005 for group in ("bias", "linear", "factors")},
    "solver": {"chosen_rates": ()},
    "epochs": {"sweeps": VALUES["epochs"]},
    "patience": {"sweep_patience": VALUES["patience"]},
    "sageMakerTraining": {"chosen_rates": (), "standardization": False},
    "biasLr": {"chosen_rates": ("linear", "factors")},
    "linearLr": {"chosen_rates": ("bias", "factors")},
    "factorsLr": {"chosen_rates": ("bias", "linear")},
}


def config_leaves(**params: Any) -> dict[str, Any]:
    """Return what training reads of an estimator, by dotted path."""

    def leaves(value: Any, path: str) -> dict[str, Any]:
        if not is_dataclass(value):
            return {path.lstrip("."): value}
        inner = [leaves(getattr(value, f.name), f"{path}.{f.name}") for f in fields(value)]
        return {name: leaf for part in inner for name, leaf in part.items()}

    no_columns = SimpleNamespace(schema=StructType(), sparkSession=None, mapInArrow=None)
    return leaves(FactorizationMachine(**params)._train_config(no_columns), "")


@pytest.mark.parametrize("name", FIELDS)
def test_the_param_sets_its_field_and_no_other(name: str) -> None:
    beside: dict[str, dict[str, Any]] = {
        "metric": {"predictorType": "regressor"}, "keep_posterior": {"solver": "gibbs"},
    }  # fmt: skip
    needed = {"solver": "sgd", **beside.get(FIELDS[name], {})}

    before, after = config_leaves(**needed), config_leaves(**{**needed, name: VALUES[name]})

    changed = {path: value for path, value in after.items() if value != before[path]}
    value = "squared" if name == "predictorType" else VALUES[name]
    assert changed == {FIELDS[name]: value, **DERIVED.get(name, {})}


def test_every_param_and_every_field_has_its_test() -> None:
    names = {param.name for param in FactorizationMachine().params}

    assert {*FIELDS, *OUTPUT_PARAMS, "threshold"} == names
    built = {"chosen_rates", "sweeps", "sweep_patience", "n_tried"}
    assert {*FIELDS.values(), *built} == set(config_leaves())


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


def as_array(model: FactorizationMachineModel) -> np.ndarray:
    return np.concatenate([[model.bias], model.weights.table.ravel()])


def test_columns_workers_and_averagings_move_the_weights(fitted: Any) -> None:
    models = [
        fitted(),
        fitted(labelCol="opposite"),
        fitted(weightCol="weight"),
        fitted(featuresCol="halved"),
        fitted(validationIndicatorCol="held_out", refit="never"),
        fitted(validationFraction=0.3, refit="never"),
        fitted(validationFraction=0.3, refit="always"),
        fitted(numWorkers=2),
        fitted(numWorkers=2, averagingsPerEpoch=3),
    ]

    assert len({as_array(model).tobytes() for model in models}) == len(models)


def test_features_as_they_are_move_the_weights_otherwise(fitted: Any) -> None:
    scaled, raw = (fitted(featuresCol="halved", standardization=flag) for flag in (True, False))

    assert not np.array_equal(as_array(scaled), as_array(raw))


def test_labels_as_they_are_move_the_weights_otherwise(fitted: Any) -> None:
    scaled, raw = (fitted(on_ratings=True, standardizeLabel=flag) for flag in (True, False))

    assert not np.array_equal(as_array(scaled), as_array(raw))


# Where the effect is known exactly ------------------------------------------------------


def test_a_learning_rate_of_zero_freezes_its_group(fitted: Any) -> None:
    frozen = fitted(biasLr=0.0, linearLr=0.0, factorsLr=0.0, biasInitValue=0.25)

    assert frozen.bias == 0.25
    assert (frozen.linear == 0).all()
    assert frozen.factors.std() == pytest.approx(0.02, rel=0.3)  # factorsInitSigma, 80 draws


def test_without_bias_and_linear_these_are_zero(fitted: Any) -> None:
    neither = fitted(useBias=False, useLinear=False)

    assert neither.bias == 0
    assert (neither.linear == 0).all()


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
    assert regressor.transform(small).columns[-2:] == [OUTPUTS[0], OUTPUTS[-1]]
    assert fitted().transform(small).columns[-5:] == OUTPUTS


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
    facts = fitted(validationIndicatorCol="held_out", refit="never").summary.facts

    assert facts["numValidationRows"] == small.where("held_out").count() > 0


def test_a_weight_of_three_counts_as_three_rows(fitted: Any) -> None:
    plain, weighted = (fitted(**params).summary.facts for params in ({}, {"weightCol": "weight"}))

    share = plain["labelMean"]
    assert weighted["labelMean"] == pytest.approx(3 * share / (3 * share + 1 - share))


@pytest.mark.parametrize("name", OUTPUT_PARAMS)
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
