"""One model from its first parameters to its summary, whoever runs its jobs; driver only.

A model is trained once, with a part of the rows held out, or twice: the second time on
all rows, for as many epochs as were best.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.engine.checkpoints import Checkpoint
from spark_fm.engine.history import (
    Crew,
    EpochReport,
    divergence_notes,
    running_history,
    validation_curve,
)
from spark_fm.engine.packed import PackedData, check_sets, label_scale
from spark_fm.engine.planning import TrainPlan
from spark_fm.engine.request import REFIT_ROWS, TrainRequest
from spark_fm.engine.rounds import DistributedTraining
from spark_fm.engine.solo_training import SoloTraining
from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.spec import TrainSpec, Units
from spark_fm.learner.state import Layout, initial_state
from spark_fm.learner.training import (
    Candidate,
    EpochRecord,
    Snapshot,
    TrainRun,
    WarmStart,
    new_stopping,
    warm_state_inplace,
)
from spark_fm.learner.weights import FMWeights

log = logging.getLogger(__name__)

Listener = Callable[[EpochReport], bool]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training.

    Parameters
    ----------
    weights : FMWeights
    history : list of dict
        One row an epoch.
    facts : dict
        Everything else that the summary shows, JSON-able.
    snapshot : Snapshot or None
        Where the training stands, when the request says to keep it.
    """

    weights: FMWeights
    history: list[dict[str, Any]]
    facts: dict[str, Any]
    snapshot: Snapshot | None


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """The first training of a model, or the second.

    Parameters
    ----------
    run : TrainRun
        Where it begins.
    spec : TrainSpec
        ``epochs`` is the number that the run ends with.
    units : Units
    train_on_all : bool
        Train on validation rows too and validate nothing.
    has_validation : bool
    """

    run: TrainRun
    spec: TrainSpec
    units: Units
    train_on_all: bool
    has_validation: bool

    @property
    def epochs_left(self) -> int:
        """Most epochs that it still takes."""
        return 0 if self.run.finished else self.spec.epochs - self.run.epoch


@dataclass(frozen=True, slots=True, eq=False)
class _First:
    """What the first training came to."""

    candidate: Candidate
    units: Units
    best_epoch: int
    step_scale: float
    records: list[EpochRecord]


class ModelTraining:
    """Trains one model; ``train_models`` runs its phases.

    Parameters
    ----------
    data : PackedData
    plan : TrainPlan
    request : TrainRequest
    start : WarmStart or None
        Model to go on from.
    checkpoint : Checkpoint or None
        Where to write the training down.
    saved : Snapshot or None
        What an interrupted run of this training wrote there.
    listener : callable or None
        Takes each epoch of the first training; False ends it there.
    """

    def __init__(
        self,
        data: PackedData,
        plan: TrainPlan,
        request: TrainRequest,
        *,
        start: WarmStart | None = None,
        checkpoint: Checkpoint | None = None,
        saved: Snapshot | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.plan = plan
        self._started = time.perf_counter()
        self._data = data
        self._request = request
        self._start = start
        self._checkpoint = checkpoint
        self._listener = listener
        self._history: list[dict[str, Any]] = []
        self._warnings = [*data.warnings, *check_sets(data, request)]
        self._crew = Crew()
        self._first: _First | None = None
        self._snapshot = saved

    def first_phase(self) -> Phase | None:
        """Return the first training, None when a checkpoint says that it is over."""
        saved, all_rows = self._snapshot, self._data.nothing_left
        units = self._units(all_rows=all_rows)
        has_validation = self._data.has_validation
        spec = self._request.spec
        if saved is not None:
            self._history = saved.history
            spec = replace(spec, epochs=saved.facts["epochs"])
            if "first" in saved.facts:
                self._first = _first_of(saved)
                return None
            return Phase(saved.run(), spec, units, all_rows, has_validation)
        run = self._continued(units)
        if run is None:
            run = self._new_run(spec, units, all_rows=all_rows)
        spec = replace(spec, epochs=run.epoch + spec.epochs)
        return Phase(run, spec, units, all_rows, has_validation)

    def second_phase(self, phase: Phase | None, run: TrainRun | None) -> Phase | None:
        """Return the training on all rows, None where there is none.

        Parameters
        ----------
        phase, run
            The first training and where it ended; None when a checkpoint said so.
        """
        if phase is not None and run is not None:
            best = run.stopping.best_epoch if run.best is not None else run.epoch - 1
            if phase.has_validation and run.best is None:
                self._warn(
                    f"validationMetric={self._request.metric!r} was undefined in every epoch, so "
                    "the last one was kept: the validation rows have one class only, or constant "
                    "labels."
                )
            self._first = _First(run.result(), phase.units, best, run.step_scale, run.history)
            if self._request.keep_snapshot:
                self._snapshot = self._snapshot_of(run, phase, None)
            if not self._wants_refit():
                return None
        first = self._finished_first
        log.info("refitting on all rows for %d epoch(s)", first.best_epoch + 1)
        units = self._units(all_rows=True)
        spec = replace(self._request.spec, epochs=first.best_epoch + 1)
        if phase is None and self._snapshot is not None:
            return Phase(self._snapshot.run(), spec, units, True, False)
        return Phase(self._new_run(spec, units, all_rows=True), spec, units, True, False)

    def solo(self, phase: Phase, tell: Listener) -> SoloTraining:
        """Return a phase as a training in one task."""
        return SoloTraining(
            phase.run, phase.spec, phase.units, self._request.metric, tell=self._teller(tell),
            keep=self._keeper(phase), keep_every=self._request.checkpoint_interval,
            crew=self._crew,
        )  # fmt: skip

    def distributed(self, phase: Phase, tell: Listener) -> DistributedTraining:
        """Return a phase as a training in many tasks."""
        return DistributedTraining(
            phase.spec, self.plan, metric=self._request.metric, tell=self._teller(tell),
            units=phase.units, train_on_all=phase.train_on_all,
            has_validation=phase.has_validation,
            n_rows=self._data.sums(all_rows=phase.train_on_all).rows,
            keep=self._keeper(phase), keep_every=self._request.checkpoint_interval,
            crew=self._crew,
        )  # fmt: skip

    def result(
        self, phase: Phase | None, outcome: TrainRun | TrainingDivergedError | None
    ) -> TrainResult:
        """Return the model and its summary, after the second training or without one."""
        first = self._finished_first
        candidate, units, step_scale = first.candidate, first.units, first.step_scale
        records, refit_seconds = list(first.records), 0.0
        if isinstance(outcome, TrainingDivergedError):
            self._warn(f"The refit on all rows failed, the first model is kept: {outcome}")
        elif outcome is not None and phase is not None:
            candidate, units, step_scale = outcome.result(), phase.units, outcome.step_scale
            records += outcome.history
            refit_seconds = sum(r.train_seconds + r.validate_seconds for r in outcome.history)
        facts = self._facts(records, units)
        facts["stepScale"] = step_scale
        facts["refit"] = isinstance(outcome, TrainRun)
        facts["refitSeconds"] = refit_seconds
        facts["totalSeconds"] = self._data.seconds + time.perf_counter() - self._started
        weights = self._weights(candidate, units.label)
        if self._checkpoint is not None:
            self._checkpoint.remove()
        snapshot = self._snapshot if self._request.keep_snapshot else None
        return TrainResult(weights, self._history, facts, snapshot)

    @property
    def _finished_first(self) -> _First:
        if self._first is None:
            raise RuntimeError("the first training has not ended yet")
        return self._first

    def _teller(self, tell: Listener) -> Listener:
        """Return what takes in the epochs of a phase; the refit's are not history."""
        if self._first is not None:
            return tell

        def first_told(report: EpochReport) -> bool:
            tell(report)
            self._history.append(report.row())
            return self._listener is None or self._listener(report)

        return first_told

    def _keeper(self, phase: Phase) -> Callable[[TrainRun], None] | None:
        checkpoint = self._checkpoint
        if checkpoint is None:
            return None
        first = self._first
        return lambda run: checkpoint.write(self._snapshot_of(run, phase, first))

    def _snapshot_of(self, run: TrainRun, phase: Phase, first: _First | None) -> Snapshot:
        snapshot = Snapshot.of(
            run, fingerprint=self._data.fingerprint, metric=self._request.metric,
            units=phase.units, ids=self.plan.ids, history=self._history,
        )  # fmt: skip
        snapshot.facts["epochs"] = phase.spec.epochs
        snapshot.facts["partitions"] = [self.plan.n_partitions, self.plan.n_exchanges]
        if first is not None:
            snapshot.facts["first"] = {
                "bias": first.candidate.bias,
                "units": [first.units.label, first.units.weight],
                "best_epoch": first.best_epoch,
                "step_scale": first.step_scale,
                "records": [record.to_dict() for record in first.records],
            }
            snapshot.arrays["first"] = first.candidate.table
        return snapshot

    def _continued(self, units: Units) -> TrainRun | None:
        """Return the run of the model to go on from, when this is the same training."""
        request, start = self._request, self._start
        if start is None or start.snapshot is None:
            return None
        layout = Layout(request.spec.k, request.spec.optimizer)
        if not start.snapshot.continues(
            fingerprint=self._data.fingerprint, layout=layout, metric=request.metric,
            units=units, n_features=self.plan.n_features,
        ):  # fmt: skip
            return None
        run = start.snapshot.run()
        run.finished = False
        run.stopping.patience, run.stopping.tol = request.patience, request.tol
        if run.stopping.should_stop:
            run.stopping.waited = 0
        self._history = start.snapshot.history
        return run

    def _new_run(self, spec: TrainSpec, units: Units, *, all_rows: bool) -> TrainRun:
        request, plan = self._request, self.plan
        sums = self._data.sums(all_rows=all_rows)
        mean = sums.label / sums.weight / units.label
        counts = plan.all_counts if all_rows else plan.train_counts
        state = initial_state(spec, counts, label_mean=mean)
        if self._start is not None:
            warm_state_inplace(state, self._start, spec, ids=plan.ids, units=units)
        return TrainRun(
            state=state,
            stopping=new_stopping(spec, request.metric, patience=request.patience, tol=request.tol),
            last_loss=sums.label_square / sums.weight / units.label**2 - mean**2,
        )

    def _units(self, *, all_rows: bool) -> Units:
        sums = self._data.sums(all_rows=all_rows)
        return Units(label=label_scale(self._request, sums), weight=sums.weight / sums.rows)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self._warnings.append(text)

    def _wants_refit(self) -> bool:
        request = self._request
        if not self._data.has_validation or request.columns.validation is not None:
            return False  # a validation set of the user's own is never trained on
        if request.keep_snapshot:
            return False  # it is the model's own training that goes on later
        rows = self._data.train.rows + self._data.validation.rows
        return request.refit == "always" or (request.refit == "auto" and rows <= REFIT_ROWS)

    def _weights(self, result: Candidate, scale: float) -> FMWeights:
        """Return the model in the labels' own units.

        With labels divided by ``scale``, the score times ``scale`` is the score of the
        model with ``scale * w0``, ``scale * w`` and ``sqrt(scale) * V``.
        """
        table: NDArray[np.float32] = result.table.copy()
        if scale != 1.0:
            table[:, :-1] *= np.float32(math.sqrt(scale))
            table[:, -1] *= np.float32(scale)
        return FMWeights(
            bias=float(np.float32(result.bias * scale)),
            table=table,
            feature_dim=self.plan.feature_dim,
            features=self.plan.ids,
        )

    def _facts(self, records: list[EpochRecord], units: Units) -> dict[str, Any]:
        first = self._finished_first
        sums = self._data.sums(
            all_rows=len(records) > len(first.records) or self._data.nothing_left
        )
        data, plan = self._data, self.plan
        notes = divergence_notes(first.records)
        refit = divergence_notes(records[len(first.records) :])
        notes += [f"In the refit: {note}" for note in refit]
        return {
            "numRows": data.train.rows + data.validation.rows,
            "numTrainRows": data.train.rows,
            "numValidationRows": data.validation.rows,
            "numNonZeros": data.train.nnz + data.validation.nnz,
            "numFeatures": plan.feature_dim,
            "numFeaturesSeen": len(data.counts.ids),
            "skippedRows": sum(data.n_skipped.values()),
            "skippedReasons": data.n_skipped,
            "zeroWeightRows": data.n_zero_weight,
            "numSourcePartitions": data.n_sources,
            "numWorkers": self._crew.workers,
            "averagingsPerEpoch": plan.n_exchanges if not plan.solo else 0,
            "device": "gpu" if plan.device.is_gpu else "cpu",
            "gpus": sorted(self._crew.gpus),
            "mergedOnExecutors": plan.merge_on_executors,
            "labelMean": sums.label / sums.weight,
            "labelScale": units.label,
            "totalIterations": len(self._history),
            "bestEpoch": first.best_epoch,
            "validationMetric": self._request.metric if data.has_validation else None,
            "validationCurve": validation_curve(first.records, first.best_epoch),
            "running": running_history(first.records, data.sums(all_rows=data.nothing_left).rows),
            "rejectedAttempts": sum(record.n_rejected for record in records),
            "warnings": self._warnings + notes,
            "packSeconds": data.seconds,
            "compileSeconds": sum(record.compile_seconds for record in records),
        }


def _first_of(saved: Snapshot) -> _First:
    """Return what the first training came to, from a checkpoint of the second."""
    facts = saved.facts["first"]
    return _First(
        Candidate(saved.arrays["first"].copy(), facts["bias"]),
        Units(*facts["units"]),
        facts["best_epoch"],
        facts["step_scale"],
        [EpochRecord.from_dict(record) for record in facts["records"]],
    )
