"""Arguments that are no DataFrame, no model, or of another estimator are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pyspark.ml.linalg import Vectors
from pyspark.mllib.linalg import Vectors as MLlibVectors
from pyspark.sql import DataFrame, SparkSession

import spark_fm
from spark_fm import FactorizationMachineModel, register_udf, tune
from spark_fm.errors import (
    InvalidColumnError,
    InvalidDataError,
    InvalidParamError,
    ModelFormatError,
)
from tests.ml.builders import fast_fm

TABLE = np.zeros((2, 20))
TABLE[[0, 1, 1], [0, 3, 4]] = [1.0, 0.5, -2.0]
ROW = Vectors.sparse(20, {0: 1.0})


@pytest.mark.parametrize("what", ["fit", "grid", "tune", "transform", "evaluate"])
def test_what_is_no_spark_dataframe_is_refused_by_its_type(
    train: DataFrame, classifier: FactorizationMachineModel, what: str
) -> None:
    fm = fast_fm()
    ways = {
        "fit": fm.fit,
        "grid": lambda rows: fm.fit(rows, [{fm.epochs: 1}]),
        "tune": lambda rows: tune(fm, rows, trials=1),
        "transform": classifier.transform,
        "evaluate": classifier.evaluate,
    }

    with pytest.raises(InvalidDataError, match=r"Got a builtins\.list; expected a Spark DataFrame"):
        ways[what]([1, 2])


def test_what_is_ranked_or_explained_is_a_spark_dataframe(
    train: DataFrame, classifier: FactorizationMachineModel
) -> None:
    rows, ids = train.limit(2), {"contextCol": "label", "candidateCol": "label"}
    named = rows.selectExpr("cast(label as int) as label", "features")
    table = pd.DataFrame({"label": [1]})
    ways: list[Callable[[], object]] = [
        lambda: classifier.recommend([1], named, 1, **ids),  # type: ignore[arg-type]
        lambda: classifier.recommend(table, named, 1, **ids),  # type: ignore[arg-type]
        lambda: classifier.recommend(named, table, 1, contextCol="label", candidateCol="id"),  # type: ignore[arg-type]
        lambda: classifier.context_vectors(table),  # type: ignore[arg-type]
        lambda: classifier.candidate_vectors(None),  # type: ignore[arg-type]
        lambda: classifier.explain([ROW]),  # type: ignore[arg-type]
    ]

    for way in ways:
        with pytest.raises(InvalidDataError, match=r"^Got a .*; expected a Spark DataFrame"):
            way()


def test_a_missing_features_column_is_answered_with_what_makes_one(train: DataFrame) -> None:
    with pytest.raises(InvalidColumnError, match=r"there are label\. Make it with FeatureHasher"):
        fast_fm().fit(train.select("label"))


@pytest.mark.parametrize("uri", ["models:/books/1", "models:/books@champion", "runs:/0a1b/model"])
def test_an_address_of_mlflow_is_answered_with_how_to_load_it(
    spark: SparkSession, uri: str
) -> None:
    for load in (FactorizationMachineModel.load, spark_fm.load):
        with pytest.raises(ModelFormatError, match=r"MLflow's, not a folder.*download_artifacts"):
            load(uri)


@pytest.mark.parametrize("several", [False, True])
def test_params_of_another_estimator_are_refused_and_not_ignored(
    train: DataFrame, several: bool
) -> None:
    fm, other = fast_fm(), fast_fm()
    param_map = {other.epochs: 1}

    with pytest.raises(InvalidParamError, match=f"epochs of {other.uid}.*no effect on {fm.uid}"):
        fm.fit(train, [param_map] if several else param_map)
    with pytest.raises(InvalidParamError, match=f"epochs of {other.uid}"):
        fm.fitMultiple(train, [{}, param_map])


def test_a_warm_start_from_what_is_no_model_is_refused(train: DataFrame) -> None:
    with pytest.raises(InvalidParamError, match="warmStart=3 is a int; expected a Factorization"):
        fast_fm().fit(train, warmStart=3)


def test_only_a_fitted_model_becomes_a_function(spark: SparkSession) -> None:
    with pytest.raises(InvalidParamError, match="model is a FactorizationMachine; expected a"):
        register_udf(spark, "f", fast_fm())


@pytest.mark.parametrize("what", ["fit", "tune", "evaluate"])
def test_a_stream_is_refused_where_rows_have_to_end(
    spark: SparkSession, classifier: FactorizationMachineModel, tmp_path: Path, what: str
) -> None:
    stream = spark.readStream.schema("label double, features array<double>").parquet(str(tmp_path))
    ways = {
        "fit": fast_fm().fit,
        "tune": lambda rows: tune(fast_fm(), rows, trials=1),
        "evaluate": classifier.evaluate,
    }

    with pytest.raises(InvalidDataError, match="needs rows that come to an end; this is a stream"):
        ways[what](stream)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[1.0, 0.0]], "X has 2 columns, the model has 20 features"),
        (np.zeros((3, 21)), "X has 21 columns, the model has 20 features"),
        ([[0.0] * 20, [0.0] * 19 + [np.nan]], "Row 1 of X has the value nan at feature 19"),
        (sp.csr_matrix(([np.inf], [3], [0, 0, 1]), shape=(2, 20)), "Row 1 .* inf at feature 3"),
        ("abc", "X"),
        ([[0.0] * 20, [1e30] * 20], "Row 1 of X has values so large that its score overflows"),
        (pd.Series([ROW, None]), "Row 1 of X is None, others are vectors"),
        (pd.Series([ROW, Vectors.dense([1.0])]), "X has vectors of 1 to 20 features"),
        (pd.DataFrame({"label": [1.0], "f": [ROW]}), "pass that column alone"),
    ],
)
def test_a_matrix_that_cannot_be_scored_is_refused(
    classifier: FactorizationMachineModel, X: Any, message: str
) -> None:
    with pytest.raises(InvalidDataError, match=message):
        classifier.predict(X)


@pytest.mark.parametrize(
    "X",
    [
        TABLE.astype(np.float16),
        pd.Series([ROW, Vectors.dense(TABLE[1])]),
        pd.DataFrame({"features": [ROW, Vectors.dense(TABLE[1])]}),
        [ROW, Vectors.dense(TABLE[1])],
        pd.Series([MLlibVectors.sparse(20, {0: 1.0}), MLlibVectors.dense(TABLE[1])]),
    ],
    ids=["float16", "series", "frame", "list", "mllib"],
)
def test_rows_in_unusual_hands_are_predicted(classifier: FactorizationMachineModel, X: Any) -> None:
    assert classifier.predict(X).tolist() == classifier.predict(TABLE).tolist()


def test_a_row_of_nan_is_kept_under_handle_invalid_keep(
    classifier: FactorizationMachineModel,
) -> None:
    scores = classifier.copy({classifier.handleInvalid: "keep"}).predict(
        [[np.nan] * 20, [0.0] * 20]
    )

    assert np.isnan(scores).tolist() == [True, False]
