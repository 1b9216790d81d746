"""Machines of these tests, and how their models are compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spark_fm import FactorizationMachine
from spark_fm.spark.session import SparkCluster
from spark_fm.training import dataset

N_FEATURES = 40


def machine(**params):
    fixed = {"numFactors": 4, "epochs": 2, "seed": 5, "factorsInitSigma": 0.3}
    fixed |= dict.fromkeys(("biasLr", "linearLr", "factorsLr"), 0.2)  # no race: test_race.py
    if params.get("numWorkers", 0) > 1:
        fixed |= {"averagingsPerEpoch": 2, "refit": "never"}
    return FactorizationMachine(**{**fixed, **params})


def pretend_cluster(monkeypatch, *, keeps_order=True, **changes):
    """Let sessions be taken for those of another cluster.

    Its shuffles keep the order of rows, as those of one machine do, unless a test is of the order.
    """
    of = SparkCluster.of
    if keeps_order:
        monkeypatch.setattr(dataset, "comes_in_any_order", lambda _: False)
    monkeypatch.setattr(SparkCluster, "of", lambda session: replace(of(session), **changes))


def assert_same_model(a, b):
    assert a.weights.bias == b.weights.bias
    np.testing.assert_array_equal(a.weights.table, b.weights.table)
