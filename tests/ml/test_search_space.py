"""What a search draws from: ranges, choices, and Params that count only with others."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from spark_fm.errors import InvalidParamError
from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.ml.accessors import FMParams
from spark_fm.ml.params import DEFAULTS
from spark_fm.ml.search_space import (
    SEARCHED,
    USUAL,
    Choices,
    Range,
    SearchSpace,
    dimension_of,
)

STARTS = {**DEFAULTS, "biasLr": 0.2, "linearLr": 0.2, "factorsLr": 0.2}
RATES = ["biasLr", "linearLr", "factorsLr"]


def space(*, is_set=(), values=None, **overrides):
    dimensions = {name: dimension_of(name, given) for name, given in overrides.items()}
    return SearchSpace.around({**STARTS, **(values or {})}, is_set=is_set, overrides=dimensions)


def drawn(searched, n_draws=300, seed=5):
    rng = np.random.default_rng(seed)
    return [
        searched.params({name: rng.random() for name in searched.dimensions})
        for _ in range(n_draws)
    ]


def test_a_logarithmic_range_gives_each_decade_its_share():
    values = np.array(
        [Range(1e-4, 1e-1, log=True).from_unit(unit) for unit in np.linspace(0, 1, 3001)]
    )

    for low in (1e-4, 1e-3, 1e-2):
        assert np.mean((values >= low) & (values < 10 * low)) == pytest.approx(1 / 3, abs=2e-3)


def test_whole_numbers_of_a_range_are_drawn_equally_often_ends_included():
    values = [Range(1, 4, whole=True).from_unit(unit) for unit in np.linspace(0, 1, 4001)]

    counts = np.bincount(values)
    assert all(type(value) is int for value in values)
    assert np.allclose(counts[1:] / len(values), 0.25, atol=1e-3)


@pytest.mark.parametrize(
    "dimension",
    [Range(0.5, 8, log=True), Range(-1, 1), Range(2, 9, whole=True), Choices(("a", "b", "c"))],
    ids=str,
)
def test_the_coordinate_of_a_drawn_value_leads_back_to_it(dimension):
    for unit in np.linspace(0, 1, 23):
        value = dimension.from_unit(unit)
        assert dimension.from_unit(dimension.to_unit(value)) == pytest.approx(value)


def test_every_default_lies_in_its_usual_range():
    for name, dimension in USUAL.items():
        if isinstance(dimension, Choices):
            assert DEFAULTS[name] in dimension.values
        elif dimension.relative:
            assert dimension.low < 1 < dimension.high
        elif DEFAULTS.get(name):  # zero and unset stand for "without"
            assert dimension.low <= DEFAULTS[name] <= dimension.high


def test_every_hyperparameter_of_a_training_has_a_usual_range():
    beside = {
        # How long, how judged and how cut up; columns; and what is kept.
        "epochs", "patience", "tol", "validationFraction", "validationIndicatorCol",
        "validationMetric", "refit", "seed", "shuffle", "numWorkers", "averagingsPerEpoch",
        "aggregationDepth", "device", "solver", "predictorType", "featureDim", "handleInvalid",
        "threshold", "keepPosterior",
        "keepTrainingState", "checkpointDir", "checkpointInterval", "sageMakerTraining",
    }  # fmt: skip
    names = {p.name for p in FMParams().params if not p.name.endswith("Col")}

    assert names - beside == set(USUAL)


def test_learning_rates_are_drawn_around_the_default_of_the_optimizer_drawn():
    for params in drawn(space()):
        for name in RATES:
            assert 1 / 8.01 <= params[name] / OPTIMIZERS[params["optimizer"]].default_lr <= 4.01


def test_a_given_range_of_learning_rates_holds_for_every_optimizer():
    for params in drawn(space(factorsLr=(0.5, 0.6))):
        assert 0.5 <= params["factorsLr"] <= 0.6


def test_adagrad_s_start_counts_with_adagrad_only():
    found = {params["optimizer"]: set() for params in drawn(space())}
    for params in drawn(space()):
        found[params["optimizer"]].add("adagradInit" in params)

    assert found == {"adagrad": {True}, "adam": {False}, "sgd": {False}}


def test_what_is_set_is_not_searched_and_what_hangs_on_it_goes_too():
    searched = space(
        is_set=["optimizer", "useLinear", "factorsInitMethod"],
        values={"optimizer": "adam", "useLinear": False, "factorsInitMethod": "uniform"},
    )

    gone = {"optimizer", "adagradInit", "linearLr", "linearWd", "factorsInitSigma"}
    assert set(searched.dimensions) == set(SEARCHED) - gone
    assert "factorsInitScale" in searched.dimensions


def test_an_override_is_searched_even_where_the_param_is_set():
    searched = space(is_set=["numFactors"], numFactors=[2, 3])

    assert {params["numFactors"] for params in drawn(searched)} == {2, 3}


def test_the_order_of_overrides_changes_nothing():
    first = space(clipGradient=None, miniBatchSize=(1, 9))
    second = space(miniBatchSize=(1, 9), clipGradient=None)

    assert drawn(first) == drawn(second)


def test_the_point_of_drawn_params_leads_back_to_them():
    searched = space(miniBatchSize=None)
    for params in drawn(searched, 50):
        again = searched.params({**dict.fromkeys(searched.dimensions, 0.5),
                                 **searched.unit_point(params)})  # fmt: skip
        assert again.pop("optimizer") == params.pop("optimizer")
        assert again == pytest.approx(params, rel=1e-5)


def test_corners_hold_both_ends_and_all_choices():
    searched = space(numFactors=[2, 7], linearWd=(0.0, 0.25))
    found = {
        name: {params[name] for params in searched.corners() if name in params}
        for name in ("numFactors", "linearWd", "optimizer")
    }

    assert found["numFactors"] == {2, 7}
    assert found["linearWd"] >= {0.0, 0.25}
    assert found["optimizer"] == {"adagrad", "adam", "sgd"}


def test_a_space_is_plain_json():
    searched = space(numFactors=[2, 7], linearWd=(0, 0.25))

    assert json.loads(json.dumps(searched.to_json())) == searched.to_json()


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("seed", (1, 2), "seed cannot be searched"),
        ("numFactor", None, "numFactor cannot be searched"),
        ("factorsLr", (1, 0.5), "the smaller one"),
        ("factorsLr", (0, 1, "log"), "above 0"),
        ("factorsLr", (0, float("inf")), "finite ends"),
        ("factorsLr", (0.1, 1, "lin"), "expected \\(low, high\\)"),
        ("factorsLr", 0.3, "a list of choices"),
        ("numFactors", [], "a list of choices"),
        ("optimizer", (1, 2), "expected a list of choices"),
        ("useLinear", (0, 1), "expected a list of choices"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_by_name(name, given, says):
    with pytest.raises(InvalidParamError, match=says):
        dimension_of(name, given)


def test_draws_cover_the_choices_evenly():
    counts = {}
    for params in drawn(space(), 3000):
        for name, value in itertools.islice(params.items(), 2):
            counts[name, value] = counts.get((name, value), 0) + 1

    for optimizer in ("adagrad", "adam", "sgd"):
        assert counts["optimizer", optimizer] / 3000 == pytest.approx(1 / 3, abs=0.04)
    for k in (4, 8, 16, 32, 64):
        assert counts["numFactors", k] / 3000 == pytest.approx(1 / 5, abs=0.04)
