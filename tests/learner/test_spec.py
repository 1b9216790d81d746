"""Range checks name the Param, the value seen and what is allowed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from spark_fm.errors import InvalidParamError
from spark_fm.learner.spec import MAX_FACTORS
from tests.builders import train_spec

BAD = [
    ("k", "numFactors", [0, -1, MAX_FACTORS + 1]),
    ("loss", "loss", ["hinge", ""]),
    ("optimizer", "optimizer", ["rmsprop", ""]),
    ("epochs", "epochs", [0, -3, 1_000_001]),
    ("seed", "seed", [2**63, -(2**63) - 1]),
    ("mini_batch_size", "miniBatchSize", [0, -1, 2**31]),
    ("adagrad_init", "adagradInit", [-0.1, math.inf, math.nan]),
    ("decay_frequency_power", "decayFrequencyPower", [-0.1, 1.1, math.nan]),
    ("clip_gradient", "clipGradient", [0.0, -1.0, math.nan]),
    ("eps", "eps", [-1e-9, math.inf, math.nan]),
    ("rescale_grad", "rescaleGrad", [0.0, -1.0, math.inf, math.nan]),
]
BAD_GROUP = [
    ("lr", "Lr", [-0.1, math.inf, math.nan]),
    ("wd", "Wd", [-0.1, math.inf, math.nan]),
    ("init_method", "InitMethod", ["xavier", ""]),
    ("init_sigma", "InitSigma", [-0.1, math.inf, math.nan]),
    ("init_scale", "InitScale", [-0.1, math.inf, math.nan]),
    ("init_value", "InitValue", [math.inf, -math.inf, math.nan]),
]
GOOD = [
    ("k", [1, MAX_FACTORS]),
    ("epochs", [1, 1_000_000]),
    ("seed", [0, -1, 2**63 - 1, -(2**63)]),
    ("mini_batch_size", [1, 2**31 - 1]),
    ("adagrad_init", [0.0]),
    ("decay_frequency_power", [0.0, 1.0]),
    ("clip_gradient", [None, 1e-9]),
    ("eps", [0.0]),
    ("rescale_grad", [None, 1e-9]),
]


@pytest.mark.parametrize(
    ("field", "param", "value"), [(f, p, value) for f, p, values in BAD for value in values]
)
def test_a_bad_value_is_refused_by_the_name_of_its_param(
    field: str, param: str, value: object
) -> None:
    spec = train_spec(**{field: value})

    with pytest.raises(InvalidParamError) as caught:
        spec.check()

    assert str(caught.value).startswith(f"{param}={value!r} is not allowed: expected ")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("group", ["bias", "linear", "factors"])
@pytest.mark.parametrize(
    ("field", "suffix", "value"), [(f, s, value) for f, s, values in BAD_GROUP for value in values]
)
def test_a_bad_value_of_a_group_is_refused_by_the_name_of_its_param(
    group: str, field: str, suffix: str, value: object
) -> None:
    spec = train_spec()
    spec = replace(spec, **{group: replace(getattr(spec, group), **{field: value})})

    with pytest.raises(InvalidParamError) as caught:
        spec.check()

    assert str(caught.value).startswith(f"{group}{suffix}={value!r} is not allowed: expected ")


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in GOOD for v in values])
def test_the_ends_of_each_range_are_allowed(field: str, value: object) -> None:
    train_spec(**{field: value}).check()


@pytest.mark.parametrize("seed", [0, 7, 2**40, -1, -(2**63), 2**63 - 1])
def test_every_seed_gives_its_own_non_negative_words(seed: int) -> None:
    low, high = train_spec(seed=seed).init_key

    assert 0 <= low < 2**32
    assert 0 <= high < 2**32
    assert (high << 32 | low) == seed % 2**64
