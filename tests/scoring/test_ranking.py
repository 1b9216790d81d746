"""Tasks that make vectors and rank by them, called as Spark calls them but without Spark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from spark_fm.errors import InvalidDataError
from spark_fm.learner.weights import FMWeights
from spark_fm.scoring.columns import FeatureReader
from spark_fm.scoring.ranking import Candidates, CandidateTask, ContextTask, RankAllTask, RankTask
from spark_fm.spark.broadcast import ClosureBroadcast
from tests.builders import planted_weights

WEIGHTS = planted_weights(6, 3, seed=1)
MODEL = ClosureBroadcast(WEIGHTS)
FLOATS = pa.list_(pa.float64())


def one_hot(*features: int) -> pa.Array:
    return pa.array([[float(i == j) for i in range(6)] for j in features], FLOATS)


def ranking(k: int = 2, ids: pa.DataType | None = None) -> RankTask:
    kinds = {"context": pa.int64(), "candidate": ids or pa.string()}
    kinds |= {"margin": pa.float64(), "score": pa.float64(), "rank": pa.int32()}
    return RankTask(k, "squared", pa.schema(list(kinds.items())))


def contexts(vectors: list[list[float]], **columns: Any) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "context": pa.array(range(len(vectors)), pa.int64()),
            "vector": pa.array(vectors, pa.list_(pa.float32())),
            "constant": pa.array(np.zeros(len(vectors))),
            **columns,
        }
    )


def candidates(ids: list[Any], vectors: list[list[float]]) -> Candidates:
    columns = {"candidate": ids, "vector": pa.array(vectors, pa.list_(pa.float32()))}
    return Candidates.of(pa.table(columns))


def test_vectors_of_one_feature_are_its_factors_and_its_weight() -> None:
    reader = FeatureReader("f", "error")

    (asked,) = ContextTask(MODEL, reader, None)(iter([one_hot(2)]))
    (item,) = CandidateTask(MODEL, reader)(iter([one_hot(4)]))

    assert asked[0]["vector"].as_py() == [*WEIGHTS.factors[2].tolist(), 1.0]
    assert asked[0]["constant"].as_py() == pytest.approx(WEIGHTS.bias + WEIGHTS.linear[2])
    assert item[0]["vector"].as_py() == pytest.approx([*WEIGHTS.factors[4], WEIGHTS.linear[4]])


def test_candidates_tell_each_feature_once_a_task() -> None:
    batches = [one_hot(3, 1, 3), pa.array([None], FLOATS), one_hot(1, 5)]
    task = CandidateTask(MODEL, FeatureReader("f", "skip"))

    told = [array.to_pylist() for array in task(iter(batches))]

    assert told[1] == [None]
    features = [j for array in told for row in array if row for j in row["features"]]
    assert sorted(features) == [1, 3, 5]


def test_candidates_tell_only_features_that_the_model_knows() -> None:
    known = np.array([1, 2, 3, 4, 5, 8], np.int32)
    model = ClosureBroadcast(FMWeights(WEIGHTS.bias, WEIGHTS.table, 9, known))
    rows = pa.array([[1.0] * 9], FLOATS)

    (told,) = CandidateTask(model, FeatureReader("f", "error"))(iter([rows]))

    assert told[0]["features"].as_py() == [1, 2, 3, 4, 5, 8]


def test_a_feature_on_both_sides_is_an_error_that_names_it() -> None:
    taken = ClosureBroadcast(np.array([1, 4], np.int32))
    task = ContextTask(MODEL, FeatureReader("f", "error"), taken)

    assert len(list(task(iter([one_hot(0, 2, 5)])))) == 1
    with pytest.raises(InvalidDataError, match="feature 4 is in a context and in a candidate"):
        list(task(iter([one_hot(0, 4)])))


def test_equal_scores_rank_by_id_as_spark_sorts_ids() -> None:
    found = candidates(["é", "b", "a", "B"], [[1.0], [1.0], [1.0], [1.0]])

    ranked = ranking(k=4).rank(contexts([[1.0]]), found)

    assert ranked.column("candidate").to_pylist() == ["B", "a", "b", "é"]
    assert ranked.column("rank").to_pylist() == [1, 2, 3, 4]


def test_seen_candidates_are_left_out_for_the_context_that_saw_them() -> None:
    found = candidates([10, 30, 20], [[1.0], [3.0], [2.0]])
    seen = pa.array([[30, 99, 30], None, [10, 20, 30]], pa.list_(pa.int64()))

    ranked = ranking(ids=pa.int32()).rank(contexts([[1.0]] * 3, seen=seen), found)

    rows = zip(*(ranked.column(name).to_pylist() for name in ("context", "candidate", "score")),
               strict=True)  # fmt: skip
    assert list(rows) == [(0, 20, 2.0), (0, 10, 1.0), (1, 30, 3.0), (1, 20, 2.0)]


def test_no_candidates_give_no_rows_of_the_right_kind() -> None:
    task = RankAllTask(ranking(), ClosureBroadcast(candidates([], [])))

    (ranked,) = task(iter([contexts([[1.0], [2.0]])]))

    assert ranked.num_rows == 0
    assert ranked.schema == ranking().schema


def test_many_results_leave_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_fm.scoring.ranking.RANKED_ROWS", 4)
    task = RankAllTask(ranking(k=2), ClosureBroadcast(candidates(["a", "b", "c"], [[1], [2], [3]])))

    batches = list(task(iter([contexts([[1.0]] * 5)])))

    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert [c for batch in batches for c in batch.column("context").to_pylist()] == [
        0, 0, 1, 1, 2, 2, 3, 3, 4, 4,
    ]  # fmt: skip
