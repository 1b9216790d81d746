"""Averaging rounds: one fit cut into partitions, and the Spark jobs that run it; driver only.

A round is one pass over a fraction of the rows, shared by all fits that are at the same point of
their epoch: each partition trains every model from its shared state, and the models are averaged.
The tasks are pure functions of (state, seed, epoch, round, partition, rows), so retries and
speculation change nothing. The deltas are averaged in the order of partitions, so float addition
has one order.

How rows, states and deltas travel:

=================  =========================  ==========================  =======================
what               local master               cluster, Classic            Spark Connect
=================  =========================  ==========================  =======================
job                one for all rounds, while  one a round                 one a round
                   every partition has a
                   core (``WorkerPool``)
rows               shard files of the machine that packed them, mapped; from the packed blocks,
                   Spark's or on a local master in files, where a task does not find its files,
                   and for good after three times (``PartitionedBlocks``)
state to tasks     a file, mapped; below      broadcast variable          in the task's closure;
                   1 MiB without a pool a                                 above 24 MiB a file
                   broadcast variable                                     artifact
deltas to driver   files in a shared folder;  rows of the job: one Arrow result up to the
                   rows name them             cluster's ``result_limit``, above it partition by
                                              partition (``collect_rows``)
averaging          on the driver, a thread a range of features; with ``aggregationDepth`` 2, the
                   default where all deltas exceed the limit, on the executors first
=================  =========================  ==========================  =======================
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.errors import GpuNotFoundError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.averaging import AveragingRule, Delta
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import round_order
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.spec import Scaling
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
from spark_fm.spark.session import SparkCluster
from spark_fm.training.callbacks import EpochReport
from spark_fm.training.fit import Fit
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

AVERAGING_THREADS = min(8, os.cpu_count() or 1)
CROWDED = 1.2  # times its fair number of partitions
SAMPLE_NNZ = 2**20  # of the sample in all: 8 MiB


@dataclass(frozen=True, slots=True, eq=False)
class RoundRequest:
    """What one fit asks of a job."""

    update: LocalUpdate
    columns: NDArray[np.float32]  # (n_features, n_synced + 1), the state to start from
    bias: NDArray[np.float64]  # (4,)
    rule: AveragingRule
    to_validate: Parameters | None  # parameters to validate in the same job
    train_on_all: bool
    turn: int  # rounds that this fit has been through: those behind go first

    @property
    def key(self) -> tuple[int, bool, bool]:
        """What must agree for one job to serve two fits."""
        return self.update.round_index, self.train_on_all, self.to_validate is not None


@dataclass(slots=True)
class RoundResult:
    """What a job brought one fit."""

    metrics: list[dict[str, Any]] = field(default_factory=list)  # one a partition, in order
    # (partition, payload) of the deltas, by range of features; averaged if the executors do so.
    deltas: dict[int, list[tuple[int, bytes | memoryview]]] = field(default_factory=dict)
    sample: CsrBatch | None = None  # first training rows of the partitions
    broadcast_seconds: float = 0.0  # this fit's fraction of the wall time
    job_seconds: float = 0.0


RoundGenerator = Generator[RoundRequest, RoundResult, TrainingProgress]


def run_rounds(
    fits: Sequence[RoundGenerator],
    blocks: PartitionedBlocks,
    cluster: SparkCluster,
    plan: TrainPlan,
    *,
    gpu: GpuPassConfig | None = None,
) -> list[TrainingProgress | TrainingDivergedError]:
    """Run fits of one plan to their ends, in shared passes over the rows.

    Each generator yields the rounds that it asks for and takes their results.
    """
    results: dict[int, TrainingProgress | TrainingDivergedError] = {}
    waiting: dict[int, RoundRequest] = {}

    def resume(number: int, result: RoundResult | None) -> None:
        waiting.pop(number, None)
        try:
            rounds = fits[number]
            waiting[number] = next(rounds) if result is None else rounds.send(result)
        except StopIteration as end:
            results[number] = end.value
        except TrainingDivergedError as err:
            # Its traceback would name this frame, and the tables of those below.
            results[number] = err.with_traceback(None)

    for number in range(len(fits)):
        resume(number, None)
    with WorkerPool(cluster, plan.n_partitions, blocks) as pool:
        if plan.merge_on_executors:
            pool.stop()
        n_jobs = 0
        while waiting:
            behind = min(waiting, key=lambda n: (waiting[n].turn, n))
            key = waiting[behind].key
            alike = [n for n in waiting if waiting[n].key == key]
            alike.sort(key=lambda n: (waiting[n].turn, n))
            batch = alike[: max(1, JOB_BYTES // result_bytes([waiting[behind].rule], plan))]
            requests = [waiting[n] for n in batch]
            try:
                outcome = run_round(requests, blocks, pool, cluster, plan, gpu=gpu)
            except (GpuNotFoundError, ModelTooLargeError) as err:
                if gpu is None:
                    raise
                plan.device.fall_back_to_cpu(err)
                gpu = None
                pool.stop(waits=False)  # their job has failed
                continue
            if n_jobs == 0:
                _warn_of_crowding(Counter(m["executor"] for m in outcome[0].metrics), cluster)
            n_jobs += 1
            for number, result in zip(batch, outcome, strict=True):
                resume(number, result)
    return [results[number] for number in range(len(fits))]


def _warn_of_crowding(executors: Counter[str], cluster: SparkCluster) -> None:
    """Warn where an executor has far more partitions than an even distribution gives it."""
    n_executors = 1 if cluster.tasks_share_files else max(len(executors), cluster.n_executors())
    [(executor, most)] = executors.most_common(1)
    fair = -(-executors.total() // n_executors)
    if most > CROWDED * fair:
        log.warning(
            "%d of %d training partitions are on one of %d executors (%s), where %d would do: the "
            "others wait for it. Fit when all executors have come "
            "(spark.scheduler.minRegisteredResourcesRatio=1), or set numWorkers to their cores.",
            most, executors.total(), n_executors, executor, fair,
        )  # fmt: skip


def run_round(
    requests: Sequence[RoundRequest],
    blocks: PartitionedBlocks,
    pool: WorkerPool,
    cluster: SparkCluster,
    plan: TrainPlan,
    *,
    gpu: GpuPassConfig | None = None,
) -> list[RoundResult]:
    """Return what one pass brings each of the requests, which have one key."""
    clock = time.perf_counter()
    rules = [request.rule for request in requests]
    tables = [(p.table, p.bias) for p in (r.to_validate for r in requests) if p is not None]
    with ExitStack() as stack:

        def send(values: list[tuple[Any, Any]]) -> Broadcast:
            n_bytes = sum(array.nbytes for array, _ in values)
            return stack.enter_context(
                broadcast(cluster, values, n_bytes=n_bytes, to_running_tasks=pool.usable)
            )

        states = send([(request.columns, request.bias) for request in requests])
        selection = blocks.selection(
            requests[0].update.round_index, train_on_all=requests[0].train_on_all,
            validates=bool(tables),
        )  # fmt: skip
        task = LocalUpdateTask(
            updates=tuple(request.update for request in requests), states=states,
            to_validate=send(tables) if tables else None, rows=selection, gpu=gpu,
        )  # fmt: skip
        broadcast_at = time.perf_counter()
        if cluster.shares_files and not plan.merge_on_executors:
            task = replace(task, outbox=str(stack.enter_context(shared_folder())))
        rows = None if selection.store is None else pool.rows_of(task)
        found = list(_collected(task, rules, blocks, cluster, plan) if rows is None else rows)
        missing = _missing(found)
        if missing:
            pool.stop()  # its tasks would keep the cores from others
            task = replace(task, rows=blocks.without_files(selection))
            if plan.merge_on_executors:  # those that are there have been averaged without them
                found = []
            else:
                task = replace(task, partitions=missing)
                found = [row for row in found if row[1] not in missing]
            found += _collected(task, rules, blocks, cluster, plan)
        results = _results(task, rules, found)
    for result in results:
        result.broadcast_seconds = (broadcast_at - clock) / len(requests)
        result.job_seconds = (time.perf_counter() - broadcast_at) / len(requests)
    return results


def _collected(
    task: LocalUpdateTask,
    rules: list[AveragingRule],
    blocks: PartitionedBlocks,
    cluster: SparkCluster,
    plan: TrainPlan,
) -> Iterator[tuple[Any, ...]]:
    """Run the task as a job of its own; yield rows of CHUNK_DDL."""
    frame = blocks.rows(task.rows)
    frame = frame.mapInArrow(task, CHUNK_DDL, profile=plan.device.profile)
    if plan.merge_on_executors and task.rows.round_index != VALIDATE_ONLY:
        average = AverageTask(rules=tuple(rules), states=task.states)

        def averaged(group: pa.Table) -> pa.Table:
            return average(group)

        # One job: metrics and deltas leave the training tasks together.
        frame = frame.groupBy("model", "name", "part").applyInArrow(averaged, CHUNK_DDL)
    n_bytes = 0 if task.outbox else result_bytes(rules, plan)
    spread = ["model", "name", "part", "partition"]
    return collect_rows(frame, cluster, n_bytes=n_bytes, spread=spread)


def _missing(rows: list[tuple[Any, ...]]) -> frozenset[int]:
    """Return the partitions whose tasks did not find their files."""
    return frozenset(
        partition
        for _, partition, name, _, payload in rows
        if name == META and "missing" in json.loads(bytes(payload))
    )


def _results(
    task: LocalUpdateTask, rules: list[AveragingRule], rows: Iterable[tuple[Any, ...]]
) -> list[RoundResult]:
    """Return the result of each fit from rows of CHUNK_DDL."""
    metrics: list[dict[int, dict[str, Any]]] = [{} for _ in rules]
    samples: list[dict[int, bytes]] = [{} for _ in rules]
    results = [RoundResult() for _ in rules]
    for model, partition, name, part, payload in rows:
        if name == META:
            metrics[model][partition] = json.loads(bytes(payload))
        elif name == SAMPLE:
            samples[model][partition] = bytes(payload)
        else:
            if name == DELTA_FILE and task.outbox is not None:
                payload = read_bytes(Path(task.outbox) / bytes(payload).decode())
            results[model].deltas.setdefault(part, []).append((partition, payload))
    for result, by_partition, parts in zip(results, metrics, samples, strict=True):
        result.metrics = [by_partition[p] for p in sorted(by_partition)]
        if parts:
            batches = [decode(parts[p], *by_partition[p]["sample_shape"]) for p in sorted(parts)]
            result.sample = Scaling().apply(CsrBatch.concat(batches))  # scaled by the tasks
    return results


def result_bytes(rules: Sequence[AveragingRule], plan: TrainPlan) -> int:
    """Return an upper bound of what the driver gets for these fits in one job."""
    n_bytes = sum(4 * plan.n_features * (rule.layout.n_synced + 2) for rule in rules)
    return n_bytes if plan.merge_on_executors else n_bytes * plan.n_partitions


@dataclass(slots=True)
class _EpochTotals:
    """Sums over the rounds of one epoch."""

    loss_sum: float = 0.0
    weight_sum: float = 0.0
    n_rows: int = 0
    n_rounds: int = 0
    n_rollbacks: int = 0
    step_scale: float = 1.0
    compile_seconds: float = 0.0
    phases: dict[str, float] = field(
        default_factory=lambda: {"broadcast": 0.0, "train": 0.0, "merge": 0.0, "validate": 0.0}
    )

    def add(self, metrics: list[dict[str, Any]]) -> None:
        """Add the metrics of a round's partitions."""
        self.n_rounds += 1
        self.loss_sum += sum(m["loss_sum"] for m in metrics)
        self.weight_sum += sum(m["weight_sum"] for m in metrics)
        self.n_rows += sum(m["n_rows"] for m in metrics)
        self.compile_seconds = max([self.compile_seconds, *(m["compile_seconds"] for m in metrics)])

    def start_again(self) -> None:
        """Forget the rounds of an epoch that is rolled back."""
        self.loss_sum = self.weight_sum = 0.0
        self.n_rows = self.n_rounds = 0


def _validation_sums(metrics: list[dict[str, Any]]) -> MetricSums:
    return sum((MetricSums.from_dict(m["validation"]) for m in metrics), MetricSums())


class AveragingTrainer:
    """Trains one fit in averaging rounds, as a generator of the rounds that it asks for."""

    def __init__(self, fit: Fit, plan: TrainPlan) -> None:
        self._fit = fit
        self._spec = fit.spec
        self._progress = fit.progress
        self._plan = plan
        self._mean = self._limit = float("nan")
        self._sample: CsrBatch | None = None  # rows to judge averaged models by
        self._parameters: Parameters | None = None  # of the epoch that was finished last
        self._turn = 0
        self._is_stopped = False  # by its listener

    def rounds(self) -> RoundGenerator:
        """Advance the fit's progress in place to its end and return it, round by round.

        An epoch is validated by the first job of the next one, which saves a job.
        """
        fit, progress = self._fit, self._progress
        unvalidated: _EpochTotals | None = None
        while progress.epoch < self._spec.epochs and not progress.finished:
            totals = _EpochTotals()
            yield from self._epoch(totals, unvalidated)
            if progress.finished:
                unvalidated = None
                break
            self._finish_epoch(totals)
            unvalidated = totals
            is_due = fit.on_checkpoint and progress.epoch % fit.checkpoint_interval == 0
            if not fit.has_validation:
                self._record_epoch(totals, None)
                unvalidated = None
            elif is_due:
                yield from self._round(VALIDATE_ONLY, totals, totals)
                unvalidated = None
            if is_due and fit.on_checkpoint:
                fit.on_checkpoint(fit)
        if unvalidated is not None:
            yield from self._round(VALIDATE_ONLY, unvalidated, unvalidated)
        progress.finished = True
        # One that its listener ended is compared with nothing, as in a single task.
        judges = fit.has_validation and self._spec.use_linear and not self._is_stopped
        if judges and progress.best is not None and progress.linear is None:
            progress.linear = yield from self._validated(progress.result().linear_part())
        return progress

    def _epoch(
        self, totals: _EpochTotals, unvalidated: _EpochTotals | None
    ) -> Generator[RoundRequest, RoundResult, None]:
        """Train one epoch in place; again with lower learning rates when it diverges.

        ``unvalidated`` is the epoch before, which the first job validates: when that ends the
        fit, nothing is averaged.
        """
        progress = self._progress
        clock = time.perf_counter()
        before, bias = progress.state.synced_columns(), progress.state.bias.copy()
        last_loss = progress.last_loss
        totals.phases["broadcast"] += time.perf_counter() - clock
        order = round_order(self._spec, self._plan.n_rounds, progress.epoch)
        for _ in range(MAX_BACKOFFS + 1):
            totals.start_again()
            columns: NDArray[np.float32] | None = before
            for round_index in order:
                converges = yield from self._round(int(round_index), totals, unvalidated, columns)
                unvalidated = columns = None
                if progress.finished:
                    return
                if not converges:
                    break
            else:
                return
            totals.n_rollbacks += 1
            progress.step_scale *= LR_BACKOFF
            progress.state = TrainState.from_synced(progress.state.layout, before, bias)
            progress.last_loss = last_loss
            log.warning(
                "epoch %d, round %d: training diverged; restarting the epoch with learning rates "
                "x%g", progress.epoch, round_index, progress.step_scale,
            )  # fmt: skip
        text = divergence_text(progress.epoch, self._mean, progress.loss_limit, self._spec)
        raise TrainingDivergedError(text)

    def _round(
        self,
        round_index: int,
        totals: _EpochTotals,
        validated: _EpochTotals | None,
        columns: NDArray[np.float32] | None = None,
    ) -> Generator[RoundRequest, RoundResult, bool]:
        """Train every partition's rows of a round and average; return whether it converges.

        ``validated`` is the epoch that the same job validates, ``columns`` a copy of the state
        where there is one.
        """
        progress, workers = self._progress, self._fit.worker_info
        clock = time.perf_counter()
        columns = progress.state.synced_columns() if columns is None else columns
        copy_seconds = time.perf_counter() - clock
        to_validate = None if validated is None else self._finished_parameters()
        result = yield self._request(round_index, columns, totals, to_validate)
        clock = time.perf_counter()
        self._turn += 1
        metrics = result.metrics
        self._sample = self._sample or result.sample
        workers.workers = max(workers.workers, len(metrics))
        workers.gpus |= {m["gpu"] for m in metrics} - {None}
        workers.executors = dict(Counter(m["executor"] for m in metrics))
        validate_seconds = 0.0
        if validated is not None:
            validate_seconds = max((m["validate_seconds"] for m in metrics), default=0.0)
            validate_seconds = min(validate_seconds, result.job_seconds)
            validated.phases["validate"] += validate_seconds
            self._record_epoch(validated, _validation_sums(metrics))
        if round_index == VALIDATE_ONLY or progress.finished:
            return True
        totals.add(metrics)
        converges = self._is_converging(totals, metrics)
        if converges:
            self._average(columns, result)
            is_last = totals.n_rounds == self._plan.n_rounds
            converges = not is_last or self._average_is_converging()
        totals.phases["broadcast"] += copy_seconds + result.broadcast_seconds
        totals.phases["train"] += result.job_seconds - validate_seconds
        totals.phases["merge"] += time.perf_counter() - clock
        return converges

    def _validated(
        self, parameters: Parameters
    ) -> Generator[RoundRequest, RoundResult, MetricSums]:
        """Return the metric sums of parameters on the validation rows."""
        columns = self._progress.state.synced_columns()
        result = yield self._request(VALIDATE_ONLY, columns, _EpochTotals(), parameters)
        self._turn += 1
        return _validation_sums(result.metrics)

    def _request(
        self,
        round_index: int,
        columns: NDArray[np.float32],
        totals: _EpochTotals,
        to_validate: Parameters | None,
    ) -> RoundRequest:
        progress, n_partitions = self._progress, self._plan.n_partitions
        update = LocalUpdate(
            spec=self._spec, scaling=self._fit.scaling, epoch=progress.epoch,
            round_index=round_index, step_scale=progress.step_scale,
            sample_rows=0 if self._sample else max(1, SAMPLE_ROWS // n_partitions),
            sample_nnz=max(1, SAMPLE_NNZ // n_partitions),
            judges_start=bool(np.isnan(progress.loss_limit)),
            judges_end=totals.n_rounds + 1 == self._plan.n_rounds,
        )  # fmt: skip
        return RoundRequest(
            update=update, columns=columns, bias=progress.state.bias, rule=self._rule(),
            to_validate=to_validate,
            train_on_all=self._fit.train_on_all, turn=self._turn,
        )  # fmt: skip

    def _rule(self) -> AveragingRule:
        spec, progress = self._spec, self._progress
        return AveragingRule(
            layout=progress.state.layout,
            n_partitions=self._plan.n_partitions,
            linear_lr=spec.linear.lr * progress.step_scale,
            factors_lr=spec.factors.lr * progress.step_scale,
            row_length=self._plan.row_length,
            residual=progress.last_loss if LOSSES[spec.loss].residual_is_loss else 1.0,
        )

    def _average(self, columns: NDArray[np.float32], result: RoundResult) -> None:
        """Write the averaged rows and bias into the progress's state, in place."""
        progress, rule, deltas = self._progress, self._rule(), result.deltas
        width = rule.layout.n_synced

        def average(part: int) -> None:
            payloads = [payload for _, payload in sorted(deltas.pop(part), key=lambda p: p[0])]
            if self._plan.merge_on_executors:
                averaged = Delta.from_bytes(payloads[0], width)
            else:
                averaged = average_range(columns, part, payloads, rule)
            progress.state.rows[averaged.ids, :width] = averaged.columns

        with ThreadPoolExecutor(AVERAGING_THREADS) as threads:  # each range has its own features
            list(threads.map(average, sorted(deltas)))
        active = [m for m in result.metrics if m["n_rows"]]
        if active:
            progress.state.bias[:] = np.mean([m["bias"] for m in active], axis=0)
            weight = sum(m["weight_sum"] for m in active)
            if weight:
                progress.last_loss = sum(m["loss_sum"] for m in active) / weight

    def _is_converging(self, totals: _EpochTotals, metrics: list[dict[str, Any]]) -> bool:
        """Return whether the epoch so far is finite and below the divergence limit.

        As for a fit in one task, the mean loss of the epoch is judged, and the loss at its end:
        one round may be a few rows, whose first updates overshoot. What averaging makes of the
        partitions' models, ``_average_is_converging`` judges.
        """
        weight = sum(m["weight_sum"] for m in metrics)
        if weight == 0:
            return True
        before, after = (
            np.sum([m[name] for m in metrics], axis=0) for name in ("sample_before", "sample_after")
        )
        null_loss = sum(m["null_loss_sum"] for m in metrics) / weight
        progress = self._progress
        if np.isnan(progress.loss_limit):
            progress.loss_limit = divergence_limit(float(before[0] / before[1]), null_loss)
        self._limit = limit = max(progress.loss_limit, divergence_limit(0.0, null_loss))
        # Weights have mean 1: the rows are the weight of the epoch.
        self._mean = totals.loss_sum / self._fit.n_rows
        if not all(m["finite"] for m in metrics) or not self._mean <= limit:
            return False
        is_last = totals.n_rounds == self._plan.n_rounds
        return bool(not is_last or after[0] <= limit * after[1])

    def _average_is_converging(self) -> bool:
        """Return whether the averaged model at the end of an epoch is below the limit too.

        Partitions that each learn well may still make a diverging model together.
        """
        state = self._progress.state
        if self._sample is None:
            return state.is_finite()
        loss, weight = sample_loss(state, self._sample, self._spec)
        self._mean = loss / weight if weight else 0.0
        return state.is_finite() and self._mean <= self._limit

    def _finish_epoch(self, totals: _EpochTotals) -> None:
        """Take the epoch into the average of epochs."""
        progress = self._progress
        clock = time.perf_counter()
        if self._spec.average_epochs:
            if progress.average is None:
                progress.average = Parameters.of(progress.state)
            else:
                progress.average.move_towards_inplace(progress.state, progress.epoch, AVERAGED_ETA)
        self._parameters = progress.average or Parameters.of(progress.state)
        totals.phases["merge"] += time.perf_counter() - clock
        totals.step_scale = progress.step_scale
        progress.epoch += 1

    def _record_epoch(self, totals: _EpochTotals, sums: MetricSums | None) -> None:
        """Record the epoch that was finished last, with its validation."""
        fit, progress = self._fit, self._progress
        mean = totals.loss_sum / totals.weight_sum if totals.weight_sum else 0.0
        record = EpochRecord(
            epoch=progress.epoch - 1,
            train_loss=mean * loss_scale(self._spec, fit.scaling.label),
            validation=sums,
            train_seconds=totals.phases["train"],
            validate_seconds=totals.phases["validate"],
            compile_seconds=totals.compile_seconds,
            step_scale=totals.step_scale,
            n_rejected=totals.n_rollbacks,
        )
        if sums is not None:
            value = sums.values(self._spec.loss)[fit.metric]
            if progress.stopping.observe(record.epoch, value):
                progress.best = self._finished_parameters().copy()
        progress.history.append(record)
        seconds = sum(totals.phases.values())
        report = EpochReport(record, self._spec, totals.n_rows, seconds, totals.phases)
        self._is_stopped = not fit.on_epoch_end(report)
        progress.finished = self._is_stopped or progress.stopping.should_stop

    def _finished_parameters(self) -> Parameters:
        if self._parameters is None:
            raise RuntimeError("no epoch has been finished yet")
        return self._parameters
