"""Shared data and fitted models: each is made once a session and read by many tests."""

from __future__ import annotations

import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachineModel
from tests.ml.builders import fast_fm, frame_of, planted_frame


@pytest.fixture(scope="session")
def train(spark: SparkSession) -> DataFrame:
    """300 binary rows of 20 features."""
    return planted_frame(spark, 300, seed=3)


@pytest.fixture(scope="session")
def ratings(spark: SparkSession) -> DataFrame:
    """200 rows of 20 features with real-valued labels."""
    return planted_frame(spark, 200, seed=5, loss="squared")


@pytest.fixture(scope="session")
def hand_made(spark: SparkSession) -> DataFrame:
    """Eight rows: sparse, dense, with no entry at all."""
    vectors = [
        Vectors.sparse(20, [0, 3], [1.0, -2.0]),
        Vectors.dense([0.5] * 20),
        Vectors.sparse(20, [], []),
        Vectors.sparse(20, [19], [4.0]),
        Vectors.dense([0.0] * 20),
        Vectors.dense([0.0, 1.0] * 10),
        Vectors.sparse(20, [1, 2, 3], [1.0, 1.0, 1.0]),
        Vectors.sparse(20, [0], [-1.0]),
    ]
    return frame_of(spark, [(float(i % 2), vector) for i, vector in enumerate(vectors)])


@pytest.fixture(scope="session")
def classifier(train: DataFrame) -> FactorizationMachineModel:
    """A classifier of 20 features; copy it before setting a Param."""
    return fast_fm(epochs=4, validationFraction=0.2).fit(train)


@pytest.fixture(scope="session")
def regressor(ratings: DataFrame) -> FactorizationMachineModel:
    """A regressor of 20 features; copy it before setting a Param."""
    return fast_fm(predictorType="regressor").fit(ratings)
