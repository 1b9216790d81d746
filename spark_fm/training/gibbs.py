"""Train by Gibbs sampling: chains side by side in Spark tasks, then one model; driver only.

Every task holds all rows. Jobs run the chains for some seconds each, and on to where they may
pause (after 24, 49, ... sweeps, with ten or more left), so that the driver hears of their sweeps
and can write checkpoints. The result depends on the seed and the number of chains alone, and not
on how many of them run at once, or on where they pause.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any, Literal

import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.errors import ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.gibbs.chain import ChainSpec
from spark_fm.learner.gibbs.fields import fields_of
from spark_fm.learner.gibbs.kernels import RowLayout
from spark_fm.learner.gibbs.posterior import Member, distilled
from spark_fm.learner.gibbs.sampling import (
    WIDE,
    ChainPlan,
    ChainProgress,
    advance_chain,
    first_sigma,
)
from spark_fm.learner.metrics import MetricSums, merit
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.training import EpochRecord, Parameters, TrainingState, evaluate
from spark_fm.spark.broadcast import Broadcast, broadcast
from spark_fm.spark.collect import to_chunks
from spark_fm.spark.session import SparkCluster
from spark_fm.spark.worker import WorkerTask, partition_number
from spark_fm.training.callbacks import EpochCallback, Progress, reports_of
from spark_fm.training.config import TrainConfig
from spark_fm.training.dataset import PackedDataset
from spark_fm.training.fit import FitResult
from spark_fm.training.partitions import run_on_copies
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
# A job runs each chain for this long, and on to where it may pause: longer and longer, because
# it reads the rows anew.
FIRST_SECONDS, LONGEST_SECONDS = 4.0, 32.0


@dataclass(frozen=True)
class ChainPart:
    """One chain of a job."""

    number: int
    plan: ChainPlan
    progress: Broadcast | None  # what it goes on from; None before its first sweep


@dataclass(frozen=True)
class ChainTask(WorkerTask):
    """Run one chain for some seconds, the one of the task's partition."""

    parts: tuple[ChainPart, ...]  # one a partition
    sigma: float | None  # of the first factors of all chains; None: each has that of its number
    scaling: Scaling
    n_features: int
    rows: RowReader
    seconds: float

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of the chain's progress."""
        part = self.parts[partition_number()]
        train, validation = self.rows.read(batches, self.scaling, self.n_features)
        if part.progress is not None:
            progress = ChainProgress.from_arrays(*part.progress.load())
        else:
            sigma = self.sigma
            if sigma is None:  # without validation rows to choose by, all begin alike
                is_wide = part.number % 2 == 1 and validation is not None
                sigma = WIDE if is_wide else first_sigma(train, part.plan.spec.k)
            progress = ChainProgress.start(part.plan, train, self.n_features, sigma=sigma)
        try:
            advance_chain(progress, train, validation, part.plan, seconds=self.seconds)
        except TrainingDivergedError as err:
            # As data: an exception would reach the driver as another class.
            yield from to_chunks(0, {"diverged": str(err)}, {}, model=part.number)
            return
        yield from to_chunks(0, *progress.to_arrays(), model=part.number)


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


@dataclass(frozen=True, slots=True)
class ChainListener:
    """Who hears of chains while they run, and where an interrupted run has left them."""

    what: Literal["pilot run", "train", "refit"]  # names the bar
    hear: EpochCallback | None = None  # returns False to end the chains, past their burn-in
    save: Callable[[list[ChainProgress]], None] | None = None  # after each job
    saved: Sequence[ChainProgress] = ()

    @property
    def n_shown(self) -> int:
        """Sweeps that need not be shown again; the last waits for the one model's metrics."""
        return max(0, len(_together(self.saved)) - 1)

    def report(
        self, bar: Progress, n_rows: int, spec: Hyperparameters, records: list[EpochRecord]
    ) -> bool:
        """Show sweeps; return whether to go on."""
        goes_on = True
        for report in reports_of(records, n_rows, spec):
            bar(report, "" if self.what == "train" else self.what)
            if self.hear is not None:
                goes_on = self.hear(report) and goes_on
        return goes_on


def sample(
    config: TrainConfig,
    data: PackedDataset,
    plan: TrainPlan,
    cluster: SparkCluster,
    *,
    scaling: Scaling,
    preparation: Broadcast | None,
    train_on_all: bool,
    listener: ChainListener,
    pilot: Sampled | None = None,
) -> Sampled:
    """Run chains and make one model of them.

    Raises TrainingDivergedError, and ModelTooLargeError before any job.

    Without a ``pilot``, and with validation rows, this is the pilot run: of two chains one begins
    with wide factors, and the one that does better on the validation rows is the result.
    """
    started, spec = time.perf_counter(), config.spec
    is_pilot = pilot is None and data.has_validation and not train_on_all
    sigma = None if pilot is None else pilot.sigma
    n_chains = PILOT_CHAINS if is_pilot else CHAINS
    sweeps = _sweeps(config, data, plan, is_pilot=is_pilot)
    if pilot is not None and train_on_all and config.sweep_patience:
        sweeps = min(sweeps, len(pilot.fit.records))  # no validation rows end these chains
    log.info("Gibbs sampling: %d chains of %d sweeps", n_chains, sweeps)
    table_bytes = 4 * plan.n_features * (spec.k + 1)
    most = max(1, MEMBER_BYTES // (CHAINS * max(1, table_bytes)))
    draws = min(DRAWS // n_chains, most) if config.keep_posterior else 0
    most = min(MOST_MEMBERS if is_pilot else MOST_MEMBERS // 2, most)
    a_state = (3 * spec.k + 5) * 4 * plan.n_features + 8 * data.validation.rows
    collected = n_chains * (a_state + (most + draws) * table_bytes)
    _check_memory(data, plan, spec.k, cluster, collected)
    chain_plans = [
        ChainPlan(
            ChainSpec(spec.k, spec.loss, (*spec.init_key, chain), WIDE, use_bias=spec.use_bias),
            sweeps, most, draws, scaling.label, config.metric, config.sweep_patience, config.tol,
        )
        for chain in range(n_chains)
    ]  # fmt: skip
    rows = RowReader(preparation, train_on_all)
    task = ChainTask((), sigma, scaling, plan.n_features, rows, FIRST_SECONDS)
    n_rows = data.sums(all_rows=train_on_all).rows
    with Progress(sweeps, listener.what, n_shown=listener.n_shown) as progress_bar:
        report = partial(listener.report, progress_bar, n_rows, spec)
        chains = _run(
            task, chain_plans, data, cluster, listener, report, n_bytes=a_state, collected=collected
        )
        best = 0
        if is_pilot:
            values = [
                merit(chain.records[-1].validation, spec.loss, config.metric) for chain in chains
            ]
            best = values.index(max(values))
            chains = [chains[best]]
        mean = replace(chains[0].mean)  # what is saved of the chain stays its own
        for chain in chains[1:]:
            mean.merge(chain.mean)
        records = _together(chains)
        model, members = mean.model(spec.k), [member for c in chains for member in c.members]
        members = members[:: max(1, len(members) // MOST_MEMBERS)]
        if members or (data.has_validation and not train_on_all):
            model, sums = _combined(
                spec, data, cluster, members, model, scaling, plan.n_features, rows
            )
            records[-1] = replace(records[-1], validation=sums)
        report(records[-1:])
    parameters, last = Parameters(model.table, model.bias), len(records) - 1
    fit = FitResult(parameters, scaling, last, 1.0, records, None)
    draws_of = [draw for chain in chains for draw in chain.draws]
    noise = [each for chain in chains for each in chain.noise]
    return Sampled(fit, chains[0].sigma, time.perf_counter() - started, draws_of, noise)


def _run(
    task: ChainTask,
    plans: Sequence[ChainPlan],
    data: PackedDataset,
    cluster: SparkCluster,
    listener: ChainListener,
    report: Callable[[list[EpochRecord]], bool],
    *,
    n_bytes: int,
    collected: int,
) -> list[ChainProgress]:
    """Run chains to their ends, job after job; all sweeps but the last are reported."""
    chains: dict[int, ChainProgress] = dict(enumerate(listener.saved))
    n_shown, goes_on = listener.n_shown, True
    while True:
        going = [n for n in range(len(plans)) if n not in chains or not chains[n].finished]
        if not going or not (goes_on or any(not chain.mean.n for chain in chains.values())):
            return [chains[number] for number in range(len(plans))]
        parts = {number: (plans[number], chains.get(number)) for number in going}
        chains |= _advanced(task, parts, data, cluster, n_bytes=n_bytes, collected=collected)
        task = replace(task, seconds=min(2 * task.seconds, LONGEST_SECONDS))
        ordered = [chains[number] for number in range(len(plans))]
        if listener.save is not None:
            listener.save(ordered)
        records = _together(ordered)[:-1]
        goes_on = report(records[n_shown:]) and goes_on
        n_shown = max(n_shown, len(records))


def _advanced(
    task: ChainTask,
    parts: dict[int, tuple[ChainPlan, ChainProgress | None]],
    data: PackedDataset,
    cluster: SparkCluster,
    *,
    n_bytes: int,
    collected: int,
) -> dict[int, ChainProgress]:
    """Return the progress of chains, by number, after a job of some seconds each."""
    with ExitStack() as stack:
        of_job = []
        for number, (plan, before) in parts.items():
            value = None
            if before is not None:
                stored = before.without_kept().to_arrays()
                value = stack.enter_context(broadcast(cluster, stored, n_bytes=n_bytes))
            of_job.append(ChainPart(number, plan, value))
        task = replace(task, parts=tuple(of_job))
        found = run_on_copies(task, data.blocks, len(of_job), cluster, n_bytes=collected)
    for metadata, _ in found.values():
        if "diverged" in metadata:
            raise TrainingDivergedError(metadata["diverged"])
    chains = {}
    for number, (_, before) in parts.items():
        progress = ChainProgress.from_arrays(*found[number])
        chains[number] = progress if before is None else progress.after(before)
    return chains


def chains_to_state(chains: dict[str, list[ChainProgress]], fingerprint: str) -> TrainingState:
    """Return the chains of a training's runs, by name, as a checkpoint holds them."""
    metadata: dict[str, Any] = {"fingerprint": fingerprint, "chains": {}}
    arrays: dict[str, NDArray[Any]] = {}
    for run, of_run in chains.items():
        found = [chain.to_arrays() for chain in of_run]
        metadata["chains"][run] = [about for about, _ in found]
        for number, (_, parts) in enumerate(found):
            arrays |= {f"{run} {number} {name}": array for name, array in parts.items()}
        metadata["run"] = {"epoch": len(_together(of_run))}
    return TrainingState(metadata, arrays)


def chains_of_state(state: TrainingState) -> dict[str, list[ChainProgress]]:
    """Return the chains that a checkpoint holds."""
    chains: dict[str, list[ChainProgress]] = {}
    for run, abouts in state.metadata["chains"].items():
        chains[run] = []
        for number, about in enumerate(abouts):
            prefix = f"{run} {number} "
            arrays = {
                name.removeprefix(prefix): array
                for name, array in state.arrays.items()
                if name.startswith(prefix)
            }
            chains[run].append(ChainProgress.from_arrays(about, arrays))
    return chains


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
    is_short = is_pilot and not config.sweep_patience
    if is_short or config.spec.loss == "logistic":  # its distillation is the limit
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
        found = run_on_copies(task, data.blocks, 1, cluster, n_bytes=model.table.nbytes)
    [(metadata, arrays)] = found.values()
    sums = metadata["validation"]
    return (
        Member(arrays["table"], metadata["bias"]),
        None if sums is None else MetricSums.from_dict(sums),
    )


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


def _together(chains: Sequence[ChainProgress]) -> list[EpochRecord]:
    """Return a record of each sweep that all chains have made, or ended before.

    Means of losses and precisions, sums of seconds.
    """
    going = [len(chain.records) for chain in chains if not chain.finished]
    n_sweeps = min(going) if going else max((len(chain.records) for chain in chains), default=0)
    return [_mean_record([chain.record(sweep) for chain in chains]) for sweep in range(n_sweeps)]


def _mean_record(records: Sequence[EpochRecord]) -> EpochRecord:
    n, sums = len(records), [r.validation for r in records if r.validation is not None]
    sampled = [record.sampled for record in records if record.sampled is not None]
    return replace(
        records[0],
        train_loss=sum(record.train_loss for record in records) / n,
        validation=reduce(add, sums) if sums else None,
        train_seconds=sum(record.train_seconds for record in records),
        validate_seconds=sum(record.validate_seconds for record in records),
        sampled={name: sum(each[name] for each in sampled) / n for name in sampled[0]},
    )
