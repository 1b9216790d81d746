"""Train by Gibbs sampling: chains side by side in Spark tasks, then one model; driver only.

Every task holds all rows. The result depends on the seed and the number of chains alone, and
not on how many of them run at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import pyarrow as pa

from spark_fm.errors import ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.gibbs.chain import ChainSpec
from spark_fm.learner.gibbs.fields import fields_of
from spark_fm.learner.gibbs.kernels import RowLayout
from spark_fm.learner.gibbs.posterior import MeanModel, Member, distilled
from spark_fm.learner.gibbs.sampling import WIDE, ChainPlan, ChainResult, first_sigma, run_chain
from spark_fm.learner.metrics import MetricSums, validation_metrics
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.training import EpochRecord, Parameters, evaluate
from spark_fm.spark.broadcast import Broadcast, broadcast
from spark_fm.spark.collect import CHUNK_DDL, collect_models, to_chunks
from spark_fm.spark.session import SparkCluster
from spark_fm.spark.worker import WorkerTask, partition_number
from spark_fm.training.config import TrainConfig
from spark_fm.training.dataset import PackedDataset
from spark_fm.training.fit import FitResult
from spark_fm.training.partitions import copies
from spark_fm.training.plan import MEMORY_FRACTION, TrainPlan, available_memory
from spark_fm.training.tasks import RowReader

log = logging.getLogger(__name__)

CHAINS = 4
PILOT_CHAINS = 2  # of a pilot run, one with each standard deviation of the first factors
# What solver="auto" tries: the work of a sweep, about 0.25 ns a unit, and the held-out rows, of
# which fewer say too little.
AUTO_WORK, AUTO_JUDGES = 1e9, 200
# Sweeps of a chain unless the caller sets them: the fewest, and under squared loss, in all chains
# after the pilot run, up to the most while their work is little.
FEWEST_SWEEPS, MOST_SWEEPS, LITTLE_WORK = 50, 200, 1e10
DRAWS = 40  # of the posterior that all chains keep together
MOST_MEMBERS = 40  # that a distillation learns from, of half of the chains or all
MEMBER_BYTES = 2**29  # that those of all chains may take on the driver
DISTILLATION_SWEEPS = 8


@dataclass(frozen=True)
class ChainTask(WorkerTask):
    """Run one chain, the one of the task's partition."""

    plans: tuple[ChainPlan, ...]  # one a partition
    sigma: float | None  # of the first factors of all chains; None: each has that of its place
    scaling: Scaling
    n_features: int
    rows: RowReader

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of the chain's result."""
        number = partition_number()
        plan = self.plans[number]
        train, validation = self.rows.read(batches, self.scaling, self.n_features)
        sigma = self.sigma
        if sigma is None:  # without validation rows to choose by, all begin alike
            is_wide = number % 2 == 1 and validation is not None
            sigma = WIDE if is_wide else first_sigma(train, plan.spec.k)
        plan = replace(plan, spec=replace(plan.spec, init_sigma=sigma))
        try:
            result = run_chain(train, validation, self.n_features, plan)
        except TrainingDivergedError as err:
            # As data: an exception would reach the driver as another class.
            yield from to_chunks(0, {"diverged": str(err)}, {}, model=number)
            return
        metadata, arrays = result.to_arrays()
        yield from to_chunks(0, metadata | {"sigma": sigma}, arrays, model=number)


@dataclass(frozen=True)
class CombineTask(WorkerTask):
    """Make one model of the chains' members, and measure it on the validation rows."""

    spec: Hyperparameters
    members: Broadcast  # (members, their mean in k factors)
    scaling: Scaling
    n_features: int
    rows: RowReader

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of the model."""
        members, model = self.members.load()
        spec = self.spec
        train, validation = self.rows.read(batches, self.scaling, self.n_features)
        if members:
            model = distilled(
                members, model, train, fields_of(train, self.n_features), spec.loss,
                sweeps=DISTILLATION_SWEEPS, seed=spec.init_key[0], use_bias=spec.use_bias,
            )  # fmt: skip
        sums = None
        if validation is not None:
            parameters = Parameters(model.table, model.bias)
            sums = evaluate(parameters, validation, spec, self.scaling.label).to_dict()
        metadata = {"bias": model.bias, "validation": sums}
        yield from to_chunks(0, metadata, {"table": model.table})


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a fit by Gibbs sampling comes to."""

    fit: FitResult  # with a record a sweep, over all chains; the last is of the one model
    sigma: float  # of the first factors, where the better chains began
    seconds: float
    draws: list[Member]  # of the posterior, where they are kept
    noise: list[float]  # its standard deviation with each draw


def sample(
    config: TrainConfig,
    data: PackedDataset,
    plan: TrainPlan,
    cluster: SparkCluster,
    *,
    scaling: Scaling,
    preparation: Broadcast | None,
    train_on_all: bool,
    sigma: float | None = None,
) -> Sampled:
    """Run chains and make one model of them; two jobs.

    Raises TrainingDivergedError, and ModelTooLargeError before any job.

    Without ``sigma``, and with validation rows, this is a pilot run: of two chains one begins with
    wide factors, and the one that does better on the validation rows is the result.
    """
    started, spec = time.perf_counter(), config.spec
    is_pilot = sigma is None and data.has_validation and not train_on_all
    n_chains = PILOT_CHAINS if is_pilot else CHAINS
    sweeps = _sweeps(config, data, plan, is_pilot=is_pilot)
    log.info("Gibbs sampling: %d chains of %d sweeps", n_chains, sweeps)
    table_bytes = 4 * plan.n_features * (spec.k + 1)
    most = max(1, MEMBER_BYTES // (CHAINS * max(1, table_bytes)))
    draws = min(DRAWS // n_chains, most) if config.keep_posterior else 0
    most = min(MOST_MEMBERS if is_pilot else MOST_MEMBERS // 2, most)
    collected = (2 * spec.k + 4) * 4 * plan.n_features + (most + draws) * table_bytes
    collected *= n_chains
    _check_memory(data, plan, spec.k, cluster, collected)
    chain_plans = tuple(
        ChainPlan(
            ChainSpec(spec.k, spec.loss, (*spec.init_key, chain), WIDE, use_bias=spec.use_bias),
            sweeps, most, draws, scaling.label,
        )
        for chain in range(n_chains)
    )  # fmt: skip
    rows = RowReader(preparation, train_on_all)
    task = ChainTask(chain_plans, sigma, scaling, plan.n_features, rows)
    frame = copies(data.blocks, n_chains).mapInArrow(task, CHUNK_DDL)
    found = collect_models(frame, cluster, collected)
    for metadata, _ in found.values():
        if "diverged" in metadata:
            raise TrainingDivergedError(metadata["diverged"])
    chains = [ChainResult.from_arrays(*found[number]) for number in range(n_chains)]
    sigmas = [found[number][0]["sigma"] for number in range(n_chains)]
    best = 0
    if is_pilot:
        values = [merit(chain.records[-1], config) for chain in chains]
        best = values.index(max(values))
        chains = [chains[best]]
    mean: MeanModel = chains[0].mean
    for chain in chains[1:]:
        mean.merge(chain.mean)
    records = [_together(each) for each in zip(*(c.records for c in chains), strict=True)]
    model, members = mean.model(spec.k), [member for c in chains for member in c.members]
    members = members[:: max(1, len(members) // MOST_MEMBERS)]
    if members or (data.has_validation and not train_on_all):
        model, sums = _combined(spec, data, cluster, members, model, scaling, plan.n_features, rows)
        records[-1] = replace(records[-1], validation=sums)
    parameters, last = Parameters(model.table, model.bias), len(records) - 1
    fit = FitResult(parameters, scaling, last, 1.0, records, None)
    draws_of = [draw for chain in chains for draw in chain.draws]
    noise = [each for chain in chains for each in chain.noise]
    return Sampled(fit, sigmas[best], time.perf_counter() - started, draws_of, noise)


def reason_against(spec: Hyperparameters, data: PackedDataset, plan: TrainPlan) -> str | None:
    """Return why solver="auto" should not try Gibbs sampling, None where it should."""
    if data.validation.rows < AUTO_JUDGES:
        return f"{data.validation.rows} held-out rows are too few to choose by"
    if _work(spec, data, plan) > AUTO_WORK:
        return (
            f"{data.sums(all_rows=True).nnz:,} non-zeros and {spec.k} factors are too much to try "
            "Gibbs sampling on unasked"
        )
    return None


def _work(spec: Hyperparameters, data: PackedDataset, plan: TrainPlan) -> float:
    """Return the work of a sweep, about 0.25 ns a unit."""
    nnz = data.sums(all_rows=True).nnz + plan.standardization.n_added
    return nnz * (spec.k**2 + 40) + plan.n_features * spec.k**3 / 3


def _sweeps(config: TrainConfig, data: PackedDataset, plan: TrainPlan, *, is_pilot: bool) -> int:
    if config.sweeps:
        return config.sweeps
    if is_pilot or config.spec.loss == "logistic":  # its distillation is the limit
        return FEWEST_SWEEPS
    most = LITTLE_WORK / max(1.0, _work(config.spec, data, plan))
    return int(min(max(most, FEWEST_SWEEPS), MOST_SWEEPS))


def _combined(
    spec: Hyperparameters,
    data: PackedDataset,
    cluster: SparkCluster,
    members: list[Member],
    model: Member,
    scaling: Scaling,
    n_features: int,
    rows: RowReader,
) -> tuple[Member, MetricSums | None]:
    n_bytes = (len(members) + 1) * model.table.nbytes
    with ExitStack() as stack:
        value = stack.enter_context(broadcast(cluster, (members, model), n_bytes=n_bytes))
        task = CombineTask(spec, value, scaling, n_features, rows)
        frame = copies(data.blocks, 1).mapInArrow(task, CHUNK_DDL)
        [(metadata, arrays)] = collect_models(frame, cluster, model.table.nbytes).values()
    sums = metadata["validation"]
    return (
        Member(arrays["table"], metadata["bias"]),
        None if sums is None else MetricSums.from_dict(sums),
    )


def merit(record: EpochRecord, config: TrainConfig) -> float:
    """Return the validation metric that decides, larger is better; -inf where undefined."""
    metric = validation_metrics(config.spec.loss)[config.metric]
    if record.validation is None:
        return -math.inf
    value = record.validation.values(config.spec.loss)[config.metric]
    value = value if metric.larger_is_better else -value
    return -math.inf if math.isnan(value) else value


def _check_memory(
    data: PackedDataset, plan: TrainPlan, k: int, cluster: SparkCluster, collected: int
) -> None:
    """Raise ModelTooLargeError unless the rows of all chains at once, and their results, fit."""
    available, sums = available_memory(), data.sums(all_rows=True)
    nnz = sums.nnz + plan.standardization.n_added
    # The rows as they arrive and concatenated, by feature, and the state of each; tables, normals
    # and what is made of them in float64. A distillation has three times the rows, once.
    rows = 3 * data.n_bytes + 16 * nnz + 4 * RowLayout(k).stride * sums.rows
    a_chain = rows + plan.n_features * (64 * k + 64)
    at_once = max(min(CHAINS, cluster.task_slots) * a_chain, 3 * rows + collected)
    needed = 2 * collected + (at_once if cluster.is_local else 0)
    if available is not None and needed > MEMORY_FRACTION * available:
        raise ModelTooLargeError(
            f'solver="gibbs" takes all {sums.rows:,} rows into each chain, {a_chain / 2**30:.2f} '
            f"GiB, and needs {needed / 2**30:.2f} GiB in all; {available / 2**30:.2f} are free. "
            'Train on a sample of the rows, or with solver="sgd".'
        )


def _together(records: Sequence[EpochRecord]) -> EpochRecord:
    """Return one record of a sweep of all chains: means of losses, sums of seconds."""
    sums = [record.validation for record in records if record.validation is not None]
    return replace(
        records[0],
        train_loss=sum(record.train_loss for record in records) / len(records),
        validation=reduce(add, sums) if sums else None,
        train_seconds=sum(record.train_seconds for record in records),
        validate_seconds=sum(record.validate_seconds for record in records),
    )
