"""Strengths of features and groups over a DataFrame, and their picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml.feature import OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import Rows, a9a, to_frame
from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidParamError
from spark_fm.learner.csr import CsrBatch
from tests import oracle
from tests.ml.builders import fast_fm, frame_of, planted_rows, sparse_vectors

GROUPS = {"a": range(5), "b": [5, 6, 7, 8], "c": range(9, 18)}  # 18 and 19 are in none


def loops(model: oracle.Model, batch: CsrBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return means of each row's |linear|, |pairs|, |total| by feature, and the counts."""
    sums, counts = np.zeros((len(model.w), 3)), np.zeros(len(model.w))
    for r in range(batch.n_rows):
        entries = oracle.entries_of(batch, r)
        reach = sum((model.V[j] * x for j, x in entries), np.zeros(model.V.shape[1]))
        for j, x in entries:
            linear = model.w[j] * x
            pairs = float(model.V[j] @ (reach - model.V[j] * x)) * x
            sums[j] += np.abs([linear, pairs, linear + pairs])
            counts[j] += 1
    return sums / batch.n_rows, counts


def test_strengths_of_features_are_means_over_rows(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    batch = planted_rows(200, seed=8)
    frame = frame_of(spark, [(0.0, vector) for vector in sparse_vectors(batch)]).repartition(3)
    model = oracle.Model.of_table(classifier.weights.table, classifier.bias)

    strengths = classifier.feature_strengths(frame)

    means, counts = loops(model, batch)
    assert strengths.columns.tolist() == ["feature", "name", "n_rows", "linear", "pairs", "total"]
    assert strengths["total"].is_monotonic_decreasing
    assert strengths["name"].isna().all()
    by_feature = strengths.sort_values("feature")
    np.testing.assert_array_equal(by_feature["n_rows"], counts)
    np.testing.assert_allclose(by_feature[["linear", "pairs", "total"]], means, atol=1e-12)


def test_strengths_of_groups_are_means_over_rows(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    batch = planted_rows(200, seed=9)
    frame = frame_of(spark, [(0.0, vector) for vector in sparse_vectors(batch)]).repartition(3)
    model = oracle.Model.of_table(classifier.weights.table, classifier.bias)
    group_of = {j: g for g, ids in enumerate(GROUPS.values()) for j in ids}

    strengths = classifier.group_strengths(frame, GROUPS)

    expected = np.zeros((3, 4))
    for r in range(batch.n_rows):
        row = np.zeros((3, 4))
        entries = [entry for entry in oracle.entries_of(batch, r) if entry[0] in group_of]
        for a, (i, x) in enumerate(entries):
            row[group_of[i], 0] += model.w[i] * x
            for j, y in entries[a + 1 :]:
                part = float(model.V[i] @ model.V[j]) * x * y
                row[group_of[i], 1 + group_of[j]] += part
                if group_of[i] != group_of[j]:
                    row[group_of[j], 1 + group_of[i]] += part
        expected += np.abs(row)
    assert strengths.columns.tolist() == ["linear", "a", "b", "c"]
    assert strengths.index.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(strengths, expected / batch.n_rows, atol=1e-12)


def test_groups_are_found_by_the_columns_that_were_assembled(spark: SparkSession) -> None:
    rows = [(float(i % 2), f"u_{i % 3}", "xyz"[i % 3], i / 30) for i in range(30)]
    frame = spark.createDataFrame(rows, ["label", "user", "user_kind", "age"])
    index = StringIndexer(
        inputCols=["user", "user_kind"], outputCols=["user_index", "user_kind_index"]
    ).fit(frame)
    indexed = index.transform(frame)
    encoder = OneHotEncoder(
        inputCols=["user_index", "user_kind_index"], outputCols=["user_hot", "user_kind_hot"],
        dropLast=False,
    ).fit(indexed)  # fmt: skip
    assembler = VectorAssembler(
        inputCols=["user_hot", "user_kind_hot", "age"], outputCol="features"
    )
    assembled = assembler.transform(encoder.transform(indexed))
    model = fast_fm().fit(assembled)

    by_name = model.group_strengths(assembled)
    by_id = model.group_strengths(
        assembled, {"user_hot": range(3), "user_kind_hot": range(3, 6), "age": [6]}
    )
    without_columns = model.group_strengths(assembled.select("features"))

    assert by_name.equals(by_id)
    assert without_columns.index.tolist() == ["user_hot_u", "user_kind_hot", "age"]
    named = model.feature_strengths(assembled)
    assert set(named["name"]) >= {"user_hot_u_0", "user_kind_hot_x", "age"}


def test_groups_that_make_no_sense_are_refused(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    for groups, message in (
        ({"a": [1, 20]}, r"groups\['a'\] holds feature 20; the model has features 0 to 19"),
        ({"a": [-1]}, "holds feature -1"),
        ({"a": [1, 2], "b": [3, 2]}, "feature 2 is in groups 'a' and 'b'"),
        ({"linear": [1]}, "'linear', which is the name of a column"),
        ({}, "0 groups; allowed are 1 to 1000"),
        (None, "groups=None needs names of features"),
    ):
        with pytest.raises(InvalidParamError, match=message):
            classifier.group_strengths(train, groups)


def test_rows_that_cannot_be_scored_are_not_counted(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    vectors = sparse_vectors(planted_rows(50, seed=10))
    good = frame_of(spark, [(0.0, vector) for vector in vectors])
    mixed = frame_of(spark, [(0.0, vector) for vector in [None, *vectors, None]])
    model = classifier.copy()
    model.setHandleInvalid("skip")

    assert model.feature_strengths(mixed).equals(model.feature_strengths(good))
    assert model.group_strengths(mixed, GROUPS).equals(model.group_strengths(good, GROUPS))


def test_no_rows_have_no_strengths(classifier: FactorizationMachineModel, train: DataFrame) -> None:
    nothing = train.where(F.lit(False))

    assert len(classifier.feature_strengths(nothing)) == 0
    assert classifier.group_strengths(nothing, GROUPS).isna().all(axis=None)


def test_real_rows_of_few_ids_have_the_strengths_of_loops(spark: SparkSession) -> None:
    split = a9a()
    rows = Rows(split.train.X[:200], split.train.y[:200])
    model = fast_fm(epochs=1, featureDim=123).fit(to_frame(spark, rows, 1))
    assert model.features is not None

    strengths = model.feature_strengths(to_frame(spark, rows, 1)).sort_values("feature")

    places = np.searchsorted(model.features, rows.X.indices).astype(np.int32)
    batch = CsrBatch.from_arrays(rows.X.indptr, places, rows.X.data.astype(np.float32))
    means, counts = loops(oracle.Model.of_table(model.weights.table, model.bias), batch)
    np.testing.assert_array_equal(strengths["feature"], model.features[counts > 0])
    np.testing.assert_allclose(
        strengths[["linear", "pairs", "total"]], means[counts > 0], atol=1e-12
    )


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_the_picture_is_saved(
    classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path, groups: dict | None
) -> None:
    figure = classifier.plot_strengths(train, groups, top=5, path=str(tmp_path / "s.png"))

    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    bars = figure.axes[0]
    strongest = classifier.feature_strengths(train)["feature"].head(5)
    assert [text.get_text() for text in bars.get_yticklabels()] == [
        f"feature {j}" for j in strongest
    ]
    assert len(figure.axes) == (1 if groups is None else 4)
