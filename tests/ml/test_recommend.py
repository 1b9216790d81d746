"""The best candidates of each context, against transform on the cross join."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.errors import PySparkException
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import LongType, StringType, StructField, StructType

from benchmarks.datasets import ml100k_regression, to_frame
from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidColumnError, InvalidDataError, InvalidParamError
from spark_fm.ml import recommend
from tests.ml.builders import N_FEATURES, fast_fm, frame_of

HALF = N_FEATURES // 2  # contexts have the features below
# Two float32 roundings of scores between 0 and 1, or of margins below 10.
CLOSE = 2e-6
Pairs = dict[Any, list[Any]]


@pytest.fixture(params=["shipped", "in groups"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send candidates to all tasks, or join them in several groups."""
    if request.param == "in groups":
        monkeypatch.setattr(recommend, "BROADCAST_BYTES", 0)
        monkeypatch.setattr(recommend, "GROUP_BYTES", 300)


def vectors_of(n: int, first: int, last: int, *, seed: int) -> list[SparseVector]:
    rng = np.random.default_rng(seed)
    vectors = []
    for _ in range(n):
        ids = np.sort(rng.choice(np.arange(first, last), rng.integers(0, 4), replace=False))
        values = rng.uniform(-1.5, 1.5, len(ids))
        vectors.append(Vectors.sparse(N_FEATURES, ids.tolist(), values.tolist()))
    return vectors


def frame(spark: SparkSession, name: str, ids: Iterable[Any], vectors: list[Any]) -> DataFrame:
    kind = StringType() if isinstance(next(iter(ids)), str) else LongType()
    schema = StructType([StructField(name, kind), StructField("features", VectorUDT())])
    return spark.createDataFrame(list(zip(ids, vectors, strict=True)), schema).coalesce(1)


def asked(spark: SparkSession, n: int = 7, *, seed: int = 1) -> tuple[DataFrame, list]:
    vectors = vectors_of(n, 0, HALF, seed=seed)
    return frame(spark, "user", range(n), vectors), vectors


def offered(spark: SparkSession, n: int = 23, *, seed: int = 2) -> tuple[DataFrame, list]:
    vectors = vectors_of(n, HALF, N_FEATURES, seed=seed)
    return frame(spark, "item", [f"i{i:02d}" for i in range(n)], vectors), vectors


def scores_of_all(
    model: FactorizationMachineModel, contexts: list[SparseVector], items: list[SparseVector]
) -> np.ndarray:
    """Return what predict says about every sum of a context and an item."""
    left, right = (
        sp.csr_matrix(np.array([vector.toArray() for vector in vectors]))
        for vectors in (contexts, items)
    )
    pairs = [(c, i) for c in range(len(contexts)) for i in range(len(items))]
    both = left[[c for c, _ in pairs]] + right[[i for _, i in pairs]]
    return model.predict(both).reshape(len(contexts), len(items))


def lists_of(result: DataFrame) -> tuple[Pairs, Pairs]:
    """Return each context's candidates and scores in the order of their ranks."""
    items: Pairs = {}
    scores: Pairs = {}
    for user, item, score, rank in result.orderBy("user", "rank").collect():
        assert rank == len(items.setdefault(user, [])) + 1
        items[user].append(item)
        scores.setdefault(user, []).append(score)
    return items, scores


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_the_best_are_those_of_all_scores(
    spark: SparkSession, kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    (contexts, context_vectors), (items, item_vectors) = asked(spark), offered(spark)

    result = model.recommend(contexts, items, 5, contextCol="user", candidateCol="item")

    assert result.columns == ["user", "item", "score", "rank"]
    assert [field.dataType.simpleString() for field in result.schema] == [
        "bigint", "string", "double", "int",
    ]  # fmt: skip
    found, scores = lists_of(result)
    everything = scores_of_all(model, context_vectors, item_vectors)
    assert sorted(found) == list(range(7))
    for user, chosen in found.items():
        places = [int(item[1:]) for item in chosen]
        assert len(set(places)) == 5
        np.testing.assert_allclose(scores[user], everything[user][places], atol=CLOSE)
        assert scores[user] == sorted(scores[user], reverse=True)
        left_out = np.delete(everything[user], places)
        assert left_out.max() <= min(scores[user]) + CLOSE


def test_both_ways_give_the_same_rows(
    spark: SparkSession, classifier: FactorizationMachineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts, items = asked(spark)[0], offered(spark)[0]

    broadcast = classifier.recommend(contexts, items, 4, contextCol="user", candidateCol="item")
    monkeypatch.setattr(recommend, "BROADCAST_BYTES", 0)
    monkeypatch.setattr(recommend, "GROUP_BYTES", 300)
    grouped = classifier.recommend(contexts, items, 4, contextCol="user", candidateCol="item")

    assert lists_of(grouped) == lists_of(broadcast)


def test_scores_are_those_of_transform_on_the_cross_join(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    (contexts, left), (items, right) = asked(spark, 4), offered(spark, 6)
    sums = [
        (float(10 * u + i), Vectors.dense(a.toArray() + b.toArray()))
        for u, a in enumerate(left)
        for i, b in enumerate(right)
    ]
    model = classifier.copy()
    model.setScoreCol("liking")

    result = model.recommend(contexts, items, 6, contextCol="user", candidateCol="item")
    crossed = model.transform(frame_of(spark, sums)).collect()

    expected = {(row["label"] // 10, row["label"] % 10): row["liking"] for row in crossed}
    seen = {(row["user"], float(row["item"][1:])): row["liking"] for row in result.collect()}
    assert seen == pytest.approx(expected, abs=CLOSE)


@pytest.mark.usefixtures("both_ways")
def test_equal_scores_rank_by_id(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts = asked(spark, 3)[0]
    ids = ["b", "a", "c", "B", "é", "d", "aa"]
    items = frame(spark, "item", ids, [Vectors.sparse(N_FEATURES, [15], [1.0])] * len(ids))

    result = classifier.recommend(contexts, items, 6, contextCol="user", candidateCol="item")

    assert set(map(tuple, lists_of(result)[0].values())) == {("B", "a", "aa", "b", "c", "d")}


@pytest.mark.usefixtures("both_ways")
def test_excluded_pairs_do_not_come_up(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    (contexts, left), (items, right) = asked(spark, 4), offered(spark, 12)
    every = [f"i{i:02d}" for i in range(12)]
    pairs = [(0, item) for item in every] + [(1, item) for item in every[:9]] + [(2, "i03")] * 2
    pairs += [(None, "i01"), (3, None), (3, "unknown"), (77, "i02")]
    exclude = spark.createDataFrame(pairs, "user int, item string")

    result = classifier.recommend(
        contexts, items, 12, contextCol="user", candidateCol="item", exclude=exclude
    )

    found, _ = lists_of(result)
    everything = scores_of_all(classifier, left, right)
    assert 0 not in found
    assert set(found[1]) == {"i09", "i10", "i11"}
    assert set(found[2]) == set(every) - {"i03"}
    assert set(found[3]) == set(every)
    assert everything[2][int(found[2][0][1:])] == pytest.approx(
        np.delete(everything[2], 3).max(), abs=CLOSE
    )


@pytest.mark.usefixtures("both_ways")
def test_more_than_there_are_gives_all(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts, items = asked(spark, 2)[0], offered(spark, 5)[0]

    result = classifier.recommend(contexts, items, 1000, contextCol="user", candidateCol="item")

    assert [len(items) for items in lists_of(result)[0].values()] == [5, 5]


@pytest.mark.usefixtures("both_ways")
def test_no_contexts_or_no_candidates_give_no_rows(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts, items = asked(spark, 2)[0], offered(spark, 3)[0]
    columns = {"contextCol": "user", "candidateCol": "item"}

    for left, right in (
        (contexts.limit(0), items),
        (contexts, items.limit(0)),
        (contexts.limit(0), items.limit(0)),
    ):
        result = classifier.recommend(left, right, 3, **columns)
        assert result.columns == ["user", "item", "score", "rank"]
        assert result.collect() == []


def test_ids_may_be_int_or_bigint_or_string(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts, items = asked(spark, 3)[0], offered(spark, 4)[0]
    by_int = contexts.selectExpr("cast(user as int) as user", "features")
    by_text = contexts.selectExpr("cast(user as string) as user", "features")
    columns = {"contextCol": "user", "candidateCol": "item"}

    lists = [
        lists_of(classifier.recommend(frame, items, 2, **columns))[0]
        for frame in (contexts, by_int, by_text)
    ]

    assert lists[0] == lists[1]
    assert list(lists[0].values()) == list(lists[2].values())
    assert list(lists[2]) == ["0", "1", "2"]


def test_null_and_repeated_ids_are_errors_at_once(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts, items = asked(spark, 3)[0], offered(spark, 4)[0]
    columns = {"contextCol": "user", "candidateCol": "item"}
    no_id = contexts.selectExpr("nullif(user, 1) as user", "features")

    with pytest.raises(InvalidDataError, match="1 of 3 contexts have no id: contextCol='user'"):
        classifier.recommend(no_id, items, 2, **columns)
    with pytest.raises(InvalidDataError, match="8 candidates have 4 different ids"):
        classifier.recommend(contexts, items.union(items), 2, **columns)
    with pytest.raises(InvalidDataError, match="6 contexts have 3 different ids"):
        classifier.recommend(contexts.union(contexts), items, 2, **columns)


@pytest.mark.usefixtures("both_ways")
def test_a_feature_on_both_sides_is_an_error_that_names_it(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts = asked(spark, 3)[0]
    items = frame(spark, "item", ["a"], [Vectors.sparse(N_FEATURES, list(range(20)), [1.0] * 20)])

    result = classifier.recommend(contexts, items, 2, contextCol="user", candidateCol="item")

    with pytest.raises(PySparkException, match="is in a context and in a candidate"):
        result.collect()


def test_rows_that_cannot_be_scored_are_errors_or_left_out(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts, items = asked(spark, 3)[0], offered(spark, 4)[0]
    bad = [Vectors.sparse(N_FEATURES, [1], [float("nan")]), None]
    bad_contexts = contexts.union(frame(spark, "user", [7, 8], bad))
    bad_items = items.union(frame(spark, "item", ["x", "y"], bad))
    columns = {"contextCol": "user", "candidateCol": "item"}

    for word in ("skip", "keep"):
        model = classifier.copy()
        model.setHandleInvalid(word)
        found = lists_of(model.recommend(bad_contexts, bad_items, 9, **columns))[0]
        assert sorted(found) == [0, 1, 2]
        assert all(sorted(chosen) == ["i00", "i01", "i02", "i03"] for chosen in found.values())
    with pytest.raises(PySparkException, match="featuresCol='features' holds"):
        classifier.recommend(contexts, bad_items, 9, **columns)
    with pytest.raises(PySparkException, match="featuresCol='features' holds"):
        classifier.recommend(bad_contexts, items, 9, **columns).collect()


def test_illegal_requests_are_refused_at_once(
    spark: SparkSession, classifier: FactorizationMachineModel
) -> None:
    contexts, items = asked(spark, 2)[0], offered(spark, 2)[0]
    columns = {"contextCol": "user", "candidateCol": "item"}
    doubles = contexts.selectExpr("cast(user as double) as user", "features")
    texts = spark.createDataFrame([("1", "i01")], ["user", "item"])

    with pytest.raises(InvalidParamError, match="k=0 is not allowed"):
        classifier.recommend(contexts, items, 0, **columns)
    with pytest.raises(InvalidColumnError, match="contextCol='who' is not a column"):
        classifier.recommend(contexts, items, 1, contextCol="who", candidateCol="item")
    with pytest.raises(InvalidColumnError, match="'user' has type double; expected int"):
        classifier.recommend(doubles, items, 1, **columns)
    renamed = items.withColumnRenamed("item", "score")
    with pytest.raises(InvalidColumnError, match="are both 'score'"):
        classifier.recommend(contexts, renamed, 1, contextCol="user", candidateCol="score")
    with pytest.raises(InvalidColumnError, match="exclude has 'user' as string"):
        classifier.recommend(contexts, items, 1, **columns, exclude=texts)
    with pytest.raises(InvalidColumnError, match="featuresCol='features' is not a column"):
        classifier.recommend(contexts.select("user"), items, 1, **columns)


def test_ids_that_the_model_does_not_know_add_nothing(spark: SparkSession) -> None:
    size = 10**6
    rows = [
        (float((u + i) % 2), Vectors.sparse(size, [10 * u, 500_000 + 10 * i], [1.0, 1.0]))
        for u in range(5)
        for i in range(5)
    ]
    model = fast_fm(featureDim=size).fit(frame_of(spark, rows))
    assert model.features is not None
    # 7 is on both sides, and no harm: the model does not know it.
    contexts = spark.createDataFrame(
        [(0, Vectors.sparse(size, [0, 7], [1.0, 1.0])), (1, Vectors.sparse(size, [9], [1.0]))],
        ["user", "features"],
    )
    items = spark.createDataFrame(
        [(f"i{i}", Vectors.sparse(size, [7, 500_000 + 10 * i], [1.0, 1.0])) for i in range(6)],
        ["item", "features"],
    )

    result = model.recommend(contexts, items, 6, contextCol="user", candidateCol="item")

    scores = {(row["user"], row["item"]): row["score"] for row in result.collect()}
    for i in range(6):
        both = sp.csr_matrix(([1.0, 1.0], ([0, 0], [0, 500_000 + 10 * i])), shape=(1, size))
        alone = sp.csr_matrix(([1.0], ([0], [500_000 + 10 * i])), shape=(1, size))
        assert scores[0, f"i{i}"] == pytest.approx(model.predict(both)[0], abs=CLOSE)
        assert scores[1, f"i{i}"] == pytest.approx(model.predict(alone)[0], abs=CLOSE)


def test_exported_vectors_give_the_margins(
    spark: SparkSession, regressor: FactorizationMachineModel
) -> None:
    (contexts, left), (items, right) = asked(spark, 5), offered(spark, 6)

    with_context = regressor.context_vectors(contexts, vectorCol="v", constantCol="c")
    with_item = regressor.candidate_vectors(items)

    assert with_context.columns == ["user", "features", "v", "c"]
    assert with_item.columns == ["item", "features", "vector"]
    assert with_context.schema["v"].dataType.simpleString() == "array<float>"
    a = sorted(with_context.collect(), key=lambda row: row["user"])
    b = sorted(with_item.collect(), key=lambda row: row["item"])
    products = np.array([row["v"] for row in a]) @ np.array([row["vector"] for row in b]).T
    margins = products + np.array([row["c"] for row in a])[:, None]
    np.testing.assert_allclose(margins, scores_of_all(regressor, left, right), atol=1e-5)
    with pytest.raises(InvalidColumnError, match="vectorCol='user' is a column"):
        regressor.context_vectors(contexts, vectorCol="user")


def test_exported_vectors_follow_handle_invalid(
    spark: SparkSession, regressor: FactorizationMachineModel
) -> None:
    items = frame(spark, "item", [1, 2], [None, Vectors.sparse(N_FEATURES, [12], [1.0])])
    keeping, skipping = regressor.copy(), regressor.copy()
    keeping.setHandleInvalid("keep")
    skipping.setHandleInvalid("skip")

    kept = {row["item"]: row["vector"] for row in keeping.candidate_vectors(items).collect()}

    assert kept[1] is None
    assert len(kept[2]) == 5
    assert [row["item"] for row in skipping.candidate_vectors(items).collect()] == [2]


def test_movies_for_all_users_are_those_of_all_scores(spark: SparkSession, data_folder) -> None:
    split = ml100k_regression()
    model = fast_fm(predictorType="regressor", featureDim=2625).fit(to_frame(spark, split.train))
    users = [(u, Vectors.sparse(2625, [u], [1.0])) for u in range(943)]
    movies = [(m, Vectors.sparse(2625, [943 + m], [1.0])) for m in range(1682)]
    contexts = spark.createDataFrame(users, ["user", "features"])
    items = spark.createDataFrame(movies, ["item", "features"])
    rated = split.train.X.indices.reshape(-1, 2) - [0, 943]
    exclude = spark.createDataFrame(rated.tolist(), ["user", "item"])

    result = model.recommend(
        contexts, items, 10, contextCol="user", candidateCol="item", exclude=exclude
    )

    found = result.orderBy("user", "rank").toPandas()
    ids = np.repeat(np.arange(943), 1682), 943 + np.tile(np.arange(1682), 943)
    n = len(ids[0])
    everything = sp.csr_matrix(
        (np.ones(2 * n), np.stack(ids, axis=1).ravel(), np.arange(0, 2 * n + 1, 2)),
        shape=(n, 2625),
    )
    scores = model.predict(everything).reshape(943, 1682).astype(np.float64)
    scores[rated[:, 0], rated[:, 1]] = -np.inf
    best = np.sort(scores, axis=1)[:, ::-1][:, :10]
    assert len(found) == 9430
    np.testing.assert_allclose(found["score"].to_numpy().reshape(943, 10), best, atol=1e-5)
    np.testing.assert_allclose(scores[found["user"], found["item"]], found["score"], atol=1e-5)
