"""A large model on one machine: ``python -m benchmarks.large``.

20 million features and k = 16 (1.4 GB of parameters), 10 million rows of 39 non-zeros that
touch most of the features, in ``local[2]`` with the shipped ``conf/spark-defaults.conf``.
Rows are made by the tasks that pack them. Printed: the seconds of each phase, and the
highest memory of driver, JVM and Python workers.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.criteo_shape import N_FIELDS, CriteoShape
from benchmarks.local import local_session
from benchmarks.passes import MemoryWatch, criteo_frame
from benchmarks.timing import header, row
from spark_fm import FactorizationMachine


def main() -> None:
    """Train, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=20_000_000)
    parser.add_argument("--factors", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="partitions; 0: chosen")
    args = parser.parse_args()
    spark = local_session("local[2,4]")
    frame = criteo_frame(spark, args.rows, 16, CriteoShape(args.features, zipf=0.5))
    machine = FactorizationMachine(
        numFactors=args.factors, epochs=args.epochs, featureDim=args.features, seed=1,
        validationFraction=0.0, patience=0, factorsLr=0.02, linearLr=0.02,
        numWorkers=args.workers,
    )  # fmt: skip
    started = time.perf_counter()
    with MemoryWatch() as memory:
        model = machine.fit(frame)
    seconds = time.perf_counter() - started
    spark.stop()
    facts = model.summary.facts
    header("large model", "")
    row("rows x non-zeros", f"{args.rows:,} x {N_FIELDS}")
    row("features, of which seen", f"{args.features:,}, {facts['numFeaturesSeen']:,}")
    row("k, partitions, averagings an epoch",
        f"{args.factors}, {facts['numWorkers']}, {facts['averagingsPerEpoch']}")  # fmt: skip
    row("fit(), of which packing, s", f"{seconds:.0f}, {facts['packSeconds']:.0f}")
    for name in ("seconds", "trainSeconds", "broadcastSeconds", "mergeSeconds", "trainLoss"):
        values = model.summary.history[name]
        form = ".4f" if name == "trainLoss" else ".1f"
        row(f"epochs, {name}", ", ".join(f"{value:{form}}" for value in values))
    for role, size in memory.peaks.items():
        row(f"memory of {role}, GiB", f"{size / 2**30:.2f}")


if __name__ == "__main__":
    main()
