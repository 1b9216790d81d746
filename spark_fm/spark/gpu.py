"""The GPU of a Spark task; workers only.

``numba.cuda`` is imported inside the task: the driver may have neither it nor a GPU.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import TaskContext

from spark_fm.errors import GpuNotFoundError, ModelTooLargeError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.device import check_gpu, gpu_name, n_gpus, pays, use_gpu
from spark_fm.learner.epoch import CPU_BACKEND, Backend
from spark_fm.learner.predict import TablePositions, margins, renumbered
from spark_fm.spark.worker import WorkerTask, partition_number

if TYPE_CHECKING:
    from spark_fm.learner.cuda.scorer import CudaScorer

log = logging.getLogger(__name__)

PROBE_DDL = "gpu string, number int, reason string"


@dataclass(frozen=True)
class GpuAssignment:
    """Which GPU a task uses: the one that Spark assigns, or on a local master one in turn."""

    local: bool

    def use(self) -> str:
        """Make it the current GPU and return its address; raise GpuNotFoundError without one."""
        address = self._address()
        use_gpu(address)
        return address

    def _address(self) -> str:
        context = TaskContext.get()
        assigned = None if context is None else context.resources().get("gpu")
        if assigned is not None and assigned.addresses:
            return str(assigned.addresses[0])
        if self.local or context is None:
            return str(partition_number() % n_gpus())
        raise GpuNotFoundError(
            "Spark has given the task no GPU: set spark.executor.resource.gpu.amount, "
            "spark.task.resource.gpu.amount and a discovery script, as conf/gpu-*.conf do"
        )


@dataclass(frozen=True)
class GpuPassConfig:
    """How a task passes over its rows on its GPU."""

    gpu: GpuAssignment
    # Name of the rows that the job's partitions hold: a worker that is reused finds those of its
    # partition on the GPU.
    rows_key: str
    block_rows: int  # rows that train side by side

    @contextmanager
    def backend(self, part: int) -> Iterator[tuple[Backend, str]]:
        """Yield the backend and its GPU as ``host:address``; leave the GPU to others afterwards.

        ``part`` numbers the parts of the rows, each of which one task trains on.
        """
        address = self.gpu.use()
        from spark_fm.learner.cuda.memory import device_memory
        from spark_fm.learner.cuda.trainer import CudaBackend

        memory, key = device_memory(), (self.rows_key, part)
        backend = CudaBackend(key, self.block_rows)
        try:
            yield backend, f"{socket.gethostname()}:{address}"
        except BaseException:
            with suppress(Exception):  # a GPU that is broken must not hide what broke it
                backend.let_go()
                memory.leave_room()
            raise
        backend.let_go()
        memory.leave_room()


def task_backend(
    gpu: GpuPassConfig | None, part: int
) -> AbstractContextManager[tuple[Backend, str | None]]:
    """Return a context of a task's backend, and of the name of its GPU if it has one."""
    return nullcontext((CPU_BACKEND, None)) if gpu is None else gpu.backend(part)


def row_scorer(
    gpu: GpuAssignment | None,
    table: NDArray[np.float32],
    bias: float,
    features: NDArray[np.int32] | None,
) -> Callable[[CsrBatch], NDArray[np.float32]]:
    """Return a function from rows to raw scores, for a model as ``predict.margins`` takes it.

    Large batches are scored on the task's GPU, if one has room for the model and for them;
    all others on the CPU.
    """
    on_cpu = partial(margins, table=table, bias=bias, features=features)
    if gpu is None:
        return on_cpu
    k = table.shape[1] - 1
    positions = None if features is None else TablePositions(features)
    scorer: CudaScorer | None = None
    works = True

    def score(batch: CsrBatch) -> NDArray[np.float32]:
        nonlocal scorer, works
        if works and pays(batch.nnz, k):
            try:
                scorer = scorer or _cuda_scorer(gpu, table)
                return scorer.margins(renumbered(batch, positions), bias)
            except GpuNotFoundError as err:  # Spark gives one to tasks that train alone
                log.info("scoring on the CPU: %s", err)
            except ModelTooLargeError as err:  # as it is, or since others have filled the GPU
                log.warning("scoring on the CPU from here on: %s", err)
            scorer, works = None, False
        return on_cpu(batch)

    return score


def _cuda_scorer(gpu: GpuAssignment, table: NDArray[np.float32]) -> CudaScorer:
    """Return a scorer on the GPU of the task; a GPU costs a second before its first score."""
    gpu.use()
    check_gpu()
    from spark_fm.learner.cuda.scorer import CudaScorer

    return CudaScorer(table)


@dataclass(frozen=True)
class ProbeTask(WorkerTask):
    """Look for a GPU that works; yields rows of PROBE_DDL."""

    gpu: GpuAssignment

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield its name and how many the machine has, or the reason why there is none."""
        for _ in batches:
            pass
        name, number, reason = "", 0, ""
        try:
            self.gpu.use()
            check_gpu()
            name, number = gpu_name(), n_gpus()
        except GpuNotFoundError as err:
            reason = str(err)
        columns = [pa.array([name]), pa.array([number], pa.int32()), pa.array([reason])]
        yield pa.RecordBatch.from_arrays(columns, names=["gpu", "number", "reason"])
