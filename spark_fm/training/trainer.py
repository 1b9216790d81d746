"""Train models on a DataFrame: pack once, plan, fit, refit; driver only.

``open_trainer`` packs the rows and yields a ``Trainer``; ``Trainer.train`` makes a ``TrainPlan``
and a ``ModelTraining`` for each configuration and runs their fits together: in one task each
(``single_task``), or in averaging rounds over partitions (``rounds``).
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_fm.errors import InvalidParamError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.gibbs.sampling import ChainProgress
from spark_fm.learner.kernels import is_compiled
from spark_fm.learner.metrics import merit, validation_metrics
from spark_fm.learner.race import MOST_EPOCHS, TIE
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.standardization import Preparation, Standardization
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
from spark_fm.learner.weights import FMWeights, Posterior
from spark_fm.spark.broadcast import Broadcast, broadcast
from spark_fm.spark.gpu import GpuPassConfig
from spark_fm.spark.leftovers import remove_leftovers
from spark_fm.spark.resources import CPU_DEVICE, Device, DeviceName, choose_device
from spark_fm.spark.session import SparkCluster, tagged, use_driver_interpreter
from spark_fm.training.callbacks import (
    EpochCallback,
    EpochReport,
    Progress,
    reports_of,
    running_history,
    tell_compiling,
    validation_curve,
)
from spark_fm.training.checkpoints import Checkpoint, checkpoint_name
from spark_fm.training.config import REFIT_ROWS, SolverName, TrainConfig
from spark_fm.training.dataset import PackedDataset, check_sets, pack, packing_key, scaling_of
from spark_fm.training.fit import Fit, FitResult, WorkerInfo
from spark_fm.training.gibbs import (
    ChainListener,
    Sampled,
    chains_of_state,
    chains_to_state,
    reason_against,
    sample,
)
from spark_fm.training.notes import (
    LinearPart,
    divergence_notes,
    sampling_notes,
    validation_notes,
)
from spark_fm.training.partitions import PartitionedBlocks, block_frame, partition_blocks
from spark_fm.training.plan import TrainPlan, make_plan, trained_together
from spark_fm.training.race import LearningRates, hold_races
from spark_fm.training.rounds import AveragingTrainer, run_rounds
from spark_fm.training.single_task import train_single_task

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training."""

    weights: FMWeights
    history: list[dict[str, Any]]  # a row an epoch
    summary: dict[str, Any]  # everything else that the model's summary shows, JSON-able
    training_state: TrainingState | None  # where the training stands, when it is kept
    posterior: Posterior | None = None  # of Gibbs sampling, when it is kept


# Of a row's difference in loss between a model and its linear part, relative to the loss: few
# held-out rows must not decide by chance.
ROW_NOISE = 0.2
SGD_LEAD = 2.0  # times that noise by which SGD must do better than Gibbs sampling

Outcome = TrainResult | TrainingDivergedError


@contextmanager
def open_trainer(rows: DataFrame, config: TrainConfig) -> Iterator[Trainer]:
    """Pack ``rows`` (internal column names); inside the block any number of models train on them.

    ``config`` has been checked. Raises InvalidDataError and, before any row is read,
    GpuNotFoundError.
    Everything persisted or broadcast is released on the way out, however that is reached.
    """
    session = rows.sparkSession
    use_driver_interpreter(session)
    remove_leftovers(Path(tempfile.gettempdir()))
    cluster = SparkCluster.of(session)
    with ExitStack() as after_jobs, tagged(session, "fit"):
        devices = {config.device: choose_device(config.device, cluster)}
        with pack(rows, cluster, config, after_jobs) as data, ExitStack() as stack:
            yield Trainer(data, packing_key(config), cluster, stack, after_jobs, devices)


class Trainer:
    """Trains models on one packed dataset; ``open_trainer`` makes it."""

    def __init__(
        self,
        data: PackedDataset,
        packing_key: tuple[object, ...],
        cluster: SparkCluster,
        stack: ExitStack,
        after_jobs: ExitStack,
        devices: dict[DeviceName, Device],
    ) -> None:
        self._data = data
        self._packing_key = packing_key
        self._cluster = cluster
        self._stack = stack
        self._after_jobs = after_jobs  # clean-ups for when no job runs any more
        self._name = uuid4().hex
        self._standardizations: dict[tuple[bool, ...], Standardization] = {}
        self._preparations: dict[tuple[object, ...], Broadcast | None] = {}
        self._partitioned: dict[tuple[object, ...], PartitionedBlocks] = {}
        self._devices = devices

    @property
    def fingerprint(self) -> str:
        """Digest of every row with its set and position: equal for equal data."""
        return self._data.fingerprint

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to validate on."""
        return self._data.has_validation

    def train(
        self,
        configs: Sequence[TrainConfig],
        *,
        start: WarmStart | None = None,
        callbacks: Sequence[EpochCallback | None] = (),
    ) -> list[Outcome]:
        """Train a model for each configuration, in passes over the rows that they share.

        Configurations may differ in all that does not decide how rows are packed
        (``packing_key``); ``start`` is a model that all of them continue from. The callback of
        a configuration takes each epoch of its initial fit and returns False to end it. Each
        result is the one that the configuration gives alone, or the TrainingDivergedError of a
        model that no learning rate keeps finite.
        """
        for config in configs:
            if packing_key(config) != self._packing_key:
                raise InvalidParamError("These Params need rows that are packed another way.")
        checkpoints = [self._checkpoint(c, shares_folder=len(configs) > 1) for c in configs]
        saved = [None if c is None else c.read(self._data.fingerprint) for c in checkpoints]
        for checkpoint in checkpoints:
            if checkpoint is not None:
                checkpoint.check_writable()
        weights = None if start is None else start.weights
        # First, so that a model too large for memory fails before its race.
        plans = [self._plan(c, state, weights) for c, state in zip(configs, saved, strict=True)]
        # Elsewhere the driver does not see what workers keep; their epochs tell afterwards.
        if self._cluster.is_local and not all(is_compiled(config.spec) for config in configs):
            tell_compiling()
        rates = self._learning_rates(configs, start, saved)
        models = []
        for number, config in enumerate(configs):
            models.append(
                ModelTraining(
                    self._data, plans[number], config, rates[number],
                    start=start, checkpoint=checkpoints[number], saved=saved[number],
                    on_epoch_end=callbacks[number] if callbacks else None,
                )
            )  # fmt: skip
        for model in models:
            self._try_sampling(model)
        groups: dict[tuple[object, ...], list[int]] = {}
        outcomes: dict[int, Outcome] = {}
        for number, model in enumerate(models):
            if model.config.solver == "gibbs":
                _log_start(self._data, model.plan, 1)
                outcomes[number] = self._sample(model)
            else:
                groups.setdefault(model.plan.key, []).append(number)
        for numbers in groups.values():
            while numbers:
                count = trained_together([models[n].plan for n in numbers])
                batch, numbers = numbers[:count], numbers[count:]
                trained = self._train_together([models[n] for n in batch])
                outcomes |= dict(zip(batch, trained, strict=True))
        return [outcomes[number] for number in range(len(configs))]

    def _checkpoint(self, config: TrainConfig, *, shares_folder: bool) -> Checkpoint | None:
        if not config.checkpoint_dir:
            return None
        name = checkpoint_name(config, self._data.fingerprint) if shares_folder else "training"
        return Checkpoint(config, name)

    def _learning_rates(
        self,
        configs: Sequence[TrainConfig],
        start: WarmStart | None,
        saved: Sequence[TrainingState | None],
    ) -> list[LearningRates]:
        """Return the rates of each training: those it had before, or those that win a race."""
        known = None if start is None else start.training_state
        rates = [
            LearningRates.of(config, state)
            if state is not None
            else LearningRates.of(config, known).of_other_rows()
            for config, state in zip(configs, saved, strict=True)
        ]
        if not self._data.has_validation:
            return rates
        racing = [
            number for number, (config, state) in enumerate(zip(configs, saved, strict=True))
            if config.chosen_rates and state is None and known is None
        ]  # fmt: skip
        if racing:
            chosen = [configs[number] for number in racing]
            scalings = [scaling_of(config, self._data.train) for config in chosen]
            preparations = [
                self._broadcast(Preparation(None, self._standardization(config)))
                for config in chosen
            ]
            started = time.perf_counter()
            n_added = [self._standardization(config).n_added for config in chosen]
            results = hold_races(chosen, scalings, preparations, n_added, self._data, self._cluster)
            for number, result in zip(racing, results, strict=True):
                if result is not None:
                    rates[number] = rates[number].after(
                        result, configs[number].chosen_rates, time.perf_counter() - started
                    )
        return rates

    def _try_sampling(self, model: ModelTraining) -> None:
        """With solver="auto", make a pilot run of Gibbs sampling, or choose SGD and say why."""
        if model.config.solver != "auto":
            return
        reason = reason_against(model.config.spec, self._data, model.plan)
        if reason is None:
            try:
                model.pilot = self._chains(model, ChainListener("pilot run"), train_on_all=False)
            except (TrainingDivergedError, ModelTooLargeError) as err:
                reason = str(err)
        if reason is not None:
            model.choose("sgd", reason)

    def _chains(
        self, model: ModelTraining, listener: ChainListener, *, train_on_all: bool
    ) -> Sampled:
        return sample(
            model.config, self._data, model.plan, self._cluster,
            preparation=self._preparation(model.plan), scaling=model.scaling(all_rows=train_on_all),
            train_on_all=train_on_all, listener=listener, pilot=model.pilot,
        )  # fmt: skip

    def _sample(self, model: ModelTraining) -> Outcome:
        """Train a model by Gibbs sampling: a pilot run, unless it was made, then all chains."""
        on_all = model.wants_refit or self._data.has_no_training_rows
        chains: Sampled | None = None
        try:
            if model.pilot is None and self._data.has_validation:
                listener = model.listener("pilot run")
                model.pilot = self._chains(model, listener, train_on_all=False)
            is_refit = on_all and model.pilot is not None
            if is_refit and model.pilot is not None:  # whose sweeps are the history
                model.take_sampled(model.pilot.fit)
            listener = model.listener("refit" if is_refit else "train", hears=not is_refit)
            chains = self._chains(model, listener, train_on_all=on_all)
        except TrainingDivergedError as err:
            if model.pilot is None:
                return err
            model.warn(f"The chains after the pilot run failed, its model is kept: {err}")
        kept = chains or model.pilot
        if kept is None:
            raise RuntimeError("no chain has run")
        if not is_refit:
            model.take_sampled(kept.fit)
        result = model.finished(chains.fit if is_refit and chains is not None else None)
        return replace(result, posterior=model.posterior(kept) if kept.draws else None)

    def _train_together(self, models: list[ModelTraining]) -> list[Outcome]:
        """Train models of one plan: first all initial fits, then all refits.

        One whose pilot run of Gibbs sampling did better than its initial fit is sampled instead.
        """
        _log_start(self._data, models[0].plan, len(models))
        initial = [model.initial_fit() for model in models]
        fitted = self._run(models, initial, "train")
        for model, fit, done in zip(models, initial, fitted, strict=True):
            model.take_trained(fit, done)
        refits = [
            None if isinstance(done, TrainingDivergedError) else model.refit(resumes=fit is None)
            for model, fit, done in zip(models, initial, fitted, strict=True)
        ]
        refitted = self._run(models, refits, "refit")
        outcomes: list[Outcome] = []
        for model, done, fit, again in zip(models, fitted, refits, refitted, strict=True):
            if model.config.solver == "gibbs":
                outcomes.append(self._sample(model))
            elif isinstance(done, TrainingDivergedError):
                outcomes.append(done)
            else:
                outcomes.append(model.result(fit, again))
        return outcomes

    def _run(
        self, models: list[ModelTraining], fits: Sequence[Fit | None], what: str
    ) -> list[TrainingProgress | TrainingDivergedError | None]:
        """Run the fits to their ends; None stays None."""
        running = [fit for fit in fits if fit is not None]
        if not running:
            return [None] * len(fits)
        plan, train_on_all = models[0].plan, running[0].train_on_all
        gpu = self._gpu_passes(plan, train_on_all=train_on_all)
        what = what if len(running) == 1 else f"{what} {len(running)} models"
        with Progress(sum(fit.epochs_left for fit in running), what) as progress_bar:
            for number, fit in enumerate(fits):
                if fit is not None:
                    name = [f"model {number}"] if len(models) > 1 else []
                    fit.on_epoch_end = partial(_show_epoch, progress_bar, name, fit.on_epoch_end)
            if plan.single_task:
                outcomes = train_single_task(
                    running, self._data, self._cluster, preparation=self._preparation(plan),
                    device=plan.device, gpu=gpu,
                )  # fmt: skip
            else:
                trainings = [AveragingTrainer(fit, plan).rounds() for fit in running]
                blocks = self._partitioned_blocks(plan)
                seconds = blocks.write_files()
                for fit in running:
                    fit.worker_info.store_seconds += seconds
                outcomes = run_rounds(trainings, blocks, self._cluster, plan, gpu=gpu)
        remaining = iter(outcomes)
        return [None if fit is None else next(remaining) for fit in fits]

    def _plan(
        self, config: TrainConfig, saved: TrainingState | None, known: FMWeights | None
    ) -> TrainPlan:
        if saved is not None and config.solver != "gibbs":
            # Other partitions would end with another model.
            workers, averagings = saved.metadata["partitions"]
            config = replace(config, num_workers=workers, averagings=averagings)
        if config.solver == "gibbs":
            config = replace(config, num_workers=1, device="cpu")
        device = self._device(config.device)
        plan_for = partial(
            make_plan, config, self._data, self._cluster,
            standardization=self._standardization(config), known=known,
        )  # fmt: skip
        try:
            return plan_for(device=device)
        except ModelTooLargeError as err:
            if config.device != "auto" or not device.is_gpu:
                raise
            log.warning("device='auto': training on the CPU: %s", err)
            return plan_for(device=CPU_DEVICE)

    def _device(self, name: DeviceName) -> Device:
        if name not in self._devices:
            self._devices[name] = choose_device(name, self._cluster)
        return self._devices[name]

    def _gpu_passes(self, plan: TrainPlan, *, train_on_all: bool) -> GpuPassConfig | None:
        """Return how passes are made on a GPU; equal keys name equal rows."""
        ids = "all" if plan.ids is None else sha256(plan.ids.tobytes()).hexdigest()
        key = (
            f"{self._name} {plan.n_partitions} {plan.n_rounds} {train_on_all} {ids} "
            f"{plan.standardization.digest}"
        )
        sums, n_partitions = self._data.sums(all_rows=train_on_all), plan.n_partitions
        nnz = sums.nnz + plan.standardization.n_added
        return plan.device.pass_config(key, -(-sums.rows // n_partitions), nnz // n_partitions)

    def _standardization(self, config: TrainConfig) -> Standardization:
        """Return how a configuration standardizes, computed once for all that do so alike."""
        spec = config.spec
        key = (config.standardization, spec.use_bias and spec.use_linear)
        if key not in self._standardizations:
            self._standardizations[key] = self._data.standardization(config)
        return self._standardizations[key]

    def _preparation(self, plan: TrainPlan) -> Broadcast | None:
        """Return what prepares the rows; None where they train as they are."""
        return self._broadcast(Preparation(plan.ids, plan.standardization))

    def _broadcast(self, preparation: Preparation) -> Broadcast | None:
        if preparation.changes_nothing:
            return None
        ids = preparation.ids
        key = (None if ids is None else ids.tobytes(), preparation.standardization.digest)
        if key not in self._preparations:
            self._preparations[key] = self._stack.enter_context(
                broadcast(self._cluster, preparation, n_bytes=preparation.n_bytes)
            )
        return self._preparations[key]

    def _partitioned_blocks(self, plan: TrainPlan) -> PartitionedBlocks:
        preparation = self._preparation(plan)
        key = (plan.n_partitions, plan.n_rounds, id(preparation))
        if key not in self._partitioned:
            frame = partition_blocks(
                block_frame(self._data.blocks, self._cluster), plan.n_partitions, plan.n_rounds,
                preparation, self._data.store,
            )  # fmt: skip
            blocks = PartitionedBlocks(
                frame, self._cluster, plan.n_rounds, self._stack, self._data.store
            )
            self._stack.push(blocks.remove_files)
            self._after_jobs.callback(blocks.remove_remaining_files)
            self._partitioned[key] = blocks
        return self._partitioned[key]


def _show_epoch(
    progress_bar: Progress, name: list[str], record: EpochCallback, report: EpochReport
) -> bool:
    progress_bar(report, *name)
    return record(report)


def _log_start(data: PackedDataset, plan: TrainPlan, n_models: int) -> None:
    log.info(
        "packed %d rows (%d for validation), %d non-zeros, %d of %d features seen, in %.2f s; "
        "%s%d partition(s), %d averaging(s) an epoch",
        data.train.rows + data.validation.rows, data.validation.rows,
        data.train.nnz + data.validation.nnz, len(data.counts.ids), data.feature_dim,
        data.seconds, f"{n_models} models, " if n_models > 1 else "", plan.n_partitions,
        0 if plan.single_task else plan.n_rounds,
    )  # fmt: skip


class ModelTraining:
    """One model from its initial parameters to its summary, whoever runs its jobs.

    It is fitted once, with a part of the rows held out, or twice: the refit is on all rows, for
    as many epochs as were best.
    """

    def __init__(
        self,
        data: PackedDataset,
        plan: TrainPlan,
        config: TrainConfig,
        rates: LearningRates,
        *,
        start: WarmStart | None,
        checkpoint: Checkpoint | None,
        saved: TrainingState | None,  # what an interrupted run of this training has written
        on_epoch_end: EpochCallback | None,
    ) -> None:
        self.plan = plan
        self._started = time.perf_counter()
        self._data = data
        self.config = replace(config, spec=rates.apply(config.spec))
        self._rates = rates
        self._start = start
        self._checkpoint = checkpoint
        self._on_epoch_end = on_epoch_end
        self.pilot: Sampled | None = None
        self._solvers: list[dict[str, Any]] = []  # that were tried
        self._unreported: list[EpochReport] = []
        self._history: list[dict[str, Any]] = []
        self._warnings = check_sets(data, config)
        self._worker_info = WorkerInfo()
        self._initial: FitResult | None = None
        self._training_state = saved
        # Of Gibbs sampling, by run, where there are checkpoints.
        self._chains: dict[str, list[ChainProgress]] = {}
        if saved is not None and config.solver == "gibbs":
            self._chains = chains_of_state(saved)
        self._n_saved = 0  # their sweeps
        self._n_heard = 0  # sweeps that the callback has heard of

    def initial_fit(self) -> Fit | None:
        """Return the initial fit, or None when a checkpoint holds its outcome."""
        saved, all_rows = self._training_state, self._data.has_no_training_rows
        scaling = self.scaling(all_rows=all_rows)
        spec = self.config.spec
        if saved is not None:
            self._history = saved.history
            if "first" in saved.metadata:
                self._initial = FitResult.from_state(saved)
                return None
            progress, epochs = saved.progress(), saved.metadata["epochs"]
        else:
            progress = self._continued(scaling) or self._new_progress(
                spec, scaling, all_rows=all_rows
            )
            epochs = progress.epoch + spec.epochs
        return self._fit(progress, replace(spec, epochs=epochs), scaling, train_on_all=all_rows)

    def take_trained(
        self, fit: Fit | None, outcome: TrainingProgress | TrainingDivergedError | None
    ) -> None:
        """Take the end of the initial fit, and compare it with the pilot run, if there was one.

        Both are None when a checkpoint held the outcome.
        """
        if isinstance(outcome, TrainingDivergedError):
            if self.pilot is not None:
                self.choose("gibbs", str(outcome))
            return
        if fit is None or outcome is None:
            return
        best = outcome.stopping.best_epoch
        if outcome.best is None:
            best = outcome.epoch - 1
            if fit.has_validation:
                self.warn(
                    f"validationMetric={self.config.metric!r} was undefined in every epoch, "
                    "so the last one was kept: the validation rows have one class only, or "
                    "constant labels."
                )
        linear, records = self._linear_part(outcome), outcome.history
        if linear is not None and linear.is_better:  # the curve is that of the model kept
            records = [
                replace(record, validation=outcome.linear) if record.epoch == best else record
                for record in records
            ]
        self._initial = FitResult(
            outcome.result(), fit.scaling, best, outcome.step_scale, records, linear
        )
        if self.config.keep_snapshot:
            self._training_state = self._state_of(fit, None)
        if self.pilot is not None:
            self._compare(self._initial, self.pilot)

    def _compare(self, trained: FitResult, pilot: Sampled) -> None:
        """Choose the solver that did better on the held-out rows.

        SGD must lead by more than their noise: it has chosen rates and an epoch on them, and the
        best of n settings leads by about sqrt(2 log n) standard deviations of it by chance.
        """
        by_sgd, sampled = trained.records[trained.best_epoch], pilot.fit.records[-1]
        loss, metric = self.config.spec.loss, self.config.metric
        value = merit(by_sgd.validation, loss, metric)
        lead = SGD_LEAD + math.sqrt(2 * math.log(self.config.n_tried))
        lead *= ROW_NOISE / math.sqrt(self._data.validation.rows) * abs(value)
        is_better = merit(sampled.validation, loss, metric) > value - lead
        solver: SolverName = "gibbs" if is_better else "sgd"
        for name, record, seconds in (
            ("sgd", by_sgd, sum(row["seconds"] for row in self._history)),
            ("gibbs", sampled, pilot.seconds),
        ):
            sums = record.validation
            if sums is not None:
                value = sums.values(loss)[metric]
                tried = {"solver": name, "value": value, "loss": sums.mean_loss()}
                self._solvers.append(tried | {"seconds": seconds, "chosen": name == solver})
        values = ", ".join(f"{each['value']:.6g} by {each['solver']}" for each in self._solvers)
        self.choose(solver, f"{metric} of the held-out rows is {values}")

    def choose(self, solver: SolverName, reason: str) -> None:
        """Settle solver="auto"."""
        log.info("solver: %s, because %s", solver, reason)
        self.config = replace(self.config, solver=solver)
        if solver == "gibbs":
            self._history = []
        elif self._on_epoch_end is not None:
            for report in self._unreported:
                self._on_epoch_end(report)
        self._unreported = []

    def refit(self, *, resumes: bool) -> Fit | None:
        """Return the refit on all rows, or None where the initial fit is the result.

        ``resumes`` says that a checkpoint held the outcome of the initial fit.
        """
        if self.config.solver == "gibbs" or not (resumes or self.wants_refit):
            return None
        epochs = self._finished_initial.best_epoch + 1
        if self._rates.epochs:  # all rows say better than the few held out, as far as they raced
            raced = self._rates.epochs
            epochs = min(self.config.spec.epochs, max(raced, epochs if raced == MOST_EPOCHS else 0))
        log.info("refitting on all rows for %d epoch(s)", epochs)
        scaling = self.scaling(all_rows=True)
        spec = replace(self.config.spec, epochs=epochs)
        if resumes and self._training_state is not None:
            progress = self._training_state.progress()
        else:
            progress = self._new_progress(spec, scaling, all_rows=True)
        return self._fit(progress, spec, scaling, train_on_all=True)

    def result(
        self, fit: Fit | None, outcome: TrainingProgress | TrainingDivergedError | None
    ) -> TrainResult:
        """Return the model and its summary, after the refit or without one."""
        again = None
        if isinstance(outcome, TrainingDivergedError):
            self.warn(f"The refit on all rows failed, the first model is kept: {outcome}")
        elif outcome is not None and fit is not None:
            again = FitResult(
                outcome.result(), fit.scaling, len(outcome.history) - 1, outcome.step_scale,
                outcome.history, None,
            )  # fmt: skip
        return self.finished(again)

    def take_sampled(self, sampled: FitResult) -> None:
        """Take the outcome of Gibbs sampling for that of the initial fit."""
        self._initial = sampled
        n_rows = self._data.sums(all_rows=self._data.has_no_training_rows).rows
        for report in reports_of(sampled.records, n_rows, self.config.spec):
            self._history.append(report.row())
            self._hear_sweep(report)

    def _hear_sweep(self, report: EpochReport) -> bool:
        """Tell the callback of a sweep, once: chains that it has heard of may fail later."""
        if self._on_epoch_end is None or report.record.epoch < self._n_heard:
            return True
        self._n_heard = report.record.epoch + 1
        return self._on_epoch_end(report)

    def listener(
        self, what: Literal["pilot run", "train", "refit"], *, hears: bool = False
    ) -> ChainListener:
        """Return who hears of chains; ``hears`` says that their sweeps are the history's."""
        checkpoint, save = self._checkpoint, None
        if checkpoint is not None:
            save = partial(self._save_chains, checkpoint, what)
        hear = self._hear_sweep if hears else None
        return ChainListener(what, hear, save, self._chains.get(what, []))

    def _save_chains(self, checkpoint: Checkpoint, run: str, chains: list[ChainProgress]) -> None:
        """Write a checkpoint, if it is time; that of a finished run stays beside the next one."""
        self._chains[run] = chains
        n_sweeps = sum(len(chain.records) for of_run in self._chains.values() for chain in of_run)
        interval = self.config.checkpoint_interval * len(chains)
        if all(chain.finished for chain in chains) or n_sweeps - self._n_saved >= interval:
            checkpoint.write(chains_to_state(self._chains, self._data.fingerprint))
            self._n_saved = n_sweeps

    def posterior(self, sampled: Sampled) -> Posterior:
        """Return the draws in units of labels and features."""
        scaling = sampled.fit.scaling
        members = tuple(
            self._weights(Parameters(draw.table, draw.bias), scaling) for draw in sampled.draws
        )
        return Posterior(members, np.array(sampled.noise) * scaling.label)

    def finished(self, again: FitResult | None) -> TrainResult:
        """Return the model and its summary; ``again`` is the outcome of a refit."""
        initial = self._finished_initial
        kept, records, refit_seconds = again or initial, list(initial.records), 0.0
        parameters, scaling = kept.parameters, kept.scaling
        if again is not None:
            records += again.records
            refit_seconds = sum(r.train_seconds + r.validate_seconds for r in again.records)
        if initial.linear is not None and initial.linear.is_better:
            parameters = parameters.linear_part()
        notes = sampling_notes if self.config.solver == "gibbs" else validation_notes
        for note in notes(
            self._history, best_epoch=initial.best_epoch, spec=self.config.spec,
            linear=initial.linear, constant_loss=self._data.constant_loss(self.config.spec.loss),
            n_rows=self._data.train.rows, n_features=len(self._data.counts.ids),
        ):  # fmt: skip
            self.warn(note)
        summary = self._summary(records, scaling)
        summary["stepScale"] = kept.step_scale
        summary["refit"] = again is not None
        summary["refitEpochs"] = 0 if again is None else len(again.records)
        summary["refitSeconds"] = refit_seconds
        trained = time.perf_counter() - self._started
        summary["totalSeconds"] = self._data.seconds + self._rates.seconds + trained
        weights = self._weights(parameters, scaling)
        if self._checkpoint is not None:
            self._checkpoint.remove()
        state = self._training_state if self.config.keep_snapshot else None
        return TrainResult(weights, self._history, summary, state)

    @property
    def _finished_initial(self) -> FitResult:
        if self._initial is None:
            raise RuntimeError("the initial fit has not ended yet")
        return self._initial

    def _fit(
        self,
        progress: TrainingProgress,
        spec: Hyperparameters,
        scaling: Scaling,
        *,
        train_on_all: bool,
    ) -> Fit:
        is_refit = self._initial is not None
        return Fit(
            progress=progress, spec=spec, scaling=scaling, metric=self.config.metric,
            n_rows=self._data.sums(all_rows=train_on_all).rows, train_on_all=train_on_all,
            has_validation=self._data.has_validation and not is_refit,
            worker_info=self._worker_info,
            on_epoch_end=_continue if is_refit else self._record_epoch,
            on_checkpoint=None if self._checkpoint is None else partial(
                self._write_checkpoint, self._checkpoint, self._initial
            ),
            checkpoint_interval=self.config.checkpoint_interval,
        )  # fmt: skip

    def _record_epoch(self, report: EpochReport) -> bool:
        self._history.append(report.row())
        if self.config.solver == "auto":  # the callback hears of the solver that is chosen
            self._unreported.append(report)
            return True
        return self._on_epoch_end is None or self._on_epoch_end(report)

    def _write_checkpoint(
        self, checkpoint: Checkpoint, initial: FitResult | None, fit: Fit
    ) -> None:
        checkpoint.write(self._state_of(fit, initial))

    def _state_of(self, fit: Fit, initial: FitResult | None) -> TrainingState:
        state = TrainingState.of(
            fit.progress, fingerprint=self._data.fingerprint, metric=self.config.metric,
            scaling=fit.scaling, standardization=self.plan.standardization, ids=self.plan.ids,
            history=self._history,
        )  # fmt: skip
        state.metadata["epochs"] = fit.spec.epochs
        state.metadata["rates"] = asdict(self._rates)
        state.metadata["partitions"] = [self.plan.n_partitions, self.plan.n_rounds]
        if initial is not None:
            initial.to_state(state)
        return state

    def _continued(self, scaling: Scaling) -> TrainingProgress | None:
        """Return the progress of the model to start from, when this is the same training."""
        config, start = self.config, self._start
        if start is None or start.training_state is None:
            return None
        layout = Layout(config.spec.k, config.spec.optimizer)
        if not start.training_state.continues(
            fingerprint=self._data.fingerprint, layout=layout, metric=config.metric,
            scaling=scaling, standardization=self.plan.standardization,
            n_features=self.plan.n_features,
        ):  # fmt: skip
            return None
        progress = start.training_state.progress()
        progress.finished, progress.linear = False, None
        progress.stopping.patience, progress.stopping.tol = config.patience, config.tol
        if progress.stopping.should_stop:
            progress.stopping.waited = 0
        self._history = start.training_state.history
        return progress

    def _new_progress(
        self, spec: Hyperparameters, scaling: Scaling, *, all_rows: bool
    ) -> TrainingProgress:
        config, plan = self.config, self.plan
        sums = self._data.sums(all_rows=all_rows)
        counts = plan.all_counts if all_rows else plan.train_counts
        state = initial_state(spec, counts, label_mean=sums.label_mean, scaling=scaling)
        if self._start is not None:
            warm_state_inplace(
                state, self._start, spec, ids=plan.ids, scaling=scaling,
                standardization=plan.standardization,
            )  # fmt: skip
        return TrainingProgress(
            state=state,
            stopping=new_stopping(spec, config.metric, patience=config.patience, tol=config.tol),
            last_loss=sums.label_variance / scaling.label**2,
        )

    def scaling(self, *, all_rows: bool) -> Scaling:
        """Return the scaling of labels and weights of the training rows, or of all."""
        config = self.config
        if config.solver == "gibbs":  # its priors are for labels of unit variance
            config = replace(config, standardize_label=True)
        return scaling_of(config, self._data.sums(all_rows=all_rows))

    def warn(self, text: str) -> None:
        """Log a warning, and keep it for the summary."""
        log.warning("%s", text)
        self._warnings.append(text)

    def _linear_part(self, progress: TrainingProgress) -> LinearPart | None:
        """Compare a finished training with what it is without its factors."""
        config = self.config
        if progress.linear is None or progress.best is None:
            return None
        metric = validation_metrics(config.spec.loss)[config.metric]
        value = progress.linear.values(config.spec.loss)[config.metric]
        full, n_judges = progress.stopping.best_value, self._data.validation.rows
        folds = self._rates
        if self.wants_refit and folds.with_factors is not None and folds.without is not None:
            value, full = folds.without, folds.with_factors
            n_judges += self._data.train.rows
        gain = value - full if metric.larger_is_better else full - value
        lead = max(TIE, ROW_NOISE / math.sqrt(n_judges))
        is_better = gain > lead * abs(full)
        return LinearPart(progress.linear.mean_loss(), config.metric, value, full, is_better)

    @property
    def wants_refit(self) -> bool:
        """Whether the model is trained again on all rows."""
        config = self.config
        if not self._data.has_validation or config.columns.validation is not None:
            return False  # a validation set of the user's own is never trained on
        if config.keep_snapshot:
            return False  # the model's own training is continued later
        rows = self._data.train.rows + self._data.validation.rows
        return config.refit == "always" or (config.refit == "auto" and rows <= REFIT_ROWS)

    def _weights(self, parameters: Parameters, scaling: Scaling) -> FMWeights:
        """Return the model in units of labels and features.

        With labels less m and divided by s, the score times s plus m is the score of the model
        with ``s * w0 + m``, ``s * w`` and ``sqrt(s) * V``.
        """
        scale = scaling.label
        table: NDArray[np.float32] = parameters.table.copy()
        if scale != 1.0:
            table[:, :-1] *= np.float32(math.sqrt(scale))
            table[:, -1] *= np.float32(scale)
        table, bias = self.plan.standardization.to_feature_units(
            table, scaling.label_of(parameters.bias), self.plan.ids
        )
        return FMWeights(
            bias=bias,
            table=table,
            feature_dim=self.plan.feature_dim,
            features=self.plan.ids,
        )

    def _summary(self, records: list[EpochRecord], scaling: Scaling) -> dict[str, Any]:
        initial, data, plan = self._finished_initial, self._data, self.plan
        all_rows = len(records) > len(initial.records) or data.has_no_training_rows
        sums = data.sums(all_rows=all_rows)
        notes = divergence_notes(initial.records)
        notes += [
            f"In the refit: {note}" for note in divergence_notes(records[len(initial.records) :])
        ]
        return {
            "solver": self.config.solver,
            "solvers": self._solvers,
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
            "partitionsOfExecutors": sorted(self._worker_info.executors.values(), reverse=True),
            "averagingsPerEpoch": plan.n_rounds if not plan.single_task else 0,
            "device": "gpu" if plan.device.is_gpu else "cpu",
            "gpus": sorted(self._worker_info.gpus),
            "mergedOnExecutors": plan.merge_on_executors,
            "labelMean": sums.label_mean,
            "labelScale": scaling.label,
            "totalIterations": len(self._history),
            "bestEpoch": initial.best_epoch,
            "validationMetric": self.config.metric if data.has_validation else None,
            "validationCurve": validation_curve(initial.records, initial.best_epoch),
            "running": running_history(
                initial.records, data.sums(all_rows=data.has_no_training_rows).rows
            ),
            "linearLoss": None if initial.linear is None else initial.linear.loss,
            "linearKept": initial.linear is not None and initial.linear.is_better,
            "constantLoss": self._data.constant_loss(self.config.spec.loss),
            "learningRates": self._rates.of_group,
            "race": self._rates.tried,
            "raceSeconds": self._rates.seconds,
            "rejectedAttempts": sum(record.n_rejected for record in records),
            "warnings": self._warnings + notes,
            "packSeconds": data.seconds,
            "storeSeconds": self._worker_info.store_seconds,
            "compileSeconds": sum(record.compile_seconds for record in records),
        }


def _continue(report: EpochReport) -> bool:
    return True  # a refit's epochs are not history
