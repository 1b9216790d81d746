"""What users of pyspark.ml expect of a fitted model, shown on real data: a class a promise.

Run on Spark Connect, by ``make test-connect``; ``tests/ml`` shows each with its corners on Classic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    FMClassificationModel,
    FMClassifier,
    OneVsRest,
    OneVsRestModel,
)
from pyspark.ml.feature import OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import FMRegressionModel, FMRegressor
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_fm
from benchmarks.datasets import Rows, Split, mnist, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel
from tests.adult import CATEGORIES, adult_frame
from tests.ml.builders import column
from tests.promises.conftest import GIVEN, head

pytestmark = [pytest.mark.connect, pytest.mark.contract]

# float32 sums of at most 14 features x 4 factors against float64.
ROUNDING = 1e-4
N_USERS, N_MOVIES = 943, 1682


def machine(**changes: Any) -> FactorizationMachine:
    return FactorizationMachine(**{**GIVEN, "numFactors": 4, "epochs": 3, "seed": 7, **changes})


@pytest.fixture(scope="module")
def model(adult: DataFrame) -> FactorizationMachineModel:
    return machine().fit(adult)


class TestMultiClass:
    """Under OneVsRest."""

    def test_digits_are_distinguished_and_the_model_comes_back(
        self, spark: SparkSession, data_folder: Path, tmp_path: Path
    ) -> None:
        train, test = (
            to_frame(spark, mnist(part, n_rows), 1).where("label < 3").cache()
            for part, n_rows in (("train", 1200), ("t10k", 600))
        )
        fm = machine(linearLr=0.1, factorsLr=0.1)

        fitted = OneVsRest(classifier=fm, parallelism=2).fit(train)
        fitted.save(str(tmp_path / "model"))
        scored = OneVsRestModel.load(str(tmp_path / "model")).transform(test)

        rows = scored.select("label", "prediction").collect()
        assert np.mean([row["label"] == row["prediction"] for row in rows]) > 0.95
        assert len({row["prediction"] for row in rows}) == 3


class TestScoringWherePeopleScore:
    """SQL functions, streams, MLflow."""

    def test_sql_gives_the_scores_of_transform(
        self, spark: SparkSession, model: FactorizationMachineModel, adult_test: DataFrame
    ) -> None:
        spark_fm.register_udf(spark, "fm_score", model)
        scored = model.transform(adult_test)
        scored.createOrReplaceTempView("scored_people")

        found = spark.sql(
            "SELECT count(*) AS n, max(abs(fm_score(features) - score)) AS off FROM scored_people"
        ).first()

        assert (found["n"], found["off"]) == (2000, 0.0)

    def test_a_stream_of_files_has_the_scores_of_the_batch(
        self, spark: SparkSession, model: FactorizationMachineModel, adult_test: DataFrame,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        rows = adult_test.withColumn("id", F.monotonically_increasing_id())
        rows.repartition(3, "id").write.parquet(str(tmp_path / "rows"))
        rows = spark.read.parquet(str(tmp_path / "rows"))
        stream = spark.readStream.schema(rows.schema).parquet(str(tmp_path / "rows"))

        writer = model.transform(stream).writeStream.format("parquet").trigger(availableNow=True)
        writer = writer.option("checkpointLocation", str(tmp_path / "checkpoint"))
        writer.start(str(tmp_path / "scored")).awaitTermination()

        written = spark.read.parquet(str(tmp_path / "scored")).orderBy("id")
        expected = model.transform(rows).orderBy("id")
        assert np.array_equal(column(written, "score"), column(expected, "score"))
        assert written.count() == 2000

    def test_mlflow_takes_epochs_and_the_model_both_ways(
        self, adult: DataFrame, a9a_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mlflow = pytest.importorskip("mlflow")
        from spark_fm.mlflow import log_model

        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
        temporary = str(tmp_path / "dfs")
        with mlflow.start_run() as run:
            fitted = machine().fit(adult)
            info = log_model(fitted, input_example=a9a_split.test.X[:1])
        with mlflow.start_run():
            by_spark = mlflow.spark.log_model(
                PipelineModel([fitted]),
                "model",
                dfs_tmpdir=temporary,
                pip_requirements=["spark-fm"],
            )

        logged = mlflow.MlflowClient().get_metric_history(run.info.run_id, "validation_roc_auc")
        by_epoch = {metric.step: metric.value for metric in logged}  # MLflow may repeat one
        assert by_epoch == fitted.summary.history["validation_roc_auc"].to_dict()
        scored = mlflow.pyfunc.load_model(info.model_uri).predict(a9a_split.test.X)
        assert np.array_equal(
            scored["score"].to_numpy(np.float32), fitted.predict(a9a_split.test.X)
        )
        loaded = mlflow.spark.load_model(by_spark.model_uri, dfs_tmpdir=temporary)
        few = adult.limit(100)
        assert np.array_equal(
            column(loaded.transform(few), "score"), column(fitted.transform(few), "score")
        )


class TestComingFromMLlib:
    """FactorizationMachineModel.from_mllib gives the scores of MLlib's own model."""

    def test_a_classifier_keeps_its_scores(
        self, adult: DataFrame, adult_test: DataFrame, tmp_path: Path
    ) -> None:
        FMClassifier(factorSize=3, maxIter=15, stepSize=0.1, seed=3).fit(adult).save(
            str(tmp_path / "theirs")
        )
        theirs = FMClassificationModel.load(str(tmp_path / "theirs"))

        ours = FactorizationMachineModel.from_mllib(theirs)

        probability = vector_to_array("probability")[1].alias("p")
        expected = column(theirs.transform(adult_test).select(probability), "p")
        assert np.ptp(expected) > 0.5
        assert column(ours.transform(adult_test), "score") == pytest.approx(expected, abs=ROUNDING)
        assert (ours.numFeatures, ours.numClasses, ours.hasSummary) == (123, 2, False)
        assert ours.intercept == theirs.intercept
        vector = adult_test.first()["features"]
        assert ours.predict(vector) == theirs.predict(vector)

    def test_a_regressor_keeps_its_values(self, stars: DataFrame, tmp_path: Path) -> None:
        FMRegressor(factorSize=3, maxIter=15, stepSize=0.1, seed=3).fit(stars).save(
            str(tmp_path / "theirs")
        )
        theirs = FMRegressionModel.load(str(tmp_path / "theirs"))

        ours = FactorizationMachineModel.from_mllib(theirs)

        expected = column(theirs.transform(stars), "prediction")
        assert np.ptp(expected) > 0.5
        assert column(ours.transform(stars), "score") == pytest.approx(expected, abs=ROUNDING)
        vector = stars.first()["features"]
        assert ours.predict(vector) == pytest.approx(theirs.predict(vector), abs=ROUNDING)


@pytest.fixture(scope="module")
def named(spark: SparkSession, a9a_split: Split) -> DataFrame:
    """People with one feature a value of an attribute, named by Spark's own stages."""
    people = adult_frame(spark, head(a9a_split.train, 2000), 1)
    indexed = [f"{name}_index" for name in CATEGORIES]
    stages = [
        StringIndexer(inputCols=list(CATEGORIES), outputCols=indexed, handleInvalid="keep"),
        OneHotEncoder(inputCols=indexed, outputCols=[f"of_{name}" for name in CATEGORIES]),
        VectorAssembler(inputCols=[f"of_{name}" for name in CATEGORIES], outputCol="features"),
    ]
    assembled = Pipeline(stages=stages).fit(people).transform(people)
    return assembled.select("label", "features").cache()


class TestUnderstanding:
    """explain, strengths of features and groups, to_frame."""

    def test_parts_add_up_to_the_margin_of_the_score(self, named: DataFrame) -> None:
        fitted = machine().fit(named)

        rows = fitted.transform(fitted.explain(named, numPairs=3, numLinear=4)).head(50)

        for row in rows:
            why = row["explanation"]
            listed = [part["contribution"] for part in [*why["linear"], *why["pairs"]]]
            total = why["bias"] + sum(listed) + why["other_linear"] + why["other_pairs"]
            assert total == pytest.approx(why["margin"], abs=1e-9)
            assert 1 / (1 + np.exp(-total)) == pytest.approx(row["score"], abs=1e-6)
            assert all(part["name"].startswith("of_") for part in why["linear"])

    def test_features_and_groups_have_strengths_and_factors_have_names(
        self, named: DataFrame
    ) -> None:
        fitted = machine().fit(named)

        strengths, groups = fitted.feature_strengths(named), fitted.group_strengths(named)
        frame = fitted.to_frame(named)

        # What income hangs on most, by any study of these data.
        strongest = {name.split("_")[1] for name in strengths["name"].head(12)}
        assert strongest & {"marital", "relationship", "education", "capital", "occupation"}
        assert {"of_age", "of_race"} <= set(groups.columns)
        assert len(frame) == fitted.numFeatures == len(set(frame["name"]))
        row = frame.iloc[5]
        assert row["linear"] == fitted.linear[5]
        assert [row[f"factor_{f}"] for f in range(4)] == list(fitted.factors[5])


class TestRecommending:
    """The best k of every context, exactly; and vectors for an index."""

    def test_films_for_users_are_the_best_of_all_scores(
        self, spark: SparkSession, liked: DataFrame, liked_rows: Rows
    ) -> None:
        fitted = machine(featureDim=N_USERS + N_MOVIES).fit(liked)
        size, n_users = N_USERS + N_MOVIES, 30
        users = [(u, Vectors.sparse(size, [u], [1.0])) for u in range(n_users)]
        films = [(m, Vectors.sparse(size, [N_USERS + m], [1.0])) for m in range(N_MOVIES)]
        contexts = spark.createDataFrame(users, ["user", "features"])
        candidates = spark.createDataFrame(films, ["film", "features"])
        rated = liked_rows.X.indices.reshape(-1, 2) - [0, N_USERS]
        seen = spark.createDataFrame(rated.tolist(), ["user", "film"])

        best = (
            fitted.recommend(
                contexts, candidates, 10, contextCol="user", candidateCol="film", exclude=seen
            )
            .orderBy("user", "rank")
            .toPandas()
        )

        crossed = np.zeros((n_users * N_MOVIES, size), np.float32)
        rows = np.arange(len(crossed))
        crossed[rows, rows // N_MOVIES] = 1
        crossed[rows, N_USERS + rows % N_MOVIES] = 1
        scores = fitted.predict(crossed).reshape(n_users, N_MOVIES).astype(np.float64)
        known = rated[rated[:, 0] < n_users]
        assert len(known) > 0
        scores[known[:, 0], known[:, 1]] = -np.inf
        expected = -np.sort(-scores, axis=1)[:, :10]
        assert best["score"].to_numpy().reshape(n_users, 10) == pytest.approx(expected, abs=1e-5)
        assert scores[best["user"], best["film"]] == pytest.approx(best["score"], abs=1e-5)
        left, right = fitted.context_vectors(contexts).first(), fitted.candidate_vectors(candidates)
        vectors = np.array([row["vector"] for row in right.orderBy("film").collect()])
        margins = left["constant"] + vectors @ np.array(left["vector"])
        of_user = fitted.predict(crossed[:N_MOVIES]) if left["user"] == 0 else None
        assert 1 / (1 + np.exp(-margins)) == pytest.approx(of_user, abs=1e-5)
