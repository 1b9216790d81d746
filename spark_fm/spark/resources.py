"""What makes a training's passes, and how Spark is asked for it; driver only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests

from spark_fm.errors import GpuNotFoundError, SparkFMError
from spark_fm.learner.cuda.blocks import block_rows
from spark_fm.spark.collect import worker_errors
from spark_fm.spark.gpu import PROBE_DDL, GpuAssignment, GpuPassConfig, ProbeTask
from spark_fm.spark.session import SparkCluster, active, setting

log = logging.getLogger(__name__)

DeviceName = Literal["cpu", "gpu", "auto"]
GPU_AMOUNT = "spark.executor.resource.gpu.amount"
TASK_GPU_AMOUNT = "spark.task.resource.gpu.amount"


@dataclass(slots=True, eq=False)
class Device:
    """What makes the passes of trainings: a GPU, until they have to leave it, or the CPU."""

    slots: int = 0  # GPUs that may train at once; 0 for the CPU
    task_gpu: GpuAssignment | None = None  # which of them a task uses
    profile: ResourceProfile | None = None  # what the tasks that train ask of Spark
    optional: bool = False  # trainings may leave the GPU for the CPU

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.task_gpu is not None

    def fall_back_to_cpu(self, err: SparkFMError) -> None:
        """Be the CPU from here on, with a warning; raise ``err`` where it must be a GPU.

        A pass that failed has changed nothing and is made again.
        """
        if not self.optional:
            raise err
        if self.is_gpu:
            log.warning("device='auto': falling back to the CPU: %s", err)
        self.slots, self.task_gpu, self.profile = 0, None, None

    def pass_config(self, rows_key: str, n_rows: int, nnz: int) -> GpuPassConfig | None:
        """Return how tasks pass over rows named ``rows_key``; None for the CPU.

        ``n_rows`` and ``nnz`` are those of a partition in an epoch.
        """
        if self.task_gpu is None:
            return None
        return GpuPassConfig(self.task_gpu, rows_key, block_rows(n_rows, nnz))


CPU_DEVICE = Device()


def choose_device(wanted: DeviceName, cluster: SparkCluster) -> Device:
    """Return the device to train on.

    Raises GpuNotFoundError for "gpu" when a task finds none that works; "auto" then takes the
    CPU, with a warning. One task looks, as those that train will: it compiles and runs a kernel.
    """
    if wanted == "cpu":
        return CPU_DEVICE
    task_gpu, profile = GpuAssignment(cluster.is_local), training_profile(cluster)
    probe = cluster.session.range(0, 1, 1, 1).mapInArrow(
        ProbeTask(task_gpu), PROBE_DDL, profile=profile
    )
    with worker_errors():
        [(name, number, reason)] = [tuple(row) for row in probe.collect()]
    if not reason:
        slots = min(number, cluster.local_cores) if cluster.is_local else gpu_slots(cluster)
        slots = max(1, slots)
        log.info("device=%r (experimental) trains on %s; %d GPU(s) at once", wanted, name, slots)
        return Device(slots, task_gpu, profile, optional=wanted == "auto")
    if wanted == "gpu":
        raise GpuNotFoundError(
            f"device='gpu' found no usable GPU: {reason}. Or set device to 'auto' or 'cpu' "
            "(docs/gpu.md)."
        )
    log.warning("device='auto': training on the CPU: %s", reason)
    return CPU_DEVICE


def scoring_gpu(wanted: str, cluster: SparkCluster) -> GpuAssignment | None:
    """Return which GPU tasks score large batches on, where they have one.

    Of "gpu" and "auto" alike: a model that a GPU trained scores on machines without, too.
    """
    return None if wanted == "cpu" else GpuAssignment(cluster.is_local)


def gpu_slots(cluster: SparkCluster) -> int:
    """Return how many GPUs the executors have, as far as the session knows."""
    amount = setting(cluster.session, GPU_AMOUNT, "1")
    return cluster.n_executors() * (int(amount) if amount.isdigit() else 1)


def training_profile(cluster: SparkCluster) -> ResourceProfile | None:
    """Return what tasks that train on a GPU ask for; None where they are like all others.

    Only training needs a GPU: with a profile other stages still use all cores. Each of its
    tasks takes more than half the cores of an executor, so that no two of them share its GPU.
    """
    if cluster.is_local:
        return None
    session = cluster.session
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

    The arguments are the settings ``spark.executor.cores``, ``spark.executor.resource.gpu.amount``,
    ``spark.task.resource.gpu.amount`` and ``spark.dynamicAllocation.enabled``, "" where unset.

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
