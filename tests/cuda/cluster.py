"""Train on GPUs that a standalone cluster hands out: a program, prints what came of it as JSON.

``python -m tests.cuda.cluster CASE``. A fake nvidia-smi tells of two GPUs, conf/gpu-discovery.sh
tells Spark of them, and Numba's simulator stands in for them: ENVIRONMENT is that of all
processes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from benchmarks.scaling import standalone_cluster
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.engine import copying, solo_training

ROOT = Path(__file__).resolve().parent.parent.parent
GPU = "spark.executor.resource.gpu.amount"
TASK_GPU = "spark.task.resource.gpu.amount"
ENVIRONMENT = {
    "NUMBA_ENABLE_CUDASIM": "1",
    "PYTHONPATH": f"{ROOT / 'tests' / 'cuda' / 'simulator'}:{ROOT}",
}


@dataclass(frozen=True)
class Case:
    """Spark's settings, and how many partitions train; a cluster or one machine."""

    settings: dict[str, Any]
    n_workers: int
    on_cluster: bool = True


CASES = {
    # Two executors of a core and a GPU.
    "every-task": Case({"spark.executor.cores": 1, GPU: 1, TASK_GPU: 1}, 2),
    # One of two cores and a GPU: two partitions queue for it.
    "training-tasks": Case({"spark.executor.cores": 2, GPU: 1}, 2),
    "local": Case({}, 2, on_cluster=False),
    "several-models": Case({}, 1, on_cluster=False),
}


def set_up(folder: Path) -> None:
    """Let the workers to come find two GPUs."""
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    smi.chmod(0o755)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ["SPARK_WORKER_OPTS"] = (
        "-Dspark.worker.resource.gpu.amount=2 "
        f"-Dspark.worker.resource.gpu.discoveryScript={ROOT / 'conf' / 'gpu-discovery.sh'}"
    )
    os.environ["PYSPARK_PYTHON"] = sys.executable


def session(address: str, settings: dict[str, Any]) -> SparkSession:
    """Return a session of the cluster."""
    builder = SparkSession.builder.master(address)
    settings = settings | {
        "spark.ui.enabled": "false", "spark.executor.memory": "512m",
        "spark.sql.shuffle.partitions": 2,
    }  # fmt: skip
    for name, value in settings.items():
        builder = builder.config(name, str(value))
    return builder.getOrCreate()


def rows(spark: SparkSession) -> DataFrame:
    """Return two dozen rows of three features each."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(24):
        ids = np.sort(rng.choice(8, 3, replace=False))
        found.append((float(ids[0] % 2), Vectors.sparse(8, ids.tolist(), [1.0, 0.5, 2.0])))
    return spark.createDataFrame(found, ["label", "features"]).repartition(2)


def machine(device: str, n_workers: int) -> FactorizationMachine:
    """Return a training of mini-batches, which are the same on both devices."""
    return FactorizationMachine(
        numFactors=3, epochs=2, miniBatchSize=6, shuffle=False, numWorkers=n_workers, seed=3,
        validationFraction=0.25, refit="never", patience=0, device=device,
    )  # fmt: skip


def distance(one: FactorizationMachineModel, other: FactorizationMachineModel) -> float:
    """Return the largest difference of a parameter."""
    return max(
        float(np.abs(one.factors - other.factors).max()),
        float(np.abs(one.linear - other.linear).max()),
        abs(one.bias - other.bias),
    )


def outcome(spark: SparkSession, n_workers: int) -> dict[str, Any]:
    """Return what a training comes to, beside that of the processor."""
    data = rows(spark).cache()
    model = machine("gpu", n_workers).fit(data)
    plain = machine("cpu", n_workers).fit(data)
    facts = model.summary.facts
    losses = [float(m.summary.history["validationLoss"].iloc[-1]) for m in (plain, model)]
    columns = [m.transform(data).select("score").toPandas() for m in (plain, model)]
    return {
        "score_distance": float(np.abs(columns[0] - columns[1]).to_numpy().max()),
        "distance": distance(plain, model), "loss_distance": abs(losses[0] - losses[1]),
        "device": facts["device"], "addresses": [gpu.split(":")[-1] for gpu in facts["gpus"]],
    }  # fmt: skip


def models_at_once(spark: SparkSession) -> dict[str, Any]:
    """Return how many of three models each job on the one GPU of this machine trains."""
    found: list[int] = []

    def copies(of: DataFrame, number: int) -> DataFrame:
        found.append(number)
        return copying.copies(of, number)

    solo_training.copies = copies
    fm = machine("gpu", 1)
    models = list(fm.fitMultiple(rows(spark), [{fm.numFactors: k} for k in (2, 3, 4)]))
    return {"models": len(models), "at_once": sorted(set(found))}


def main(name: str) -> None:
    """Run a case."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        set_up(Path(folder))
        address = "local[2]"
        if case.on_cluster:
            address = stack.enter_context(standalone_cluster(1, "2g", cores=2))
        spark = session(address, case.settings)
        several = name == "several-models"
        found = models_at_once(spark) if several else outcome(spark, case.n_workers)
        sys.stdout.write(json.dumps(found) + "\n")
        spark.stop()


if __name__ == "__main__":
    main(sys.argv[1])
