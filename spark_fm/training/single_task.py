"""Run fits that each train in one Spark task, several epochs a job; driver only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from spark_fm.errors import GpuNotFoundError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.state import Layout
from spark_fm.learner.training import TrainingProgress
from spark_fm.spark.broadcast import Broadcast, broadcast
from spark_fm.spark.collect import JOB_BYTES
from spark_fm.spark.gpu import GpuPassConfig
from spark_fm.spark.resources import CPU_DEVICE, Device
from spark_fm.spark.session import SparkCluster
from spark_fm.training.callbacks import reports_of
from spark_fm.training.dataset import PackedDataset
from spark_fm.training.fit import Fit
from spark_fm.training.partitions import run_on_copies
from spark_fm.training.tasks import RowReader, SingleTask, SingleTaskPart

# A job trains for this long before it reports: short at first, so that the user sees
# something, longer later, so that jobs cost little.
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 16.0
# Most that a job may write of the rows, a copy a model, one model a slot apart.
COPIES_BYTES = 2**30


def train_single_task(
    fits: Sequence[Fit],
    data: PackedDataset,
    cluster: SparkCluster,
    *,
    preparation: Broadcast | None,
    device: Device = CPU_DEVICE,
    gpu: GpuPassConfig | None = None,
) -> list[TrainingProgress | TrainingDivergedError]:
    """Run fits to their ends, each on all the rows in a task of its own.

    Returns where each ended, or its TrainingDivergedError. ``preparation`` is that of
    the rows. A job trains all fits that it has room for, for some seconds.
    """
    train_on_all = fits[0].train_on_all
    n_tasks = device.slots or cluster.task_slots  # fits that may train at once
    diverged: dict[int, TrainingDivergedError] = {}
    checkpointed = [fit.progress.epoch for fit in fits]
    seconds = FIRST_SECONDS
    while True:
        unfinished = [
            number for number, fit in enumerate(fits)
            if number not in diverged and not fit.progress.finished
        ]  # fmt: skip
        if not unfinished:
            break
        batch = _of_one_job(fits, unfinished, n_tasks, data.n_bytes)
        if gpu is not None and gpu.gpu.local:  # a local master would start a task a core
            batch = batch[:n_tasks]
        n_bytes = sum(_n_bytes(fits[number]) for number in batch)
        started = time.perf_counter()
        with ExitStack() as stack:
            parts = []
            for number in batch:
                fit = fits[number]
                stored = fit.progress.to_arrays(since=fit.progress.epoch)
                progress = stack.enter_context(broadcast(cluster, stored, n_bytes=n_bytes))
                parts.append(SingleTaskPart(number, fit.spec, fit.scaling, fit.metric, progress))
            task = SingleTask(tuple(parts), RowReader(preparation, train_on_all), seconds, gpu)
            try:
                # A task a model, however many there are: a slot that is done early takes the next.
                results = run_on_copies(
                    task, data.blocks, len(parts), cluster, n_bytes=3 * n_bytes,
                    profile=device.profile,
                )  # fmt: skip
            except (GpuNotFoundError, ModelTooLargeError) as err:
                if gpu is None:
                    raise
                device.fall_back_to_cpu(err)
                gpu, n_tasks = None, cluster.task_slots
                continue
        n_at_once = min(n_tasks, len(results))
        job_seconds = (time.perf_counter() - started) * n_at_once / max(1, len(results))
        for number, (metadata, arrays) in sorted(results.items()):
            if "diverged" in metadata:
                diverged[number] = TrainingDivergedError(metadata["diverged"])
                continue
            fit = fits[number]
            _advance(fit, metadata, arrays, job_seconds)
            since = fit.progress.epoch - checkpointed[number]
            if fit.on_checkpoint and (fit.progress.finished or since >= fit.checkpoint_interval):
                fit.on_checkpoint(fit)
                checkpointed[number] = fit.progress.epoch
        seconds = min(2 * seconds, LONGEST_SECONDS)
    return [diverged.get(number) or fit.progress for number, fit in enumerate(fits)]


def _n_bytes(fit: Fit) -> int:
    """Return about what the arrays of a fit weigh."""
    progress = fit.progress
    tables = [p.table.nbytes for p in (progress.average, progress.best) if p is not None]
    return int(progress.state.rows.nbytes) + sum(tables)


def _of_one_job(
    fits: Sequence[Fit], unfinished: Sequence[int], n_tasks: int, row_bytes: int
) -> list[int]:
    """Return the first unfinished fits, one a slot at least and as many as a job may ship."""
    total = np.cumsum([_n_bytes(fits[number]) for number in unfinished])
    shipped_at_once = int(np.searchsorted(total, JOB_BYTES, side="right"))
    return list(unfinished[: max(n_tasks, min(shipped_at_once, COPIES_BYTES // max(1, row_bytes)))])


def _advance(
    fit: Fit, metadata: dict[str, Any], arrays: dict[str, Any], job_seconds: float
) -> None:
    """Take over the progress that a job made, and report its epochs."""
    layout = Layout(fit.spec.k, fit.spec.optimizer)
    history = fit.progress.history
    progress = fit.progress = TrainingProgress.from_arrays(layout, metadata, arrays)
    records = progress.history
    progress.history = history + records
    fit.worker_info.gpus |= {metadata["gpu"]} - {None}
    store_seconds = min(metadata["store_seconds"], job_seconds)
    fit.worker_info.store_seconds += store_seconds
    training_seconds = job_seconds - store_seconds
    for report in reports_of(records, metadata["n_rows"], fit.spec, training_seconds):
        if not fit.on_epoch_end(report):
            progress.finished = True
