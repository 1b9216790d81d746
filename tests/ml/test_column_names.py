"""Columns are found as Spark finds them, by names whose case counts only where it is set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm import FactorizationMachineModel, FMEvaluator
from spark_fm.errors import InvalidColumnError
from tests.ml.builders import OUTPUTS, column, fast_fm

pytestmark = pytest.mark.connect


@pytest.fixture
def case_sensitive(spark: SparkSession) -> Iterator[SparkSession]:
    """The session, in which case counts."""
    spark.conf.set("spark.sql.caseSensitive", "true")
    yield spark
    spark.conf.unset("spark.sql.caseSensitive")


def renamed(rows: DataFrame) -> DataFrame:
    return rows.withColumnsRenamed({"label": "Label", "features": "FEATURES"})


def test_case_does_not_count_in_fit(train: DataFrame) -> None:
    weighted = train.withColumn("w", F.lit(2.0)).withColumn("v", F.rand(1) < 0.2)
    fm = fast_fm(epochs=1, weightCol="W", validationIndicatorCol="V")

    expected = fast_fm(epochs=1, weightCol="w", validationIndicatorCol="v").fit(weighted)

    assert np.array_equal(fm.fit(renamed(weighted)).linear, expected.linear)


def test_case_does_not_count_for_a_model(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    frame = renamed(hand_made)

    scored = classifier.transform(frame)

    assert scored.columns == ["Label", "FEATURES", *OUTPUTS]
    assert np.array_equal(column(scored, "score"), column(classifier.transform(hand_made), "score"))
    assert classifier.evaluate(frame).metrics == classifier.evaluate(hand_made).metrics
    assert FMEvaluator(scoreCol="SCORE").evaluate(scored) > 0
    assert classifier.explain(frame).columns == ["Label", "FEATURES", "explanation"]
    assert classifier.feature_strengths(frame).equals(classifier.feature_strengths(hand_made))


def test_an_output_may_not_differ_from_a_column_by_case_alone(
    classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    with pytest.raises(InvalidColumnError, match="scoreCol='score' is a column of the input"):
        classifier.transform(hand_made.withColumn("SCORE", F.lit(1)))


def test_columns_that_differ_in_case_alone_are_told_apart_where_it_counts(
    case_sensitive: SparkSession, classifier: FactorizationMachineModel, hand_made: DataFrame
) -> None:
    frame = hand_made.withColumns({"SCORE": F.lit(1), "Label": F.lit("text")})

    scored = classifier.transform(frame)

    expected = column(classifier.transform(hand_made), "score")
    assert np.array_equal(column(scored, "score"), expected)
    assert classifier.evaluate(frame).metrics == classifier.evaluate(hand_made).metrics
    with pytest.raises(InvalidColumnError, match="labelCol='LABEL' is not a column"):
        fast_fm(labelCol="LABEL").fit(frame)


def test_a_name_that_stands_for_two_columns_is_refused(hand_made: DataFrame) -> None:
    frame = hand_made.select("*", F.lit(1.0).alias("Label"))

    with pytest.raises(InvalidColumnError, match=r"'label' stands for several .*: label, Label"):
        fast_fm().fit(frame)
