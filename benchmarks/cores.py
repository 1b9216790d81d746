"""Two cores against one: ``python -m benchmarks.cores``.

Trains the same Criteo-shaped rows with one core and one partition, and with two of each,
in sessions of their own, one after the other: seconds of an epoch (all but the first) and
the test log loss. Once with features whose parameters come from main memory, which two
cores share, and once with those that each core's own cache holds. What the kernel alone
gains from a second core, without Spark and rounds, is printed beside it. Bar: 1.8.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import numpy as np

from benchmarks.criteo_shape import CriteoShape
from benchmarks.datasets import to_frame
from benchmarks.local import local_session
from benchmarks.passes import criteo_frame, kernel_alone
from benchmarks.timing import compared, header, row, spread
from spark_fm import FactorizationMachine

SIZES = (1_000_000, 10_000)  # features


def epochs_on(cores: int, rows: int, k: int, n_features: int) -> tuple[list[float], float]:
    """Return the seconds of the epochs but the first, and the test log loss."""
    spark = local_session(f"local[{cores}]")
    shape = CriteoShape(n_features)
    model = FactorizationMachine(
        numFactors=k, epochs=5, validationFraction=0.0, patience=0, seed=1, factorsLr=0.02,
        linearLr=0.02, numWorkers=cores,
    ).fit(criteo_frame(spark, rows, 8, shape))  # fmt: skip
    test = to_frame(spark, shape.rows(10**6, 50_000)[0], 2)
    loss = model.evaluate(test).metrics["logloss"]
    spark.stop()
    return model.summary.history["seconds"].iloc[1:].tolist(), loss


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--factors", type=int, default=16)
    parser.add_argument("--run", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        cores, n_features = args.run
        print(json.dumps(epochs_on(cores, args.rows, args.factors, n_features)))
        return
    header("features", "cores", "seconds an epoch", "test log loss", "kernel alone, ns")
    for n_features in SIZES:
        medians = []
        for cores in (1, 2):
            words = [sys.executable, "-W", "ignore", "-m", "benchmarks.cores", "--rows",
                     str(args.rows), "--factors", str(args.factors),
                     "--run", str(cores), str(n_features)]  # fmt: skip
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            seconds, loss = json.loads(done.stdout.splitlines()[-1])
            alone = kernel_alone(args.factors, cores, 5, n_features)
            row(f"{n_features:,}", cores, spread(seconds), f"{loss:.4f}",
                spread([1e9 * s for s in alone], ".1f"))  # fmt: skip
            medians.append((seconds, np.median(alone) / cores))
        (one, one_alone), (two, two_alone) = medians
        ratios = (np.median(one) / np.array(two)).tolist()
        what = f"two cores against one, {n_features:,} features"
        row("", "ratio", compared(what, ratios, ">= 1.8", moonshot=">= 1.95"), "",
            f"{one_alone / two_alone:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
