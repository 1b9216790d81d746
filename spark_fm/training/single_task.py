"""Drive trainings that each run in one Spark task, a stretch of epochs a job; driver only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, SparkSession

from spark_fm._version import __version__
from spark_fm.errors import GpuNotFoundError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.state import Layout
from spark_fm.learner.training import EpochRecord, TrainingProgress
from spark_fm.spark.broadcast import Broadcast, broadcast
from spark_fm.spark.collect import CHUNK_DDL, JOB_BYTES, collect_rows, from_chunks
from spark_fm.spark.gpu import GpuPassConfig
from spark_fm.spark.resources import CPU_DEVICE, Device
from spark_fm.spark.session import task_slots
from spark_fm.training.callbacks import EpochReport, WorkerInfo
from spark_fm.training.dataset import PackedDataset
from spark_fm.training.partitions import copies
from spark_fm.training.tasks import SingleTask, SingleTaskPart

# A job trains for this long before it reports: short at first, so that the user sees
# something, longer later, so that jobs cost little.
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 16.0
# Most that a job may write of the rows, a copy a model, one model a slot apart.
COPIES_BYTES = 2**30


@dataclass(slots=True)
class SingleTaskTrainer:
    """One of the trainings that share the rows.

    Parameters
    ----------
    run : TrainingProgress
        Where it stands.
    spec : Hyperparameters
    scaling : Scaling
    metric : str
        Validation metric that decides.
    tell : callable
        Takes each finished epoch; False ends the training.
    keep : callable or None
        Takes the run after each job that brought it at least ``keep_every`` epochs
        further: there it may be taken up again.
    keep_every : int
    workers : WorkerInfo
        Takes who makes the passes.
    """

    run: TrainingProgress
    spec: Hyperparameters
    scaling: Scaling
    metric: str
    tell: Callable[[EpochReport], bool]
    keep: Callable[[TrainingProgress], None] | None = None
    keep_every: int = 1
    worker_info: WorkerInfo = field(default_factory=WorkerInfo)
    kept_epoch: int = 0

    @property
    def n_bytes(self) -> int:
        """About what the run's arrays weigh."""
        run = self.run
        tables = [c.table.nbytes for c in (run.average, run.best) if c is not None]
        return int(run.state.rows.nbytes) + sum(tables)


def train_single_task(
    trainings: Sequence[SingleTaskTrainer],
    data: PackedDataset,
    session: SparkSession,
    *,
    ids: Broadcast | None,
    train_on_all: bool,
    n_tasks: int,
    device: Device = CPU_DEVICE,
    gpu: GpuPassConfig | None = None,
) -> list[TrainingProgress | TrainingDivergedError]:
    """Return the finished runs, or for each that no step size saves its error.

    Parameters
    ----------
    trainings : sequence of SingleTaskTrainer
    data : PackedDataset
    session : SparkSession
    ids : Broadcast or None
        Sorted feature ids of the table's rows.
    train_on_all : bool
        Train on validation rows too and validate nothing.
    n_tasks : int
        Tasks that may train at once, each one model on all the rows.
    device : Device
        What makes the passes.
    gpu : GpuPassConfig or None
        How they are made on a GPU; None for the CPU.
    """
    failed: dict[int, TrainingDivergedError] = {}
    for training in trainings:
        training.kept_epoch = training.run.epoch
    seconds = FIRST_SECONDS
    while True:
        going = [
            number for number, training in enumerate(trainings)
            if number not in failed and not training.run.finished
        ]  # fmt: skip
        if not going:
            break
        chosen = _fitting(trainings, going, n_tasks, data.n_bytes)
        if gpu is not None and gpu.gpu.local:  # a local master would start a task a core
            chosen = chosen[:n_tasks]
        n_bytes = sum(trainings[number].n_bytes for number in chosen)
        started = time.perf_counter()
        with ExitStack() as stack:
            parts = []
            for number in chosen:
                run, of = trainings[number].run, trainings[number]
                stored = run.to_arrays(since=run.epoch)
                handle = stack.enter_context(broadcast(session, stored, n_bytes=n_bytes))
                parts.append(SingleTaskPart(number, of.spec, of.scaling, of.metric, handle))
            task = SingleTask(__version__, tuple(parts), ids, train_on_all, seconds, gpu)
            # A task a model, however many there are: a slot that is done early takes the next.
            rows = copies(data.blocks, len(parts))
            frame = rows.mapInArrow(task, CHUNK_DDL, profile=device.profile)
            try:
                results = _gathered(frame, session, n_bytes)
            except (GpuNotFoundError, ModelTooLargeError) as err:
                if gpu is None:
                    raise
                device.fall_back_to_cpu(err)
                gpu, n_tasks = None, task_slots(session)
                continue
        n_at_once = min(n_tasks, len(results))
        job_seconds = (time.perf_counter() - started) * n_at_once / max(1, len(results))
        for number, (facts, arrays) in sorted(results.items()):
            if "diverged" in facts:
                failed[number] = TrainingDivergedError(facts["diverged"])
            else:
                _take_in(trainings[number], facts, arrays, job_seconds)
        seconds = min(2 * seconds, LONGEST_SECONDS)
    return [failed.get(number) or t.run for number, t in enumerate(trainings)]


def _fitting(
    trainings: Sequence[SingleTaskTrainer], going: Sequence[int], n_tasks: int, row_bytes: int
) -> list[int]:
    """Return the first trainings of those, one a slot at least and as many as a job may ship."""
    total = np.cumsum([trainings[number].n_bytes for number in going])
    shipped_at_once = int(np.searchsorted(total, JOB_BYTES, side="right"))
    return list(going[: max(n_tasks, min(shipped_at_once, COPIES_BYTES // max(1, row_bytes)))])


def _gathered(
    frame: DataFrame, session: SparkSession, n_bytes: int
) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """Return facts and arrays by number of the model."""
    rows = collect_rows(
        frame, session, columns=["model", "name", "part", "payload"],
        n_bytes=3 * n_bytes, spread=["model", "name", "part"],
    )  # fmt: skip
    chunks: dict[int, list[tuple[str, int, Any]]] = {}
    for model, name, part, payload in rows:
        chunks.setdefault(model, []).append((name, part, payload))
    return {model: from_chunks(parts) for model, parts in chunks.items()}


def _take_in(
    training: SingleTaskTrainer, facts: dict[str, Any], arrays: dict[str, Any], job_seconds: float
) -> None:
    """Take over what a job made of the run, and report its epochs."""
    layout = Layout(training.spec.k, training.spec.optimizer)
    history = training.run.history
    run = training.run = TrainingProgress.from_arrays(layout, facts, arrays)
    records = run.history
    run.history = history + records
    training.worker_info.gpus |= {facts["gpu"]} - {None}
    for report in _reports(records, facts["n_rows"], training.spec, job_seconds):
        if not training.tell(report):
            run.finished = True
    if training.keep is not None and (
        run.finished or run.epoch - training.kept_epoch >= training.keep_every
    ):
        training.keep(run)
        training.kept_epoch = run.epoch


def _reports(
    records: list[EpochRecord], n_rows: int, spec: Hyperparameters, job_seconds: float
) -> list[EpochReport]:
    """Return what is told of one job; its own overhead is spread over the epochs evenly."""
    inside = sum(r.train_seconds + r.validate_seconds for r in records)
    overhead = max(0.0, job_seconds - inside) / max(1, len(records))
    return [
        EpochReport(
            record=record,
            spec=spec,
            n_rows=n_rows,
            seconds=record.train_seconds + record.validate_seconds + overhead,
            phases={
                "train": max(0.0, record.train_seconds - record.compile_seconds),
                "validate": record.validate_seconds,
                "broadcast": overhead,
                "merge": 0.0,
            },
        )
        for record in records
    ]
