"""Column metadata: written as Spark's own models write it, read where Spark's stages left it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.errors import PySparkException
from pyspark.ml.classification import DecisionTreeClassifier, LogisticRegression
from pyspark.ml.feature import (
    FeatureHasher,
    HashingTF,
    OneHotEncoder,
    StringIndexer,
    VectorAssembler,
    VectorSizeHint,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import DecisionTreeRegressor, LinearRegression
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachineModel
from spark_fm.spark.schema import ColumnNames, internal_rows
from tests.ml.builders import fast_fm, frame_of

SPARK_S = ["prediction", "probability", "rawPrediction"]


def metadata(frame: DataFrame, name: str) -> dict[str, object]:
    return frame.schema[name].metadata


# Written --------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [LogisticRegression, DecisionTreeClassifier])
def test_a_classifier_s_outputs_are_described_as_by_spark_s_own(
    peer: type, train: DataFrame, classifier: FactorizationMachineModel
) -> None:
    expected = peer().fit(train).transform(train)

    scored = classifier.transform(train)

    for name in SPARK_S:
        assert metadata(expected, name)["ml_attr"]
        assert metadata(scored, name) == metadata(expected, name), name
    assert metadata(scored, "predicted_label") == metadata(expected, "prediction")


@pytest.mark.parametrize("peer", [LinearRegression, DecisionTreeRegressor])
def test_a_regressor_s_prediction_is_described_as_by_spark_s_own(
    peer: type, ratings: DataFrame, regressor: FactorizationMachineModel
) -> None:
    expected = peer().fit(ratings).transform(ratings)

    scored = regressor.transform(ratings)

    assert metadata(scored, "prediction") == metadata(expected, "prediction")
    assert metadata(scored, "score") == {"ml_attr": {"type": "numeric"}}


def test_a_classifier_s_score_is_a_number_from_0_to_1(
    train: DataFrame, classifier: FactorizationMachineModel
) -> None:
    scored = classifier.transform(train)

    assert metadata(scored, "score") == {"ml_attr": {"type": "numeric", "min": 0.0, "max": 1.0}}


def test_spark_s_stages_read_what_the_outputs_say(
    train: DataFrame, classifier: FactorizationMachineModel
) -> None:
    scored = classifier.transform(train)
    columns = ["score", "predicted_label", "probability"]

    stacked = VectorAssembler(inputCols=columns, outputCol="stacked").transform(scored)

    attributes = metadata(stacked, "stacked")["ml_attr"]
    assert attributes["num_attrs"] == 4
    assert [a["name"] for a in attributes["attrs"]["nominal"]] == ["predicted_label"]
    assert {"score", "probability_0"} <= {a["name"] for a in attributes["attrs"]["numeric"]}


def test_metadata_survive_parquet(
    spark: SparkSession, train: DataFrame, classifier: FactorizationMachineModel, tmp_path: Path
) -> None:
    scored = classifier.transform(train)

    scored.write.parquet(str(tmp_path / "scored"))
    back = spark.read.parquet(str(tmp_path / "scored"))

    for name in ("score", "predicted_label", *SPARK_S):
        assert metadata(back, name) == metadata(scored, name)


def test_transform_alone_reads_no_row(
    train: DataFrame, classifier: FactorizationMachineModel
) -> None:
    frame = train.where(F.raise_error(F.lit("a row was read")).isNull())

    scored = classifier.transform(frame)

    assert metadata(scored, "prediction")
    with pytest.raises(PySparkException, match="a row was read"):
        scored.collect()


def test_the_names_of_features_stay_out_of_the_plans_of_a_training(train: DataFrame) -> None:
    names = [{"idx": i, "name": f"column {i}"} for i in range(20)]
    attributes = {"num_attrs": 20, "attrs": {"numeric": names}}
    described = train.withMetadata("features", {"ml_attr": attributes})

    rows = internal_rows(described, ColumnNames("features", "label"))

    assert metadata(rows, "features") == {"ml_attr": {}}
    assert np.array_equal(fast_fm().fit(described).factors, fast_fm().fit(train).factors)


# Read -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(spark: SparkSession) -> DataFrame:
    """40 rows of a label, a string of 5 values, one of them late, and a number."""
    rows = [(float(i % 2), "abcde"[i % 5 if i < 35 else 4], float(i % 3)) for i in range(40)]
    return spark.createDataFrame(rows, ["label", "kind", "x"]).coalesce(1)


def test_feature_dim_is_what_the_assembler_declares(raw: DataFrame) -> None:
    indexed = StringIndexer(inputCol="kind", outputCol="index").fit(raw).transform(raw)
    encoder = OneHotEncoder(inputCols=["index"], outputCols=["one"], dropLast=False)
    encoded = encoder.fit(indexed).transform(indexed)
    assembled = VectorAssembler(inputCols=["one", "x"], outputCol="features").transform(encoded)

    for column, size in (("one", 5), ("features", 6)):
        assert fast_fm(featuresCol=column).fit(assembled).numFeatures == size


@pytest.mark.parametrize("size", [50, 2**20])
def test_feature_dim_is_what_the_hasher_declares(raw: DataFrame, size: int) -> None:
    hasher = FeatureHasher(inputCols=["kind", "x"], outputCol="features", numFeatures=size)

    model = fast_fm().fit(hasher.transform(raw))

    assert model.numFeatures == size


def test_feature_dim_is_what_hashing_tf_declares(raw: DataFrame) -> None:
    words = raw.withColumn("words", F.array("kind"))

    hashed = HashingTF(inputCol="words", outputCol="features", numFeatures=64).transform(words)

    assert fast_fm().fit(hashed).numFeatures == 64


def test_feature_dim_is_what_a_size_hint_declares(train: DataFrame) -> None:
    hinted = VectorSizeHint(inputCol="features", size=20).transform(train)

    assert fast_fm().fit(hinted).numFeatures == 20


def test_a_feature_dim_that_was_set_comes_before_the_metadata(raw: DataFrame) -> None:
    encoder = OneHotEncoder(inputCols=["x"], outputCols=["features"])
    encoded = encoder.fit(raw).transform(raw)

    assert fast_fm(featureDim=99).fit(encoded).numFeatures == 99


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"attrs": {"numeric": [{"idx": 0, "name": "only the first"}]}},
        {"num_attrs": 0},
        {"num_attrs": -1},
    ],
    ids=["none", "some without a number of them", "zero", "negative"],
)
def test_without_a_declared_number_the_vectors_own_size_counts(
    spark: SparkSession, attributes: dict[str, object]
) -> None:
    vectors = [Vectors.sparse(7, [i % 7], [1.0]) for i in range(20)]
    frame = frame_of(spark, [(float(i % 2), vector) for i, vector in enumerate(vectors)])
    described = frame.withMetadata("features", {"ml_attr": attributes})

    assert fast_fm().fit(described).numFeatures == 7
