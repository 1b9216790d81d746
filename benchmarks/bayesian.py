"""Gibbs sampling beside SGD and, where it is installed, myFM, on the same files.

Run ``python -m benchmarks.bayesian`` after ``pip install myfm`` (MIT); sets and seeds are
arguments. Prints a row for each set: medians over the seeds, and what docs/bayesian.md shows.
``--curves`` prints the tables of docs/notes/2026-11-gibbs.md that ``conf/draw_pictures.py`` draws.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy.special import ndtri

from benchmarks.datasets import HELD_BACK, SPLITS, Split, to_frame
from benchmarks.local import local_session
from benchmarks.quality import test_figure
from benchmarks.timing import header, row
from spark_fm import FactorizationMachine
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.gibbs.fields import fields_of

SETS = ("ml100k-regression", "ml100k-ub-regression", "ml100k-binary", "ml100k-ub-binary", "a9a")
MYFM_SWEEPS, MYFM_KEPT = 512, 462  # of its own examples on these ratings: all but 50 are kept

CURVE_SET, CURVE_SWEEPS = "ml100k-regression", 200
COVERAGE_SETS = ("ml100k-regression", "ml100k-ub-regression")
NOMINAL = (20, 40, 50, 60, 70, 80, 90, 95, 99)  # percent


def our_scores(frame: DataFrame, split: Split, solver: str, seed: int) -> Any:
    """Return the scores of the test rows by a solver."""
    machine = FactorizationMachine(
        predictorType=split.predictor_type, numFactors=split.num_factors, seed=seed, solver=solver
    )
    return machine.fit(frame).predict(split.test.X)


def myfm_scores(split: Split, seed: int) -> Any:
    """Return myFM's scores of the test rows, with a group of hyperpriors for each column."""
    import myfm

    rows = split.train
    batch = CsrBatch.from_matrix(rows.X)
    groups = fields_of(batch, rows.X.shape[1]).tolist()
    kind = myfm.MyFMRegressor if split.predictor_type == "regressor" else myfm.MyFMClassifier
    model = kind(rank=split.num_factors, random_seed=seed)
    y = rows.y if split.predictor_type == "regressor" else rows.y > 0.5
    X, tested = rows.X.astype(np.float64), split.test.X.astype(np.float64)
    model.fit(X, y, n_iter=MYFM_SWEEPS, n_kept_samples=MYFM_KEPT, grouping=groups)
    return model.predict(tested) if split.predictor_type == "regressor" else (
        model.predict_proba(tested)
    )  # fmt: skip


def print_errors(spark: SparkSession) -> None:
    """Print the RMSE of ml100k's test rows by sweep and by epoch, as validation rows."""
    split = SPLITS[CURVE_SET]()
    rows = to_frame(spark, split.train).withColumn("is_test", F.lit(False))
    rows = rows.union(to_frame(spark, split.test).withColumn("is_test", F.lit(True))).cache()
    machine = FactorizationMachine(
        predictorType="regressor", numFactors=split.num_factors, seed=1, epochs=CURVE_SWEEPS,
        validationIndicatorCol="is_test",
    )  # fmt: skip
    sampled = machine.fit(rows, {machine.solver: "gibbs"}).summary.history
    by_sgd = machine.fit(rows, {machine.solver: "sgd", machine.patience: 0}).summary.history
    header("sweep or epoch", "last draw", "mean of the draws", "SGD")
    for at in (0, 1, 2, 4, 6, 9, 14, 19, 29, 39, 59, 79, *range(99, CURVE_SWEEPS, 20)):
        draw = math.sqrt(sampled["validationSampleLoss"][at])
        mean = sampled["validation_rmse"][at]
        row(at + 1, f"{draw:.4f}", f"{mean:.4f}", f"{by_sgd['validation_rmse'][at]:.4f}")
    rows.unpersist()


def print_coverage(spark: SparkSession) -> None:
    """Print how many of the test labels predictive intervals hold, in percent."""
    header("interval", *COVERAGE_SETS)
    held = []
    for name in COVERAGE_SETS:
        split = {**SPLITS, **HELD_BACK}[name]()
        machine = FactorizationMachine(
            predictorType="regressor", numFactors=split.num_factors, seed=1, keepPosterior=True
        )
        posterior = machine.fit(to_frame(spark, split.train)).posterior
        mean, std = posterior.predict(split.test.X, return_std=True)
        distances = np.abs(split.test.y - mean) / std
        held.append([100 * np.mean(distances <= ndtri((1 + p / 100) / 2)) for p in NOMINAL])
    for nominal, *found in zip(NOMINAL, *held, strict=True):
        row(f"{nominal} %", *(f"{each:.1f} %" for each in found))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bayesian", description=__doc__)
    parser.add_argument("--sets", nargs="*", choices=[*SPLITS, *HELD_BACK], default=list(SETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--curves", action="store_true", help="print what pictures are drawn of")
    args = parser.parse_args()
    spark = local_session()
    if args.curves:
        print_errors(spark)
        print_coverage(spark)
        return
    header("set", "solver", "loss, median (worst)", "accuracy", "seconds", "times SGD's")
    for name in args.sets:
        split = {**SPLITS, **HELD_BACK}[name]()
        frame = to_frame(spark, split.train).cache()
        frame.count()

        programs = {
            solver: partial(our_scores, frame, split, solver) for solver in ("sgd", "gibbs", "auto")
        }
        programs["myFM"] = partial(myfm_scores, split)
        programs["gibbs"](args.seeds[0])  # kernels are compiled once
        of_sgd = 0.0
        for program, scores in programs.items():
            figures, seconds = [], []
            try:
                for seed in args.seeds:
                    started = time.perf_counter()
                    found = scores(seed)
                    seconds.append(time.perf_counter() - started)
                    figures.append(test_figure(split, found))
            except ImportError:
                row(name, program, "not installed", "-", "-", "-")
                continue
            losses, taken = [loss for loss, _ in figures], float(np.median(seconds))
            of_sgd = of_sgd or taken
            accuracy = float(np.median([accuracy for _, accuracy in figures]))
            row(
                name, program, f"{np.median(losses):.4f} ({max(losses):.4f})",
                "-" if np.isnan(accuracy) else f"{accuracy:.4f}", f"{taken:.1f}",
                f"{taken / of_sgd:.1f}",
            )  # fmt: skip
        frame.unpersist()


if __name__ == "__main__":
    main()
