"""Choose partitions, rounds and table for a training, and check that it fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, InvalidParamError, ModelTooLargeError
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.standardization import Standardization
from spark_fm.learner.state import Layout
from spark_fm.learner.statistics import FeatureCounts
from spark_fm.learner.weights import FMWeights
from spark_fm.spark.resources import CPU_DEVICE, Device
from spark_fm.spark.session import SparkCluster
from spark_fm.training.config import TrainConfig
from spark_fm.training.dataset import PackedDataset
from spark_fm.training.packing import payload_bytes

log = logging.getLogger(__name__)

# One task takes the whole training while it holds the data and an epoch is short.
SINGLE_TASK_BYTES = 2**28
# Arithmetic of one non-zero: about 10 ns and 0.7 ns a factor on one core.
SECONDS_FIXED, SECONDS_PER_FACTOR = 10e-9, 0.7e-9
# A partition must have this much arithmetic an epoch to be worth its rounds.
SECONDS_PER_PARTITION = 0.8
# Cores that a GPU is meant to replace; not measured (docs/gpu.md).
GPU_CORES = 40
MEMORY_FRACTION = 0.9
# Averagings an epoch of more than two partitions; the mean number of entries of a
# feature that more of them are for, while all deltas together are small.
MIN_ROUNDS, MAX_ROUNDS = 8, 64
ENTRIES_PER_ROUND = 150
MOST_EMPTY_ROWS = 2**24  # that fill up the last mini-batch
SMALL_ROUND_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """How a training is divided."""

    n_partitions: int  # Spark tasks that train at once
    n_rounds: int  # times an epoch that their models are averaged
    single_task: bool  # all epochs run in one task
    merge_on_executors: bool  # deltas are averaged there first
    feature_dim: int  # length of the feature vectors
    ids: NDArray[np.int32] | None  # (n_features,) sorted ids of the table's rows; None: all
    standardization: Standardization
    n_features: int  # rows of the table
    row_length: float  # mean number of entries of a row
    train_counts: NDArray[np.int64]  # (n_features,) non-zeros of each in the training rows
    all_counts: NDArray[np.int64]  # (n_features,) and in all rows
    n_bytes: int  # memory that training needs on this machine
    device: Device = CPU_DEVICE  # what makes the passes

    @property
    def key(self) -> tuple[object, ...]:
        """What must agree for two trainings to share jobs."""
        return (
            self.single_task, self.n_partitions, self.n_rounds, self.merge_on_executors,
            self.ids is None, self.device, self.standardization.digest,
        )  # fmt: skip


def make_plan(
    config: TrainConfig,
    data: PackedDataset,
    cluster: SparkCluster,
    *,
    standardization: Standardization,
    known: FMWeights | None = None,
    device: Device = CPU_DEVICE,
) -> TrainPlan:
    """Return the plan for a dataset.

    ``known`` is the model that training starts from: its features stay in the table. Raises
    ModelTooLargeError when memory cannot hold the model, and InvalidDataError when dense rows
    are shorter than the model that training starts from.
    """
    spec = config.spec
    layout = Layout(spec.k, spec.optimizer)
    feature_dim = max(data.feature_dim, 0 if known is None else known.feature_dim)
    if data.has_dense and data.feature_dim < feature_dim:
        raise InvalidDataError(
            f"The rows have dense vectors or arrays of {data.feature_dim} values, and the model to "
            f"go on from has {feature_dim} features; each needs a value for every feature. Fill "
            "them up, or use sparse vectors."
        )
    # Features that no row has keep their values under spec.sagemaker.
    ids, train_counts, all_counts = _table(
        data.counts, feature_dim, spec.k, known, every_id=spec.sagemaker
    )
    n_features = len(train_counts)
    centred = standardization.centred_rows(n_features, ids)
    if len(centred):  # every row has them
        train_counts, all_counts = train_counts.copy(), all_counts.copy()
        train_counts[centred] = data.train.rows
        all_counts[centred] = data.train.rows + data.validation.rows
    row_length = data.train.nnz / max(1, data.train.rows)
    row_length += standardization.n_added / (data.train.rows + data.validation.rows)
    row_bytes = data.n_bytes + payload_bytes(0, standardization.n_added)
    partitions = 1
    if not spec.sagemaker:
        nnz = data.train.nnz + standardization.n_added
        partitions = choose_partitions(
            row_bytes, nnz, spec.k, slots=device.slots or cluster.task_slots, on_gpu=device.is_gpu
        )
    n_partitions = config.num_workers or partitions
    _check_padding(data, spec)
    single_task = spec.sagemaker or (n_partitions == 1 and row_bytes <= SINGLE_TASK_BYTES)
    synced_bytes = n_features * layout.n_synced * 4 * n_partitions
    seen = max(1, int(np.count_nonzero(train_counts)))
    n_rounds = config.averagings or choose_rounds(
        n_partitions,
        entries_per_feature=row_length * data.train.rows / seen,
        synced_bytes=synced_bytes,
    )
    overflows = synced_bytes > cluster.result_limit and not cluster.shares_files
    depth = config.aggregation_depth or (2 if overflows else 1)
    # As they arrive, concatenated, and renumbered; for a GPU sorted by block as well.
    rows_in_task = (10 if device.is_gpu else 3) * row_bytes
    collected = synced_bytes if depth == 1 and not cluster.shares_files else 0
    extra = rows_in_task if single_task else collected
    n_bytes = check_memory(
        layout, n_features, n_partitions=n_partitions, single_task=single_task,
        validates=data.has_validation,
        extra=extra, cluster=cluster, sorts_rows=single_task and device.is_gpu,
    )  # fmt: skip
    return TrainPlan(
        n_partitions=n_partitions, n_rounds=1 if single_task else n_rounds, single_task=single_task,
        merge_on_executors=depth == 2 and not single_task, feature_dim=feature_dim, ids=ids,
        standardization=standardization, row_length=row_length,
        n_features=n_features, train_counts=train_counts, all_counts=all_counts, n_bytes=n_bytes,
        device=device,
    )  # fmt: skip


def _check_padding(data: PackedDataset, spec: Hyperparameters) -> None:
    """Raise InvalidParamError when the last mini-batch is filled up beyond all measure."""
    rows = data.train.rows + data.validation.rows
    if spec.sagemaker and spec.mini_batch_size - rows > MOST_EMPTY_ROWS:
        raise InvalidParamError(
            f"miniBatchSize={spec.mini_batch_size:,} would fill the {rows:,} rows up with more "
            f"than {MOST_EMPTY_ROWS:,} empty ones, as SageMaker's training does. Lower "
            "miniBatchSize."
        )


def choose_rounds(n_partitions: int, *, entries_per_feature: float, synced_bytes: int) -> int:
    """Return the averaging rounds of an epoch (docs/averaging.md).

    ``entries_per_feature`` is the mean number of training rows that have a feature, over those
    seen; ``synced_bytes`` the size of all partitions' deltas in one round.
    """
    if n_partitions <= 2:
        return n_partitions
    if synced_bytes > SMALL_ROUND_BYTES:
        return MIN_ROUNDS
    n_rounds = int(entries_per_feature / ENTRIES_PER_ROUND)
    return min(max(n_rounds, MIN_ROUNDS), MAX_ROUNDS)


def choose_partitions(n_bytes: int, nnz: int, k: int, *, slots: int, on_gpu: bool = False) -> int:
    """Return the partitions of a training whose caller leaves them open.

    One task takes few rows with little arithmetic; all others have at least two partitions where
    as many cores are free, since one would have rounds as well and leave a core idle.
    """
    seconds = nnz * (SECONDS_FIXED + SECONDS_PER_FACTOR * k)
    if on_gpu:
        seconds /= GPU_CORES
    n_partitions = int(seconds / SECONDS_PER_PARTITION)
    if n_partitions < 2 and n_bytes <= SINGLE_TASK_BYTES:
        return 1
    return min(max(1 if on_gpu else 2, n_partitions), slots)


def _table(
    counts: FeatureCounts,
    feature_dim: int,
    k: int,
    known: FMWeights | None,
    *,
    every_id: bool,
) -> tuple[NDArray[np.int32] | None, NDArray[np.int64], NDArray[np.int64]]:
    """Return ids or None, whichever makes the smaller model, and the counts by row.

    None too when the model must have a row for ``every_id``.
    """
    if known is not None:
        ids = np.arange(known.feature_dim, dtype=np.int32)
        ids = ids if known.features is None else known.features
        nothing = np.zeros(len(ids), np.int64)
        counts = FeatureCounts.merge([counts, FeatureCounts(ids, nothing, nothing)])
    everything = counts.train + counts.validation
    if not every_id and len(counts.ids) * (k + 2) < feature_dim * (k + 1):
        return counts.ids, counts.train, everything
    dense = np.zeros((2, feature_dim), np.int64)
    dense[0, counts.ids] = counts.train
    dense[1, counts.ids] = everything
    return None, dense[0], dense[1]


def check_memory(
    layout: Layout,
    n_features: int,
    *,
    n_partitions: int,
    single_task: bool,
    validates: bool,
    extra: int,
    cluster: SparkCluster,
    sorts_rows: bool = False,
) -> int:
    """Return the bytes needed here; raise ModelTooLargeError when memory cannot hold them.

    ``extra`` bytes are the rows that one task takes in, or the deltas that the driver
    collects; ``sorts_rows`` says that they are sorted for a GPU as well.
    """
    parameters = 4 * n_features * (layout.k + 1)
    synced = 4 * n_features * (layout.n_synced + 1)
    state = n_features * layout.bytes_per_feature
    if single_task:
        driver = 2 * synced + 4 * parameters
        worker = 2 * state + synced + 3 * parameters + extra
    else:
        driver = state + 3 * synced + (3 if validates else 2) * parameters + extra
        worker = state + (parameters if validates else 0)
        if cluster.shares_files:  # all tasks map the one file of the driver
            driver += synced
        else:
            worker += synced
    local = cluster.is_local
    n_workers = min(n_partitions, cluster.task_slots) if local else 0
    needed = driver + n_workers * worker
    available = available_memory()
    if available is not None and needed > MEMORY_FRACTION * available:
        gib = 2**30
        where = f" + {n_workers} workers x {worker / gib:.2f} GiB" if local else ""
        on_cpu = "set device to cpu (a GPU takes the rows sorted, too), "
        raise ModelTooLargeError(
            f"A model of {n_features:,} features x numFactors={layout.k} with "
            f"optimizer={layout.optimizer!r} needs {driver / gib:.2f} GiB on the driver{where} = "
            f"{needed / gib:.2f} GiB ({layout.bytes_per_feature} bytes of state a feature); "
            f"{available / gib:.2f} GiB are free. Lower numFactors, hash the features into fewer, "
            f"{on_cpu if sorts_rows and local else ''}or use a larger driver."
        )
    return needed


def trained_together(plans: Sequence[TrainPlan]) -> int:
    """Return how many of these plans, from the first on, memory holds at once (>= 1)."""
    available = available_memory()
    if available is None:
        return len(plans)
    total = np.cumsum([plan.n_bytes for plan in plans])
    return max(1, int(np.searchsorted(total, MEMORY_FRACTION * available, "right")))


def available_memory() -> int | None:
    """Return the bytes this process may still take, or None where unknown."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        if hasattr(os, "sysconf"):
            limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limits += [free for free in map(_group_memory, _MEMORY_GROUPS) if free is not None]
    return min(limits) if limits else None


# Folder of the control group, file of its limit, file of its use: versions 2 and 1.
_MEMORY_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def _group_memory(group: tuple[Path, str, str]) -> int | None:
    """Return what a control group leaves free, None without a limit; cached files are free."""
    folder, limit_file, use_file = group
    try:
        limit = (folder / limit_file).read_text().strip()
        if limit == "max":
            return None
        used = int((folder / use_file).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    files = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, int(limit) - max(0, used - files))
