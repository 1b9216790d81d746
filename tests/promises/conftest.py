"""Real rows that the promises are shown on, read once a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import Rows, Split, a9a, frappe, ml100k_binary, ml100k_regression, to_frame

# What a fit would find out by trainings of its own: tests/ml/test_solver.py and
# tests/training/test_race.py, on Spark Connect too.
GIVEN = {"solver": "sgd", "biasLr": 0.2, "linearLr": 0.2, "factorsLr": 0.2}


def head(rows: Rows, n_rows: int, *, seed: int = 1) -> Rows:
    """Return some rows of a split, drawn over all of it: files are sorted by user."""
    chosen = np.random.default_rng(seed).permutation(len(rows.y))[:n_rows]
    return Rows(rows.X[chosen], rows.y[chosen])


@pytest.fixture(scope="session")
def a9a_split() -> Split:
    return a9a()


@pytest.fixture(scope="session")
def adult(spark: SparkSession, a9a_split: Split) -> DataFrame:
    """4,000 training rows of UCI Adult."""
    return to_frame(spark, head(a9a_split.train, 4000)).cache()


@pytest.fixture(scope="session")
def adult_test(spark: SparkSession, a9a_split: Split) -> DataFrame:
    """2,000 held-out rows of UCI Adult."""
    return to_frame(spark, head(a9a_split.test, 2000)).cache()


@pytest.fixture(scope="session")
def apps(spark: SparkSession, data_folder: Path) -> DataFrame:
    """6,000 rows of Frappe: which app was used, in which context."""
    return to_frame(spark, head(frappe().train, 6000)).cache()


@pytest.fixture(scope="session")
def liked_rows(data_folder: Path) -> Rows:
    """8,000 ratings of MovieLens 100K, 1 where there are four stars or more."""
    return head(ml100k_binary().train, 8000)


@pytest.fixture(scope="session")
def liked(spark: SparkSession, liked_rows: Rows) -> DataFrame:
    return to_frame(spark, liked_rows).cache()


@pytest.fixture(scope="session")
def stars(spark: SparkSession, data_folder: Path) -> DataFrame:
    """8,000 ratings of MovieLens 100K, from 1 to 5."""
    return to_frame(spark, head(ml100k_regression().train, 8000)).cache()
