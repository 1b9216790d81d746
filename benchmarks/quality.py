"""Print and write the table of model quality: ``python -m benchmarks.quality``.

Default settings with three seeds, documented settings, sets that no default was chosen
on, and the loss by number of workers. ``--parts`` runs some of the tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from benchmarks.datasets import HELD_BACK, SPLITS, Rows, Split, to_frame
from benchmarks.local import local_session
from spark_fm import FactorizationMachine

# Set by set where the defaults are not the best that is known.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "frappe": {
        "biasLr": 0.4,
        "linearLr": 0.4,
        "factorsLr": 0.4,
        "factorsInitSigma": 0.1,
        "factorsWd": 0.02,
        "linearWd": 0.001,
        "decayFrequencyPower": 0.15,
    },
}


@dataclass(frozen=True)
class Bar:
    """Largest loss, and smallest accuracy, that a set asks for."""

    loss: float
    accuracy: float = 0.0


BARS_DEFAULT = {
    "a9a": Bar(0.3213),
    "ml100k-regression": Bar(0.9165),
    "ml100k-binary": Bar(0.5535, 0.714),
    "frappe": Bar(0.2200),
    "mnist0": Bar(0.0135, 0.996),
    "criteo-8": Bar(0.4850),
    "criteo-16": Bar(0.4850),
    "criteo-64": Bar(0.4850),
    "criteo-numbers": Bar(0.4850),
}
BARS_DOCUMENTED = {"frappe": Bar(0.2200)}
# Epochs within which every set reaches its best, for the comparison of workers.
WORKER_EPOCHS = {
    "a9a": 12,
    "ml100k-regression": 8,
    "ml100k-binary": 12,
    "frappe": 14,
    "mnist0": 12,
}


PARTS = ["defaults", "documented", "held-back", "partitions", "workers"]


@dataclass(frozen=True)
class Figure:
    """Test figures of one fit: log loss and accuracy, or RMSE and nothing."""

    loss: float
    accuracy: float
    epochs: int
    best_epoch: int
    seconds: float


def test_figure(split: Split, scores: Any) -> tuple[float, float]:
    """Return (log loss, accuracy) or (RMSE of clipped predictions, nan), in float64."""
    p = scores.astype(np.float64)
    y = split.test.y
    if split.predictor_type == "regressor":
        if split.clip is not None:
            p = p.clip(*split.clip)
        return float(np.sqrt(np.mean((p - y) ** 2))), float("nan")
    p = p.clip(1e-15, 1 - 1e-7)
    loss = -np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))
    return float(loss), float(np.mean((p >= 0.5) == (y > 0.5)))


def fit_default(spark: SparkSession, split: Split, seed: int, **settings: Any) -> Figure:
    """Fit with only columns, predictorType, numFactors and seed set, plus ``settings``."""
    machine = FactorizationMachine(
        predictorType=split.predictor_type, numFactors=split.num_factors, seed=seed, **settings
    )
    started = time.perf_counter()
    model = machine.fit(to_frame(spark, split.train))
    seconds = time.perf_counter() - started
    loss, accuracy = test_figure(split, model.predict(split.test.X))
    summary = model.summary
    return Figure(loss, accuracy, summary.totalIterations, summary.bestEpoch, seconds)


def best_test_loss(
    spark: SparkSession, split: Split, workers: int, seed: int, epochs: int
) -> float:
    """Return the best test loss of any epoch; the test rows are only scored."""
    parts = [
        to_frame(spark, rows).withColumn("isTest", F.lit(is_test))
        for rows, is_test in ((split.train, False), (split.test, True))
    ]
    machine = FactorizationMachine(
        predictorType=split.predictor_type,
        numFactors=split.num_factors,
        seed=seed,
        epochs=epochs,
        patience=0,
        numWorkers=workers,
        validationIndicatorCol="isTest",
    )
    model = machine.fit(parts[0].union(parts[1]))
    losses = model.summary.history["validationLoss"]
    return float(losses.min() if split.predictor_type != "regressor" else losses.min() ** 0.5)


def quality_table(
    spark: SparkSession, splits: dict[str, Split], seeds: Sequence[int], documented: bool
) -> list[str]:
    """Return Markdown rows: median and worst over seeds against the bar."""
    bars = BARS_DOCUMENTED if documented else BARS_DEFAULT
    rows = [
        "| set | k | loss, median (worst) | accuracy, median | bar | met | epochs run | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, split in splits.items():
        settings = DOCUMENTED.get(name, {}) if documented else {}
        figures = [fit_default(spark, split, seed, **settings) for seed in seeds]
        loss = float(np.median([f.loss for f in figures]))
        worst = max(f.loss for f in figures)
        accuracy = float(np.median([f.accuracy for f in figures]))
        bar = bars.get(name)
        met = "-"
        text = "-"
        if bar is not None:
            met = "yes" if loss <= bar.loss and not accuracy < bar.accuracy else "NO"
            text = f"{bar.loss:.4f}" + (f" / {bar.accuracy:.3f}" if bar.accuracy else "")
        shown = "-" if np.isnan(accuracy) else f"{accuracy:.4f}"
        rows.append(
            f"| {name} | {split.num_factors} | {loss:.4f} ({worst:.4f}) | {shown} | {text} | {met} "
            f"| {', '.join(str(f.epochs) for f in figures)} "
            f"| {np.median([f.seconds for f in figures]):.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def worker_table(
    spark: SparkSession, splits: dict[str, Split], seeds: Sequence[int], workers: Sequence[int]
) -> list[str]:
    """Return Markdown rows: best test loss by number of workers, relative to one."""
    rows = [
        "| set | one worker | " + " | ".join(f"{w} workers" for w in workers) + " |",
        "| --- | --- |" + " --- |" * len(workers),
    ]
    for name, split in splits.items():
        epochs = WORKER_EPOCHS[name]
        alone = [best_test_loss(spark, split, 1, seed, epochs) for seed in seeds]
        cells = []
        for count in workers:
            losses = [best_test_loss(spark, split, count, seed, epochs) for seed in seeds]
            ratio = float(np.median(losses) / np.median(alone))
            bound = 1.02 if split.train.X.shape[0] / count < 5000 else 1.01
            met = "" if ratio <= bound else f" (bound {bound:.2f}: NOT met)"
            cells.append(f"{np.median(losses):.4f}, x{ratio:.4f}{met}")
        rows.append(f"| {name} | {np.median(alone):.4f} | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    return rows


def partition_table(spark: SparkSession, splits: dict[str, Split], seed: int) -> list[str]:
    """Return Markdown rows: test loss with numWorkers=0 by partitions of the input."""
    counts = (1, 7, 200)
    rows = [
        "| set | " + " | ".join(f"input in {c}" for c in counts) + " |",
        "| --- |" + " --- |" * len(counts),
    ]
    for name, split in splits.items():
        cells = []
        for count in counts:
            machine = FactorizationMachine(
                predictorType=split.predictor_type, numFactors=split.num_factors, seed=seed
            )
            model = machine.fit(to_frame(spark, split.train, count))
            cells.append(f"{test_figure(split, model.predict(split.test.X))[0]:.4f}")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--worker-seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file")
    args = parser.parse_args(argv)
    spark = local_session("local[2]")
    splits = {name: SPLITS[name]() for name in args.splits}
    tables: list[tuple[str, list[str]]] = []
    if "defaults" in args.parts:
        tables.append(("Default settings", quality_table(spark, splits, args.seeds, False)))
    if "documented" in args.parts:
        tuned = {name: split for name, split in splits.items() if name in DOCUMENTED}
        tables.append(("Documented settings", quality_table(spark, tuned, args.seeds, True)))
    if "held-back" in args.parts:
        held_back = {name: load() for name, load in HELD_BACK.items()}
        table = quality_table(spark, held_back, args.seeds, False)
        tables.append(("Sets that no default was chosen on", table))
    if "partitions" in args.parts:
        table = partition_table(spark, splits, args.seeds[0])
        tables.append(("By partitions of the input, numWorkers=0", table))
    if "workers" in args.parts:
        compared = {name: split for name, split in splits.items() if name in WORKER_EPOCHS}
        table = worker_table(spark, compared, args.worker_seeds, args.workers)
        seeds = ", ".join(map(str, args.worker_seeds))
        tables.append((f"By number of workers: best test loss of any epoch, seeds {seeds}", table))
    text = "\n\n".join(f"## {title}\n\n" + "\n".join(rows) for title, rows in tables) + "\n"
    if args.out is not None:
        args.out.write_text(_HEAD.format(seeds=", ".join(map(str, args.seeds))) + text)
        print(f"written to {args.out}")


_HEAD = """# Model quality

Written by `make bench-quality`. Figures are on test rows: log loss and accuracy at threshold 0.5,
or RMSE of predictions clipped to the rating scale. Seeds {seeds}; median, worst in brackets.
"Default" means that only the columns, predictorType, numFactors and seed were set. "Bar" is the
loss (and accuracy) to reach. The hyperparameters were chosen on rows held out of the training
files; the constants of the averaging were chosen by test loss for each number of partitions, on
these same datasets ([averaging.md](averaging.md)). How the defaults were chosen:
[defaults.md](defaults.md).

"""

__all__ = ["Rows", "best_test_loss", "fit_default", "main", "test_figure"]

if __name__ == "__main__":
    main()
