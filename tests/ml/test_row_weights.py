"""A row of weight 3 counts as three rows: in training, in averaging, in the metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import Rows, Split, a9a, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel

RATE = 3.0  # of the rarer class
GIVEN = {"biasLr": 0.2, "linearLr": 0.2, "factorsLr": 0.2}  # those of a race may differ


@pytest.fixture(scope="module")
def split() -> Split:
    """10,000 training rows of a9a, and its test set."""
    whole = a9a()
    some = Rows(whole.train.X[:10_000], whole.train.y[:10_000])
    return replace(whole, train=some)


@pytest.fixture(scope="module")
def weighted(spark: SparkSession, split: Split) -> DataFrame:
    """Rows whose rarer class weighs three times as much."""
    frame = to_frame(spark, split.train, 2)
    weight = F.when(F.col("label") == 1, RATE).otherwise(1.0)
    return frame.withColumn("weight", weight).cache()


@pytest.fixture(scope="module")
def repeated(spark: SparkSession, split: Split) -> DataFrame:
    """The same with each row of the rarer class three times."""
    rows = split.train
    times = np.where(rows.y == 1, int(RATE), 1)
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(len(times)), times))
    return to_frame(spark, Rows(rows.X[order], rows.y[order]), 2).cache()


def balanced_loss(model: FactorizationMachineModel, test: Rows) -> float:
    """Return the log loss of the test set with the rarer class weighing three times."""
    score = np.clip(model.predict(test.X).astype(np.float64), 1e-12, 1 - 1e-12)
    losses = -np.where(test.y == 1, np.log(score), np.log1p(-score))
    return float(np.average(losses, weights=np.where(test.y == 1, RATE, 1.0)))


def machine(**params: object) -> FactorizationMachine:
    fixed = {"numFactors": 4, "epochs": 6, "seed": 2, "refit": "never", "solver": "sgd"}
    return FactorizationMachine(**{**fixed, **params})


@pytest.mark.parametrize(
    "params",
    [
        GIVEN,
        {"optimizer": "sgd", "linearLr": 0.0017, "factorsLr": 0.0017, "epochs": 18},
        {"optimizer": "adam", "miniBatchSize": 100},
        GIVEN | {"numWorkers": 4, "averagingsPerEpoch": 4},
    ],
    ids=["adagrad", "sgd", "adam in batches", "four workers"],
)
def test_weighted_rows_train_the_model_of_repeated_rows(
    weighted: DataFrame, repeated: DataFrame, split: Split, params: dict[str, object]
) -> None:
    by_weight = machine(weightCol="weight", **params).fit(weighted)
    by_rows = machine(**params).fit(repeated)
    plain = machine(**params).fit(weighted)

    losses = [balanced_loss(model, split.test) for model in (by_weight, by_rows, plain)]

    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[2] > 1.1 * losses[1]


def test_validation_counts_weights(weighted: DataFrame, repeated: DataFrame) -> None:
    def with_part(rows: DataFrame) -> DataFrame:
        return rows.withColumn("held_out", F.hash("features") % 10 == 0)

    still = {"biasLr": 0.0, "linearLr": 0.0, "factorsLr": 0.0, "epochs": 1, "patience": 0}
    start = {"biasInitValue": 0.3, "linearInitMethod": "normal", "linearInitSigma": 0.3}

    part = {"validationIndicatorCol": "held_out"}

    by_weight = machine(weightCol="weight", **still, **start, **part).fit(with_part(weighted))
    by_rows = machine(**still, **start, **part).fit(with_part(repeated))

    one, other = by_weight.summary.history.iloc[0], by_rows.summary.history.iloc[0]
    names = [name for name in one.index if name.startswith("validation")]
    assert len(names) >= 4
    for name in names:
        assert one[name] == pytest.approx(other[name], rel=1e-6), name
    assert one["trainLoss"] == pytest.approx(other["trainLoss"], rel=1e-6)
