"""One training cut into partitions, as a generator of its exchanges; driver only.

The deltas of an exchange are merged in the order of partitions, so float addition has
one order.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.engine.exchanges import Exchange, ExchangeResult, Steps
from spark_fm.engine.history import Crew, EpochReport
from spark_fm.engine.planning import TrainPlan
from spark_fm.engine.row_windows import VALIDATE_ONLY
from spark_fm.engine.tasks import ExchangePart, merge_range
from spark_fm.errors import TrainingDivergedError
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

    def __init__(
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
