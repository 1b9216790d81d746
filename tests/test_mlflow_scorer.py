"""The pyfunc scores tables and matrices of every form alike, without MLflow or Spark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.formats.models.native import SavedModel
from spark_fm.learner.spec import LossName
from spark_fm.mlflow import Scorer
from tests import oracle
from tests.builders import planted_weights, random_batch

N = 12
WEIGHTS = planted_weights(N, 4, seed=1)
BATCH = random_batch(50, N, seed=2)
MATRIX = sp.csr_matrix((BATCH.values, BATCH.indices, BATCH.indptr), shape=(50, N))


def scorer(loss: LossName = "logistic", **changes: Any) -> Scorer:
    params = {
        "featuresCol": "features", "scoreCol": "score", "predictedLabelCol": "predicted_label",
        "threshold": 0.5, "handleInvalid": "error",
    }  # fmt: skip
    return Scorer(SavedModel(WEIGHTS, loss, params | changes, {}, None))


def expected_scores() -> np.ndarray:
    margins = oracle.scores(oracle.Model.of_table(WEIGHTS.table, WEIGHTS.bias), BATCH)
    return np.asarray(1 / (1 + np.exp(-margins)))


def as_dicts() -> pd.DataFrame:
    rows = [
        {"indices": BATCH.indices[a:b].tolist(), "values": BATCH.values[a:b].tolist()}
        for a, b in zip(BATCH.indptr[:-1], BATCH.indptr[1:], strict=True)
    ]
    return pd.DataFrame({"id": "x", "features": rows})


FORMS = {
    "csr matrix": MATRIX,
    "csc array": sp.csc_array(MATRIX),
    "array": MATRIX.toarray(),
    "columns": pd.DataFrame(MATRIX.toarray()),
    "lists": pd.DataFrame({"features": MATRIX.toarray().tolist()}),
    "arrays": pd.DataFrame({"features": list(MATRIX.toarray())}),
    "dicts": as_dicts(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_rows_scores_alike(form: str) -> None:
    scored = scorer(threshold=0.4).predict(FORMS[form])

    expected = expected_scores()
    assert list(scored) == ["score", "predicted_label"]
    assert scored["score"].to_numpy() == pytest.approx(expected, rel=1e-4)  # float32 sums
    clear = np.abs(expected - 0.4) > 1e-4
    assert np.array_equal(scored["predicted_label"][clear], (expected > 0.4)[clear])


def test_a_regressor_has_a_score_alone_under_the_model_s_column_names() -> None:
    assert list(scorer("squared", scoreCol="rating").predict(MATRIX)) == ["rating"]
    assert list(scorer(predictedLabelCol="").predict(MATRIX)) == ["score"]


def test_rows_keep_their_index_and_other_columns_are_passed_over() -> None:
    table = FORMS["dicts"].set_index(pd.Index(np.arange(50) * 2, name="key"))

    assert scorer().predict(table).index.equals(table.index)


def test_no_rows_give_no_rows() -> None:
    assert scorer().predict(MATRIX[:0]).shape == (0, 2)
    assert scorer().predict(pd.DataFrame({"features": []})).shape == (0, 2)


BAD_CELLS = [
    None,
    [float("nan")] * N,
    [1.0] * (N - 1) + [None],
    [0.0] * N + [1.0],
    [1.0] * (N - 1),
    [],
    [float("inf")] * N,
]
BAD_DICTS = [
    {"indices": [N], "values": [1.0]},
    {"indices": [-1], "values": [1.0]},
    {"indices": [1, 2], "values": [1.0]},
]


@pytest.mark.parametrize("cell", BAD_CELLS + BAD_DICTS, ids=str)
def test_a_row_that_cannot_be_scored_is_an_error_or_nan(cell: object) -> None:
    good = {"indices": [3], "values": [2.0]} if isinstance(cell, dict) else [2.0] * N
    table = pd.DataFrame({"features": [good, cell, good]})

    with pytest.raises(InvalidDataError, match=r"Row 1 is .* outside 0 to 11"):
        scorer().predict(table)
    for choice in ("keep", "skip"):
        scored = scorer(handleInvalid=choice).predict(table)
        assert scored.isna().all(axis=1).tolist() == [False, True, False]
        assert scored["score"][0] == scored["score"][2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"text": ["a"]}), "no column 'features', and is no table of numbers"),
        (pd.DataFrame({"a": [1.0], "b": [2.0]}), r"2 column\(s\), but the model has 12 features"),
        (pd.DataFrame({"features": ["a"]}), "holds neither lists of numbers nor dicts"),
        (pd.DataFrame({"features": [1.0]}), "holds neither lists of numbers nor dicts"),
        (pd.DataFrame({"features": [{"indices": "a"}]}), "has a dict of 'indices' in row 0"),
    ],
)
def test_tables_without_features_are_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(InvalidColumnError, match=message):
        scorer().predict(table)
