"""Drive a training cut into partitions: ship, train apart, merge; driver only.

An exchange is one Spark job. Its tasks are pure functions of (state, seed, epoch,
exchange, partition, rows), so retries and speculation change nothing, and the deltas
are merged in the order of partitions, so float addition has one order.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm._version import __version__
from spark_fm.engine.blocks import decode
from spark_fm.engine.gathering import gather
from spark_fm.engine.handles import Handle
from spark_fm.engine.history import EpochReport
from spark_fm.engine.pieces import FACTS, PIECE_DDL
from spark_fm.engine.planning import TrainPlan
from spark_fm.engine.shipping import shipped
from spark_fm.engine.tasks import (
    PIECE_NAMES,
    SAMPLE,
    ExchangeTask,
    MergeTask,
    Units,
    merge_range,
)
from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.averaging import Delta, MergeRule
from spark_fm.learner.candidate import MERGED_ETA, Candidate
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.run import EpochRecord, TrainRun, exchange_order, loss_unit
from spark_fm.learner.safety import (
    MAX_SHRINKS,
    SAMPLE_ROWS,
    STEP_SHRINK,
    divergence_text,
    exploded_loss,
    sample_loss,
)
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import TrainState

log = logging.getLogger(__name__)

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
    """Trains one run on the partitions of a layout of blocks."""

    def __init__(
        self,
        layout_frame: DataFrame,
        session: SparkSession,
        spec: TrainSpec,
        plan: TrainPlan,
        *,
        units: Units,
        metric: str,
        train_on_all: bool,
        has_validation: bool,
        first_loss: float,
        n_rows: int,
    ) -> None:
        self._frame = layout_frame
        self._session = session
        self._spec = spec
        self._plan = plan
        self._units = units
        self._metric = metric
        self._train_on_all = train_on_all
        self._has_validation = has_validation
        self._last_loss = first_loss
        self._n_rows = n_rows
        self._mean = self._limit = float("nan")
        self._sample: CsrBatch | None = None  # rows to judge merged models by
        self.workers_seen = 0
        self._candidate: Candidate | None = None

    def train(self, run: TrainRun, tell: Callable[[EpochReport], None]) -> TrainRun:
        """Advance ``run`` in place to its end and return it.

        An epoch is validated by the first job of the next one, which saves a job.
        """
        waiting: _EpochTotals | None = None
        while run.epoch < self._spec.epochs:
            totals = _EpochTotals()
            self._epoch(run, totals, waiting, tell)
            if run.stopping.should_stop:
                run.finished = True
                return run
            self._finish_epoch(run, totals)
            if not self._has_validation:
                self._close_epoch(run, totals, None, tell)
            waiting = totals
        if self._has_validation and waiting is not None:
            self._exchange(run, -1, waiting, waiting, tell)
        run.finished = True
        return run

    def _epoch(
        self,
        run: TrainRun,
        totals: _EpochTotals,
        waiting: _EpochTotals | None,
        tell: Callable[[EpochReport], None],
    ) -> None:
        """Train one epoch in place; again with smaller steps when it diverges.

        ``waiting`` is the epoch before, which the first job validates: when that ends the
        training, nothing is merged.
        """
        before, bias, last_loss = run.state.exchanged(), run.state.bias.copy(), self._last_loss
        closing = waiting if self._has_validation else None
        order = exchange_order(self._spec, self._plan.n_exchanges, run.epoch)
        for _ in range(MAX_SHRINKS + 1):
            totals.loss_sum = totals.weight_sum = 0.0
            totals.n_rows = totals.n_exchanges = 0
            for exchange in order:
                sound = self._exchange(run, int(exchange), totals, closing, tell)
                closing = None
                if run.stopping.should_stop:
                    return
                if not sound:
                    break
            else:
                return
            totals.rejected += 1
            run.step_scale *= STEP_SHRINK
            run.state = TrainState.from_exchanged(run.state.layout, before, bias)
            self._last_loss = last_loss
            log.warning(
                "epoch %d, exchange %d: training diverged; the epoch starts again, steps now x%g",
                run.epoch, exchange, run.step_scale,
            )  # fmt: skip
        text = divergence_text(run.epoch, self._mean, run.loss_limit, self._spec)
        raise TrainingDivergedError(text)

    def _finish_epoch(self, run: TrainRun, totals: _EpochTotals) -> None:
        """Take the epoch into the average and keep what it gives, apart from the state."""
        if self._spec.average_epochs:
            if run.average is None:
                run.average = Candidate.of(run.state)
            else:
                run.average.move_towards_inplace(run.state, run.epoch, MERGED_ETA)
        self._candidate = run.average or Candidate.of(run.state)
        totals.step_scale = run.step_scale
        run.epoch += 1

    def _close_epoch(
        self,
        run: TrainRun,
        totals: _EpochTotals,
        sums: MetricSums | None,
        tell: Callable[[EpochReport], None],
    ) -> None:
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
        tell(EpochReport(record, self._spec, totals.n_rows, seconds, totals.phases))

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
        tell: Callable[[EpochReport], None],
    ) -> bool:
        """Train every partition's share of an exchange and merge; tell whether it is sound.

        ``closing`` is the epoch that the same job validates. Exchange -1 only validates.
        """
        clock = time.perf_counter()
        with self._shipment(run, closing is not None) as (state, candidate, old):
            shipped_at = time.perf_counter()
            task = ExchangeTask(
                version=__version__, spec=self._spec, state=state, candidate=candidate,
                units=self._units, epoch=run.epoch, exchange=exchange,
                step_scale=run.step_scale, train_on_all=self._train_on_all,
                sample_rows=0 if self._sample else max(1, SAMPLE_ROWS // self._plan.n_partitions),
                sample_nnz=max(1, SAMPLE_NNZ // self._plan.n_partitions),
            )  # fmt: skip
            facts, pieces = self._run_job(task, state, self._rule(run))
        trained_at = time.perf_counter()
        self.workers_seen = max(self.workers_seen, len(facts))
        validate_seconds = 0.0
        if closing is not None:
            validate_seconds = max((f["validate_seconds"] for f in facts), default=0.0)
            closing.phases["validate"] += validate_seconds
            sums = sum((MetricSums.from_dict(f["validation"]) for f in facts), MetricSums())
            self._close_epoch(run, closing, sums, tell)
        if exchange < 0 or run.stopping.should_stop:
            return True
        self._note(totals, facts)
        totals.n_exchanges += 1
        sound = self._is_sound(run, totals, facts)
        if sound:
            self._merge(run, old, facts, pieces)
            sound = totals.n_exchanges < self._plan.n_exchanges or self._is_merged_sound(run)
        totals.phases["broadcast"] += shipped_at - clock
        totals.phases["train"] += trained_at - shipped_at - validate_seconds
        totals.phases["merge"] += time.perf_counter() - trained_at
        return sound

    @contextmanager
    def _shipment(
        self, run: TrainRun, validates: bool
    ) -> Iterator[tuple[Handle, Handle | None, Any]]:
        old = run.state.exchanged()
        with ExitStack() as stack:
            state = stack.enter_context(
                shipped(self._session, (old, run.state.bias), n_bytes=old.nbytes)
            )
            candidate = None
            if validates:
                chosen = self._epoch_candidate()
                candidate = stack.enter_context(
                    shipped(self._session, (chosen.table, chosen.bias), n_bytes=chosen.table.nbytes)
                )
            yield state, candidate, old

    def _run_job(
        self, task: ExchangeTask, state: Handle, rule: MergeRule
    ) -> tuple[list[dict[str, Any]], dict[int, list[tuple[int, bytes]]]]:
        """Return the partitions' facts in order, and the pieces by range of ids."""
        frame = self._frame
        train_rows = F.col("exchange") == task.exchange
        is_validation = F.col("kind") == 1
        if self._train_on_all:
            wanted = train_rows
        elif task.candidate is not None:
            wanted = (train_rows & ~is_validation) | is_validation
        else:
            wanted = train_rows & ~is_validation
        results = frame.where(wanted).mapInArrow(task, PIECE_DDL)
        layout_bytes = 4 * self._plan.n_features * (rule.layout.n_exchanged + 2)
        if self._plan.merge_on_executors and task.exchange >= 0:
            results = self._merged_on_executors(results, state, rule)
            n_bytes = layout_bytes
        else:
            n_bytes = layout_bytes * self._plan.n_partitions
        facts: dict[int, dict[str, Any]] = {}
        samples: dict[int, bytes] = {}
        pieces: dict[int, list[tuple[int, bytes]]] = {}
        rows = gather(
            results, self._session, columns=list(PIECE_NAMES), n_bytes=n_bytes,
            spread=["name", "part", "partition"],
        )  # fmt: skip
        for partition, name, part, payload in rows:
            if name == FACTS:
                facts[partition] = json.loads(bytes(payload))
            elif name == SAMPLE:
                samples[partition] = bytes(payload)
            else:
                pieces.setdefault(part, []).append((partition, payload))
        if samples:
            parts = [decode(samples[p], *facts[p]["sample_shape"]) for p in sorted(samples)]
            self._sample = CsrBatch.concat(parts)
        return [facts[p] for p in sorted(facts)], pieces

    def _merged_on_executors(self, results: DataFrame, state: Handle, rule: MergeRule) -> DataFrame:
        task = MergeTask(version=__version__, rule=rule, state=state)

        def merge(group: pa.Table) -> pa.Table:
            return task(group)

        # One job: facts and deltas leave the training tasks together.
        return results.groupBy("name", "part").applyInArrow(merge, PIECE_DDL)

    def _rule(self, run: TrainRun) -> MergeRule:
        spec = self._spec
        return MergeRule(
            layout=run.state.layout,
            n_partitions=self._plan.n_partitions,
            linear_lr=spec.linear.lr * run.step_scale,
            factors_lr=spec.factors.lr * run.step_scale,
            residual=self._last_loss if spec.loss == "squared" else 1.0,
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

    def _merge(
        self,
        run: TrainRun,
        old: NDArray[np.float32],
        facts: list[dict[str, Any]],
        pieces: dict[int, list[tuple[int, bytes]]],
    ) -> None:
        """Write the merged rows and bias into the run's state, in place."""
        rule, width = self._rule(run), run.state.layout.n_exchanged
        for part in sorted(pieces):
            payloads = [payload for _, payload in sorted(pieces.pop(part), key=lambda p: p[0])]
            if self._plan.merge_on_executors:
                merged = Delta.from_bytes(payloads[0], width)
            else:
                merged = merge_range(old, part, payloads, rule)
            run.state.rows[merged.ids, :width] = merged.columns
        active = [f for f in facts if f["n_rows"]]
        if active:
            run.state.bias[:] = np.mean([f["bias"] for f in active], axis=0)
            weight = sum(f["weight_sum"] for f in active)
            if weight:
                self._last_loss = sum(f["loss_sum"] for f in active) / weight

    @staticmethod
    def _note(totals: _EpochTotals, facts: list[dict[str, Any]]) -> None:
        totals.compile_seconds = max(
            [totals.compile_seconds, *(f["compile_seconds"] for f in facts)]
        )
        totals.loss_sum += sum(f["loss_sum"] for f in facts)
        totals.weight_sum += sum(f["weight_sum"] for f in facts)
        totals.n_rows += sum(f["n_rows"] for f in facts)
