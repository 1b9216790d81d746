"""Machines of these tests, and how their models are compared."""

from __future__ import annotations

import numpy as np

from spark_fm import FactorizationMachine

N_FEATURES = 40


def machine(**params):
    fixed = {"numFactors": 4, "epochs": 2, "seed": 5, "factorsInitSigma": 0.3}
    if params.get("numWorkers", 0) > 1:
        fixed |= {"averagingsPerEpoch": 2, "refit": "never"}
    return FactorizationMachine(**{**fixed, **params})


def assert_same_model(a, b):
    assert a.weights.bias == b.weights.bias
    np.testing.assert_array_equal(a.weights.table, b.weights.table)
