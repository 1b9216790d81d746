"""Rows that cannot be scored: an error, a null score, or left out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import PySparkException
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidDataError
from spark_fm.learner.weights import FMWeights
from spark_fm.scoring.columns import make_task
from spark_fm.spark.broadcast import ClosureBroadcast
from tests.ml.builders import (
    N_FEATURES,
    K,
    broken_frame,
    column,
    frame_of,
)

BAD_VECTORS = {
    "null": None,
    "NaN": Vectors.sparse(N_FEATURES, [1, 2], [1.0, float("nan")]),
    "infinite": Vectors.dense([float("-inf")] * N_FEATURES),
    "beyond float32": Vectors.sparse(N_FEATURES, [0], [1e300]),
    "score overflows": Vectors.sparse(N_FEATURES, [0, 1], [1e30, 1e30]),
    "index too large": Vectors.sparse(50, [1, 49], [1.0, 1.0]),
    "too short": Vectors.dense([1.0] * (N_FEATURES - 1)),
}


def test_a_row_that_cannot_be_scored_is_an_error(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    rows = [(0.0, Vectors.sparse(N_FEATURES, [0], [1.0])), (1.0, BAD_VECTORS["NaN"])]

    with pytest.raises(PySparkException, match="InvalidDataError: featuresCol='features' holds"):
        classifier.transform(frame_of(spark, rows)).collect()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "a null or broken vector"),
        ([0.5, float("nan"), 0.0], r"a NaN or infinite value \(nan\)"),
        ([float("-inf"), 0.0, 0.0], r"a NaN or infinite value \(-inf\)"),
        ([1.0, 1e300, 0.0], r"a value beyond float32 \(1e\+300\)"),
        ([1e30, 1e30, 0.0], "values so large that the score overflows"),
        ([1.0] * 4, "a dense vector or array of 4 values, not 3"),
        ([1.0] * 2, "a dense vector or array of 2 values, not 3"),
        ([0.0] * 4, "a dense vector or array of 4 values, not 3"),
        ([], "a dense vector or array of 0 values, not 3"),
    ],
)
def test_the_error_names_the_column_the_value_and_the_way_out(
    values: list[float] | None, message: str
) -> None:
    table = np.ones((3, K + 1), np.float32)
    task = make_task(
        ClosureBroadcast(FMWeights(0.0, table, 3)), loss="logistic", features_col="f",
        handle_invalid="error",
    )  # fmt: skip
    arrays = pa.array([[1.0, 0.0, 0.5], values], pa.list_(pa.float64()))

    with pytest.raises(InvalidDataError, match=f"featuresCol='f' holds {message}.*handleInvalid"):
        list(task(iter([arrays])))


def test_keep_gives_null_outputs_and_skip_drops_the_row(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    good = [(float(i), Vectors.sparse(N_FEATURES, [i], [1.0])) for i in range(3)]
    bad = [(-1.0, vector) for vector in BAD_VECTORS.values()]
    frame = frame_of(spark, [good[0], *bad[:2], good[1], *bad[2:], good[2]])
    model = classifier.copy()
    model.setPredictionCol("prediction").setProbabilityCol("p").setRawPredictionCol("raw")
    outputs = ["score", "predicted_label", "p", "raw", "prediction"]

    kept = model.setHandleInvalid("keep").transform(frame).collect()
    skipped = model.setHandleInvalid("skip").transform(frame).collect()

    assert [row["label"] for row in kept] == [0.0, *[-1.0] * 2, 1.0, *[-1.0] * (len(bad) - 2), 2.0]
    for row in kept:
        assert all((row[name] is None) == (row["label"] < 0) for name in outputs)
    assert skipped == [row for row in kept if row["label"] >= 0]


def test_null_elements_of_an_array_are_bad_values(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    rows = [([0.5] * 20,), ([0.5] * 19 + [None],), (None,), ([0.5] * 21,)]
    frame = spark.createDataFrame(rows, "features array<double>").coalesce(1)

    score = column(classifier.copy().setHandleInvalid("keep").transform(frame), "score")

    assert np.isfinite(score).tolist() == [True, False, False, False]


def test_vectors_that_contradict_themselves_are_bad(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    rows = [(0.0, [0], [1.0]), (1.0, [-1], [1.0]), (1.0, [1, 2], [1.0]), (0.0, [0], [1.0])]

    scored = classifier.copy().setHandleInvalid("keep").transform(broken_frame(spark, rows))
    score = column(scored, "score")

    assert np.isfinite(score).tolist() == [True, False, False, True]
    assert score[0] == score[3]
