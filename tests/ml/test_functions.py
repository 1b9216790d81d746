"""A model as a SQL function gives transform's scores, wherever SQL lets a function stand."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.errors import PySparkException
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_fm
from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidParamError, SparkFMError
from tests.ml.builders import column, fast_fm, frame_of

BIG = 800_000  # features of a model whose 32 MB no Connect closure carries


@pytest.fixture(scope="module")
def table(
    spark: SparkSession, train: DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> DataFrame:
    """300 rows read from Parquet, visible to SQL as ``points``: id, label, features, dense."""
    rows = train.withColumns({"id": F.monotonically_increasing_id(),
                              "dense": vector_to_array("features")})  # fmt: skip
    path = str(tmp_path_factory.mktemp("points") / "rows")
    rows.write.parquet(path)
    read = spark.read.parquet(path)
    read.createOrReplaceTempView("points")
    return read


@pytest.fixture
def fm_score(spark: SparkSession, classifier: FactorizationMachineModel) -> None:
    spark_fm.register_udf(spark, "fm_score", classifier)


@pytest.mark.usefixtures("fm_score", "table")
def test_the_function_returns_transform_s_scores(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    points = spark.table("points")

    scored = spark.sql("SELECT id, fm_score(features) AS score FROM points ORDER BY id")

    assert scored.schema["score"].dataType.simpleString() == "double"
    expected = column(classifier.transform(points).orderBy("id"), "score")
    assert np.array_equal(column(scored, "score"), expected)


@pytest.mark.usefixtures("fm_score", "table")
def test_the_function_takes_arrays(spark: SparkSession) -> None:
    scored = spark.sql(
        "SELECT fm_score(dense) AS d, fm_score(CAST(dense AS ARRAY<FLOAT>)) AS f, "
        "fm_score(features) AS v FROM points"
    )

    for name in ("d", "f"):  # the same values in the same order, none of them left out
        assert column(scored, name) == pytest.approx(column(scored, "v"), abs=1e-6)


@pytest.mark.usefixtures("fm_score", "table")
@pytest.mark.parametrize(
    ("query", "plain"),
    [
        ("SELECT avg(fm_score(features)) AS x FROM points", "avg(score)"),
        ("SELECT count(id) AS x FROM points WHERE fm_score(features) > .5", "count_if(score > .5)"),
        ("SELECT first(id) AS x FROM (SELECT id FROM points ORDER BY fm_score(features) LIMIT 1)",
         "min_by(id, score)"),
        ("SELECT max(n) AS x FROM (SELECT count(*) AS n FROM points GROUP BY fm_score(features))",
         "1"),
    ],
    ids=["aggregate", "filter", "order", "group"],
)  # fmt: skip
def test_the_function_stands_where_sql_lets_functions_stand(
    spark: SparkSession, classifier: FactorizationMachineModel, query: str, plain: str
) -> None:
    expected = classifier.transform(spark.table("points")).selectExpr(f"{plain} AS x").first()["x"]

    assert spark.sql(query).first()["x"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("fm_score")
def test_the_function_is_used_from_the_dataframe_api(
    train: DataFrame, classifier: FactorizationMachineModel
) -> None:
    scored = train.select(F.expr("fm_score(features)").alias("score"))

    expected = column(classifier.transform(train), "score")
    assert np.array_equal(column(scored, "score"), expected)


@pytest.mark.usefixtures("table")
def test_the_label_is_a_function_of_its_own(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    model = classifier.copy().setThreshold(0.3)

    spark_fm.register_udf(spark, "fm_label", model, output="predicted_label")
    labels = column(spark.sql("SELECT fm_label(features) AS x FROM points ORDER BY id"), "x")

    expected = model.transform(spark.table("points")).orderBy("id")
    assert np.array_equal(labels, column(expected, "predicted_label"))
    assert 0 < labels.sum() < len(labels)


def test_a_regressor_s_function_returns_its_values(
    spark: SparkSession, regressor: FactorizationMachineModel, ratings: DataFrame
) -> None:
    spark_fm.register_udf(spark, "fm_value", regressor)

    values = column(ratings.selectExpr("fm_value(features) AS x"), "x")

    assert np.array_equal(values, column(regressor.transform(ratings), "score"))


def test_the_latest_model_of_a_name_counts(
    spark: SparkSession, train: DataFrame, classifier: FactorizationMachineModel
) -> None:
    other = fast_fm(epochs=1, seed=1).fit(train)

    for model in (classifier, other):
        spark_fm.register_udf(spark, "fm_latest", model)

    scores = column(train.selectExpr("fm_latest(features) AS x"), "x")
    assert np.array_equal(scores, column(other.transform(train), "score"))


def test_rows_without_a_score_are_null_or_an_error_as_the_model_says(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    vectors = [None, Vectors.sparse(30, [25], [1.0]), Vectors.sparse(20, [1], [1.0])]
    rows = frame_of(spark, [(0.0, vector) for vector in vectors])
    for how in ("keep", "skip", "error"):
        spark_fm.register_udf(spark, f"fm_{how}", classifier.copy().setHandleInvalid(how))
    spark_fm.register_udf(
        spark, "fm_label_keep", classifier.copy().setHandleInvalid("keep"), output="predicted_label"
    )

    for name in ("fm_keep", "fm_skip", "fm_label_keep"):
        values = column(rows.selectExpr(f"{name}(features) AS x"), "x")
        assert np.isnan(values).tolist() == [True, True, False]
    with pytest.raises(PySparkException, match="null or broken vector"):
        rows.selectExpr("fm_error(features) AS x").collect()


def test_a_model_beyond_a_closure_is_a_function_too(spark: SparkSession) -> None:
    rows = [(float(i % 2), Vectors.sparse(BIG, [i % 2, 2 + i], [1.0, 1.0])) for i in range(20)]
    frame = frame_of(spark, rows)
    model = fast_fm(numFactors=10, featureDim=BIG).fit(frame)
    wide = FactorizationMachineModel(widened(model.weights))

    spark_fm.register_udf(spark, "fm_big", wide)

    scores = column(frame.selectExpr("fm_big(features) AS x"), "x")
    assert np.array_equal(scores, column(model.transform(frame), "score"))


def widened(weights):
    """Return the same model as a table with a row for every feature."""
    from spark_fm.learner.weights import FMWeights

    if weights.features is None:
        return weights
    table = np.zeros((weights.feature_dim, weights.k + 1), np.float32)
    table[weights.features] = weights.table
    return FMWeights(weights.bias, table, weights.feature_dim)


@pytest.mark.usefixtures("fm_score", "table")
@pytest.mark.parametrize(
    ("arguments", "seen"),
    [("1.5D", "a column of type double"), ("features, features", "2 arguments"),
     ("NULL", "a column of type null"), ("array('a')", "a column of type list")],
)  # fmt: skip
def test_what_is_no_vector_is_named(spark: SparkSession, arguments: str, seen: str) -> None:
    if not hasattr(F, "arrow_udf"):
        pytest.skip("pandas functions, as of PySpark 4.0, get other types")
    with pytest.raises(Exception, match=f"got {seen}.*expected one column of vectors"):
        spark.sql(f"SELECT fm_score({arguments}) FROM points").collect()


def test_what_cannot_be_a_function_is_refused(
    spark: SparkSession,
    classifier: FactorizationMachineModel,
    regressor: FactorizationMachineModel,
) -> None:
    with pytest.raises(InvalidParamError, match=r'"score" or "predicted_label"'):
        spark_fm.register_udf(spark, "f", classifier, output="margin")
    with pytest.raises(InvalidParamError, match='expected "score"'):
        spark_fm.register_udf(spark, "f", regressor, output="predicted_label")
    with pytest.raises(SparkFMError, match="fit or load one"):
        spark_fm.register_udf(spark, "f", FactorizationMachineModel())
