"""Rows explained: the parts make the margin that transform has, with names where there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.errors import PySparkException
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import Rows, a9a, mnist0, to_frame
from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidColumnError, InvalidParamError
from spark_fm.learner.csr import CsrBatch
from tests import oracle
from tests.builders import random_batch
from tests.ml.builders import N_FEATURES, fast_fm, frame_of, planted_rows, sparse_vectors

# The margin of transform is a float32; those of these models and rows are below 10.
CLOSE = 1e-5


def parts_sum(explanation: Any) -> float:
    listed = [part["contribution"] for part in [*explanation["linear"], *explanation["pairs"]]]
    return sum(listed) + sum(explanation[name] for name in ("bias", "other_linear", "other_pairs"))


def test_the_parts_add_up_to_the_margin_of_the_score(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    model = classifier.copy()
    model.setRawPredictionCol("raw")

    explained = model.transform(model.explain(train, numPairs=2, numLinear=3)).collect()

    assert len(explained) == 300
    for row in explained:
        explanation = row["explanation"]
        assert explanation["margin"] == pytest.approx(row["raw"][1], abs=CLOSE)
        assert parts_sum(explanation) == pytest.approx(explanation["margin"], abs=1e-12)
        assert len(explanation["linear"]) <= 3
        assert len(explanation["pairs"]) <= 2
        assert explanation["bias"] == model.bias


def test_the_parts_of_a_regressor_add_up_to_its_score(
    regressor: FactorizationMachineModel, ratings: DataFrame
) -> None:
    for row in regressor.transform(regressor.explain(ratings)).collect():
        assert parts_sum(row["explanation"]) == pytest.approx(row["score"], abs=CLOSE)


def test_parts_are_those_of_loops_over_pairs(
    classifier: FactorizationMachineModel, spark: SparkSession
) -> None:
    batch = planted_rows(20, seed=8)
    frame = frame_of(spark, [(0.0, vector) for vector in sparse_vectors(batch)])
    model = oracle.Model.of_table(classifier.weights.table, classifier.bias)

    explained = classifier.explain(frame, numPairs=100).collect()

    for r, row in enumerate(explained):
        entries = oracle.entries_of(batch, r)
        linear = {p["feature"]: p["contribution"] for p in row["explanation"]["linear"]}
        pairs = {
            (p["feature_a"], p["feature_b"]): p["contribution"] for p in row["explanation"]["pairs"]
        }
        assert linear == pytest.approx({j: model.w[j] * x for j, x in entries}, abs=1e-12)
        assert pairs == pytest.approx(
            {
                (i, j): float(model.V[i] @ model.V[j]) * x * y
                for a, (i, x) in enumerate(entries)
                for j, y in entries[a + 1 :]
            },
            abs=1e-12,
        )


def test_all_columns_and_rows_are_kept_in_order(
    classifier: FactorizationMachineModel, spark: SparkSession
) -> None:
    vectors = sparse_vectors(planted_rows(30, seed=9))
    rows = [(f"row {i}", vector, i) for i, vector in enumerate(vectors)]
    frame = spark.createDataFrame(rows, ["name", "features", "odd.name"]).coalesce(1)

    explained = classifier.explain(frame, explanationCol="why")

    assert explained.columns == ["name", "features", "odd.name", "why"]
    assert [tuple(row)[:3] for row in explained.collect()] == rows


def test_arrays_are_explained_like_vectors(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    arrays = hand_made.withColumn("features", vector_to_array("features"))

    by_vector, by_array = (classifier.explain(frame).collect() for frame in (hand_made, arrays))

    assert [row["explanation"] for row in by_vector] == [row["explanation"] for row in by_array]


def test_names_come_from_the_assembler(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    rows = [(0.5, Vectors.dense(np.linspace(-1, 1, N_FEATURES - 1)))]
    raw = spark.createDataFrame(rows, ["age", "rest"])
    frame = VectorAssembler(inputCols=["rest", "age"], outputCol="features").transform(raw)

    (row,) = classifier.explain(frame).collect()
    named = classifier.to_frame(frame)

    names = {part["feature"]: part["name"] for part in row["explanation"]["linear"]}
    assert names[N_FEATURES - 1] == "age"
    assert names[0] == "rest_0"
    assert named["name"].tolist() == [*(f"rest_{j}" for j in range(N_FEATURES - 1)), "age"]
    by_pair = row["explanation"]["pairs"][0]
    assert names[by_pair["feature_a"]] == by_pair["name_a"]
    assert names[by_pair["feature_b"]] == by_pair["name_b"]


def test_rows_that_cannot_be_scored_are_treated_as_transform_does(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    good = Vectors.sparse(N_FEATURES, [0], [1.0])
    bad = Vectors.sparse(N_FEATURES, [1], [float("nan")])
    frame = frame_of(spark, [(0.0, good), (1.0, bad), (2.0, None), (3.0, good)])
    keeping, skipping = classifier.copy(), classifier.copy()
    keeping.setHandleInvalid("keep")
    skipping.setHandleInvalid("skip")

    kept, skipped = (model.explain(frame).collect() for model in (keeping, skipping))

    assert [row["explanation"] is None for row in kept] == [False, True, True, False]
    assert [row["label"] for row in skipped] == [0.0, 3.0]
    with pytest.raises(PySparkException, match="featuresCol='features' holds"):
        classifier.explain(frame).collect()


def test_illegal_requests_are_refused_at_once(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    for arguments in ({"numPairs": -1}, {"numPairs": 1001}, {"numPairs": 1.5}, {"numLinear": -1}):
        with pytest.raises(InvalidParamError, match=next(iter(arguments))):
            classifier.explain(train, **arguments)
    with pytest.raises(InvalidColumnError, match="explanationCol='label' is a column"):
        classifier.explain(train, explanationCol="label")
    with pytest.raises(InvalidColumnError, match="featuresCol='features' is not a column"):
        classifier.explain(train.select("label"))


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_the_waterfall_of_a_row_ends_at_its_margin_and_says_its_score(
    kind: str, request: pytest.FixtureRequest, train: DataFrame, tmp_path: Path
) -> None:
    model = request.getfixturevalue(kind)
    row = model.transform(model.explain(train, numPairs=4)).first()

    figure = model.plot_explanation(row["explanation"], top=3, path=str(tmp_path / "row.png"))

    [axes] = figure.axes
    last = axes.patches[-1]
    assert len(axes.patches) == 5  # the bias, three parts, all others
    assert last.get_x() + last.get_width() == pytest.approx(row["explanation"]["margin"])
    assert axes.get_title().startswith(f"Score {row['score']:.4g}")
    assert (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")
    same = model.plot_explanation(row["explanation"].asDict(recursive=True), top=3)
    assert same.axes[0].patches[-1].get_x() == last.get_x()
    for wrong in (None, row, {"margin": 1.0}):
        with pytest.raises(InvalidParamError, match=r'explained.first\(\)\["explanation"\]'):
            model.plot_explanation(wrong)


def test_the_frame_of_a_model_has_its_parameters(classifier: FactorizationMachineModel) -> None:
    frame = classifier.to_frame()

    assert frame.columns.tolist() == ["feature", "linear", *(f"factor_{f}" for f in range(4))]
    np.testing.assert_array_equal(frame["feature"], np.arange(N_FEATURES))
    np.testing.assert_array_equal(frame["linear"], classifier.linear)
    np.testing.assert_array_equal(frame.filter(like="factor_"), classifier.factors)


def test_the_frame_of_a_model_of_few_ids_lists_these(spark: SparkSession) -> None:
    rows = [(float(i % 2), Vectors.sparse(10**6, [10 * i], [1.0])) for i in range(30)]
    model = fast_fm(featureDim=10**6).fit(frame_of(spark, rows))

    assert model.features is not None
    assert model.to_frame()["feature"].tolist() == [10 * i for i in range(30)]
    unseen = frame_of(spark, [(0.0, Vectors.sparse(10**6, [5, 10], [1.0, 1.0]))])
    (explanation,) = (row["explanation"] for row in model.explain(unseen).collect())
    assert [part["feature"] for part in explanation["linear"]] == [10, 5]
    assert explanation["linear"][1]["contribution"] == 0
    assert explanation["pairs"] == []


@pytest.mark.parametrize("name", ["a9a", "mnist0"])
def test_real_rows_are_explained_exactly(
    spark: SparkSession, name: str, request: pytest.FixtureRequest
) -> None:
    if name != "a9a":
        request.getfixturevalue("data_folder")
    split = {"a9a": a9a, "mnist0": mnist0}[name]()
    train, test = (Rows(rows.X[:300], rows.y[:300]) for rows in (split.train, split.test))
    model = fast_fm(epochs=1, featureDim=split.train.X.shape[1]).fit(to_frame(spark, train, 1))
    batch = CsrBatch.from_matrix(test.X[:20])
    twin = oracle.Model.of_table(model.weights.table, model.bias)
    if model.features is not None:
        twin.w, twin.V = np.zeros(split.train.X.shape[1]), np.zeros((split.train.X.shape[1], 4))
        twin.w[model.features], twin.V[model.features] = model.linear, model.factors

    frame = to_frame(spark, Rows(test.X[:20], np.arange(20.0)), 1)
    explained = model.explain(frame, numPairs=5).orderBy("label").collect()

    for r, row in enumerate(explained):
        # Up to 40,000 pairs of a dense row, of less than 1 each.
        expected = oracle.score(twin, oracle.entries_of(batch, r))
        assert row["explanation"]["margin"] == pytest.approx(expected, abs=1e-9)
        assert parts_sum(row["explanation"]) == pytest.approx(expected, abs=1e-9)


def test_no_rows_are_explained_as_no_rows(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    assert classifier.explain(train.where(F.lit(False))).collect() == []


def test_rows_of_a_file_are_explained(
    classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Any
) -> None:
    train.write.parquet(str(tmp_path / "rows"))
    stored = train.sparkSession.read.parquet(str(tmp_path / "rows"))

    assert classifier.explain(stored).where("explanation.margin > 0").count() > 0


def test_wide_random_rows_keep_to_the_limits(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    batch = random_batch(40, N_FEATURES, seed=3, lengths=(15, 20))
    frame = frame_of(spark, [(0.0, vector) for vector in sparse_vectors(batch)])

    for row in classifier.explain(frame, numPairs=7, numLinear=0).collect():
        sizes = [abs(part["contribution"]) for part in row["explanation"]["pairs"]]
        assert len(sizes) == 7
        assert sizes == sorted(sizes, reverse=True)
        assert row["explanation"]["linear"] == []
        assert parts_sum(row["explanation"]) == pytest.approx(row["explanation"]["margin"])
