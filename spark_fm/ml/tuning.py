"""Hyperparameter search by trials that share the packed rows; driver only."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame

from spark_fm._version import __version__
from spark_fm.errors import (
    InvalidDataError,
    InvalidParamError,
    ModelTooLargeError,
    TrainingDivergedError,
)
from spark_fm.learner.metrics import validation_metrics
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.plots import plot_trials
from spark_fm.ml.search_space import SAMPLERS, SearchSpace, dimension_of
from spark_fm.ml.studies import StudySampler, study_of
from spark_fm.ml.tracking import autologged, log_trials, mlflow_callback
from spark_fm.ml.trials import (
    COMPLETE,
    DIVERGED,
    PRUNED,
    TOO_LARGE,
    Trial,
    TrialsFile,
    UnitPoint,
    best_trial,
    trials_frame,
    write_text,
)
from spark_fm.spark.schema import check_batch_frame, check_training_columns, internal_rows
from spark_fm.training.callbacks import EpochReport
from spark_fm.training.config import TrainConfig
from spark_fm.training.trainer import Outcome, Trainer, TrainResult, open_trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TuningResult:
    """Result of a search.

    Parameters
    ----------
    model : FactorizationMachineModel
        Trained with the best Params and the estimator's own (``refit`` included).
    bestParams : dict of str to Any
        Keyword arguments of that model's estimator: the Params set, and the best ones.
    metric : str
        The validation metric by which trials were compared.
    trials : list of Trial
    space : SearchSpace
    """

    model: FactorizationMachineModel
    bestParams: dict[str, Any]
    metric: str
    trials: list[Trial]
    space: SearchSpace

    @property
    def best(self) -> Trial:
        """Return the best trial; number 0 is the estimator as given."""
        trial = best_trial(self.trials)
        if trial is None:
            raise RuntimeError("a search without a complete trial has no result")
        return trial

    @property
    def frame(self) -> pd.DataFrame:
        """Return one row per trial: number, state, epochs, metrics, seconds, Params."""
        return trials_frame(self.trials, self.metric)

    def to_optuna(self) -> Any:
        """Return the trials as a study of Optuna's, for its plots, importances and searches.

        Returns
        -------
        optuna.Study
            In memory, with the values of the Params, and the metric by epoch as intermediate
            values. A trial without a model has failed. What the estimator as given has beyond
            the choices is in ``user_attrs["params"]`` alone.

        Raises
        ------
        ImportError
            Without Optuna: install ``spark-fm[tune]``.
        """
        return study_of(self.space, self.trials)

    def plot(self, path: str | None = None) -> Any:
        """Draw the metric by trial and against every hyperparameter.

        Parameters
        ----------
        path : str, optional
            File to save the picture to; the suffix gives the format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib: install ``spark-fm[plot]``.
        """
        return plot_trials(self.trials, self.space, self.metric, path)


def tune(
    estimator: FactorizationMachine,
    dataset: DataFrame,
    *,
    trials: int = 30,
    space: Mapping[str, Any] | None = None,
    sampler: str = "random",
    study: Any = None,
    parallel: int = 4,
    max_seconds: float = math.inf,
    folder: str | PathLike[str] | None = None,
) -> TuningResult:
    """Search for the hyperparameters with the best metric on the validation rows.

    Parameters
    ----------
    estimator : FactorizationMachine
        Trial 0. Params that are set keep their value, those left at their default are
        searched over the ranges of docs/tuning.md. Its ``validationIndicatorCol`` or
        ``validationFraction``, ``validationMetric`` and ``seed`` apply to all trials.
    dataset : DataFrame
        Packed once.
    trials : int, default 30
        Total number of trials, including those already in ``folder`` (>= 1).
    space : dict, optional
        Replaces the usual range of Params, also of those that are set: by Param, a tuple
        ``(low, high)`` or ``(low, high, "log")``, a list of choices, or None for the
        usual range.
    sampler : {"random", "tpe"}
        Even draws, or Optuna's tree-structured Parzen estimator, which learns from earlier
        rounds (extra ``[tune]``).
    study : optuna.Study, optional
        Proposes the trials by its own sampler instead of ``sampler``, and records their
        results. A study that has trials goes on from them, and must have the choices of ``space``
        for each Param and the direction of ``validationMetric``. Trials of a round that does not
        end are recorded as failed; those in ``folder`` that the study lacks are added.
    parallel : int, default 4
        Trials per round (>= 1). They share every pass over the rows, and are compared with
        the trials of earlier rounds.
    max_seconds : float
        Start no round later than this many seconds after the call. The first round always
        runs.
    folder : str or path, optional
        On the driver's disk. After each round its trials are appended to ``trials.jsonl``
        there; a later call with the same data, Params, space and sampler resumes from it.
        At the end, also after an error, ``trials.csv``, ``trials.png`` (if matplotlib is
        installed) and ``best.json``, the best Params, are written.

    Returns
    -------
    TuningResult

    Raises
    ------
    InvalidParamError, InvalidColumnError, InvalidDataError
        Also for a space with values that are out of range, and without validation rows.
    CheckpointError
        When ``folder`` holds the trials of another search.
    TrainingDivergedError
        When no trial produced a model.
    ImportError
        For "tpe" without Optuna.

    Notes
    -----
    The same seed, input partitions and ``parallel`` give the same trials, however often
    the search was interrupted. Trials whose validation curve is worse than the median are
    pruned (``should_prune``). Only the final model is refit on all rows. Trials are trained by
    SGD; with ``solver="auto"`` the final model chooses between that and Gibbs sampling. In an
    active run of MLflow each trial is a nested run (docs/mlflow.md).
    """
    started = time.monotonic()
    check_batch_frame(dataset, "tune")
    search = Search(
        estimator, dataset, space or {}, sampler=sampler, parallel=parallel, study=study
    )
    if trials < 1:
        raise InvalidParamError(f"trials={trials!r} is not allowed: expected 1 or more.")
    rows = internal_rows(dataset, search.config.columns)
    with autologged() as log_fits, open_trainer(rows, search.config) as trainer:
        if not trainer.has_validation:
            raise InvalidDataError(
                "No rows were held out to judge trials by: mark some in validationIndicatorCol, "
                "raise validationFraction, or give more rows."
            )
        done = _run_trials(
            search, trainer, n_trials=trials, folder=folder, deadline=started + max_seconds
        )
        best = best_trial(done)
        if best is None:
            raise TrainingDivergedError(
                f"None of {len(done)} trials came to a model "
                f"({dict(Counter(trial.state for trial in done))}). Leave standardization on, or "
                "scale the features; or search lower learning rates and fewer factors."
            )
        log.info("training with the Params of trial %d", best.number)
        best_params = search.params_of(best)
        best_estimator = search.estimator_with(best_params)
        config = best_estimator._train_config(dataset)
        n_tried = len(done) if best.number else 1  # trial 0 ends as a fit does
        config = replace(config, solver=search.solver, n_tried=n_tried)
        [outcome] = trainer.train([config], callbacks=[mlflow_callback()])
        if isinstance(outcome, TrainingDivergedError):
            raise outcome
        params = {**search.set_params, **best_params}
        if search.solver == "auto":
            params["solver"] = outcome.summary["solver"]
            best_estimator = best_estimator.copy({best_estimator.solver: params["solver"]})
            if folder is not None:
                _write_best(Path(folder), params)
        model = best_estimator._model(outcome)
        log_fits([(best_estimator, model)])
    return TuningResult(model, params, search.metric, done, search.space)


def _write_best(folder: Path, params: dict[str, Any]) -> None:
    write_text(folder / "best.json", json.dumps(params, indent=2) + "\n")


def _run_trials(
    search: Search,
    trainer: Trainer,
    *,
    n_trials: int,
    folder: str | PathLike[str] | None,
    deadline: float,
) -> list[Trial]:
    """Return the trials, those of ``folder`` first; write the reports there, even on error."""
    file = TrialsFile(folder, search.about(trainer.fingerprint)) if folder is not None else None
    done = file.trials if file is not None else []
    if done:
        log.info("resuming from %d trial(s) in %s", len(done), folder)
    study = search.study
    try:
        if study is not None:
            study.tell_unknown(search.space, done)
        while len(done) < n_trials and (not done or time.monotonic() < deadline):
            new_trials = search.run_round(trainer, done, n_trials)
            if file is not None:
                file.append(new_trials)
            else:
                done += new_trials
            if study is not None:
                study.tell(search.space, new_trials)
            search.log_trials(done, len(new_trials))  # once they are safe on disk
            log_trials(new_trials, search.metric)
    finally:
        done = done[:n_trials]
        try:
            if folder is not None and done:
                search.report(done, Path(folder))
        finally:
            if study is not None:
                study.give_up()  # trials of a round that was interrupted
    return done


# Params that change neither the trials nor how they are compared.
_WITHOUT_EFFECT = {
    "refit", "keepTrainingState", "checkpointDir", "checkpointInterval", "threshold", "scoreCol",
    "predictedLabelCol", "predictionCol", "probabilityCol", "rawPredictionCol",
}  # fmt: skip


class Search:
    """Proposes trials and trains them; wrong arguments, as of ``tune``, raise before any job."""

    def __init__(
        self,
        estimator: FactorizationMachine,
        dataset: DataFrame,
        space: Mapping[str, Any],
        *,
        sampler: str,
        parallel: int,
        study: Any = None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise InvalidParamError(
                f"sampler={sampler!r} is not allowed: expected {' or '.join(map(repr, SAMPLERS))}."
            )
        if parallel < 1:
            raise InvalidParamError(f"parallel={parallel!r} is not allowed: expected 1 or more.")
        self.solver = estimator._train_config(dataset).solver
        if self.solver == "auto":  # what is searched is how SGD trains; the final model may differ
            estimator = estimator.copy({estimator.solver: "sgd"})
        self._estimator = estimator
        self._dataset = dataset
        self._sampler = sampler
        self._parallel = parallel
        self.config = estimator._train_config(dataset)
        check_training_columns(dataset, self.config.columns)
        if self.config.columns.validation is None and not self.config.validation_fraction:
            raise InvalidParamError(
                "validationFraction=0.0 leaves no rows to judge trials by: set it above 0, or set "
                "validationIndicatorCol."
            )
        self.metric = self.config.metric
        metric = validation_metrics(self.config.spec.loss)[self.metric]
        self._larger_is_better = metric.larger_is_better
        values = {p.name: estimator.getOrDefault(p) for p in estimator.params
                  if estimator.isDefined(p)}  # fmt: skip
        self._values = values
        self.set_params = {p.name: values[p.name] for p in estimator.params if estimator.isSet(p)}
        dimensions = {name: dimension_of(name, given) for name, given in space.items()}
        self.space = SearchSpace.around(
            values, is_set=list(self.set_params), overrides=dimensions
        )  # fmt: skip
        for corner in self.space.corners():
            self._trial_config(corner)
        self.study = None
        if study is not None:
            better = self._larger_is_better
            self.study = StudySampler(study, self.metric, larger_is_better=better)
            self.study.check_space(self.space)
        elif sampler == "tpe":  # raises at once if Optuna is missing
            self._propose([], [0])

    def estimator_with(self, params: Mapping[str, Any]) -> FactorizationMachine:
        """Return the estimator with the Params of a trial."""
        estimator = self._estimator
        return estimator.copy({estimator.getParam(name): v for name, v in params.items()})

    def about(self, fingerprint: str) -> dict[str, Any]:
        """Return what must agree for a search to resume."""
        values = {n: v for n, v in self._values.items() if n not in _WITHOUT_EFFECT}
        return {
            "version": __version__,
            "data": fingerprint,
            "sampler": self._sampler if self.study is None else "study",
            "space": self.space.to_json(),
            "params": values,
        }

    def run_round(self, trainer: Trainer, done: Sequence[Trial], n_trials: int) -> list[Trial]:
        """Train and return the trials of the next round, up to ``n_trials`` in all."""
        # Rounds begin at multiples of their size, also after a round that was cut short.
        first = len(done) - len(done) % self._parallel
        earlier = done[:first]
        numbers = range(first, min(first + self._parallel, n_trials))
        new = numbers[len(done) - first :]
        if self.study is not None:
            points = self.study.points(self.space, new)
        else:
            points = self._propose(earlier, numbers)[len(done) - first :]
        settings: list[tuple[int, dict[str, Any], UnitPoint]] = []
        for number, point in zip(new, points, strict=True):
            if number == 0:
                settings.append((number, {}, {}))
            else:
                settings.append((number, self.space.params(point), point))
        rivals = [trial.costs for trial in earlier if trial.curve]
        curves = [
            _Curve(self.metric, larger_is_better=self._larger_is_better, rivals=rivals)
            for _ in settings
        ]
        configs = [self._trial_config(params) for _, params, _ in settings]
        outcomes = self._train(trainer, configs, curves)
        trials: list[Trial] = []
        for (number, params, point), curve, outcome in zip(settings, curves, outcomes, strict=True):
            state = _state(outcome, curve)
            has_model = state in (COMPLETE, PRUNED)
            if number == 0:
                params = self._initial_params(self._rates_of(outcome))
                point = self.space.unit_point(params)
            trial = Trial(
                number=number, params=params, places=point, state=state,
                larger_is_better=self._larger_is_better, curve=curve.values if has_model else [],
                metrics=curve.best_metrics if has_model else {}, seconds=curve.seconds,
            )  # fmt: skip
            trials.append(trial)
        return trials

    def log_trials(self, done: Sequence[Trial], n_new: int) -> None:
        """Log a line for each of the last trials."""
        for count in range(len(done) - n_new + 1, len(done) + 1):
            trial, best = done[count - 1], best_trial(done[:count])
            log.info(
                "trial %d %s: %s after %d epoch(s), %.1f s%s",
                trial.number, trial.state,
                "no model" if trial.best_epoch is None
                else f"{self.metric} {trial.value:.6g} at epoch {trial.best_epoch}",
                len(trial.curve), trial.seconds,
                "" if best is None else f"; best so far {best.value:.6g}, trial {best.number}",
            )  # fmt: skip

    def report(self, trials: Sequence[Trial], folder: Path) -> None:
        """Write the table, the picture and the best Params."""
        table = trials_frame(trials, self.metric)
        write_text(folder / "trials.csv", table.to_csv(index=False))
        best = best_trial(trials)
        if best is not None:
            _write_best(folder, {**self.set_params, **self.params_of(best)})
        try:
            plot_trials(trials, self.space, self.metric, str(folder / "trials.png"))
        except ImportError as err:
            log.warning("no trials.png: %s", err)

    def _propose(self, earlier: Sequence[Trial], numbers: Sequence[int]) -> list[UnitPoint]:
        return SAMPLERS[self._sampler](self.space, self.config.spec.seed, numbers, earlier)

    def _initial_params(self, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return the estimator's values of the Params searched, with the learning rates given."""
        return self.space.searched(
            {**self._values, **{f"{group}Lr": rate for group, rate in rates.items()}}
        )

    def _rates_of(self, outcome: Outcome | ModelTooLargeError) -> Mapping[str, float]:
        if isinstance(outcome, TrainResult):
            rates: dict[str, float] = outcome.summary["learningRates"]
            return rates
        spec = self.config.spec
        return {group: getattr(spec, group).lr for group in ("bias", "linear", "factors")}

    def params_of(self, trial: Trial) -> dict[str, Any]:
        """Return the Params to set for a trial: of the first, without rates that a race chose."""
        raced = [f"{group}Lr" for group in self.config.chosen_rates if trial.number == 0]
        return {name: value for name, value in trial.params.items() if name not in raced}

    def _trial_config(self, params: Mapping[str, Any]) -> TrainConfig:
        config = self.estimator_with(params)._train_config(self._dataset)
        return replace(config, refit="never", keep_snapshot=False, checkpoint_dir="")

    def _train(
        self, trainer: Trainer, configs: Sequence[TrainConfig], curves: Sequence[_Curve]
    ) -> Sequence[Outcome | ModelTooLargeError]:
        """Train together; if one is too large for the memory, train each by itself."""
        try:
            return trainer.train(configs, callbacks=curves)
        except ModelTooLargeError as err:
            if len(configs) == 1:
                return [err]
        for curve in curves:
            curve.clear()
        pairs = zip(configs, curves, strict=True)
        return [self._train(trainer, [config], [curve])[0] for config, curve in pairs]


class _Curve:
    """Epoch callback of a trial: records its validation metric, and prunes the trial."""

    def __init__(
        self, metric: str, *, larger_is_better: bool, rivals: Sequence[Sequence[float]]
    ) -> None:
        self._metric = metric
        self._sign = -1.0 if larger_is_better else 1.0
        self._rivals = rivals
        self.clear()

    def clear(self) -> None:
        """Forget all epochs."""
        self.values: list[float] = []
        self.best_metrics: dict[str, float] = {}
        self.seconds = 0.0
        self.pruned = False
        self._costs: list[float] = []

    def __call__(self, report: EpochReport) -> bool:
        """Record an epoch; return whether to continue."""
        self.seconds += report.seconds
        if self.pruned:
            return False  # a job already running: its epochs are not part of the trial
        prefix = "validation_"
        metrics = {
            name.removeprefix(prefix): float(value)
            for name, value in report.row().items() if name.startswith(prefix)
        }  # fmt: skip
        value = metrics[self._metric]
        cost = math.inf if math.isnan(value) else self._sign * value
        if cost < min(self._costs, default=math.inf):
            self.best_metrics = metrics
        self.values.append(value)
        self._costs.append(cost)
        self.pruned = should_prune(self._costs, self._rivals)
        return not self.pruned


def _state(outcome: Outcome | ModelTooLargeError, curve: _Curve) -> str:
    if curve.pruned:
        return PRUNED
    if isinstance(outcome, TrainingDivergedError):
        return DIVERGED
    return TOO_LARGE if isinstance(outcome, ModelTooLargeError) else COMPLETE


GRACE_EPOCHS = 6
FEWEST_RIVALS = 3


def should_prune(costs: Sequence[float], rivals: Sequence[Sequence[float]]) -> bool:
    """Return whether to stop a trial by the median stopping rule [1]_.

    ``costs`` are the trial's after each epoch, smaller ones better; ``rivals`` are the costs of
    the trials of earlier rounds. A trial is stopped if its least cost so far is above the median
    of the rivals' least costs by the same epoch, or by their end if that came sooner. Pruned
    trials count too: a median of the survivors alone would rise until it stopped good ones.
    Never during the first ``GRACE_EPOCHS`` epochs or with fewer than ``FEWEST_RIVALS`` rivals.

    References
    ----------
    .. [1] D. Golovin et al., "Google Vizier: A Service for Black-Box Optimization",
       KDD 2017, section 3.2.2, doi:10.1145/3097983.3098043; here with the best values in
       place of their running means.
    """
    n_epochs = len(costs)
    if n_epochs <= GRACE_EPOCHS or len(rivals) < FEWEST_RIVALS:
        return False
    reached = [min(rival[:n_epochs], default=math.inf) for rival in rivals]
    return min(costs) > median(reached)
