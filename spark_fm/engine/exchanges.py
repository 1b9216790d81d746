"""Run exchanges of one or more trainings on Spark; driver only.

An exchange is one Spark job, or an order to tasks that run already, shared by all
trainings that stand at the same place of their epoch: one pass over the rows trains them
all. Its tasks are pure functions of (state, seed, epoch, exchange, partition, rows), so
retries and speculation change nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from spark_fm._version import __version__
from spark_fm.engine.blocks import decode
from spark_fm.engine.dealt import DealtBlocks
from spark_fm.engine.gathering import JOB_BYTES, gather
from spark_fm.engine.gpu_tasks import GpuPasses
from spark_fm.engine.handles import Handle
from spark_fm.engine.local_files import read_bytes, shared_folder
from spark_fm.engine.pieces import FACTS, PIECE_DDL
from spark_fm.engine.planning import TrainPlan
from spark_fm.engine.resident import ResidentTasks
from spark_fm.engine.row_windows import VALIDATE_ONLY
from spark_fm.engine.session import shares_files
from spark_fm.engine.shipping import shipped
from spark_fm.engine.tasks import (
    DELTA_FILE,
    SAMPLE,
    ExchangePart,
    ExchangeTask,
    MergeTask,
)
from spark_fm.errors import GpuNotFoundError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.averaging import MergeRule
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.training import Candidate, TrainRun


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
