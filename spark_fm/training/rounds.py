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
from spark_fm.learner.averaging import Delta, MergeRule
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import exchange_order
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.spec import TrainSpec, Units
from spark_fm.learner.state import TrainState
from spark_fm.learner.training import (
    MAX_SHRINKS,
    MERGED_ETA,
    SAMPLE_ROWS,
    STEP_SHRINK,
    Candidate,
    EpochRecord,
    TrainRun,
    divergence_text,
    exploded_loss,
    loss_unit,
    sample_loss,
)
from spark_fm.spark.broadcast import Handle, read_bytes, shared_folder, shipped
from spark_fm.spark.collect import FACTS, JOB_BYTES, PIECE_DDL, gather
from spark_fm.spark.gpu import GpuPasses
from spark_fm.spark.session import shares_files
from spark_fm.training.callbacks import Crew, EpochReport
from spark_fm.training.packing import decode
from spark_fm.training.partitions import DealtBlocks
from spark_fm.training.plan import TrainPlan
from spark_fm.training.shards import VALIDATE_ONLY
from spark_fm.training.tasks import (
    DELTA_FILE,
    SAMPLE,
    ExchangePart,
    ExchangeTask,
    MergeTask,
    merge_range,
)
from spark_fm.training.worker_pool import ResidentTasks

log = logging.getLogger(__name__)

MERGE_THREADS = min(8, os.cpu_count() or 1)
SAMPLE_NNZ = 2**20  # of the sample in all: 8 MiB


@dataclass(slots=True)
class _EpochTotals:
    """Sums over the exchanges of one epoch."""

    loss_sum: float = 0.0
    weight_sum: float = 0.0
    n_rows: int = 0
    n_exchanges: int = 0
    rejected: int = 0
    step_scale: float = 1.0
    compile_seconds: float = 0.0
    phases: dict[str, float] = field(
        default_factory=lambda: {"broadcast": 0.0, "train": 0.0, "merge": 0.0, "validate": 0.0}
    )


class DistributedTraining:
    """Trains one run on the partitions of a layout of blocks.

    Parameters
    ----------
    spec : TrainSpec
    plan : TrainPlan
    units : Units
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
    crew : Crew
        Takes who makes the passes.
    """

    def __init__(  # noqa: PLR0913
        self,
        spec: TrainSpec,
        plan: TrainPlan,
        *,
        units: Units,
        metric: str,
        train_on_all: bool,
        has_validation: bool,
        n_rows: int,
        tell: Callable[[EpochReport], bool],
        keep: Callable[[TrainRun], None] | None = None,
        keep_every: int = 1,
        crew: Crew | None = None,
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._units = units
        self._metric = metric
        self._train_on_all = train_on_all
        self._has_validation = has_validation
        self._n_rows = n_rows
        self._tell = tell
        self._keep = keep
        self._keep_every = keep_every
        self._crew = crew or Crew()
        self._mean = self._limit = float("nan")
        self._sample: CsrBatch | None = None  # rows to judge merged models by
        self._candidate: Candidate | None = None
        self._turn = 0

    def steps(self, run: TrainRun) -> Steps:
        """Advance ``run`` in place to its end and return it, exchange by exchange.

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
                yield from self._exchange(run, VALIDATE_ONLY, totals, totals)
                waiting = None
            if keeps and self._keep is not None:
                self._keep(run)
        if waiting is not None:
            yield from self._exchange(run, VALIDATE_ONLY, waiting, waiting)
        run.finished = True
        return run

    def _epoch(
        self, run: TrainRun, totals: _EpochTotals, waiting: _EpochTotals | None
    ) -> Generator[Exchange, ExchangeResult, None]:
        """Train one epoch in place; again with smaller steps when it diverges.

        ``waiting`` is the epoch before, which the first job validates: when that ends the
        training, nothing is merged.
        """
        clock = time.perf_counter()
        before, bias, last_loss = run.state.exchanged(), run.state.bias.copy(), run.last_loss
        totals.phases["broadcast"] += time.perf_counter() - clock
        closing = waiting
        order = exchange_order(self._spec, self._plan.n_exchanges, run.epoch)
        for _ in range(MAX_SHRINKS + 1):
            totals.loss_sum = totals.weight_sum = 0.0
            totals.n_rows = totals.n_exchanges = 0
            old: NDArray[np.float32] | None = before
            for exchange in order:
                sound = yield from self._exchange(run, int(exchange), totals, closing, old)
                closing = old = None
                if run.finished:
                    return
                if not sound:
                    break
            else:
                return
            totals.rejected += 1
            run.step_scale *= STEP_SHRINK
            run.state = TrainState.from_exchanged(run.state.layout, before, bias)
            run.last_loss = last_loss
            log.warning(
                "epoch %d, exchange %d: training diverged; the epoch starts again, steps now x%g",
                run.epoch, exchange, run.step_scale,
            )  # fmt: skip
        text = divergence_text(run.epoch, self._mean, run.loss_limit, self._spec)
        raise TrainingDivergedError(text)

    def _finish_epoch(self, run: TrainRun, totals: _EpochTotals) -> None:
        """Take the epoch into the average and keep what it gives, apart from the state."""
        clock = time.perf_counter()
        if self._spec.average_epochs:
            if run.average is None:
                run.average = Candidate.of(run.state)
            else:
                run.average.move_towards_inplace(run.state, run.epoch, MERGED_ETA)
        self._candidate = run.average or Candidate.of(run.state)
        totals.phases["merge"] += time.perf_counter() - clock
        totals.step_scale = run.step_scale
        run.epoch += 1

    def _close_epoch(self, run: TrainRun, totals: _EpochTotals, sums: MetricSums | None) -> None:
        """Record the epoch that was finished last, with its validation."""
        epoch = run.epoch - 1
        mean = totals.loss_sum / totals.weight_sum if totals.weight_sum else 0.0
        record = EpochRecord(
            epoch=epoch,
            train_loss=mean * loss_unit(self._spec, self._units.label),
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

    def _epoch_candidate(self) -> Candidate:
        if self._candidate is None:
            raise RuntimeError("no epoch has been finished yet")
        return self._candidate

    def _exchange(
        self,
        run: TrainRun,
        exchange: int,
        totals: _EpochTotals,
        closing: _EpochTotals | None,
        old: NDArray[np.float32] | None = None,
    ) -> Generator[Exchange, ExchangeResult, bool]:
        """Train every partition's share of an exchange and merge; tell whether it is sound.

        ``closing`` is the epoch that the same job validates, ``old`` a copy of the state
        where there is one.
        """
        clock = time.perf_counter()
        old = run.state.exchanged() if old is None else old
        copied = time.perf_counter() - clock
        result = yield self._wanted(run, exchange, old, totals, validates=closing is not None)
        clock = time.perf_counter()
        self._turn += 1
        facts = result.facts
        self._sample = self._sample or result.sample
        self._crew.workers = max(self._crew.workers, len(facts))
        self._crew.gpus |= {f["gpu"] for f in facts} - {None}
        validate_seconds = 0.0
        if closing is not None:
            validate_seconds = max((f["validate_seconds"] for f in facts), default=0.0)
            validate_seconds = min(validate_seconds, result.job_seconds)
            closing.phases["validate"] += validate_seconds
            sums = sum((MetricSums.from_dict(f["validation"]) for f in facts), MetricSums())
            self._close_epoch(run, closing, sums)
        if exchange == VALIDATE_ONLY or run.finished:
            return True
        self._note(totals, facts)
        totals.n_exchanges += 1
        sound = self._is_sound(run, totals, facts)
        if sound:
            self._merge(run, old, result)
            sound = totals.n_exchanges < self._plan.n_exchanges or self._is_merged_sound(run)
        totals.phases["broadcast"] += copied + result.ship_seconds
        totals.phases["train"] += result.job_seconds - validate_seconds
        totals.phases["merge"] += time.perf_counter() - clock
        return sound

    def _wanted(
        self,
        run: TrainRun,
        exchange: int,
        old: NDArray[np.float32],
        totals: _EpochTotals,
        *,
        validates: bool,
    ) -> Exchange:
        n_partitions = self._plan.n_partitions
        part = ExchangePart(
            spec=self._spec, units=self._units, epoch=run.epoch, exchange=exchange,
            step_scale=run.step_scale,
            sample_rows=0 if self._sample else max(1, SAMPLE_ROWS // n_partitions),
            sample_nnz=max(1, SAMPLE_NNZ // n_partitions),
            judges_start=bool(np.isnan(run.loss_limit)),
            judges_end=totals.n_exchanges + 1 == self._plan.n_exchanges,
        )  # fmt: skip
        return Exchange(
            part=part, columns=old, bias=run.state.bias, rule=self._rule(run),
            candidate=self._epoch_candidate() if validates else None,
            train_on_all=self._train_on_all, turn=self._turn,
        )  # fmt: skip

    def _rule(self, run: TrainRun) -> MergeRule:
        spec = self._spec
        return MergeRule(
            layout=run.state.layout,
            n_partitions=self._plan.n_partitions,
            linear_lr=spec.linear.lr * run.step_scale,
            factors_lr=spec.factors.lr * run.step_scale,
            residual=run.last_loss if spec.loss == "squared" else 1.0,
        )

    def _is_sound(self, run: TrainRun, totals: _EpochTotals, facts: list[dict[str, Any]]) -> bool:
        """Tell whether the epoch so far is finite and has not exploded.

        As for a training in one task, it is the mean loss of the epoch that is judged, and
        the loss at its end: one exchange may be a few rows, whose first steps overshoot.
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
            run.loss_limit = exploded_loss(float(before[0] / before[1]), idle)
        self._limit = limit = max(run.loss_limit, exploded_loss(0.0, idle))
        # Weights have mean 1: the rows are the weight of the epoch.
        self._mean = totals.loss_sum / self._n_rows
        if not all(f["finite"] for f in facts) or not self._mean <= limit:
            return False
        is_last = totals.n_exchanges == self._plan.n_exchanges
        return bool(not is_last or after[0] <= limit * after[1])

    def _is_merged_sound(self, run: TrainRun) -> bool:
        """Tell whether the merged model at the end of an epoch has a sane loss too.

        Partitions that each learn well may still make an exploding model together.
        """
        if self._sample is None:
            return run.state.is_finite()
        loss, weight = sample_loss(run.state, self._sample, self._spec)
        self._mean = loss / weight if weight else 0.0
        return run.state.is_finite() and self._mean <= self._limit

    def _merge(self, run: TrainRun, old: NDArray[np.float32], result: ExchangeResult) -> None:
        """Write the merged rows and bias into the run's state, in place."""
        rule, width, pieces = self._rule(run), run.state.layout.n_exchanged, result.pieces

        def merge(part: int) -> None:
            payloads = [payload for _, payload in sorted(pieces.pop(part), key=lambda p: p[0])]
            if self._plan.merge_on_executors:
                merged = Delta.from_bytes(payloads[0], width)
            else:
                merged = merge_range(old, part, payloads, rule)
            run.state.rows[merged.ids, :width] = merged.columns

        with ThreadPoolExecutor(MERGE_THREADS) as pool:  # each range has features of its own
            list(pool.map(merge, sorted(pieces)))
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
class Exchange:
    """What one training asks of a job.

    Parameters
    ----------
    part : ExchangePart
    columns : ndarray of shape (n_features, n_exchanged + 1), float32
        State to start from.
    bias : ndarray of shape (4,), float64
    candidate : Candidate or None
        Parameters to validate in the same job.
    rule : MergeRule
    train_on_all : bool
        Validation rows train too.
    turn : int
        Exchanges that this training has been through: those behind go first.
    """

    part: ExchangePart
    columns: NDArray[np.float32]
    bias: NDArray[np.float64]
    candidate: Candidate | None
    rule: MergeRule
    train_on_all: bool
    turn: int

    @property
    def key(self) -> tuple[int, bool, bool]:
        """What must agree for one job to serve two trainings."""
        return self.part.exchange, self.train_on_all, self.candidate is not None


@dataclass(slots=True)
class ExchangeResult:
    """What came back for one training.

    Parameters
    ----------
    facts : list of dict
        One a partition, in order.
    pieces : dict of int to list
        Deltas of (partition, payload) by range of ids; merged ones when the executors
        merge.
    sample : CsrBatch or None
        First training rows of the partitions.
    ship_seconds, job_seconds : float
        This training's share of the wall time.
    """

    facts: list[dict[str, Any]] = field(default_factory=list)
    pieces: dict[int, list[tuple[int, bytes | memoryview]]] = field(default_factory=dict)
    sample: CsrBatch | None = None
    ship_seconds: float = 0.0
    job_seconds: float = 0.0


Steps = Generator[Exchange, ExchangeResult, TrainRun]


def conduct(
    trainings: Sequence[Steps],
    blocks: DealtBlocks,
    session: SparkSession,
    plan: TrainPlan,
    *,
    gpu: GpuPasses | None = None,
) -> list[TrainRun | TrainingDivergedError]:
    """Run trainings to their ends, in shared passes over the rows.

    Parameters
    ----------
    trainings : sequence of generators
        Each yields the exchanges that it wants and takes what came back.
    blocks : DealtBlocks
    session : SparkSession
    plan : TrainPlan
        Partitions, exchanges, table and device that the trainings have in common.
    gpu : GpuPasses or None
        How the passes are made on a GPU; None for the processor.
    """
    results: dict[int, TrainRun | TrainingDivergedError] = {}
    waiting: dict[int, Exchange] = {}

    def resume(number: int, result: ExchangeResult | None) -> None:
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
    with ResidentTasks(session, plan.n_partitions, blocks) as residents:
        if plan.merge_on_executors:
            residents.stop()
        while waiting:
            behind = min(waiting, key=lambda n: (waiting[n].turn, n))
            key = waiting[behind].key
            alike = [n for n in waiting if waiting[n].key == key]
            alike.sort(key=lambda n: (waiting[n].turn, n))
            chosen = alike[: max(1, JOB_BYTES // result_bytes([waiting[behind].rule], plan))]
            exchanges = [waiting[n] for n in chosen]
            try:
                outcome = run_pass(exchanges, blocks, residents, session, plan, gpu=gpu)
            except (GpuNotFoundError, ModelTooLargeError) as err:
                if gpu is None:
                    raise
                plan.device.leave_gpu(err)
                gpu = None
                residents.stop(waits=False)  # their job has failed
                continue
            for number, result in zip(chosen, outcome, strict=True):
                resume(number, result)
    return [results[number] for number in range(len(trainings))]


def run_pass(
    exchanges: Sequence[Exchange],
    blocks: DealtBlocks,
    residents: ResidentTasks,
    session: SparkSession,
    plan: TrainPlan,
    *,
    gpu: GpuPasses | None = None,
) -> list[ExchangeResult]:
    """Return what one pass brings for each of the exchanges, which have one key."""
    clock = time.perf_counter()
    values = [(e.columns, e.bias) for e in exchanges]
    n_bytes = sum(e.columns.nbytes for e in exchanges)
    chosen = [e.candidate for e in exchanges if e.candidate is not None]
    with ExitStack() as stack:
        at_once = residents.usable
        states = stack.enter_context(shipped(session, values, n_bytes=n_bytes, at_once=at_once))
        candidates = None
        if chosen:
            tables = [(c.table, c.bias) for c in chosen]
            n_bytes = sum(c.table.nbytes for c in chosen)
            candidates = stack.enter_context(
                shipped(session, tables, n_bytes=n_bytes, at_once=at_once)
            )
        shipped_at = time.perf_counter()
        wanted = blocks.wanted(
            exchanges[0].part.exchange, train_on_all=exchanges[0].train_on_all,
            validates=candidates is not None,
        )  # fmt: skip
        task = ExchangeTask(
            version=__version__, parts=tuple(e.part for e in exchanges), states=states,
            candidates=candidates, rows=wanted, gpu=gpu,
        )  # fmt: skip
        if shares_files(session) and not plan.merge_on_executors:
            task = replace(task, outbox=str(stack.enter_context(shared_folder())))
        rules = [e.rule for e in exchanges]
        results = None
        if wanted.store is not None:
            rows = residents.rows_of(task)
            results = None if rows is None else _results(task, rules, rows)
        if results is None:
            results = _gathered(task, rules, blocks.rows(wanted), session, plan)
        if any("missing" in facts for facts in results[0].facts):
            residents.stop()  # its tasks would keep the cores from others
            task = replace(task, rows=blocks.without_files(wanted))
            results = _gathered(task, rules, blocks.rows(task.rows), session, plan)
    share = 1 / len(exchanges)
    for result in results:
        result.ship_seconds = share * (shipped_at - clock)
        result.job_seconds = share * (time.perf_counter() - shipped_at)
    return results


def _gathered(
    task: ExchangeTask,
    rules: list[MergeRule],
    frame: DataFrame,
    session: SparkSession,
    plan: TrainPlan,
) -> list[ExchangeResult]:
    frame = frame.mapInArrow(task, PIECE_DDL, profile=plan.device.profile)
    if plan.merge_on_executors and task.rows.exchange != VALIDATE_ONLY:
        frame = _merged_on_executors(frame, task.states, rules)
    n_bytes = 0 if task.outbox else result_bytes(rules, plan)
    rows = gather(
        frame, session, n_bytes=n_bytes, spread=["model", "name", "part", "partition"]
    )  # fmt: skip
    return _results(task, rules, rows)


def _results(
    task: ExchangeTask, rules: list[MergeRule], rows: Iterable[tuple[Any, ...]]
) -> list[ExchangeResult]:
    """Return what the rows of PIECE_DDL say, for each model."""
    facts: list[dict[int, dict[str, Any]]] = [{} for _ in rules]
    samples: list[dict[int, bytes]] = [{} for _ in rules]
    results = [ExchangeResult() for _ in rules]
    for model, partition, name, part, payload in rows:
        if name == FACTS:
            facts[model][partition] = json.loads(bytes(payload))
        elif name == SAMPLE:
            samples[model][partition] = bytes(payload)
        else:
            if name == DELTA_FILE and task.outbox is not None:
                payload = read_bytes(Path(task.outbox) / bytes(payload).decode())
            results[model].pieces.setdefault(part, []).append((partition, payload))
    for result, found, parts in zip(results, facts, samples, strict=True):
        result.facts = [found[p] for p in sorted(found)]
        if parts:
            batches = [decode(parts[p], *found[p]["sample_shape"]) for p in sorted(parts)]
            result.sample = CsrBatch.concat(batches)
    return results


def result_bytes(rules: Sequence[MergeRule], plan: TrainPlan) -> int:
    """Return an upper bound of what the driver gets for these trainings in one job."""
    n_bytes = sum(4 * plan.n_features * (rule.layout.n_exchanged + 2) for rule in rules)
    return n_bytes if plan.merge_on_executors else n_bytes * plan.n_partitions


def _merged_on_executors(frame: DataFrame, states: Handle, rules: list[MergeRule]) -> DataFrame:
    task = MergeTask(version=__version__, rules=tuple(rules), states=states)

    def merge(group: pa.Table) -> pa.Table:
        return task(group)

    # One job: facts and deltas leave the training tasks together.
    return frame.groupBy("model", "name", "part").applyInArrow(merge, PIECE_DDL)
