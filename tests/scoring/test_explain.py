"""Tasks that take scores apart, called as Spark calls them but without Spark."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from spark_fm.errors import InvalidDataError, VersionMismatchError
from spark_fm.learner.weights import FMWeights
from spark_fm.scoring.columns import FeatureReader
from spark_fm.scoring.explain import (
    ALL_ROWS,
    EXPLANATION,
    LINEAR_PART,
    ExplainTask,
    FeatureNames,
    FeatureSumsTask,
    GroupSumsTask,
)
from spark_fm.spark.broadcast import ClosureBroadcast
from tests.builders import planted_weights

WEIGHTS = planted_weights(4, 3, seed=1)
MODEL = ClosureBroadcast(WEIGHTS)
NAMES = ClosureBroadcast(FeatureNames.of({3: "last", 0: "first"}))
FLOATS = pa.list_(pa.float64())
ROWS = pa.array([[1.0, 0, 2, 0], None, [0, 0, 0, 3.0], [0.0] * 4], FLOATS)


def explain_task(handle_invalid: str = "keep") -> ExplainTask:
    return ExplainTask(MODEL, NAMES, FeatureReader("f", handle_invalid), 2, None)


def test_explanations_have_the_declared_fields_and_null_where_a_row_is_bad() -> None:
    (structs,) = explain_task()(iter([ROWS]))

    assert [field.name for field in structs.type] == EXPLANATION.names
    explained = structs.to_pylist()
    assert explained[1] is None
    assert [part["feature"] for part in explained[2]["linear"]] == [3]
    assert explained[2]["linear"][0]["name"] == "last"
    assert explained[2]["linear"][0]["value"] == 3.0
    (pair,) = explained[0]["pairs"]
    assert (pair["feature_a"], pair["name_a"]) == (0, "first")
    assert (pair["feature_b"], pair["name_b"]) == (2, None)
    assert explained[3] == {
        "margin": WEIGHTS.bias, "bias": WEIGHTS.bias, "linear": [], "other_linear": 0.0,
        "pairs": [], "other_pairs": 0.0,
    }  # fmt: skip


def test_a_batch_of_bad_rows_only_is_explained_as_nulls() -> None:
    (structs,) = explain_task()(iter([pa.array([None, None], FLOATS)]))

    assert structs.to_pylist() == [None, None]


@pytest.mark.parametrize(
    "task",
    [
        explain_task("error"),
        FeatureSumsTask(MODEL, FeatureReader("f", "error")),
    ],
)
def test_a_bad_row_is_an_error_when_asked_for(task: object) -> None:
    batch = ROWS if isinstance(task, ExplainTask) else pa.record_batch([ROWS], names=["features"])

    with pytest.raises(InvalidDataError, match="featuresCol='f' holds a null or broken vector"):
        list(task(iter([batch])))


def test_another_version_on_the_worker_is_refused() -> None:
    task = explain_task()
    object.__setattr__(task, "version", "0.0.0")  # the driver's

    with pytest.raises(VersionMismatchError):
        list(task(iter([])))


def test_sums_of_features_come_with_the_number_of_rows() -> None:
    features = np.array([2, 5, 7, 9], np.int32)
    model = ClosureBroadcast(FMWeights(WEIGHTS.bias, WEIGHTS.table, 10, features))
    task = FeatureSumsTask(model, FeatureReader("f", "skip"))
    rows = pa.array([[0.0] * 9 + [2.0], [1.0] * 10, None], FLOATS)

    (batch,) = task(iter([pa.record_batch([rows], names=["features"])]))

    assert batch.column("feature").to_pylist() == [ALL_ROWS, 2, 5, 7, 9]
    assert batch.column("n_rows").to_pylist() == [2, 1, 1, 1, 2]
    assert batch.column("linear")[4].as_py() == pytest.approx(3 * abs(WEIGHTS.table[3, 3]))


def test_a_partition_without_rows_has_sums_of_nothing() -> None:
    groups = ClosureBroadcast(np.array([0, 0, 1, 1], np.int32))
    reader = FeatureReader("f", "error")

    (by_feature,) = FeatureSumsTask(MODEL, reader)(iter([]))
    (by_group,) = GroupSumsTask(MODEL, reader, groups, 2)(iter([]))

    assert by_feature.to_pylist() == [
        {"feature": ALL_ROWS, "n_rows": 0, "linear": 0.0, "pairs": 0.0, "total": 0.0}
    ]
    assert by_group.to_pylist() == [
        {"a": ALL_ROWS, "b": ALL_ROWS, "total": 0.0},
        {"a": 0, "b": LINEAR_PART, "total": 0.0},
        {"a": 1, "b": LINEAR_PART, "total": 0.0},
    ]


def test_names_are_found_by_id_or_null() -> None:
    table = FeatureNames.of({9: "nine", 2: "two"})

    found = table.of_features(np.array([2, 3, 9, 10, 0, 2], np.int32))

    assert found.to_pylist() == ["two", None, "nine", None, None, "two"]
    assert FeatureNames.of({}).of_features(np.array([1], np.int32)).to_pylist() == [None]
