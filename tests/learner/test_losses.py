"""Compiled losses against the oracle, extremes included."""

from __future__ import annotations

import numpy as np
import pytest

from spark_fm.learner.losses import LOSSES
from spark_fm.learner.spec import LossName
from tests import oracle

SCORES = [-1000.0, -50.0, -3.0, -1e-8, 0.0, 1e-8, 0.3, 4.0, 50.0, 1000.0]


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("name", ["logistic", "squared"])
def test_loss_and_gradient_equal_the_oracle(name: LossName, label: float) -> None:
    loss_of, gradient_of = LOSSES[name].value, LOSSES[name].gradient
    for value in SCORES:
        # Float64 with approximate exp and log allowed ("afn"): a few units of 1e-16.
        expected = oracle.loss(name, value, label)
        assert loss_of(value, label) == pytest.approx(expected, rel=1e-13, abs=1e-20)
        expected = oracle.slope(name, value, label)
        assert gradient_of(value, label) == pytest.approx(expected, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("name", ["logistic", "squared"])
def test_a_nan_score_is_not_hidden(name: LossName) -> None:
    loss_of, gradient_of = LOSSES[name].value, LOSSES[name].gradient

    assert np.isnan(loss_of(np.nan, 1.0))
    assert np.isnan(gradient_of(np.nan, 1.0))
