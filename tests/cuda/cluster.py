"""Train on GPUs that a standalone cluster hands out: a program, prints what came of it as JSON.

``python -m tests.cuda.cluster CASE``. A fake nvidia-smi tells of two GPUs, conf/gpu-discovery.sh
tells Spark of them, and Numba's simulator stands in for them: ENVIRONMENT is that of all
processes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from benchmarks.standalone import StandaloneCluster
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import ModelTooLargeError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import Backend, RowOrder
from spark_fm.learner.kernels import PassStats
from spark_fm.learner.state import TrainState
from spark_fm.spark import resources
from spark_fm.spark.gpu import PROBE_DDL, GpuAssignment, GpuPassConfig, ProbeTask
from spark_fm.training import partitions as copying
from spark_fm.training import single_task

ROOT = Path(__file__).resolve().parent.parent.parent
GPU = "spark.executor.resource.gpu.amount"
TASK_GPU = "spark.task.resource.gpu.amount"
ENVIRONMENT = {
    "NUMBA_ENABLE_CUDASIM": "1",
    "PYTHONPATH": f"{ROOT / 'tests' / 'cuda' / 'simulator'}:{ROOT}",
}
JAVA_OPTIONS = os.environ.get("SPARK_SUBMIT_OPTS", "")  # the driver's: tests/conftest.py


@dataclass(frozen=True)
class Case:
    """Spark's settings, and how many partitions train; a cluster or one machine."""

    settings: dict[str, Any]
    n_workers: int
    on_cluster: bool = True


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a file in conf/."""
    lines = (ROOT / "conf" / name).read_text().splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


SHIPPED = settings_of("gpu-standalone.conf") | {"spark.executor.cores": 2}
CASES = {
    # Two executors of a core and a GPU.
    "every-task": Case({"spark.executor.cores": 1, GPU: 1, TASK_GPU: 1}, 2),
    # One of two cores and a GPU: two partitions queue for it.
    "connect": Case(SHIPPED | {"spark.api.mode": "connect"}, 2),
    # The same, and all other tasks share it.
    "shared": Case(SHIPPED | {TASK_GPU: 0.5}, 2),
    "local": Case({}, 2, on_cluster=False),
    "several-models": Case({}, 1, on_cluster=False),
    "filled-up": Case({}, 2, on_cluster=False),
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
    os.environ["COUNTED"] = str(folder / "uploads")
    os.environ["SPARK_DAEMON_JAVA_OPTS"] = JAVA_OPTIONS
    resources.GpuPassConfig = Counted  # type: ignore[misc]


def session(address: str, settings: dict[str, Any]) -> SparkSession:
    """Return a session of the cluster."""
    builder = SparkSession.builder.master(address)
    settings = settings | {
        "spark.ui.enabled": "false", "spark.executor.memory": "512m",
        "spark.executor.extraJavaOptions": JAVA_OPTIONS, "spark.sql.shuffle.partitions": 2,
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
    """Return a training that is the same on both devices: so few rows are blocks of one."""
    return FactorizationMachine(
        numFactors=3, epochs=2, shuffle=False, numWorkers=n_workers, seed=3,
        validationFraction=0.25, refit="never", patience=0, device=device,
    )  # fmt: skip


def distance(one: FactorizationMachineModel, other: FactorizationMachineModel) -> float:
    """Return the largest difference of a parameter."""
    return max(
        float(np.abs(one.factors - other.factors).max()),
        float(np.abs(one.linear - other.linear).max()),
        abs(one.bias - other.bias),
    )


def outcome(spark: SparkSession, n_workers: int, device: str = "gpu") -> dict[str, Any]:
    """Return what a training comes to, beside that of the processor."""
    data = rows(spark).cache()
    Path(os.environ["COUNTED"]).write_text("")
    model = machine(device, n_workers).fit(data)
    plain = machine("cpu", n_workers).fit(data)
    facts = model.summary.facts
    losses = [float(m.summary.history["validationLoss"].iloc[-1]) for m in (plain, model)]
    probe = ProbeTask(GpuAssignment(local=False))
    [other] = spark.range(0, 1, 1, 1).mapInArrow(probe, PROBE_DDL).collect()
    columns = [m.transform(data).select("score").toPandas() for m in (plain, model)]
    return {
        "score_distance": float(np.abs(columns[0] - columns[1]).to_numpy().max()),
        "distance": distance(plain, model), "loss_distance": abs(losses[0] - losses[1]),
        "device": facts["device"], "addresses": [gpu.split(":")[-1] for gpu in facts["gpus"]],
        "others_have_a_gpu": not other["reason"],
        "uploads": [int(n) for n in Path(os.environ["COUNTED"]).read_text().split()],
    }  # fmt: skip


def models_at_once(spark: SparkSession) -> dict[str, Any]:
    """Return how many of three models each job on the one GPU of this machine trains."""
    found: list[int] = []

    def counted(task: Any, blocks: Any, number: int, *cluster: Any, **sizes: Any) -> Any:
        found.append(number)
        return copying.run_on_copies(task, blocks, number, *cluster, **sizes)

    single_task.run_on_copies = counted
    fm = machine("gpu", 1)
    models = list(fm.fitMultiple(rows(spark), [{fm.numFactors: k} for k in (2, 3, 4)]))
    return {"models": len(models), "at_once": sorted(set(found))}


class Counted(GpuPassConfig):
    """Passes on a GPU that write down how often their rows went there."""

    @contextmanager
    def backend(self, part: int) -> Iterator[tuple[Backend, str]]:
        """Yield what makes the passes."""
        with super().backend(part) as (backend, name):
            from spark_fm.learner.cuda.memory import device_memory

            before = device_memory().uploads
            yield backend, name
            with Path(os.environ["COUNTED"]).open("a") as file:
                file.write(f"{device_memory().uploads - before}\n")


class FilledUp(GpuPassConfig):
    """Passes on a GPU that others have filled by the second epoch."""

    @contextmanager
    def backend(self, part: int) -> Iterator[tuple[Backend, str]]:
        """Yield what makes the passes of the first epoch."""
        with super().backend(part) as (backend, name):
            yield _OneEpoch(backend), name


class _OneEpoch:
    def __init__(self, backend: Backend) -> None:
        self.margins = backend.margins
        self._backend = backend

    def run_epoch(
        self, state: TrainState, batch: CsrBatch, row_order: RowOrder, **more: Any
    ) -> PassStats:
        if row_order.epoch > 0:
            raise ModelTooLargeError("The GPU's memory has no room for others.")
        return self._backend.run_epoch(state, batch, row_order, **more)


def on_a_gpu_that_fills_up(spark: SparkSession) -> list[dict[str, Any]]:
    """Return what trainings in one task and in two come to, beside those of the processor."""
    resources.GpuPassConfig = FilledUp  # type: ignore[misc]
    found = []
    for n_workers in (1, 2):
        said: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record, said=said: said.append(record.getMessage())
        logging.getLogger("spark_fm").addHandler(handler)
        found.append(outcome(spark, n_workers, "auto"))
        logging.getLogger("spark_fm").removeHandler(handler)
        found[-1]["said"] = [text for text in said if "device" in text]
        try:
            machine("gpu", n_workers).fit(rows(spark))
        except ModelTooLargeError as err:
            found[-1]["refused"] = str(err)
    return found


def main(name: str) -> None:
    """Run a case."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        set_up(Path(folder))
        address = "local[2]"
        if case.on_cluster:
            cluster = stack.enter_context(StandaloneCluster())
            cluster.start_worker("2g", cores=2)
            address = cluster.address
        spark = session(address, case.settings)
        special = {"several-models": models_at_once, "filled-up": on_a_gpu_that_fills_up}
        found: Any
        work = special.get(name, partial(outcome, n_workers=case.n_workers))
        with ThreadPoolExecutor(1) as thread:  # as CrossValidator trains in threads
            found = thread.submit(work, spark).result()
        sys.stdout.write(json.dumps(found) + "\n")
        spark.stop()


if __name__ == "__main__":
    main(sys.argv[1])
