"""Against MLlib's FMClassifier: ``python -m benchmarks.mllib``.

Two comparisons, each inside one session and on the same cached rows. Time to equal log
loss: MLlib trains 100 iterations at each setting of a printed grid; its best test log loss
is what our whole ``fit`` (packing included, our defaults but for the number of epochs) has
to reach; the time is that of the least number of epochs that does. Scoring: rows a second
of ``transform`` into a sink that drops them, all columns written, in turn and repeated.
Bars: 20 times sooner, 5 times the rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import product

import numpy as np
from pyspark.ml.classification import FMClassificationModel, FMClassifier
from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.criteo_shape import CriteoShape
from benchmarks.datasets import SPLITS, to_frame
from benchmarks.local import local_session
from benchmarks.timing import compared, header, row, seconds_of, spread
from spark_fm import FactorizationMachine

ITERATIONS = 100
# MLlib's own default, 1.0, diverges on these sets; smaller steps than 0.01 get nowhere.
STEPS = [0.01, 0.03, 0.1]
DECAYS = [0.0, 1e-4]
# MLlib's gradients are dense: fewer features than elsewhere keep its fits short.
MLLIB_FEATURES = 100_000
EPOCHS = (1, 2, 3, 5, 8, 12, 20, 30, 50)


def test_loss(scored: DataFrame, chance: Column) -> float:
    """Return the mean log loss of scored rows."""
    chance = F.greatest(F.least(chance, F.lit(1 - 1e-15)), F.lit(1e-15))
    loss = -F.log(F.when(F.col("label") == 1, chance).otherwise(1 - chance))
    return float(scored.agg(F.mean(loss)).first()[0])


def stored(model: FMClassificationModel) -> FMClassificationModel:
    """Return a model of MLlib as it is after saving and loading.

    As fitted it holds its summary, whose session newer Sparks cannot send to a task.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.write().overwrite().save(folder)
        return FMClassificationModel.load(folder)


def best_of_mllib(
    train: DataFrame, test: DataFrame, k: int, grid: list[tuple[float, float]]
) -> tuple[float, float]:
    """Return the least test log loss over the grid, and the seconds of that fit."""
    best = (float("inf"), float("nan"))
    for step, decay in grid:
        machine = FMClassifier(
            factorSize=k, maxIter=ITERATIONS, stepSize=step, regParam=decay, seed=1, tol=0.0
        )
        started = time.perf_counter()
        model = machine.fit(train)
        seconds = time.perf_counter() - started
        loss = test_loss(stored(model).transform(test), vector_to_array("probability")[1])
        print(f"  MLlib stepSize {step}, regParam {decay}: {loss:.4f} in {seconds:.1f} s",
              flush=True)  # fmt: skip
        best = min(best, (loss, seconds))
    return best


def ours_until(
    goal: float, train: DataFrame, test: DataFrame, k: int, repeat: int
) -> tuple[int, float, list[float]]:
    """Return the epochs that reach ``goal``, the loss there and the seconds of the fits."""
    loss = float("nan")
    for epochs in EPOCHS:
        machine = FactorizationMachine(
            numFactors=k, epochs=epochs, validationFraction=0.0, patience=0, seed=1
        )
        loss = test_loss(machine.fit(train).transform(test), F.col("score"))
        if loss <= goal:
            times = [seconds_of(lambda m=machine: m.fit(train)) for _ in range(repeat)]
            return epochs, loss, times
    return -1, loss, []


def compare_training(
    spark: SparkSession,
    names: list[str],
    grid: list[tuple[float, float]],
    rows: int,
    repeat: int,
) -> None:
    """Print the table of times to equal log loss."""
    found = []
    for name in names:
        if name == "criteo":
            shape = CriteoShape(MLLIB_FEATURES)
            train_rows, test_rows, k = shape.rows(0, rows)[0], shape.rows(10**6, 50_000)[0], 16
        else:
            split = SPLITS[name]()
            train_rows, test_rows, k = split.train, split.test, split.num_factors
        train, test = (to_frame(spark, part, 2).cache() for part in (train_rows, test_rows))
        train.count(), test.count()
        print(f"{name}, k={k}, {ITERATIONS} iterations of MLlib:", flush=True)
        goal, theirs = best_of_mllib(train, test, k, grid)
        epochs, loss, times = ours_until(goal, train, test, k, repeat)
        ratios = [theirs / seconds for seconds in times] or [0.0]
        found.append((name, k, f"{goal:.4f}", f"{theirs:.1f}", epochs, f"{loss:.4f}",
                      spread(times) if times else "-",
                      compared(f"times sooner than MLlib at its log loss, {name}", ratios,
                               ">= 20", moonshot=">= 100")))  # fmt: skip
        train.unpersist(), test.unpersist()
    print()
    header("set", "k", "MLlib log loss", "s", "our epochs", "log loss", "s", "times sooner")
    for cells in found:
        row(*cells)
    print()


def compare_scoring(spark: SparkSession, n_rows: int, repeat: int) -> None:
    """Print rows a second of both models' transform."""
    rows, _ = CriteoShape().rows(0, n_rows)
    frame = to_frame(spark, rows, 2).cache()
    frame.count()
    header("transform, k=16, 39 non-zeros", "rows/s")
    small = frame.limit(20_000).cache()
    ours = FactorizationMachine(
        numFactors=16, epochs=1, validationFraction=0.0, seed=1, featureDim=1_000_000,
        rawPredictionCol="rawPrediction", probabilityCol="probability", predictionCol="prediction",
    ).fit(small)  # fmt: skip
    theirs = stored(FMClassifier(factorSize=16, maxIter=1, stepSize=0.01, seed=1).fit(small))

    def drop(scored: DataFrame) -> Callable[[], None]:
        return lambda: scored.write.format("noop").mode("overwrite").save()

    runs: dict[str, list[float]] = {"MLlib": [], "spark_fm": []}
    for model in (theirs, ours):
        drop(model.transform(frame))()
    for _ in range(repeat):
        for name, model in (("MLlib", theirs), ("spark_fm", ours)):
            runs[name].append(n_rows / seconds_of(drop(model.transform(frame))))
    for name, speeds in runs.items():
        row(name, spread(speeds, ",.0f"))
    ratios = np.array(runs["spark_fm"]) / np.array(runs["MLlib"])
    what = "transform() against MLlib's"
    row("ratio", compared(what, ratios.tolist(), ">= 5", moonshot=">= 10"))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=["a9a", "frappe", "mnist0", "criteo"])
    parser.add_argument("--steps", nargs="*", type=float, default=STEPS)
    parser.add_argument("--decays", nargs="*", type=float, default=DECAYS)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of Criteo's shape")
    parser.add_argument("--scored", type=int, default=500_000, help="rows to score")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    spark = local_session("local[2]")
    if args.scored:
        compare_scoring(spark, args.scored, args.repeat)
        print()
    grid = list(product(args.steps, args.decays))
    compare_training(spark, args.sets, grid, args.rows, args.repeat)
    spark.stop()


if __name__ == "__main__":
    main()
