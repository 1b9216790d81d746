"""Averaging rounds: one training cut into partitions, and the jobs that run them; driver only."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from spark_fm._version import __version__
from spark_fm.errors import GpuNotFoundError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.averaging import AveragingRule, Delta
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import round_order
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.state import TrainState
from spark_fm.learner.training import (
    AVERAGED_ETA,
    LR_BACKOFF,
    MAX_BACKOFFS,
    SAMPLE_ROWS,
    EpochRecord,
    Parameters,
    TrainingProgress,
    divergence_limit,
    divergence_text,
    loss_scale,
    sample_loss,
)
from spark_fm.spark.broadcast import Broadcast, broadcast, read_bytes, shared_folder
from spark_fm.spark.collect import CHUNK_DDL, JOB_BYTES, META, collect_rows
from spark_fm.spark.gpu import GpuPassConfig
from spark_fm.spark.session import shares_files
from spark_fm.training.callbacks import EpochReport, WorkerInfo
from spark_fm.training.packing import decode
from spark_fm.training.partitions import PartitionedBlocks
from spark_fm.training.plan import TrainPlan
from spark_fm.training.shards import VALIDATE_ONLY
from spark_fm.training.tasks import (
    DELTA_FILE,
    SAMPLE,
    AverageTask,
    LocalUpdate,
    LocalUpdateTask,
    average_range,
)
from spark_fm.training.worker_pool import WorkerPool

log = logging.getLogger(__name__)

MERGE_THREADS = min(8, os.cpu_count() or 1)
SAMPLE_NNZ = 2**20  # of the sample in all: 8 MiB


@dataclass(slots=True)
class _EpochTotals:
    """Sums over the rounds of one epoch."""

    loss_sum: float = 0.0
    weight_sum: float = 0.0
    n_rows: int = 0
    n_rounds: int = 0
    rejected: int = 0
    step_scale: float = 1.0
    compile_seconds: float = 0.0
    phases: dict[str, float] = field(
        default_factory=lambda: {"broadcast": 0.0, "train": 0.0, "merge": 0.0, "validate": 0.0}
    )


class AveragingTrainer:
    """Trains one run on the partitions of a layout of blocks.

    Parameters
    ----------
    spec : Hyperparameters
    plan : TrainPlan
    scaling : Scaling
    metric : str
        Validation metric that decides.
    train_on_all : bool
        Train on validation rows too, and validate nothing.
    has_validation : bool
    n_rows : int
        Training rows of an epoch.
    tell : callable
        Takes each finished epoch; False ends the training.
    keep : callable or None
        Takes the run where it may be taken up again: after every ``keep_every`` epochs.
    workers : WorkerInfo
        Takes who makes the passes.
    """

    def __init__(  # noqa: PLR0913
        self,
        spec: Hyperparameters,
        plan: TrainPlan,
        *,
        scaling: Scaling,
        metric: str,
        train_on_all: bool,
        has_validation: bool,
        n_rows: int,
        tell: Callable[[EpochReport], bool],
        keep: Callable[[TrainingProgress], None] | None = None,
        keep_every: int = 1,
        worker_info: WorkerInfo | None = None,
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._scaling = scaling
        self._metric = metric
        self._train_on_all = train_on_all
        self._has_validation = has_validation
        self._n_rows = n_rows
        self._tell = tell
        self._keep = keep
        self._keep_every = keep_every
        self._worker_info = worker_info or WorkerInfo()
        self._mean = self._limit = float("nan")
        self._sample: CsrBatch | None = None  # rows to judge merged models by
        self._candidate: Parameters | None = None
        self._turn = 0

    def steps(self, run: TrainingProgress) -> RoundGenerator:
        """Advance ``run`` in place to its end and return it, round by round.

        An epoch is validated by the first job of the next one, which saves a job.
        """
        waiting: _EpochTotals | None = None
        while run.epoch < self._spec.epochs and not run.finished:
            totals = _EpochTotals()
            yield from self._epoch(run, totals, waiting)
            if run.finished:
                return run
            self._finish_epoch(run, totals)
            waiting = totals
            keeps = self._keep is not None and run.epoch % self._keep_every == 0
            if not self._has_validation:
                self._close_epoch(run, totals, None)
                waiting = None
            elif keeps:
                yield from self._round(run, VALIDATE_ONLY, totals, totals)
                waiting = None
            if keeps and self._keep is not None:
                self._keep(run)
        if waiting is not None:
            yield from self._round(run, VALIDATE_ONLY, waiting, waiting)
        run.finished = True
        return run

    def _epoch(
        self, run: TrainingProgress, totals: _EpochTotals, waiting: _EpochTotals | None
    ) -> Generator[RoundRequest, RoundResult, None]:
        """Train one epoch in place; again with smaller steps when it diverges.

        ``waiting`` is the epoch before, which the first job validates: when that ends the
        training, nothing is merged.
        """
        clock = time.perf_counter()
        before, bias, last_loss = run.state.synced_columns(), run.state.bias.copy(), run.last_loss
        totals.phases["broadcast"] += time.perf_counter() - clock
        closing = waiting
        order = round_order(self._spec, self._plan.n_rounds, run.epoch)
        for _ in range(MAX_BACKOFFS + 1):
            totals.loss_sum = totals.weight_sum = 0.0
            totals.n_rows = totals.n_rounds = 0
            old: NDArray[np.float32] | None = before
            for round_index in order:
                sound = yield from self._round(run, int(round_index), totals, closing, old)
                closing = old = None
                if run.finished:
                    return
                if not sound:
                    break
            else:
                return
            totals.rejected += 1
            run.step_scale *= LR_BACKOFF
            run.state = TrainState.from_synced(run.state.layout, before, bias)
            run.last_loss = last_loss
            log.warning(
                "epoch %d, round %d: training diverged; the epoch starts again, steps now x%g",
                run.epoch, round_index, run.step_scale,
            )  # fmt: skip
        text = divergence_text(run.epoch, self._mean, run.loss_limit, self._spec)
        raise TrainingDivergedError(text)

    def _finish_epoch(self, run: TrainingProgress, totals: _EpochTotals) -> None:
        """Take the epoch into the average and keep what it gives, apart from the state."""
        clock = time.perf_counter()
        if self._spec.average_epochs:
            if run.average is None:
                run.average = Parameters.of(run.state)
            else:
                run.average.move_towards_inplace(run.state, run.epoch, AVERAGED_ETA)
        self._candidate = run.average or Parameters.of(run.state)
        totals.phases["merge"] += time.perf_counter() - clock
        totals.step_scale = run.step_scale
        run.epoch += 1

    def _close_epoch(
        self, run: TrainingProgress, totals: _EpochTotals, sums: MetricSums | None
    ) -> None:
        """Record the epoch that was finished last, with its validation."""
        epoch = run.epoch - 1
        mean = totals.loss_sum / totals.weight_sum if totals.weight_sum else 0.0
        record = EpochRecord(
            epoch=epoch,
            train_loss=mean * loss_scale(self._spec, self._scaling.label),
            validation=sums,
            train_seconds=totals.phases["train"],
            validate_seconds=totals.phases["validate"],
            compile_seconds=totals.compile_seconds,
            step_scale=totals.step_scale,
            n_rejected=totals.rejected,
        )
        if sums is not None:
            value = sums.values(self._spec.loss)[self._metric]
            if run.stopping.observe(epoch, value):
                run.best = self._epoch_candidate().copy()
        run.history.append(record)
        seconds = sum(totals.phases.values())
        report = EpochReport(record, self._spec, totals.n_rows, seconds, totals.phases)
        run.finished = not self._tell(report) or run.stopping.should_stop

    def _epoch_candidate(self) -> Parameters:
        if self._candidate is None:
            raise RuntimeError("no epoch has been finished yet")
        return self._candidate

    def _round(
        self,
        run: TrainingProgress,
        round_index: int,
        totals: _EpochTotals,
        closing: _EpochTotals | None,
        old: NDArray[np.float32] | None = None,
    ) -> Generator[RoundRequest, RoundResult, bool]:
        """Train every partition's share of a round and merge; tell whether it is sound.

        ``closing`` is the epoch that the same job validates, ``old`` a copy of the state
        where there is one.
        """
        clock = time.perf_counter()
        old = run.state.synced_columns() if old is None else old
        copied = time.perf_counter() - clock
        result = yield self._wanted(run, round_index, old, totals, validates=closing is not None)
        clock = time.perf_counter()
        self._turn += 1
        facts = result.facts
        self._sample = self._sample or result.sample
        self._worker_info.workers = max(self._worker_info.workers, len(facts))
        self._worker_info.gpus |= {f["gpu"] for f in facts} - {None}
        validate_seconds = 0.0
        if closing is not None:
            validate_seconds = max((f["validate_seconds"] for f in facts), default=0.0)
            validate_seconds = min(validate_seconds, result.job_seconds)
            closing.phases["validate"] += validate_seconds
            sums = sum((MetricSums.from_dict(f["validation"]) for f in facts), MetricSums())
            self._close_epoch(run, closing, sums)
        if round_index == VALIDATE_ONLY or run.finished:
            return True
        self._note(totals, facts)
        totals.n_rounds += 1
        sound = self._is_sound(run, totals, facts)
        if sound:
            self._merge(run, old, result)
            sound = totals.n_rounds < self._plan.n_rounds or self._is_merged_sound(run)
        totals.phases["broadcast"] += copied + result.ship_seconds
        totals.phases["train"] += result.job_seconds - validate_seconds
        totals.phases["merge"] += time.perf_counter() - clock
        return sound

    def _wanted(
        self,
        run: TrainingProgress,
        round_index: int,
        old: NDArray[np.float32],
        totals: _EpochTotals,
        *,
        validates: bool,
    ) -> RoundRequest:
        n_partitions = self._plan.n_partitions
        part = LocalUpdate(
            spec=self._spec, scaling=self._scaling, epoch=run.epoch, round_index=round_index,
            step_scale=run.step_scale,
            sample_rows=0 if self._sample else max(1, SAMPLE_ROWS // n_partitions),
            sample_nnz=max(1, SAMPLE_NNZ // n_partitions),
            judges_start=bool(np.isnan(run.loss_limit)),
            judges_end=totals.n_rounds + 1 == self._plan.n_rounds,
        )  # fmt: skip
        return RoundRequest(
            part=part, columns=old, bias=run.state.bias, rule=self._rule(run),
            candidate=self._epoch_candidate() if validates else None,
            train_on_all=self._train_on_all, turn=self._turn,
        )  # fmt: skip

    def _rule(self, run: TrainingProgress) -> AveragingRule:
        spec = self._spec
        return AveragingRule(
            layout=run.state.layout,
            n_partitions=self._plan.n_partitions,
            linear_lr=spec.linear.lr * run.step_scale,
            factors_lr=spec.factors.lr * run.step_scale,
            residual=run.last_loss if spec.loss == "squared" else 1.0,
        )

    def _is_sound(
        self, run: TrainingProgress, totals: _EpochTotals, facts: list[dict[str, Any]]
    ) -> bool:
        """Tell whether the epoch so far is finite and has not exploded.

        As for a training in one task, it is the mean loss of the epoch that is judged, and
        the loss at its end: one round may be a few rows, whose first steps overshoot.
        What the merge makes of the partitions' models, ``_is_merged_sound`` judges.
        """
        weight = sum(f["weight_sum"] for f in facts)
        if weight == 0:
            return True
        before, after = (
            np.sum([f[name] for f in facts], axis=0) for name in ("sample_before", "sample_after")
        )
        idle = sum(f["idle_sum"] for f in facts) / weight
        if np.isnan(run.loss_limit):
            run.loss_limit = divergence_limit(float(before[0] / before[1]), idle)
        self._limit = limit = max(run.loss_limit, divergence_limit(0.0, idle))
        # Weights have mean 1: the rows are the weight of the epoch.
        self._mean = totals.loss_sum / self._n_rows
        if not all(f["finite"] for f in facts) or not self._mean <= limit:
            return False
        is_last = totals.n_rounds == self._plan.n_rounds
        return bool(not is_last or after[0] <= limit * after[1])

    def _is_merged_sound(self, run: TrainingProgress) -> bool:
        """Tell whether the merged model at the end of an epoch has a sane loss too.

        Partitions that each learn well may still make an exploding model together.
        """
        if self._sample is None:
            return run.state.is_finite()
        loss, weight = sample_loss(run.state, self._sample, self._spec)
        self._mean = loss / weight if weight else 0.0
        return run.state.is_finite() and self._mean <= self._limit

    def _merge(self, run: TrainingProgress, old: NDArray[np.float32], result: RoundResult) -> None:
        """Write the merged rows and bias into the run's state, in place."""
        rule, width, chunks = self._rule(run), run.state.layout.n_synced, result.chunks

        def merge(part: int) -> None:
            payloads = [payload for _, payload in sorted(chunks.pop(part), key=lambda p: p[0])]
            if self._plan.merge_on_executors:
                merged = Delta.from_bytes(payloads[0], width)
            else:
                merged = average_range(old, part, payloads, rule)
            run.state.rows[merged.ids, :width] = merged.columns

        with ThreadPoolExecutor(MERGE_THREADS) as pool:  # each range has features of its own
            list(pool.map(merge, sorted(chunks)))
        active = [f for f in result.facts if f["n_rows"]]
        if active:
            run.state.bias[:] = np.mean([f["bias"] for f in active], axis=0)
            weight = sum(f["weight_sum"] for f in active)
            if weight:
                run.last_loss = sum(f["loss_sum"] for f in active) / weight

    @staticmethod
    def _note(totals: _EpochTotals, facts: list[dict[str, Any]]) -> None:
        totals.compile_seconds = max(
            [totals.compile_seconds, *(f["compile_seconds"] for f in facts)]
        )
        totals.loss_sum += sum(f["loss_sum"] for f in facts)
        totals.weight_sum += sum(f["weight_sum"] for f in facts)
        totals.n_rows += sum(f["n_rows"] for f in facts)


@dataclass(frozen=True, slots=True, eq=False)
class RoundRequest:
    """What one training asks of a job.

    Parameters
    ----------
    part : LocalUpdate
    columns : ndarray of shape (n_features, n_synced + 1), float32
        State to start from.
    bias : ndarray of shape (4,), float64
    candidate : Parameters or None
        Parameters to validate in the same job.
    rule : AveragingRule
    train_on_all : bool
        Validation rows train too.
    turn : int
        Rounds that this training has been through: those behind go first.
    """

    part: LocalUpdate
    columns: NDArray[np.float32]
    bias: NDArray[np.float64]
    candidate: Parameters | None
    rule: AveragingRule
    train_on_all: bool
    turn: int

    @property
    def key(self) -> tuple[int, bool, bool]:
        """What must agree for one job to serve two trainings."""
        return self.part.round_index, self.train_on_all, self.candidate is not None


@dataclass(slots=True)
class RoundResult:
    """What came back for one training.

    Parameters
    ----------
    facts : list of dict
        One a partition, in order.
    chunks : dict of int to list
        Deltas of (partition, payload) by range of ids; merged ones when the executors
        merge.
    sample : CsrBatch or None
        First training rows of the partitions.
    ship_seconds, job_seconds : float
        This training's share of the wall time.
    """

    facts: list[dict[str, Any]] = field(default_factory=list)
    chunks: dict[int, list[tuple[int, bytes | memoryview]]] = field(default_factory=dict)
    sample: CsrBatch | None = None
    ship_seconds: float = 0.0
    job_seconds: float = 0.0


RoundGenerator = Generator[RoundRequest, RoundResult, TrainingProgress]


def run_rounds(
    trainings: Sequence[RoundGenerator],
    blocks: PartitionedBlocks,
    session: SparkSession,
    plan: TrainPlan,
    *,
    gpu: GpuPassConfig | None = None,
) -> list[TrainingProgress | TrainingDivergedError]:
    """Run trainings to their ends, in shared passes over the rows.

    Parameters
    ----------
    trainings : sequence of generators
        Each yields the rounds that it wants and takes what came back.
    blocks : PartitionedBlocks
    session : SparkSession
    plan : TrainPlan
        Partitions, rounds, table and device that the trainings have in common.
    gpu : GpuPassConfig or None
        How the passes are made on a GPU; None for the CPU.
    """
    results: dict[int, TrainingProgress | TrainingDivergedError] = {}
    waiting: dict[int, RoundRequest] = {}

    def resume(number: int, result: RoundResult | None) -> None:
        waiting.pop(number, None)
        try:
            steps = trainings[number]
            waiting[number] = next(steps) if result is None else steps.send(result)
        except StopIteration as end:
            results[number] = end.value
        except TrainingDivergedError as err:
            # Its traceback would name this frame, and the tables of those below.
            results[number] = err.with_traceback(None)

    for number in range(len(trainings)):
        resume(number, None)
    with WorkerPool(session, plan.n_partitions, blocks) as pool:
        if plan.merge_on_executors:
            pool.stop()
        while waiting:
            behind = min(waiting, key=lambda n: (waiting[n].turn, n))
            key = waiting[behind].key
            alike = [n for n in waiting if waiting[n].key == key]
            alike.sort(key=lambda n: (waiting[n].turn, n))
            chosen = alike[: max(1, JOB_BYTES // result_bytes([waiting[behind].rule], plan))]
            requests = [waiting[n] for n in chosen]
            try:
                outcome = run_round(requests, blocks, pool, session, plan, gpu=gpu)
            except (GpuNotFoundError, ModelTooLargeError) as err:
                if gpu is None:
                    raise
                plan.device.fall_back_to_cpu(err)
                gpu = None
                pool.stop(waits=False)  # their job has failed
                continue
            for number, result in zip(chosen, outcome, strict=True):
                resume(number, result)
    return [results[number] for number in range(len(trainings))]


def run_round(
    requests: Sequence[RoundRequest],
    blocks: PartitionedBlocks,
    pool: WorkerPool,
    session: SparkSession,
    plan: TrainPlan,
    *,
    gpu: GpuPassConfig | None = None,
) -> list[RoundResult]:
    """Return what one pass brings for each of the rounds, which have one key."""
    clock = time.perf_counter()
    values = [(e.columns, e.bias) for e in requests]
    n_bytes = sum(e.columns.nbytes for e in requests)
    chosen = [e.candidate for e in requests if e.candidate is not None]
    with ExitStack() as stack:
        to_running_tasks = pool.usable
        states = stack.enter_context(
            broadcast(session, values, n_bytes=n_bytes, to_running_tasks=to_running_tasks)
        )
        candidates = None
        if chosen:
            tables = [(c.table, c.bias) for c in chosen]
            n_bytes = sum(c.table.nbytes for c in chosen)
            candidates = stack.enter_context(
                broadcast(session, tables, n_bytes=n_bytes, to_running_tasks=to_running_tasks)
            )
        shipped_at = time.perf_counter()
        wanted = blocks.wanted(
            requests[0].part.round_index, train_on_all=requests[0].train_on_all,
            validates=candidates is not None,
        )  # fmt: skip
        task = LocalUpdateTask(
            version=__version__, parts=tuple(e.part for e in requests), states=states,
            candidates=candidates, rows=wanted, gpu=gpu,
        )  # fmt: skip
        if shares_files(session) and not plan.merge_on_executors:
            task = replace(task, outbox=str(stack.enter_context(shared_folder())))
        rules = [e.rule for e in requests]
        results = None
        if wanted.store is not None:
            rows = pool.rows_of(task)
            results = None if rows is None else _results(task, rules, rows)
        if results is None:
            results = _gathered(task, rules, blocks.rows(wanted), session, plan)
        if any("missing" in facts for facts in results[0].facts):
            pool.stop()  # its tasks would keep the cores from others
            task = replace(task, rows=blocks.without_files(wanted))
            results = _gathered(task, rules, blocks.rows(task.rows), session, plan)
    share = 1 / len(requests)
    for result in results:
        result.ship_seconds = share * (shipped_at - clock)
        result.job_seconds = share * (time.perf_counter() - shipped_at)
    return results


def _gathered(
    task: LocalUpdateTask,
    rules: list[AveragingRule],
    frame: DataFrame,
    session: SparkSession,
    plan: TrainPlan,
) -> list[RoundResult]:
    frame = frame.mapInArrow(task, CHUNK_DDL, profile=plan.device.profile)
    if plan.merge_on_executors and task.rows.round_index != VALIDATE_ONLY:
        frame = _merged_on_executors(frame, task.states, rules)
    n_bytes = 0 if task.outbox else result_bytes(rules, plan)
    rows = collect_rows(
        frame, session, n_bytes=n_bytes, spread=["model", "name", "part", "partition"]
    )  # fmt: skip
    return _results(task, rules, rows)


def _results(
    task: LocalUpdateTask, rules: list[AveragingRule], rows: Iterable[tuple[Any, ...]]
) -> list[RoundResult]:
    """Return what the rows of PIECE_DDL say, for each model."""
    facts: list[dict[int, dict[str, Any]]] = [{} for _ in rules]
    samples: list[dict[int, bytes]] = [{} for _ in rules]
    results = [RoundResult() for _ in rules]
    for model, partition, name, part, payload in rows:
        if name == META:
            facts[model][partition] = json.loads(bytes(payload))
        elif name == SAMPLE:
            samples[model][partition] = bytes(payload)
        else:
            if name == DELTA_FILE and task.outbox is not None:
                payload = read_bytes(Path(task.outbox) / bytes(payload).decode())
            results[model].chunks.setdefault(part, []).append((partition, payload))
    for result, found, parts in zip(results, facts, samples, strict=True):
        result.facts = [found[p] for p in sorted(found)]
        if parts:
            batches = [decode(parts[p], *found[p]["sample_shape"]) for p in sorted(parts)]
            result.sample = CsrBatch.concat(batches)
    return results


def result_bytes(rules: Sequence[AveragingRule], plan: TrainPlan) -> int:
    """Return an upper bound of what the driver gets for these trainings in one job."""
    n_bytes = sum(4 * plan.n_features * (rule.layout.n_synced + 2) for rule in rules)
    return n_bytes if plan.merge_on_executors else n_bytes * plan.n_partitions


def _merged_on_executors(
    frame: DataFrame, states: Broadcast, rules: list[AveragingRule]
) -> DataFrame:
    task = AverageTask(version=__version__, rules=tuple(rules), states=states)

    def merge(group: pa.Table) -> pa.Table:
        return task(group)

    # One job: facts and deltas leave the training tasks together.
    return frame.groupBy("model", "name", "part").applyInArrow(merge, CHUNK_DDL)
