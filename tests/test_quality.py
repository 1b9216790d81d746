"""Defaults and documented settings reach their bars; workers do not change the result.

Bars are the figures of benchmarks/quality.py, taken from peers on the same splits. The
whole table, three seeds and 32 workers, is ``make bench-quality``.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.datasets import to_frame
from benchmarks.quality import (
    BARS_DEFAULT,
    BARS_DOCUMENTED,
    DOCUMENTED,
    best_test_loss,
    fit_default,
)
from spark_fm import FactorizationMachine

SEED = 1


@pytest.fixture(scope="module")
def split(request):
    from benchmarks.datasets import SPLITS

    if request.param != "a9a":
        folder = request.getfixturevalue("data_folder")
        if request.param.startswith("criteo") and not (folder / "criteo").is_dir():
            pytest.skip(f"{folder} has no criteo, whose terms forbid passing it on")
    return SPLITS[request.param]()


# One set is checked by ``make test`` as well.
@pytest.mark.parametrize(
    "split",
    [name if name == "a9a" else pytest.param(name, marks=pytest.mark.quality)
     for name in BARS_DEFAULT],
    indirect=True,
)  # fmt: skip
def test_defaults_reach_the_bar(spark, split):
    figure = fit_default(spark, split, SEED)
    bar = BARS_DEFAULT[split.name]

    assert figure.loss <= bar.loss
    assert not figure.accuracy < bar.accuracy


@pytest.mark.quality
@pytest.mark.parametrize("split", list(BARS_DOCUMENTED), indirect=True)
def test_the_documented_setting_reaches_its_bar(spark, split):
    figure = fit_default(spark, split, SEED, **DOCUMENTED[split.name])
    bar = BARS_DOCUMENTED[split.name]

    assert figure.loss <= bar.loss
    assert not figure.accuracy < bar.accuracy


@pytest.mark.quality
@pytest.mark.parametrize("split", ["ml100k-regression"], indirect=True)
def test_nine_of_ten_ratings_are_in_their_interval(spark, split):
    machine = FactorizationMachine(
        predictorType="regressor", numFactors=8, seed=SEED, keepPosterior=True
    )

    model = machine.fit(to_frame(spark, split.train))

    mean, std = model.posterior.predict(split.test.X, return_std=True)
    assert 0.88 <= np.mean(np.abs(split.test.y - mean) <= 1.645 * std) <= 0.92


@pytest.mark.quality
@pytest.mark.parametrize(("split", "epochs"), [("a9a", 6), ("ml100k-regression", 6)],
                         indirect=["split"])  # fmt: skip
def test_the_best_loss_does_not_depend_on_the_number_of_workers(spark, split, epochs):
    alone = best_test_loss(spark, split, 1, SEED, epochs)

    for workers in (2, 8):
        bound = 1.02 if split.train.X.shape[0] / workers < 5000 else 1.01
        assert best_test_loss(spark, split, workers, SEED, epochs) <= bound * alone
