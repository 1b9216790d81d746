"""Bad columns, rows and Params end in an error that names them, and leave nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.mllib.linalg import Vectors as MLlibVectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from spark_fm.errors import InvalidColumnError, InvalidDataError
from tests.builders import raw_counts
from tests.conftest import MODE
from tests.ml.builders import N_FEATURES, broken_frame, column, fast_fm, frame_of, sparse_vectors

NAN, INF = float("nan"), float("inf")


def one(index: int, value: float = 1.0, size: int = 10) -> Any:
    """Return a vector with one entry."""
    return Vectors.sparse(size, [index], [value])


def good_rows(n_rows: int = 20) -> list[tuple[object, object]]:
    return [(float(i % 2), one(i % 4)) for i in range(n_rows)]


# Columns --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("param", "name"),
    [
        ("featuresCol", "nothing"),
        ("labelCol", "nothing"),
        ("weightCol", "nothing"),
        ("validationIndicatorCol", "nothing"),
    ],
)
def test_a_missing_column_lists_those_there(train: DataFrame, param: str, name: str) -> None:
    with pytest.raises(InvalidColumnError, match=f"{param}='{name}' .*there are label, features"):
        fast_fm(**{param: name}).fit(train)


@pytest.mark.parametrize(
    ("param", "expression", "kind", "expected"),
    [
        ("featuresCol", "'1:2'", "string", "vector, array<double> or array<float>"),
        ("featuresCol", "array(1, 2)", "array<int>", "array<float>. Cast it to array<double>"),
        ("featuresCol", "label", "double", "vector, array<double> or array<float>"),
        (
            "labelCol",
            "'1'",
            "string",
            "expected a number. Number its values by StringIndexer, cast",
        ),
        ("labelCol", "features", "vector", "expected a number. Cast it"),
        ("weightCol", "array(1.0D)", "array<double>", "expected a number"),
        ("validationIndicatorCol", "1", "int", "expected boolean"),
    ],
)
def test_a_column_of_another_type_says_which_and_what_fits(
    train: DataFrame, param: str, expression: str, kind: str, expected: str
) -> None:
    frame = train.withColumn("odd", F.expr(expression))

    with pytest.raises(InvalidColumnError, match=f"{param}='odd' has type {kind}; expected") as err:
        fast_fm(**{param: "odd"}).fit(frame)
    assert expected in str(err.value)


@pytest.mark.parametrize("kind", ["boolean", "decimal(3, 1)"])
def test_labels_of_any_numeric_type_train_alike(train: DataFrame, kind: str) -> None:
    frame = train.limit(40).coalesce(1)
    expected = fast_fm(epochs=1).fit(frame)

    model = fast_fm(epochs=1).fit(frame.withColumn("label", F.col("label").cast(kind)))

    assert np.array_equal(model.linear, expected.linear)


def test_vectors_of_the_older_library_train_alike(spark: SparkSession) -> None:
    rows = good_rows()
    older = [(label, MLlibVectors.fromML(vector)) for label, vector in rows]

    model = fast_fm(epochs=1).fit(spark.createDataFrame(older, ["label", "features"]).coalesce(1))

    expected = fast_fm(epochs=1).fit(frame_of(spark, rows).coalesce(1))
    assert np.array_equal(model.linear, expected.linear)


# Rows -----------------------------------------------------------------------------------


def bad_label(value: float | None) -> Callable[[SparkSession], DataFrame]:
    return lambda spark: frame_of(spark, [*good_rows(), (value, one(1))])


def bad_vector(vector: Any) -> Callable[[SparkSession], DataFrame]:
    return lambda spark: frame_of(spark, [*good_rows(), (1.0, vector)])


def bad_struct(indices: list[int], values: list[float]) -> Callable[[SparkSession], DataFrame]:
    rows = [(0.0, [0], [1.0]), (1.0, [1], [1.0]), (1.0, indices, values)]
    return lambda spark: broken_frame(spark, rows)


def bad_weight(value: float | None) -> Callable[[SparkSession], DataFrame]:
    def build(spark: SparkSession) -> DataFrame:
        frame = frame_of(spark, [*good_rows(), (1.0, one(9))])
        is_last = F.col("features").cast("string").contains("[9]")
        return frame.withColumn("weight", F.when(is_last, F.lit(value)).otherwise(1.0))

    return build


# What is wrong with one row, the column that has it, and the reason and example given.
BAD_ROWS: dict[str, tuple[Callable[[SparkSession], DataFrame], str, str, str]] = {
    "null vector": (bad_vector(None), "featuresCol='features'", "null features", "null"),
    "NaN feature": (
        bad_vector(one(3, NAN)),
        "featuresCol='features'",
        "NaN or infinite feature value",
        "value nan at index 3",
    ),
    "infinite feature": (
        bad_vector(Vectors.dense([1.0, -INF, *[0.0] * 8])),
        "featuresCol='features'",
        "NaN or infinite feature value",
        "value -inf at index 1",
    ),
    "feature beyond float32": (
        bad_vector(one(0, 1e39)),
        "featuresCol='features'",
        "NaN or infinite feature value",
        "value 1e+39 at index 0, which float32 cannot hold (3.4e38 at most)",
    ),
    "dense vector shorter than featureDim": (
        bad_vector(Vectors.dense([1.0, 0.0])),
        "featuresCol='features'",
        "vector of another length than featureDim",
        "2, not 10",
    ),
    "index beyond featureDim": (
        bad_vector(one(10, size=11)),
        "featuresCol='features'",
        "feature index out of range (allowed: 0 to 9, by featureDim or the column's metadata)",
        "index 10",
    ),
    "negative index": (
        bad_struct([-4], [1.0]),
        "featuresCol='features'",
        "feature index out of range",
        "index -4",
    ),
    "largest int index": (
        bad_struct([2**31 - 1], [1.0]),
        "featuresCol='features'",
        "feature index out of range",
        "index 2147483647",
    ),
    "unequal lengths": (
        bad_struct([1, 2], [1.0]),
        "featuresCol='features'",
        "unequally many indices and values",
        "null",
    ),
    "null label": (bad_label(None), "labelCol='label'", "null, NaN or infinite label", "null"),
    "NaN label": (bad_label(NAN), "labelCol='label'", "null, NaN or infinite label", "nan"),
    "infinite label": (bad_label(INF), "labelCol='label'", "null, NaN or infinite label", "inf"),
    "label 2": (bad_label(2.0), "labelCol='label'", "label other than 0 or 1", "2.0"),
    "label -1": (bad_label(-1.0), "labelCol='label'", "label other than 0 or 1", "-1.0"),
    "label a half": (bad_label(0.5), "labelCol='label'", "label other than 0 or 1", "0.5"),
    "negative weight": (bad_weight(-2.0), "weightCol='weight'", "negative", "-2.0"),
    "null weight": (bad_weight(None), "weightCol='weight'", "null, negative", "null"),
    "infinite weight": (bad_weight(INF), "weightCol='weight'", "infinite weight", "inf"),
}


def estimator_for(frame: DataFrame, case: str, **changes: Any) -> Any:
    if "weight" in frame.columns:
        changes["weightCol"] = "weight"
    if case in ("index beyond featureDim", "dense vector shorter than featureDim"):
        changes["featureDim"] = 10
    return fast_fm(epochs=1, **changes)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_one_bad_row_is_an_error_naming_column_reason_and_value(
    spark: SparkSession, case: str
) -> None:
    build, name, reason, example = BAD_ROWS[case]
    frame = build(spark)

    with pytest.raises(InvalidDataError) as caught:
        estimator_for(frame, case).fit(frame)

    message = str(caught.value)
    assert message.startswith(f"{name} has 1 row(s) with ")
    assert reason in message
    assert f"for example {example}" in message
    # Skipping rows of a third label would drop a class: there the advice is another.
    advice = (
        "Map the labels to 0 and 1" if "other than 0 or 1" in reason else "handleInvalid='skip'"
    )
    assert advice in message


@pytest.mark.parametrize(
    ("case", "how"),
    [
        ("null vector", "skip"),
        ("NaN feature", "skip"),
        ("negative index", "skip"),
        ("label 2", "keep"),  # in fit the same as skip
        ("negative weight", "skip"),
    ],
)
def test_bad_rows_are_skipped_and_counted_on_request(
    spark: SparkSession, case: str, how: str
) -> None:
    build, _, reason, _ = BAD_ROWS[case]
    frame = build(spark)

    model = estimator_for(frame, case, handleInvalid=how).fit(frame)

    facts = model.summary.facts
    assert facts["skippedRows"] == 1
    assert [(reason in why, count) for why, count in facts["skippedReasons"].items()] == [(True, 1)]
    assert facts["numRows"] == (2 if case == "negative index" else 20)


@pytest.mark.parametrize("other", [[1.0, 2.0], [], [1.0, 2.0, 3.0, 0.0]])
def test_dense_vectors_of_unequal_lengths_are_an_error(
    spark: SparkSession, other: list[float]
) -> None:
    rows = [(float(i % 2), Vectors.dense([1.0, 2.0, float(i)])) for i in range(20)]
    frame = frame_of(spark, [*rows, (1.0, Vectors.dense(other))])

    with pytest.raises(InvalidDataError, match=r"dense vectors or arrays of \d to \d values among"):
        fast_fm(epochs=1).fit(frame)

    model = fast_fm(epochs=1, featureDim=3, handleInvalid="skip").fit(frame)
    assert model.summary.facts["skippedReasons"] == {"vector of another length than featureDim": 1}


def test_dense_vectors_beside_longer_sparse_ones_are_an_error(spark: SparkSession) -> None:
    rows = [(0.0, Vectors.dense([1.0, 2.0])), (1.0, Vectors.sparse(5, [4], [1.0]))]

    with pytest.raises(InvalidDataError, match="arrays of 2 values among 5 features"):
        fast_fm(epochs=1).fit(frame_of(spark, rows))


def test_a_share_that_holds_out_no_row_is_warned_of(spark: SparkSession) -> None:
    few = frame_of(spark, [(float(i % 2), one(i)) for i in range(5)])

    def warnings_at(share: float) -> list[str]:
        return fast_fm(epochs=1, validationFraction=share, seed=0).fit(few).summary.warnings

    [said] = warnings_at(0.1)
    assert said.startswith("validationFraction=0.1 held out none of the 5 rows: all epochs")
    assert warnings_at(0.0) == []


def test_skipping_trains_on_the_other_rows_alone(spark: SparkSession) -> None:
    rows = good_rows(30)
    bad = [(1.0, None), (3.0, one(1)), (0.0, one(2, NAN))]
    mixed = [*rows[:7], bad[0], *rows[7:15], bad[1], bad[2], *rows[15:]]

    model = fast_fm(handleInvalid="skip").fit(frame_of(spark, mixed))
    expected = fast_fm().fit(frame_of(spark, rows))

    assert model.bias == expected.bias
    assert np.array_equal(model.linear, expected.linear)
    assert np.array_equal(model.factors, expected.factors)
    assert model.summary.facts["skippedRows"] == 3


def test_every_kind_of_fault_is_reported_with_its_count(spark: SparkSession) -> None:
    rows = [*good_rows(), (2.0, one(1)), (5.0, one(1)), (1.0, None), (NAN, one(2))]

    with pytest.raises(InvalidDataError) as caught:
        fast_fm().fit(frame_of(spark, rows))

    message = str(caught.value)
    assert "labelCol='label' has 2 row(s) with label other than 0 or 1, for example 2.0" in message
    assert "labelCol='label' has 1 row(s) with null, NaN or infinite label" in message
    assert "featuresCol='features' has 1 row(s) with null features" in message


def test_the_message_has_the_callers_column_names(spark: SparkSession) -> None:
    frame = frame_of(spark, [*good_rows(), (7.0, one(1))])
    frame = frame.withColumnsRenamed({"label": "the.label", "features": "x"})

    with pytest.raises(InvalidDataError, match=r"labelCol='the\.label' has 1 row.*example 7\.0"):
        fast_fm(labelCol="the.label", featuresCol="x").fit(frame)


def test_a_regressor_takes_any_finite_label(spark: SparkSession) -> None:
    frame = frame_of(spark, [(-3.5, one(0)), (2.0, one(1)), (1e6, one(2))])

    model = fast_fm(predictorType="regressor").fit(frame)

    assert np.isfinite(column(model.transform(frame), "score")).all()


# Empty sets and weights -----------------------------------------------------------------


def test_an_empty_training_set_is_an_error(spark: SparkSession, train: DataFrame) -> None:
    schema = StructType(train.schema.fields)
    for frame in (spark.createDataFrame([], schema), train.where("label > 5")):
        with pytest.raises(InvalidDataError, match="The training set has no"):
            fast_fm().fit(frame)


def test_a_set_with_only_bad_rows_is_empty(spark: SparkSession) -> None:
    frame = frame_of(spark, [(1.0, None), (4.0, one(1))])

    with pytest.raises(InvalidDataError, match="no rows left after skipping 2"):
        fast_fm(handleInvalid="skip").fit(frame)


def test_weights_that_are_all_zero_are_an_error(train: DataFrame) -> None:
    with pytest.raises(InvalidDataError, match="weight 0 in weightCol='w'"):
        fast_fm(weightCol="w").fit(train.withColumn("w", F.lit(0.0)))


def test_a_row_of_weight_zero_counts_for_nothing(spark: SparkSession) -> None:
    rows = good_rows(30)
    ignored = [(1.0, one(0, 50.0)), (0.0, one(1, -9.0))]
    mixed = frame_of(spark, [*rows[:9], ignored[0], *rows[9:], ignored[1]])
    is_ignored = F.col("features").cast("string").rlike("50|-9")
    weighted = mixed.withColumn("w", F.when(is_ignored, 0).otherwise(1))

    # Without shuffling, because the order drawn depends on how many rows there are.
    model = fast_fm(weightCol="w", shuffle=False, decayFrequencyPower=0.0).fit(weighted)
    expected = fast_fm(shuffle=False, decayFrequencyPower=0.0).fit(frame_of(spark, rows))

    assert model.bias == expected.bias
    assert np.array_equal(model.linear, expected.linear)
    assert np.array_equal(model.factors, expected.factors)
    assert model.summary.objectiveHistory == pytest.approx(expected.summary.objectiveHistory)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_single_class_trains(spark: SparkSession, label: float) -> None:
    frame = frame_of(spark, [(label, one(i % 3)) for i in range(12)])

    model = fast_fm(epochs=1).fit(frame)

    assert abs(column(model.transform(frame), "score") - label).max() < 0.01


def test_one_row_trains_with_and_without_a_validation_share(spark: SparkSession) -> None:
    frame = frame_of(spark, [(1.0, one(2))])

    for fraction in (0.0, 0.9):
        model = fast_fm(validationFraction=fraction, epochs=1).fit(frame)
        assert np.isfinite(column(model.transform(frame), "score")).all()


def test_more_workers_than_rows_train(spark: SparkSession) -> None:
    frame = frame_of(spark, good_rows(3))

    model = fast_fm(numWorkers=4, epochs=1).fit(frame)

    assert np.isfinite(model.linear).all()


# Afterwards -----------------------------------------------------------------------------


@pytest.mark.skipif(MODE != "classic", reason="only Classic tells what is persisted")
def test_nothing_stays_persisted(spark: SparkSession, train: DataFrame) -> None:
    def persisted() -> int:
        return spark.sparkContext._jsc.getPersistentRDDs().size()

    before = persisted()
    bad = frame_of(spark, [*good_rows(), (2.0, one(1))])

    fast_fm(numWorkers=2).fit(train)
    with pytest.raises(InvalidDataError):
        fast_fm().fit(bad)
    with pytest.raises(InvalidDataError):
        fast_fm().fit(train.where("label > 5"))

    assert persisted() == before


@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
def test_absurd_learning_rates_on_raw_counts_give_a_finite_model_and_a_note(
    spark: SparkSession, kind: str
) -> None:
    loss = "squared" if kind == "regressor" else "logistic"
    batch = raw_counts(60, N_FEATURES, seed=5, loss=loss)
    rows = list(zip(batch.labels.tolist(), sparse_vectors(batch), strict=True))
    frame = frame_of(spark, rows)

    fm = fast_fm(predictorType=kind, biasLr=1e6, linearLr=1e6, factorsLr=1e6, optimizer="sgd")
    model = fm.fit(frame)

    assert math.isfinite(model.bias)
    assert np.isfinite(model.linear).all()
    assert np.isfinite(model.factors).all()
    assert np.isfinite(column(model.transform(frame), "score")).all()
    notes = " ".join(model.summary.warnings)
    assert "diverged" in notes
    assert "lower the learning rates" in notes
    assert len(set(model.summary.warnings)) == len(model.summary.warnings)
    assert 0 < model.summary.facts["stepScale"] < 1
    assert model.summary.facts["rejectedAttempts"] > 0


def test_a_feature_that_dwarfs_the_rest_is_warned_of(spark: SparkSession) -> None:
    rows = [(float(i % 2), Vectors.dense([1.0, 0.5, 3000.0 * i - 5.0])) for i in range(20)]

    model = fast_fm(epochs=1, standardization=False).fit(frame_of(spark, rows))

    (note,) = [text for text in model.summary.warnings if text.startswith("Feature 2 ")]
    assert "'features' ranges from -5 to 56995" in note
    assert "StandardScaler" in note
