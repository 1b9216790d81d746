"""Train models on a DataFrame: pack once, plan, train, refit; driver only."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import zip_longest
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from spark_fm.errors import InvalidParamError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.state import Layout, initial_state
from spark_fm.learner.training import (
    EpochRecord,
    Parameters,
    TrainingProgress,
    TrainingState,
    WarmStart,
    new_stopping,
    warm_state_inplace,
)
from spark_fm.learner.weights import FMWeights
from spark_fm.spark.broadcast import Broadcast, broadcast
from spark_fm.spark.gpu import GpuPassConfig
from spark_fm.spark.resources import CPU_DEVICE, Device, DeviceName, choose_device
from spark_fm.spark.session import tagged, task_slots, use_driver_interpreter
from spark_fm.training.callbacks import (
    EpochCallback,
    EpochReport,
    Progress,
    WorkerInfo,
    divergence_notes,
    running_history,
    validation_curve,
)
from spark_fm.training.checkpoints import Checkpoint, checkpoint_name
from spark_fm.training.config import REFIT_ROWS, TrainConfig
from spark_fm.training.dataset import PackedDataset, check_sets, label_scale, packed, packing_key
from spark_fm.training.partitions import PartitionedBlocks, partition_blocks
from spark_fm.training.plan import TrainPlan, make_plan, trained_together
from spark_fm.training.rounds import AveragingTrainer, run_rounds
from spark_fm.training.single_task import SingleTaskTrainer, train_single_task

log = logging.getLogger(__name__)


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
    snapshot : TrainingState or None
        Where the training stands, when the request says to keep it.
    """

    weights: FMWeights
    history: list[dict[str, Any]]
    facts: dict[str, Any]
    snapshot: TrainingState | None


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The first training of a model, or the second.

    Parameters
    ----------
    run : TrainingProgress
        Where it begins.
    spec : Hyperparameters
        ``epochs`` is the number that the run ends with.
    units : Units
    train_on_all : bool
        Train on validation rows too and validate nothing.
    has_validation : bool
    """

    run: TrainingProgress
    spec: Hyperparameters
    units: Scaling
    train_on_all: bool
    has_validation: bool

    @property
    def epochs_left(self) -> int:
        """Most epochs that it still takes."""
        return 0 if self.run.finished else self.spec.epochs - self.run.epoch


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """What the first training came to."""

    candidate: Parameters
    units: Scaling
    best_epoch: int
    step_scale: float
    records: list[EpochRecord]


class ModelTraining:
    """Trains one model; ``train_models`` runs its phases.

    Parameters
    ----------
    data : PackedDataset
    plan : TrainPlan
    request : TrainConfig
    start : WarmStart or None
        Model to go on from.
    checkpoint : Checkpoint or None
        Where to write the training down.
    saved : TrainingState or None
        What an interrupted run of this training wrote there.
    listener : callable or None
        Takes each epoch of the first training; False ends it there.
    """

    def __init__(
        self,
        data: PackedDataset,
        plan: TrainPlan,
        request: TrainConfig,
        *,
        start: WarmStart | None = None,
        checkpoint: Checkpoint | None = None,
        saved: TrainingState | None = None,
        on_epoch_end: EpochCallback | None = None,
    ) -> None:
        self.plan = plan
        self._started = time.perf_counter()
        self._data = data
        self._request = request
        self._start = start
        self._checkpoint = checkpoint
        self._on_epoch_end = on_epoch_end
        self._history: list[dict[str, Any]] = []
        self._warnings = [*data.warnings, *check_sets(data, request)]
        self._worker_info = WorkerInfo()
        self._first: FitResult | None = None
        self._snapshot = saved

    def initial_fit(self) -> Fit | None:
        """Return the first training, None when a checkpoint says that it is over."""
        saved, all_rows = self._snapshot, self._data.has_no_training_rows
        units = self._units(all_rows=all_rows)
        has_validation = self._data.has_validation
        spec = self._request.spec
        if saved is not None:
            self._history = saved.history
            spec = replace(spec, epochs=saved.facts["epochs"])
            if "first" in saved.facts:
                self._first = _first_of(saved)
                return None
            return Fit(saved.progress(), spec, units, all_rows, has_validation)
        run = self._continued(units)
        if run is None:
            run = self._new_run(spec, units, all_rows=all_rows)
        spec = replace(spec, epochs=run.epoch + spec.epochs)
        return Fit(run, spec, units, all_rows, has_validation)

    def refit_on_all_rows(self, phase: Fit | None, run: TrainingProgress | None) -> Fit | None:
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
            self._first = FitResult(run.result(), phase.units, best, run.step_scale, run.history)
            if self._request.keep_snapshot:
                self._snapshot = self._snapshot_of(run, phase, None)
            if not self._wants_refit():
                return None
        first = self._finished_first
        log.info("refitting on all rows for %d epoch(s)", first.best_epoch + 1)
        units = self._units(all_rows=True)
        spec = replace(self._request.spec, epochs=first.best_epoch + 1)
        if phase is None and self._snapshot is not None:
            return Fit(self._snapshot.progress(), spec, units, True, False)
        return Fit(self._new_run(spec, units, all_rows=True), spec, units, True, False)

    def single_task(self, phase: Fit, tell: EpochCallback) -> SingleTaskTrainer:
        """Return a phase as a training in one task."""
        return SingleTaskTrainer(
            phase.run, phase.spec, phase.units, self._request.metric, tell=self._teller(tell),
            keep=self._keeper(phase), keep_every=self._request.checkpoint_interval,
            worker_info=self._worker_info,
        )  # fmt: skip

    def distributed(self, phase: Fit, tell: EpochCallback) -> AveragingTrainer:
        """Return a phase as a training in many tasks."""
        return AveragingTrainer(
            phase.spec, self.plan, metric=self._request.metric, tell=self._teller(tell),
            units=phase.units, train_on_all=phase.train_on_all,
            has_validation=phase.has_validation,
            n_rows=self._data.sums(all_rows=phase.train_on_all).rows,
            keep=self._keeper(phase), keep_every=self._request.checkpoint_interval,
            worker_info=self._worker_info,
        )  # fmt: skip

    def result(
        self, phase: Fit | None, outcome: TrainingProgress | TrainingDivergedError | None
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
        facts["refit"] = isinstance(outcome, TrainingProgress)
        facts["refitSeconds"] = refit_seconds
        facts["totalSeconds"] = self._data.seconds + time.perf_counter() - self._started
        weights = self._weights(candidate, units.label)
        if self._checkpoint is not None:
            self._checkpoint.remove()
        snapshot = self._snapshot if self._request.keep_snapshot else None
        return TrainResult(weights, self._history, facts, snapshot)

    @property
    def _finished_first(self) -> FitResult:
        if self._first is None:
            raise RuntimeError("the first training has not ended yet")
        return self._first

    def _teller(self, tell: EpochCallback) -> EpochCallback:
        """Return what takes in the epochs of a phase; the refit's are not history."""
        if self._first is not None:
            return tell

        def first_told(report: EpochReport) -> bool:
            tell(report)
            self._history.append(report.row())
            return self._on_epoch_end is None or self._on_epoch_end(report)

        return first_told

    def _keeper(self, phase: Fit) -> Callable[[TrainingProgress], None] | None:
        checkpoint = self._checkpoint
        if checkpoint is None:
            return None
        first = self._first
        return lambda run: checkpoint.write(self._snapshot_of(run, phase, first))

    def _snapshot_of(
        self, run: TrainingProgress, phase: Fit, first: FitResult | None
    ) -> TrainingState:
        snapshot = TrainingState.of(
            run, fingerprint=self._data.fingerprint, metric=self._request.metric,
            scaling=phase.units, ids=self.plan.ids, history=self._history,
        )  # fmt: skip
        snapshot.facts["epochs"] = phase.spec.epochs
        snapshot.facts["partitions"] = [self.plan.n_partitions, self.plan.n_rounds]
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

    def _continued(self, units: Scaling) -> TrainingProgress | None:
        """Return the run of the model to go on from, when this is the same training."""
        request, start = self._request, self._start
        if start is None or start.training_state is None:
            return None
        layout = Layout(request.spec.k, request.spec.optimizer)
        if not start.training_state.continues(
            fingerprint=self._data.fingerprint, layout=layout, metric=request.metric,
            scaling=units, n_features=self.plan.n_features,
        ):  # fmt: skip
            return None
        run = start.training_state.progress()
        run.finished = False
        run.stopping.patience, run.stopping.tol = request.patience, request.tol
        if run.stopping.should_stop:
            run.stopping.waited = 0
        self._history = start.training_state.history
        return run

    def _new_run(
        self, spec: Hyperparameters, units: Scaling, *, all_rows: bool
    ) -> TrainingProgress:
        request, plan = self._request, self.plan
        sums = self._data.sums(all_rows=all_rows)
        mean = sums.label / sums.weight / units.label
        counts = plan.all_counts if all_rows else plan.train_counts
        state = initial_state(spec, counts, label_mean=mean)
        if self._start is not None:
            warm_state_inplace(state, self._start, spec, ids=plan.ids, scaling=units)
        return TrainingProgress(
            state=state,
            stopping=new_stopping(spec, request.metric, patience=request.patience, tol=request.tol),
            last_loss=sums.label_square / sums.weight / units.label**2 - mean**2,
        )

    def _units(self, *, all_rows: bool) -> Scaling:
        sums = self._data.sums(all_rows=all_rows)
        return Scaling(label=label_scale(self._request, sums), weight=sums.weight / sums.rows)

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

    def _weights(self, result: Parameters, scale: float) -> FMWeights:
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

    def _facts(self, records: list[EpochRecord], units: Scaling) -> dict[str, Any]:
        first = self._finished_first
        sums = self._data.sums(
            all_rows=len(records) > len(first.records) or self._data.has_no_training_rows
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
            "numWorkers": self._worker_info.workers,
            "averagingsPerEpoch": plan.n_rounds if not plan.single_task else 0,
            "device": "gpu" if plan.device.is_gpu else "cpu",
            "gpus": sorted(self._worker_info.gpus),
            "mergedOnExecutors": plan.merge_on_executors,
            "labelMean": sums.label / sums.weight,
            "labelScale": units.label,
            "totalIterations": len(self._history),
            "bestEpoch": first.best_epoch,
            "validationMetric": self._request.metric if data.has_validation else None,
            "validationCurve": validation_curve(first.records, first.best_epoch),
            "running": running_history(
                first.records, data.sums(all_rows=data.has_no_training_rows).rows
            ),
            "rejectedAttempts": sum(record.n_rejected for record in records),
            "warnings": self._warnings + notes,
            "packSeconds": data.seconds,
            "compileSeconds": sum(record.compile_seconds for record in records),
        }


def _first_of(saved: TrainingState) -> FitResult:
    """Return what the first training came to, from a checkpoint of the second."""
    facts = saved.facts["first"]
    return FitResult(
        Parameters(saved.arrays["first"].copy(), facts["bias"]),
        Scaling(*facts["units"]),
        facts["best_epoch"],
        facts["step_scale"],
        [EpochRecord.from_dict(record) for record in facts["records"]],
    )


Outcome = TrainResult | TrainingDivergedError


def train(rows: DataFrame, request: TrainConfig, *, start: WarmStart | None = None) -> TrainResult:
    """Train one model on ``rows``, whose columns have the internal names.

    Parameters
    ----------
    rows : DataFrame
        Columns ``features``, ``label`` and, as the request says, ``weight`` and
        ``validation``.
    request : TrainConfig
    start : WarmStart, optional
        Model to go on from.

    Raises
    ------
    InvalidParamError, InvalidDataError, ModelTooLargeError, TrainingDivergedError,
    GpuNotFoundError

    Notes
    -----
    One pass packs the data. Then either one task runs all epochs, or each epoch is a
    few jobs over the packed blocks. Everything persisted or broadcast is released on
    the way out, however that is reached.
    """
    with open_trainer(rows, request) as data:
        [outcome] = data.train([request], start=start)
    if isinstance(outcome, TrainingDivergedError):
        raise outcome
    return outcome


@contextmanager
def open_trainer(rows: DataFrame, request: TrainConfig) -> Iterator[Trainer]:
    """Pack ``rows`` as a request says; inside the block any number of models train on them.

    Raises
    ------
    InvalidParamError, InvalidDataError
    GpuNotFoundError
        Before any row is read.
    """
    request.check()
    session = rows.sparkSession
    use_driver_interpreter(session)
    with ExitStack() as after, tagged(session, "fit"):
        devices = {request.device: choose_device(request.device, session)}
        with packed(rows, session, request) as data, ExitStack() as stack:
            yield Trainer(data, packing_key(request), session, stack, after, devices)


class Trainer:
    """A packed training set; ``open_trainer`` makes it."""

    def __init__(
        self,
        data: PackedDataset,
        key: tuple[object, ...],
        session: SparkSession,
        stack: ExitStack,
        after: ExitStack,
        devices: dict[DeviceName, Device],
    ) -> None:
        self._data = data
        self._key = key
        self._session = session
        self._stack = stack
        self._after = after  # what is to be done when no job runs any more
        self._name = uuid4().hex
        self._ids: dict[bytes, Broadcast] = {}
        self._partitioned: dict[tuple[object, ...], PartitionedBlocks] = {}
        self._devices = devices

    @property
    def fingerprint(self) -> str:
        """Digest of every row, its set and its place: the same for the same data."""
        return self._data.fingerprint

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to validate on."""
        return self._data.has_validation

    def train(
        self,
        requests: Sequence[TrainConfig],
        *,
        start: WarmStart | None = None,
        callbacks: Sequence[EpochCallback | None] = (),
    ) -> list[Outcome]:
        """Train a model for each request, in passes over the rows that they share.

        Parameters
        ----------
        requests : sequence of TrainConfig
            They may differ in all that does not decide how rows are packed
            (``packing_key``).
        start : WarmStart, optional
            Model that all of them go on from.
        listeners : sequence of callable or None
            One a request: takes each of its epochs; False ends that training.

        Returns
        -------
        list
            A TrainResult for each request, the same as it would give alone; or the
            TrainingDivergedError of one that no step size saves.
        """
        for request in requests:
            request.check()
            if packing_key(request) != self._key:
                raise InvalidParamError("These Params need rows that are packed another way.")
        several = len(requests) > 1
        models = [
            self._model(request, start, on_epoch_end, shares_folder=several)
            for request, on_epoch_end in zip_longest(requests, callbacks)
        ]
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, model in enumerate(models):
            groups.setdefault(model.plan.key, []).append(number)
        outcomes: dict[int, Outcome] = {}
        for numbers in groups.values():
            while numbers:
                count = trained_together([models[n].plan for n in numbers])
                chosen, numbers = numbers[:count], numbers[count:]
                trained = self._train_together([models[n] for n in chosen])
                outcomes |= dict(zip(chosen, trained, strict=True))
        return [outcomes[number] for number in range(len(requests))]

    def _model(
        self,
        request: TrainConfig,
        start: WarmStart | None,
        on_epoch_end: EpochCallback | None,
        *,
        shares_folder: bool,
    ) -> ModelTraining:
        checkpoint = saved = None
        asked = request
        if request.checkpoint_dir:
            fingerprint = self._data.fingerprint
            name = checkpoint_name(request, fingerprint) if shares_folder else "training"
            checkpoint = Checkpoint(request, name)
            saved = checkpoint.read(fingerprint)
            checkpoint.check_writable()
        if saved is not None:  # other partitions would end with another model
            workers, averagings = saved.facts["partitions"]
            asked = replace(request, num_workers=workers, averagings=averagings)
        known = None if start is None else start.weights
        plan = self._plan(asked, known)
        return ModelTraining(
            self._data, plan, request,
            start=start, checkpoint=checkpoint, saved=saved, on_epoch_end=on_epoch_end,
        )  # fmt: skip

    def _train_together(self, models: list[ModelTraining]) -> list[Outcome]:
        """Train models of one layout: first all first trainings, then all refits."""
        plan = models[0].plan
        _log_start(self._data, plan, len(models))
        first = [model.initial_fit() for model in models]
        runs = self._run(models, first, "train")
        second: list[Fit | None] = [
            None if isinstance(run, TrainingDivergedError) else model.refit_on_all_rows(phase, run)
            for model, phase, run in zip(models, first, runs, strict=True)
        ]
        again = self._run(models, second, "refit")
        return [
            run if isinstance(run, TrainingDivergedError) else model.result(phase, refitted)
            for model, run, phase, refitted in zip(models, runs, second, again, strict=True)
        ]

    def _run(
        self, models: list[ModelTraining], phases: list[Fit | None], what: str
    ) -> list[TrainingProgress | TrainingDivergedError | None]:
        """Run the phases that there are to their ends."""
        chosen = [(m, p) for m, p in zip(models, phases, strict=True) if p is not None]
        if not chosen:
            return [None] * len(phases)
        plan, session = models[0].plan, self._session
        on_all = chosen[0][1].train_on_all
        gpu = self._gpu_passes(plan, on_all=on_all)
        total = sum(phase.epochs_left for _, phase in chosen)
        what = what if len(chosen) == 1 else f"{what} {len(chosen)} models"
        outcomes: Sequence[TrainingProgress | TrainingDivergedError]
        with Progress(total, what) as progress:

            def tell(of: str, report: EpochReport) -> bool:
                if of:
                    progress(report, of)
                else:
                    progress(report)
                return True

            tellers = [
                partial(tell, f"model {number}" if len(models) > 1 else "")
                for number, phase in enumerate(phases)
                if phase is not None
            ]
            if plan.single_task:
                trainings = [
                    model.single_task(phase, teller)
                    for (model, phase), teller in zip(chosen, tellers, strict=True)
                ]
                outcomes = train_single_task(
                    trainings, self._data, session, ids=self._ids_handle(plan),
                    train_on_all=on_all, n_tasks=plan.device.slots or task_slots(session),
                    device=plan.device, gpu=gpu,
                )  # fmt: skip
            else:
                steps = [
                    model.distributed(phase, teller).steps(phase.run)
                    for (model, phase), teller in zip(chosen, tellers, strict=True)
                ]
                outcomes = run_rounds(steps, self._partitioned_blocks(plan), session, plan, gpu=gpu)
        left = iter(outcomes)
        return [None if phase is None else next(left) for phase in phases]

    def _plan(self, request: TrainConfig, known: FMWeights | None) -> TrainPlan:
        device = self._device(request.device)
        try:
            return make_plan(request, self._data, self._session, known=known, device=device)
        except ModelTooLargeError as err:
            if request.device != "auto" or not device.is_gpu:
                raise
            log.warning("device='auto' trains on the processor: %s", err)
            return make_plan(request, self._data, self._session, known=known, device=CPU_DEVICE)

    def _device(self, wanted: DeviceName) -> Device:
        if wanted not in self._devices:
            self._devices[wanted] = choose_device(wanted, self._session)
        return self._devices[wanted]

    def _gpu_passes(self, plan: TrainPlan, *, on_all: bool) -> GpuPassConfig | None:
        """Return how passes are made on a GPU; what has one key are the same rows."""
        ids = "all" if plan.ids is None else sha256(plan.ids.tobytes()).hexdigest()
        key = f"{self._name} {plan.n_partitions} {plan.n_rounds} {on_all} {ids}"
        sums, n_partitions = self._data.sums(all_rows=on_all), plan.n_partitions
        return plan.device.passes(key, -(-sums.rows // n_partitions), sums.nnz // n_partitions)

    def _ids_handle(self, plan: TrainPlan) -> Broadcast | None:
        if plan.ids is None:
            return None
        key = plan.ids.tobytes()
        if key not in self._ids:
            self._ids[key] = self._stack.enter_context(
                broadcast(self._session, plan.ids, n_bytes=plan.ids.nbytes)
            )
        return self._ids[key]

    def _partitioned_blocks(self, plan: TrainPlan) -> PartitionedBlocks:
        ids = self._ids_handle(plan)
        key = (plan.n_partitions, plan.n_rounds, id(ids))
        if key not in self._partitioned:
            partitioned = partition_blocks(self._data.blocks, plan.n_partitions, plan.n_rounds, ids)
            blocks = PartitionedBlocks(partitioned, plan.n_rounds, self._stack)
            self._stack.push(blocks.remove_files)
            self._after.callback(blocks.remove_left_files)
            self._partitioned[key] = blocks
        return self._partitioned[key]


def _log_start(data: PackedDataset, plan: TrainPlan, n_models: int) -> None:
    log.info(
        "packed %d rows (%d for validation), %d non-zeros, %d of %d features seen, in %.2f s; "
        "%s%d partition(s), %d averaging(s) an epoch",
        data.train.rows + data.validation.rows, data.validation.rows,
        data.train.nnz + data.validation.nnz, len(data.counts.ids), data.feature_dim,
        data.seconds, f"{n_models} models, " if n_models > 1 else "", plan.n_partitions,
        0 if plan.single_task else plan.n_rounds,
    )  # fmt: skip
