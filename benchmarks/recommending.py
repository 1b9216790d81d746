"""Seconds to recommend, against scoring every pair with transform.

Run ``python -m benchmarks.recommending``; the figures are in docs/recommending.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import Rows, ml100k_regression, to_frame
from benchmarks.local import local_session
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.learner.weights import FMWeights

K = 16


def best_of(runs: int, function: Callable[[], object]) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def one_hot(spark: SparkSession, name: str, n: int, *, first: int, size: int) -> DataFrame:
    matrix = sp.csr_matrix((np.ones(n), (range(n), range(first, first + n))), shape=(n, size))
    frame = to_frame(spark, Rows(matrix, np.arange(float(n))), 4)
    return frame.select(F.col("label").cast("int").alias(name), "features").cache()


def measure(
    spark: SparkSession, model: FactorizationMachineModel, n_users: int, n_items: int, tried: int
) -> None:
    size = n_users + n_items
    users = one_hot(spark, "user", n_users, first=0, size=size)
    items = one_hot(spark, "item", n_items, first=n_users, size=size)
    users.count(), items.count()

    def recommend() -> None:
        found = model.recommend(users, items, 10, contextCol="user", candidateCol="item")
        found.write.format("noop").mode("overwrite").save()

    pairs = np.stack([np.repeat(np.arange(tried), n_items),
                      n_users + np.tile(np.arange(n_items), tried)], axis=1)  # fmt: skip
    n = len(pairs)
    matrix = sp.csr_matrix(
        (np.ones(2 * n), pairs.ravel(), np.arange(0, 2 * n + 1, 2)), shape=(n, size)
    )
    crossed = to_frame(spark, Rows(matrix, np.zeros(n)), 4).cache()
    crossed.count()

    def transform() -> None:
        model.transform(crossed).write.format("noop").mode("overwrite").save()

    recommend(), transform()  # kernels are compiled and workers started
    by_product, by_score = best_of(3, recommend), best_of(3, transform)
    print(
        f"{n_users:,} x {n_items:,}: recommend {by_product:.1f} s; transform of the pairs of "
        f"{tried:,} contexts {by_score:.1f} s, {by_score / tried * n_users:,.0f} s for all",
        flush=True,
    )


def main() -> None:
    spark = local_session("local[2]")
    machine = FactorizationMachine(
        predictorType="regressor", numFactors=K, epochs=5, featureDim=2625
    )
    measure(spark, machine.fit(to_frame(spark, ml100k_regression().train)), 943, 1682, 943)
    table = np.random.default_rng(0).normal(0, 0.3, (70_000, K + 1)).astype(np.float32)
    model = FactorizationMachineModel(FMWeights(0.0, table, 70_000))
    measure(spark, model, 20_000, 50_000, 40)
    spark.stop()


if __name__ == "__main__":
    main()
