"""A session is after our calls as it was before: Spark's own models work, nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyspark.ml.classification import (
    FMClassifier,
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    RandomForestClassifier,
)
from pyspark.ml.clustering import BisectingKMeans, GaussianMixture, KMeans
from pyspark.ml.regression import (
    FMRegressor,
    GeneralizedLinearRegression,
    LinearRegression,
)
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachineModel, FMEvaluator, tune
from spark_fm.training.callbacks import EpochReport, Progress
from tests.conftest import MODE
from tests.ml.builders import fast_fm

pytestmark = pytest.mark.connect

# Spark's models that keep a summary of their training, which holds the session.
SPARK_ESTIMATORS: dict[str, Any] = {
    "LogisticRegression": lambda: LogisticRegression(regParam=0.1, maxIter=2),
    "LinearSVC": lambda: LinearSVC(maxIter=2),
    "RandomForestClassifier": lambda: RandomForestClassifier(numTrees=2, maxDepth=2),
    "MultilayerPerceptronClassifier": lambda: MultilayerPerceptronClassifier(
        layers=[20, 2], maxIter=2
    ),
    "FMClassifier": lambda: FMClassifier(factorSize=2, maxIter=2, stepSize=0.01),
    "FMRegressor": lambda: FMRegressor(factorSize=2, maxIter=2, stepSize=0.01),
    "LinearRegression": lambda: LinearRegression(regParam=0.1, maxIter=2),
    "GeneralizedLinearRegression": lambda: GeneralizedLinearRegression(regParam=0.1, maxIter=2),
    "KMeans": lambda: KMeans(k=2, maxIter=2),
    "BisectingKMeans": lambda: BisectingKMeans(k=2, maxIter=2),
    "GaussianMixture": lambda: GaussianMixture(k=2, maxIter=2),
}


class StopError(Exception):
    """What a callback of the user raises in the middle of a training."""


def cancelled_fit(train: DataFrame) -> None:
    def stop(self: Progress, report: EpochReport, of: str = "") -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "__call__", stop)
        with pytest.raises(StopError):
            fast_fm(numWorkers=2).fit(train)


def everything(train: DataFrame, classifier: FactorizationMachineModel) -> None:
    """Call whatever starts a Spark job."""
    scored = fast_fm(numWorkers=2, validationFraction=0.2).fit(train).transform(train)
    scored.collect()
    FMEvaluator().evaluate(scored)
    classifier.evaluate(train)
    tune(fast_fm(validationFraction=0.2), train, trials=2, space={"factorsLr": [0.1, 0.2]})
    cancelled_fit(train)


@pytest.fixture(scope="module")
def used_session(
    spark: SparkSession, train: DataFrame, classifier: FactorizationMachineModel
) -> SparkSession:
    everything(train, classifier)
    return spark


@pytest.mark.parametrize("name", SPARK_ESTIMATORS)
def test_a_model_of_spark_s_own_trains_and_scores_afterwards(
    used_session: SparkSession, train: DataFrame, name: str
) -> None:
    model = SPARK_ESTIMATORS[name]().fit(train)

    assert len(model.transform(train).collect()) == 300


def classic_state(session: SparkSession) -> dict[str, Any]:
    context: Any = session.sparkContext
    return {
        "cached": set(context._jsc.getPersistentRDDs()),
        "job group": context.getLocalProperty("spark.jobGroup.id"),
        "job tags": set(context.getJobTags()),
        "log level": context._jvm.org.apache.log4j.LogManager.getRootLogger().getLevel().toString(),
    }


def state_of(session: SparkSession) -> dict[str, Any]:
    shared = {
        "settings": dict(session.conf.getAll),
        "tags": set(session.getTags()),
        "views": {table.name for table in session.catalog.listTables()},
    }
    return shared if MODE == "connect" else shared | classic_state(session)


@pytest.fixture
def calls(train: DataFrame, classifier: FactorizationMachineModel) -> dict[str, Callable[[], Any]]:
    return {
        "fit": lambda: fast_fm(numWorkers=2).fit(train),
        "fit in one task": lambda: fast_fm().fit(train),
        "cancelled fit": lambda: cancelled_fit(train),
        "transform": lambda: classifier.transform(train).collect(),
        "evaluate": lambda: classifier.evaluate(train),
        "tune": lambda: tune(
            fast_fm(validationFraction=0.2), train, trials=2, space={"factorsLr": [0.1, 0.2]}
        ),
    }


@pytest.mark.parametrize(
    "name", ["fit", "fit in one task", "cancelled fit", "transform", "evaluate", "tune"]
)
def test_settings_tags_views_caches_and_log_level_are_as_they_were(
    spark: SparkSession, train: DataFrame, calls: dict[str, Callable[[], Any]], name: str
) -> None:
    train.select(F.max("label")).collect()
    before = state_of(spark)

    calls[name]()

    assert state_of(spark) == before
