"""Machines of these tests, and how their models are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spark_fm import FactorizationMachine
from spark_fm.spark.session import SparkCluster

N_FEATURES = 40


def machine(**params):
    fixed = {"numFactors": 4, "epochs": 2, "seed": 5, "factorsInitSigma": 0.3}
    fixed |= dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.2)  # no race: test_race.py
    if params.get("numWorkers", 0) > 1:
        fixed |= {"averagingsPerEpoch": 2, "refit": "never"}
    return FactorizationMachine(**{**fixed, **params})


def pretend_cluster(monkeypatch, **changes):
    """Let sessions be taken for those of another cluster."""
    of = SparkCluster.of
    monkeypatch.setattr(SparkCluster, "of", lambda session: replace(of(session), **changes))


def assert_same_model(a, b):
    assert a.weights.bias == b.weights.bias
    np.testing.assert_array_equal(a.weights.table, b.weights.table)
