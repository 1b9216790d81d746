"""Small data, where Spark's own cost decides: ``python -m benchmarks.small``.

After a warm-up, in one session: 100 epochs of ml100k-binary with k = 64, all of them run
(bar 10 s; SageMaker's own loop took 86 s); ``fit`` of 1,000 rows for 10 epochs (bar 1 s);
and one core against two on rows of Criteo's shape, in sessions of their own (bar 1.8).
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np

from benchmarks.criteo_shape import CriteoShape
from benchmarks.datasets import Rows, ml100k_binary, to_frame
from benchmarks.local import local_session
from benchmarks.timing import compared, header, row, seconds_of, spread
from spark_fm import FactorizationMachine


def whole_fits(repeat: int) -> None:
    """Print the times of the two small fits."""
    spark = local_session("local[2]")
    split = ml100k_binary()
    frame = to_frame(spark, split.train, 2).cache()
    few = to_frame(spark, Rows(split.train.X[:1000], split.train.y[:1000]), 2).cache()
    frame.count(), few.count()
    header("whole fit()", "seconds")
    settings = {"validationFraction": 0.0, "patience": 0, "seed": 1}
    machine = FactorizationMachine(numFactors=64, epochs=100, **settings)
    machine.copy({machine.epochs: 2}).fit(frame)
    what = "ml100k-binary, k=64, 100 epochs"
    times = [seconds_of(lambda: machine.fit(frame)) for _ in range(repeat)]
    row(what, compared(f"seconds of {what}", times, "<= 10", moonshot="<= 3"))
    machine = FactorizationMachine(numFactors=8, epochs=10, **settings)
    machine.fit(few)
    what = "1,000 rows, k=8, 10 epochs"
    times = [seconds_of(lambda: machine.fit(few)) for _ in range(2 * repeat)]
    row(what, compared(f"seconds of {what}", times, "<= 1", moonshot="<= 0.3"))
    spark.stop()


def epoch_on(cores: int, rows: int) -> None:
    """Print the median seconds of an epoch and the test log loss on so many cores."""
    spark = local_session(f"local[{cores}]")
    shape = CriteoShape()
    train = to_frame(spark, shape.rows(0, rows)[0], 8).cache()
    test = to_frame(spark, shape.rows(10**6, 50_000)[0], 2)
    train.count()
    model = FactorizationMachine(
        numFactors=16, epochs=5, validationFraction=0.0, patience=0, seed=1, factorsLr=0.02,
        linearLr=0.02, numWorkers=cores,
    ).fit(train)  # fmt: skip
    seconds = np.median(model.summary.history["seconds"].iloc[1:])
    print(seconds, model.evaluate(test).metrics["logloss"])
    spark.stop()


def two_cores(rows: int, repeat: int) -> None:
    """Print the ratio of one core's time to two cores'."""
    found: dict[int, list[list[float]]] = {1: [], 2: []}
    for _ in range(repeat):
        for cores, runs in found.items():
            words = [sys.executable, "-W", "ignore", "-m", "benchmarks.small",
                     "--on-cores", str(cores), "--rows", str(rows)]  # fmt: skip
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            runs.append([float(word) for word in done.stdout.split()[-2:]])
    print()
    header("cores", "seconds an epoch", "test log loss")
    for cores, runs in found.items():
        row(cores, spread([run[0] for run in runs]), spread([run[1] for run in runs], ".4f"))
    ratios = [one[0] / two[0] for one, two in zip(found[1], found[2], strict=True)]
    row("ratio", compared("two cores against one", ratios, ">= 1.8", moonshot=">= 1.95"), "")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of Criteo's shape")
    parser.add_argument("--on-cores", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.on_cores:
        epoch_on(args.on_cores, args.rows)
        return
    whole_fits(args.repeat)
    two_cores(args.rows, args.repeat)


if __name__ == "__main__":
    main()
