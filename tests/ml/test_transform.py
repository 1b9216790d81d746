"""What transform adds to a DataFrame, and that predict agrees with it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.errors import PySparkException
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import DenseVector, Vectors
from pyspark.mllib.linalg import Vectors as MLlibVectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType

from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.learner.predict import sigmoid
from tests.builders import random_batch
from tests.ml.builders import (
    N_FEATURES,
    OUTPUTS,
    broken_frame,
    column,
    fast_fm,
    frame_of,
    planted_rows,
    sparse_vectors,
)

pytestmark = pytest.mark.connect

OUTPUT_PARAMS = [
    "scoreCol", "predictedLabelCol", "probabilityCol", "rawPredictionCol", "predictionCol",
]  # fmt: skip
# Two sums of the same float32 products in another order, scores between 0 and 1.
ROUNDING = 1e-6


# Columns --------------------------------------------------------------------------------


def test_appends_score_and_label_and_keeps_columns_order_and_rows(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    vectors = sparse_vectors(planted_rows(50, seed=9))
    rows = [(f"row {i}", vector, i) for i, vector in enumerate(vectors)]
    frame = spark.createDataFrame(rows, ["name", "features", "odd.name"]).coalesce(1)

    scored = classifier.transform(frame)

    assert scored.columns == ["name", "features", "odd.name", *OUTPUTS]
    assert [scored.schema[name].dataType for name in ("score", "predicted_label")] == [
        DoubleType(),
        DoubleType(),
    ]
    collected = scored.collect()
    assert [tuple(row)[:3] for row in collected] == rows
    assert all(0 < row["score"] < 1 for row in collected)
    assert [row["predicted_label"] for row in collected] == [
        float(row["score"] >= 0.5) for row in collected
    ]


def test_a_regressor_writes_no_label_and_no_probability(
    regressor: FactorizationMachineModel, ratings: DataFrame
) -> None:
    scored = regressor.transform(ratings)

    assert scored.columns == ["label", "features", "score", "prediction"]
    assert np.array_equal(column(scored, "score"), column(scored, "prediction"))


def test_an_output_without_a_name_is_not_written(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    model = classifier.copy()
    model.setPredictedLabelCol("").setScoreCol("only")

    assert model.transform(hand_made).columns == ["label", "features", "only", *OUTPUTS[2:]]
    model._set(probabilityCol="", rawPredictionCol="", predictionCol="")
    assert model.transform(hand_made).columns == ["label", "features", "only"]


def test_spark_s_outputs_are_functions_of_the_score(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    model = classifier.copy()
    model.setProbabilityCol("p").setRawPredictionCol("raw")

    scored = model.transform(hand_made)

    assert scored.columns[2:] == ["score", "predicted_label", "p", "raw", "prediction"]
    for row in scored.collect():
        assert isinstance(row["p"], DenseVector)
        assert isinstance(row["raw"], DenseVector)
        assert row["p"].toArray().tolist() == [1 - row["score"], row["score"]]
        assert row["raw"][0] == -row["raw"][1]
        assert sigmoid(np.array([row["raw"][1]]))[0] == pytest.approx(row["score"], abs=ROUNDING)
        assert row["prediction"] == row["predicted_label"]


def test_evaluators_accept_the_outputs(
    classifier: FactorizationMachineModel,
    regressor: FactorizationMachineModel,
    train: DataFrame,
    ratings: DataFrame,
) -> None:
    scored = classifier.transform(train).cache()

    by_vector = BinaryClassificationEvaluator().evaluate(scored)
    by_score = BinaryClassificationEvaluator(rawPredictionCol="score").evaluate(scored)
    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(scored)
    log_loss = MulticlassClassificationEvaluator(metricName="logLoss").evaluate(scored)
    rmse = RegressionEvaluator().evaluate(regressor.transform(ratings))

    label, score = column(scored, "label"), column(scored, "score")
    scored.unpersist()
    expected = -np.log(np.where(label == 1, score, 1 - score)).mean()
    assert by_score == pytest.approx(by_vector)
    assert by_score > 0.7
    assert accuracy == pytest.approx(((score >= 0.5) == (label == 1)).mean())
    assert log_loss == pytest.approx(expected)
    assert rmse < column(ratings, "label").std()


def test_threshold_moves_the_predicted_label_and_not_the_score(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    model = classifier.copy()
    score = column(model.transform(train), "score")
    middle = float(np.sort(score)[len(score) // 3])

    for threshold in (0.0, middle, 1.0):
        scored = model.setThreshold(threshold).transform(train)
        label = column(scored, "predicted_label")
        assert np.array_equal(label, (score >= threshold).astype(float)), threshold


@pytest.mark.parametrize(
    ("param", "name"),
    [
        ("scoreCol", "label"),
        ("predictedLabelCol", "features"),
        ("predictionCol", "label"),
        ("probabilityCol", "label"),
        ("rawPredictionCol", "label"),
    ],
)
def test_a_column_that_is_there_is_not_replaced(
    classifier: FactorizationMachineModel, hand_made: DataFrame, param: str, name: str
) -> None:
    model = classifier.copy()
    model._set(**{param: name})

    with pytest.raises(InvalidColumnError, match=f"{param}='{name}'"):
        model.transform(hand_made)


def test_scoring_twice_asks_for_other_names_all_at_once(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    with pytest.raises(InvalidColumnError) as caught:
        classifier.transform(classifier.transform(hand_made))

    for param, name in zip(OUTPUT_PARAMS, OUTPUTS, strict=True):
        assert f"{param}={name!r}" in str(caught.value)


def test_the_prediction_of_another_stage_is_neither_replaced_nor_taken_for_ours(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    predicted = hand_made.withColumn("prediction", F.lit(7.0))

    with pytest.raises(InvalidColumnError, match="predictionCol='prediction' is a column of the"):
        classifier.transform(predicted)

    beside = classifier.copy({classifier.predictionCol: ""}).transform(predicted)
    assert beside.columns == ["label", "features", "prediction", *OUTPUTS[:-1]]
    assert set(column(beside, "prediction")) == {7.0}


def test_two_models_stand_side_by_side_under_names_of_their_own(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    second = classifier.copy()
    second._set(**{param: f"{param}_2" for param in OUTPUT_PARAMS})

    scored = PipelineModel([classifier, second]).transform(hand_made)

    assert np.array_equal(column(scored, "prediction"), column(scored, "predictionCol_2"))


def test_outputs_that_are_not_selected_are_not_computed(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    scored = classifier.transform(hand_made)
    without = classifier.copy()
    without._set(**dict.fromkeys(OUTPUT_PARAMS[2:], ""))

    plans = [
        _plan(frame.select("label", "score")) for frame in (scored, without.transform(hand_made))
    ]

    assert _plan(scored).count("array_to_vector") or "UDF(array(" in _plan(scored)
    assert _shape(plans[0]) == _shape(plans[1])


def _shape(plan: str) -> str:
    """Return a plan without the numbers and names that differ from one DataFrame to the next."""
    return re.sub(r"#\d+L?|spark_fm_[0-9a-f]+|\b\d+\b", "", plan)


def test_two_outputs_of_one_name_are_refused(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    model = classifier.copy()
    model.setPredictionCol("score")

    with pytest.raises(InvalidColumnError, match="predictionCol and scoreCol are both 'score'"):
        model.transform(hand_made)


def test_a_missing_features_column_lists_those_there(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    with pytest.raises(InvalidColumnError, match=r"featuresCol='features'.*label, other"):
        classifier.transform(hand_made.withColumnRenamed("features", "other"))


def test_features_of_another_type_are_refused(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    frame = hand_made.select(F.lit("1:2").alias("features"))

    with pytest.raises(InvalidColumnError, match="featuresCol='features' has type string"):
        classifier.transform(frame)


def test_names_with_dots_and_backticks_work(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    frame = hand_made.withColumnsRenamed({"features": "a.b `c`", "label": "x.y"})
    model = classifier.copy()
    model.setFeaturesCol("a.b `c`").setScoreCol("my.score").setPredictedLabelCol("my `label`")

    scored = model.transform(frame)

    assert scored.columns == ["x.y", "a.b `c`", "my.score", "my `label`", *OUTPUTS[2:]]
    expected = column(classifier.transform(hand_made), "score")
    assert np.array_equal(column(scored, "`my.score`"), expected)


# Laziness and streams -------------------------------------------------------------------


def test_transform_runs_no_job(classifier: FactorizationMachineModel, hand_made: DataFrame) -> None:
    failing = hand_made.where(F.raise_error(F.lit("this row was evaluated")).isNull())

    scored = classifier.transform(failing)

    assert scored.columns == ["label", "features", *OUTPUTS]
    with pytest.raises(PySparkException, match="this row was evaluated"):
        scored.collect()


def test_a_filter_on_the_score_does_not_score_twice(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    scored = classifier.transform(hand_made)

    for filtered in (
        scored.where("score > 0.5"),
        scored.where("prediction = 1 and label = 1"),
        scored.where(vector_to_array("probability")[1] > 0.5).select("score"),
    ):
        plan = _plan(filtered)
        assert plan.count("EvalPython") == 1, plan


@pytest.fixture(scope="module")
def days(
    spark: SparkSession, train: DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> DataFrame:
    """300 rows in Parquet: partitions by day, three of them, and the column hour."""
    path = str(tmp_path_factory.mktemp("days") / "rows")
    numbered = train.withColumn("n", F.monotonically_increasing_id())
    table = numbered.selectExpr("*", "n % 3 as day", "n as hour").drop("n")
    table.write.partitionBy("day").parquet(path)
    return spark.read.parquet(path)


@pytest.mark.parametrize("handle_invalid", ["error", "skip", "keep"])
def test_a_filter_after_transform_reaches_the_files(
    classifier: FactorizationMachineModel, days: DataFrame, handle_invalid: str
) -> None:
    model = classifier.copy()._set(handleInvalid=handle_invalid)

    filtered = model.transform(days).where("day = 1 and hour < 150 and score > 0")

    plan = _plan(filtered)
    assert re.search(r"PartitionFilters: \[.*day#?\w* = 1", plan), plan
    assert re.search(r"PushedFilters: \[.*LessThan\(hour,150\)", plan), plan
    assert plan.count("EvalPython") == 1, plan
    assert filtered.count() == 50


@pytest.mark.parametrize("method", ["explain", "context_vectors", "candidate_vectors"])
def test_a_filter_after_the_other_methods_reaches_the_files_too(
    classifier: FactorizationMachineModel, days: DataFrame, method: str
) -> None:
    plan = _plan(getattr(classifier, method)(days).where("day = 1"))

    assert re.search(r"PartitionFilters: \[.*day#?\w* = 1", plan), plan
    assert plan.count("EvalPython") == 1, plan


def test_rows_that_a_filter_leaves_out_are_not_scored(
    classifier: FactorizationMachineModel, spark: SparkSession, tmp_path: Path
) -> None:
    good, bad = Vectors.sparse(N_FEATURES, [1], [1.0]), Vectors.sparse(N_FEATURES, [1], [np.nan])
    rows = frame_of(spark, [(0.0, good), (1.0, bad)])
    rows.write.partitionBy("label").parquet(str(tmp_path / "rows"))

    scored = classifier.transform(spark.read.parquet(str(tmp_path / "rows")))

    assert scored.where("label = 0").select("score").collect()[0][0] > 0
    with pytest.raises(PySparkException, match="a NaN or infinite value"):
        scored.collect()


def test_without_a_column_of_the_model_nothing_is_scored(
    classifier: FactorizationMachineModel, days: DataFrame
) -> None:
    scored = classifier.transform(days)

    for frame in (scored.select("label"), scored.groupBy("day").count()):
        assert "EvalPython" not in _plan(frame)


def test_a_frame_with_two_columns_of_one_name_is_scored(
    classifier: FactorizationMachineModel, days: DataFrame
) -> None:
    scored = classifier.transform(days.select("*", "hour"))

    assert scored.columns == ["label", "features", "hour", "day", "hour", *OUTPUTS]
    assert scored.where(days["day"] == 1).count() == 100


def _plan(frame: DataFrame) -> str:
    """Return what explain() prints, on Classic and Connect alike."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        frame.explain()
    return text.getvalue()


def test_a_parquet_file_is_scored(
    spark: SparkSession, classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path
) -> None:
    path = str(tmp_path / "rows")
    train.write.parquet(path)

    score = column(classifier.transform(spark.read.parquet(path)), "score")

    assert np.array_equal(score, column(classifier.transform(train), "score"))


def test_a_stream_is_scored(
    spark: SparkSession, classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path
) -> None:
    source, sink = str(tmp_path / "source"), str(tmp_path / "sink")
    train.write.parquet(source)
    stream = spark.readStream.schema(train.schema).parquet(source)

    query = (
        classifier.transform(stream)
        .writeStream.format("parquet")
        .option("checkpointLocation", str(tmp_path / "checkpoint"))
        .trigger(availableNow=True)
        .start(sink)
    )
    finished = query.awaitTermination(120)

    assert finished
    scored = spark.read.parquet(sink)
    assert scored.columns == ["label", "features", *OUTPUTS]
    expected = column(classifier.transform(train), "score")
    assert np.array_equal(np.sort(column(scored, "score")), np.sort(expected))


def test_zero_rows_give_zero_rows(
    spark: SparkSession, classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    scored = classifier.transform(frame_of(spark, []))

    assert scored.collect() == []
    assert classifier.transform(hand_made.where("label > 5")).collect() == []


# Forms of vectors -----------------------------------------------------------------------


def test_sparse_dense_and_array_columns_score_alike(
    classifier: FactorizationMachineModel, spark: SparkSession
) -> None:
    sparse = sparse_vectors(planted_rows(60, seed=21))
    dense = [Vectors.dense(vector.toArray()) for vector in sparse]
    mixed = [pair[i % 2] for i, pair in enumerate(zip(sparse, dense, strict=True))]
    mllib = [MLlibVectors.fromML(vector) for vector in mixed]
    rows = list(zip(sparse, dense, mixed, mllib, strict=True))
    frame = spark.createDataFrame(rows, ["sparse", "dense", "mixed", "mllib"]).coalesce(1)
    frame = frame.withColumns(
        {
            "double": vector_to_array("sparse"),
            "float": vector_to_array("sparse", dtype="float32"),
        }
    )

    scores = {}
    for name in ("sparse", "dense", "mixed", "mllib", "double", "float"):
        model = classifier.copy({classifier.featuresCol: name})
        scores[name] = column(model.transform(frame), "score")

    assert np.isfinite(scores["sparse"]).all()
    for name, score in scores.items():
        assert np.array_equal(score, scores["sparse"]), name


def test_indices_in_any_order_and_repeated_ones_are_added_up(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    tidy = Vectors.sparse(N_FEATURES, [2, 7], [3.0, 1.0])
    untidy = broken_frame(spark, [(0.0, [7, 2, 2], [1.0, 1.0, 2.0])])

    expected = column(classifier.transform(frame_of(spark, [(0.0, tidy)])), "score")
    score = column(classifier.transform(untidy), "score")

    assert score == pytest.approx(expected, abs=ROUNDING)


def test_a_row_without_entries_scores_the_bias(
    classifier: FactorizationMachineModel, regressor: FactorizationMachineModel, spark: SparkSession
) -> None:
    frame = frame_of(
        spark, [(0.0, Vectors.sparse(N_FEATURES, [], [])), (0.0, Vectors.dense([0.0] * N_FEATURES))]
    )

    probability = sigmoid(np.array([classifier.bias]))[0]
    assert column(classifier.transform(frame), "score") == pytest.approx(probability, abs=ROUNDING)
    assert column(regressor.transform(frame), "score") == pytest.approx(regressor.bias, rel=1e-6)


def test_a_feature_that_training_never_saw_adds_nothing(spark: SparkSession) -> None:
    seen = [(float(i % 2), Vectors.sparse(10, [i % 4], [1.0])) for i in range(40)]
    frame = frame_of(
        spark, [(0.0, Vectors.sparse(10, [9], [5.0])), (0.0, Vectors.sparse(10, [], []))]
    )

    model = fast_fm(useLinear=True, linearInitMethod="normal").fit(frame_of(spark, seen))
    score = column(model.transform(frame), "score")

    assert model.numFeatures == 10
    assert score[0] == score[1]


# predict --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_predict_agrees_with_transform(
    kind: str, spark: SparkSession, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    batch = random_batch(80, N_FEATURES, seed=31, lengths=(0, 6))
    X = sp.csr_matrix((batch.values, batch.indices, batch.indptr), (80, N_FEATURES))
    frame = frame_of(spark, [(0.0, vector) for vector in sparse_vectors(batch)])

    score = column(model.transform(frame), "score")

    for form in (X, X.tocsc(), X.toarray(), X.astype(np.float64), X.toarray().tolist()):
        predicted = model.predict(form)
        assert predicted.dtype == np.float32
        np.testing.assert_allclose(predicted, score, rtol=1e-5, atol=ROUNDING)


def test_predict_names_transform_for_a_data_frame(
    classifier: FactorizationMachineModel, spark: SparkSession
) -> None:
    with pytest.raises(InvalidDataError, match=r"X is a DataFrame of Spark.*model\.transform"):
        classifier.predict(spark.range(3))


def test_predict_refuses_an_index_outside_the_model(classifier: FactorizationMachineModel) -> None:
    X = sp.csr_matrix(([1.0], ([0], [N_FEATURES])), (1, N_FEATURES + 1))

    with pytest.raises(InvalidDataError, match=f"{N_FEATURES} is outside"):
        classifier.predict(X)
