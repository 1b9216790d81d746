"""How the cost of each phase grows: ``python -m benchmarks.growth --plot docs/growth.png``.

Trains Criteo-shaped rows while one of three things grows and the others stay: the rows,
the non-zeros of a row, and the factors k. Two partitions average twice an epoch; seconds
are those of packing, and of an epoch's training, merging and shipping, all but the first.
Every size is trained in several rounds, and the least of its seconds counts: what other
programs of the machine add comes on top. A straight line is fitted to each curve, and how
far the points are from it is printed: the cost is linear where that is little. Merging and
shipping follow the features that the rows have, which grow more slowly than the rows.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass, replace

import numpy as np
from pyspark.sql import SparkSession

from benchmarks.criteo_shape import N_FIELDS, CriteoShape
from benchmarks.datasets import Rows, to_frame
from benchmarks.local import local_session
from benchmarks.timing import header, row
from spark_fm import FactorizationMachine

PHASES = ("pack", "train", "merge", "ship")
RATE = 0.02


@dataclass(frozen=True)
class Size:
    """A training set and its model."""

    rows: int
    non_zeros: int
    k: int


BASE = Size(rows=1_000_000, non_zeros=20, k=16)
GROWTHS = {
    "rows": (500_000, 1_000_000, 2_000_000, 4_000_000),
    "non_zeros": (10, 20, 30, 39),
    "k": (8, 16, 32, 64),
}


def rows_of(size: Size) -> Rows:
    """Return Criteo-shaped rows of so many fields, the largest ones."""
    whole, _ = CriteoShape().rows(0, size.rows)
    X = whole.X
    ids = X.indices.reshape(-1, N_FIELDS)[:, N_FIELDS - size.non_zeros :]
    indptr = np.arange(0, ids.size + 1, size.non_zeros)
    values = np.ones(ids.size, np.float32)
    return Rows(type(X)((values, ids.ravel(), indptr), shape=X.shape), whole.y)


def seconds_of_phases(spark: SparkSession, size: Size, epochs: int) -> list[float]:
    """Return the seconds of PHASES, the least of the epochs."""
    frame = to_frame(spark, rows_of(size), 4).cache()
    frame.count()
    model = FactorizationMachine(
        numFactors=size.k, epochs=epochs, validationFraction=0.0, patience=0, seed=1,
        numWorkers=2, averagingsPerEpoch=2, factorsLr=RATE, linearLr=RATE, refit="never",
    ).fit(frame)  # fmt: skip
    frame.unpersist()
    del frame
    gc.collect()  # the JVM keeps the rows for as long as PySpark's cycles of objects name them
    history = model.summary.history.iloc[1:]
    names = ("trainSeconds", "mergeSeconds", "broadcastSeconds")
    return [model.summary.facts["packSeconds"], *(float(history[n].min()) for n in names)]


def line_of(sizes: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the straight line through the points, and their largest distance from it.

    The distance is a share of the seconds that the line gives the largest size.
    """
    slope, start = np.polyfit(sizes, seconds, 1)
    line = start + slope * sizes
    return line, float(np.max(np.abs(seconds - line)) / max(line[-1], 1e-9))


def plot(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: str) -> None:
    """Draw the seconds of all phases, one panel for each thing that grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(curves))
    for axes, (name, (sizes, seconds)) in zip(panels, curves.items(), strict=True):
        for phase, times in zip(PHASES, seconds.T, strict=True):
            (drawn,) = axes.plot(sizes, times, "o", label=phase)
            axes.plot(sizes, line_of(sizes, times)[0], "-", color=drawn.get_color(), lw=1)
        axes.set(xlabel=name.replace("_", " "), ylabel="seconds", xlim=(0, None), ylim=(0, None))
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", help="file of a picture")
    args = parser.parse_args()
    spark = local_session("local[2]")
    seconds_of_phases(spark, BASE, 2)  # compiles, and warms the JVM up
    sizes = {
        (name, value): replace(BASE, **{name: value})
        for name, values in GROWTHS.items()
        for value in values
    }
    found: dict[Size, list[list[float]]] = {size: [] for size in sizes.values()}  # BASE once
    for _ in range(args.rounds):
        for size, times in found.items():
            times.append(seconds_of_phases(spark, size, args.epochs))
    curves = {}
    header("grows", "size", *PHASES)
    for name, values in GROWTHS.items():
        seconds = np.array([np.min(found[sizes[name, value]], axis=0) for value in values])
        for value, times in zip(values, seconds, strict=True):
            row(name.replace("_", " "), f"{value:,}", *(f"{s:.2f}" for s in times))
        curves[name] = np.array(values, float), seconds
        off = [line_of(curves[name][0], times)[1] for times in seconds.T]
        row("", "off a line", *(f"{share:.0%}" for share in off))
    spark.stop()
    if args.plot:
        plot(curves, args.plot)


if __name__ == "__main__":
    main()
