"""On a cluster a shuffle hands rows over as they arrive; the model must not depend on it."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.spark.scans import comes_in_any_order
from tests.training.builders import assert_same_model, machine, pretend_cluster


@pytest.fixture(scope="module")
def halves(spark, frame, tmp_path_factory):
    """The rows in two files."""
    folder = tmp_path_factory.mktemp("halves")
    halves = []
    for number in range(2):
        path = str(folder / str(number))
        frame.where(F.xxhash64("features", "label") % 2 == number).coalesce(1).write.parquet(path)
        halves.append(spark.read.parquet(path))
    return halves


def one_partition(first: DataFrame, then: DataFrame) -> DataFrame:
    """All rows, shuffled into one partition in this order."""
    return first.union(then).repartition(1)


@pytest.mark.parametrize("workers", [0, 3])
def test_on_a_cluster_shuffled_rows_train_the_same_model_in_whatever_order_they_arrive(
    halves, monkeypatch, workers
):
    pretend_cluster(monkeypatch, keeps_order=False, local_cores=0)
    params = {"numWorkers": workers, "validationFraction": 0.2, "keepTrainingState": True}

    one, other = (
        machine(**params).fit(one_partition(*order)) for order in (halves, reversed(halves))
    )

    assert_same_model(one, other)
    assert len({m.trainingState.metadata["fingerprint"] for m in (one, other)}) == 1


def test_rows_stay_in_the_order_that_the_caller_gave_them_where_shuffle_is_false(
    halves, monkeypatch
):
    pretend_cluster(monkeypatch, keeps_order=False, local_cores=0)
    params = {"shuffle": False, "validationFraction": 0.0, "refit": "never", "numWorkers": 1}
    sorted_rows = halves[0].union(halves[1]).orderBy("label").coalesce(1)

    on_cluster = machine(**params).fit(sorted_rows)
    monkeypatch.undo()

    assert_same_model(on_cluster, machine(**params).fit(sorted_rows))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda rows: rows.where("label = 1").select("features"), False),
        (lambda rows: rows.coalesce(1).union(rows), False),
        (lambda rows: rows.join(F.broadcast(rows.select("label")), "label"), False),
        (lambda rows: rows.sparkSession.createDataFrame([(1, 2.0)], ["a", "b"]), False),
        (lambda rows: rows.repartition(2).select("label"), True),
        (lambda rows: rows.groupBy("label").count(), True),
        (lambda rows: rows.join(rows.select("label").hint("merge"), "label"), True),
        (lambda rows: rows.repartition(2).cache().where("label = 1"), True),
        (lambda rows: rows.select("label").rdd.repartition(2).toDF(), True),
    ],
    ids=["filter", "coalesce and union", "broadcast join", "local rows", "repartition", "groupBy",
         "join", "cached", "RDD"],
)  # fmt: skip
def test_a_plan_shows_whether_rows_may_come_in_another_order(halves, make, expected):
    assert comes_in_any_order(make(halves[0])) is expected
