"""The cost of an epoch on a cluster: ``python -m benchmarks.scaling``.

Starts a standalone master and workers with processes of their own on this machine, trains
Criteo-shaped sets of several sizes, numbers of factors and of averagings, and fits the
constants of the model in docs/scaling.md to the phases of their epochs::

    train     = a_rows nnz (1 + a_k k) / P + averagings (job + collect P bytes)
    broadcast = averagings (b_0 + b_1 bytes)
    merge     = averagings (m_0 + m_1 P bytes)

Some runs are kept out, and what the model says of them is printed beside what they took.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from benchmarks.criteo_shape import N_FIELDS, CriteoShape
from benchmarks.datasets import to_frame
from benchmarks.local import local_session
from benchmarks.standalone import StandaloneCluster
from benchmarks.timing import header, row
from spark_fm import FactorizationMachine

PHASES = ("trainSeconds", "broadcastSeconds", "mergeSeconds")


@dataclass(frozen=True)
class Setting:
    """A training: rows, factors, partitions and averagings an epoch."""

    rows: int
    k: int
    partitions: int
    averagings: int


def measured(frame: DataFrame, setting: Setting, epochs: int) -> tuple[dict[str, float], int]:
    """Return the median seconds of each phase of an epoch, and the features trained."""
    machine = FactorizationMachine(
        numFactors=setting.k, epochs=epochs, numWorkers=setting.partitions,
        averagingsPerEpoch=setting.averagings, validationFraction=0.0, patience=0, seed=1,
        factorsLr=0.02, linearLr=0.02,
    )  # fmt: skip
    model = machine.fit(frame)
    history = model.summary.history.iloc[1:]
    return {name: float(history[name].median()) for name in PHASES}, model.summary.facts[
        "numFeaturesSeen"
    ]


def terms(setting: Setting, features: int, cores: int) -> dict[str, NDArray[np.float64]]:
    """Return what the constants of each phase are multiplied by."""
    nnz = setting.rows * N_FIELDS
    rounds = -(-setting.partitions // cores)
    share = nnz / setting.partitions * rounds
    n_bytes = 4 * (setting.k + 5) * features
    times = setting.averagings
    collected = times * setting.partitions * n_bytes
    return {
        "trainSeconds": np.array([share, share * setting.k, times, collected]),
        "broadcastSeconds": np.array([times, times * n_bytes]),
        "mergeSeconds": np.array([times, collected]),
    }


def main() -> None:
    """Measure, fit the constants, and check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="processes of one core")
    parser.add_argument("--memory", default="3g", help="of a worker")
    parser.add_argument("--rows", type=int, nargs="*", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    cores = args.workers
    found: list[tuple[Setting, dict[str, float], int]] = []
    with StandaloneCluster() as cluster:
        for _ in range(args.workers):
            cluster.start_worker(args.memory)
        time.sleep(5)
        memory = f"{int(args.memory.removesuffix('g')) * 1024 - 512}m"
        spark = local_session(cluster.address, spark_executor_memory=memory)
        header("rows", "k", "partitions", "averagings", *PHASES)
        for n_rows in args.rows:
            frame = to_frame(spark, CriteoShape().rows(0, n_rows)[0], 4).cache()
            frame.count()
            for k, partitions, averagings in (
                (8, cores, 1), (16, cores, 2), (32, cores, 1), (16, 2 * cores, 4), (8, cores, 4)
            ):  # fmt: skip
                setting = Setting(n_rows, k, partitions, averagings)
                phases, features = measured(frame, setting, args.epochs)
                found.append((setting, phases, features))
                row(n_rows, k, partitions, averagings, *(f"{phases[p]:.2f}" for p in PHASES))
            frame.unpersist()
        spark.stop()
    kept_out = [number for number in range(len(found)) if number % 5 == 1]
    print()
    header("phase", "constants", "kept-out runs: said / took, s")
    for phase in PHASES:
        X = np.array([terms(s, n, cores)[phase] for s, _, n in found])
        y = np.array([phases[phase] for _, phases, _ in found])
        train = [number for number in range(len(found)) if number not in kept_out]
        scale = X.max(0)
        constants = _nonnegative(X[train] / scale, y[train]) / scale
        said = X @ constants
        pairs = ", ".join(f"{said[i]:.2f} / {y[i]:.2f}" for i in kept_out)
        row(phase, ", ".join(f"{value:.3g}" for value in constants), pairs)


def _nonnegative(X: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    solution: NDArray[np.float64] = nnls(X, y)[0]
    return solution


if __name__ == "__main__":
    main()
