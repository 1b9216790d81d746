"""What makes a training's passes, and how Spark is asked for it; driver only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession

from spark_fm._version import __version__
from spark_fm.errors import GpuNotFoundError, SparkFMError
from spark_fm.learner.cuda.blocks import block_rows
from spark_fm.spark.collect import worker_errors
from spark_fm.spark.gpu import PROBE_DDL, GpuAssignment, GpuPassConfig, ProbeTask
from spark_fm.spark.session import active, is_local_master, local_cores, n_executors, setting

log = logging.getLogger(__name__)

DeviceName = Literal["cpu", "gpu", "auto"]
GPU_AMOUNT = "spark.executor.resource.gpu.amount"
TASK_GPU_AMOUNT = "spark.task.resource.gpu.amount"


@dataclass(slots=True, eq=False)
class Device:
    """What makes the passes of trainings: a GPU until they have to leave it, or the CPU.

    Parameters
    ----------
    slots : int
        GPUs that may train at once; 0 for the CPU.
    task_gpu : GpuAssignment or None
        Which of them a task uses; None for the CPU.
    profile : ResourceProfile or None
        What the tasks that train ask of Spark, where they ask for more than others.
    optional : bool
        Trainings may leave the GPU for the CPU.
    """

    slots: int = 0
    task_gpu: GpuAssignment | None = None
    profile: ResourceProfile | None = None
    optional: bool = False

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.task_gpu is not None

    def fall_back_to_cpu(self, err: SparkFMError) -> None:
        """Be the CPU from here on, and say so; raise ``err`` where it must be a GPU.

        A pass that failed has changed nothing: it is made again, and the training goes on.
        """
        if not self.optional:
            raise err
        if self.is_gpu:
            log.warning("device='auto' goes on on the CPU: %s", err)
        self.slots, self.task_gpu, self.profile = 0, None, None

    def passes(self, rows_key: str, n_rows: int, nnz: int) -> GpuPassConfig | None:
        """Return how tasks make their passes; None for the CPU.

        Parameters
        ----------
        rows_key : str
            Name of the rows.
        n_rows, nnz : int
            Of a partition in an epoch.
        """
        if self.task_gpu is None:
            return None
        return GpuPassConfig(self.task_gpu, rows_key, block_rows(n_rows, nnz))


CPU_DEVICE = Device()


def choose_device(wanted: DeviceName, session: SparkSession) -> Device:
    """Return the device to train on.

    Parameters
    ----------
    wanted : {"cpu", "gpu", "auto"}
    session : SparkSession

    Raises
    ------
    GpuNotFoundError
        For "gpu", when a task finds none that works; "auto" says so and takes the CPU.

    Notes
    -----
    One task looks, as those that train will: it compiles a kernel and runs it.
    """
    if wanted == "cpu":
        return CPU_DEVICE
    local = is_local_master(session)
    task_gpu, profile = GpuAssignment(local), training_profile(session)
    probe = session.range(0, 1, 1, 1).mapInArrow(
        ProbeTask(__version__, task_gpu), PROBE_DDL, profile=profile
    )
    with worker_errors():
        [(name, number, reason)] = [tuple(row) for row in probe.collect()]
    if not reason:
        slots = max(1, min(number, local_cores(session)) if local else gpu_slots(session))
        log.info("device=%r trains on %s; %d GPU(s) at once", wanted, name, slots)
        return Device(slots, task_gpu, profile, optional=wanted == "auto")
    if wanted == "gpu":
        raise GpuNotFoundError(
            f"device='gpu' found no usable GPU: {reason}. Or set device to 'auto' or 'cpu' "
            "(docs/gpu.md)."
        )
    log.warning("device='auto' trains on the CPU: %s", reason)
    return CPU_DEVICE


def scoring_gpu(wanted: str, session: SparkSession) -> GpuAssignment | None:
    """Return which GPU tasks score large batches on, where they have one.

    Of "gpu" and "auto" alike: a model that a GPU trained scores on machines without, too.
    """
    return None if wanted == "cpu" else GpuAssignment(is_local_master(session))


def gpu_slots(session: SparkSession) -> int:
    """Return how many GPUs the executors have, as far as the session tells."""
    amount = setting(session, GPU_AMOUNT, "1")
    return n_executors(session) * (int(amount) if amount.isdigit() else 1)


def training_profile(session: SparkSession) -> ResourceProfile | None:
    """Return what tasks that train on a GPU ask for; None where they are like all others.

    Only training needs a GPU: with a profile other stages still use all cores. Each of its
    tasks takes more than half the cores of an executor, so that no two of them share its GPU.
    """
    if is_local_master(session):
        return None
    cpus = profile_cpus(
        cores=setting(session, "spark.executor.cores", ""),
        gpus=setting(session, GPU_AMOUNT, ""),
        task_gpus=setting(session, TASK_GPU_AMOUNT, ""),
        dynamic=setting(session, "spark.dynamicAllocation.enabled", ""),
    )
    if cpus is None:
        return None
    requests = TaskResourceRequests().cpus(cpus).resource("gpu", 1.0)
    profile = ResourceProfileBuilder().require(requests).build
    with active(session):  # on Connect a profile is made when its number is first asked for
        log.debug("resource profile %d: %d cores and the GPU a task", profile.id, cpus)
    return profile


def profile_cpus(*, cores: str, gpus: str, task_gpus: str, dynamic: str = "") -> int | None:
    """Return the cores that a task asks for in a profile of its own; None for no profile.

    Parameters
    ----------
    cores, gpus, task_gpus, dynamic : str
        ``spark.executor.cores``, ``spark.executor.resource.gpu.amount``,
        ``spark.task.resource.gpu.amount`` and ``spark.dynamicAllocation.enabled``, "" where unset.

    Notes
    -----
    No profile where executors have no GPU, several of them, one core or an unknown number,
    or where every task has a whole executor's GPU anyway. It is the same choice as that of
    XGBoost and of spark-rapids-ml. None under dynamic allocation either: Spark would start
    executors for the profile, and wait for ever where those that packed the rows hold the GPUs.
    """
    if dynamic.lower() == "true":
        return None
    if not (cores.isdigit() and gpus.isdigit()) or int(cores) < 2 or int(gpus) != 1:
        return None
    if task_gpus and float(task_gpus) == float(gpus):
        return None
    return int(cores) // 2 + 1
