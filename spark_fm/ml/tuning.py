"""``tune``: search hyperparameters by trials that share the packed rows; driver only."""

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
from spark_fm.ml.search_space import SAMPLERS, Places, SearchSpace, dimension_of
from spark_fm.ml.trials import (
    COMPLETE,
    DIVERGED,
    PRUNED,
    TOO_LARGE,
    Trial,
    TrialsFile,
    best_trial,
    trials_frame,
    write_text,
)
from spark_fm.spark.schema import check_batch_frame, check_training_columns, internal_rows
from spark_fm.training.callbacks import EpochReport
from spark_fm.training.config import TrainConfig
from spark_fm.training.trainer import Outcome, Trainer, open_trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TuningResult:
    """What a search found.

    Parameters
    ----------
    model : FactorizationMachineModel
        Trained with the best Params, as the estimator says (``refit`` included).
    bestParams : dict of str to Any
        Keyword arguments of the estimator of that model: what was set, and what was found.
    metric : str
        The validation metric that decided.
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
        """Return the best trial; number 0 is the estimator as it was given."""
        found = best_trial(self.trials)
        if found is None:
            raise RuntimeError("a search without a complete trial has no result")
        return found

    @property
    def frame(self) -> pd.DataFrame:
        """Return a row a trial: number, state, epochs, metrics, seconds, Params."""
        return trials_frame(self.trials, self.metric)

    def plot(self, path: str | None = None) -> Any:
        """Draw the metric by trial and against every hyperparameter.

        Parameters
        ----------
        path : str, optional
            Also save the picture there; the suffix gives the format.

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
    parallel: int = 4,
    max_seconds: float = math.inf,
    folder: str | PathLike[str] | None = None,
) -> TuningResult:
    """Search for the hyperparameters that do best on the validation rows.

    Parameters
    ----------
    estimator : FactorizationMachine
        Trial 0. Params that are set keep their value, those left at their default are
        searched over the ranges of docs/tuning.md. Its ``validationIndicatorCol`` or
        ``validationFraction``, ``validationMetric`` and ``seed`` hold for all trials.
    dataset : DataFrame
        Packed once.
    trials : int, default 30
        Trainings of the whole search, those in ``folder`` included (>= 1).
    space : dict, optional
        What to search in place of the usual ranges, by Param, also Params that are set: a
        tuple ``(low, high)`` or ``(low, high, "log")``, a list of choices, or None for
        the usual range.
    sampler : {"random", "tpe"}
        Even draws, or Optuna's tree-structured Parzen estimator, which learns from earlier
        rounds (extra ``[tune]``).
    parallel : int, default 4
        Trials a round (>= 1). They share every pass over the rows, and are compared with
        the trials of earlier rounds.
    max_seconds : float
        Begin no round later than this many seconds after the call. The first round is
        always run.
    folder : str or path, optional
        On the driver's own disk. ``trials.jsonl`` there takes every trial as its round
        ends; a later call with the same data, Params, space and sampler goes on from it.
        At the end, also by an error, ``trials.csv``, ``trials.png`` (where matplotlib is
        installed) and ``best.json``, the best Params, are written.

    Returns
    -------
    TuningResult

    Raises
    ------
    InvalidParamError, InvalidColumnError, InvalidDataError
        Also for a space with values that no training takes, and without validation rows.
    CheckpointError
        When ``folder`` holds the trials of another search.
    TrainingDivergedError
        When not one trial came to a model.
    ImportError
        For "tpe" without Optuna.

    Notes
    -----
    The same seed, input partitions and ``parallel`` give the same trials, however often
    the search was interrupted. Trials that are hopeless by their validation curve are
    stopped (``is_hopeless``). Trials are not refit on all rows; the best Params are.
    """
    started = time.monotonic()
    check_batch_frame(dataset, "tune")
    search = Search(estimator, dataset, space or {}, sampler=sampler, parallel=parallel)
    if trials < 1:
        raise InvalidParamError(f"trials={trials!r} is not allowed: expected 1 or more.")
    with open_trainer(internal_rows(dataset, search.request.columns), search.request) as data:
        if not data.has_validation:
            raise InvalidDataError(
                "No rows were held out to judge trials by: mark some in validationIndicatorCol, "
                "raise validationFraction, or give more rows."
            )
        end = started + max_seconds
        done = _searched(search, data, trials=trials, folder=folder, limit=end)
        best = best_trial(done)
        if best is None:
            raise TrainingDivergedError(
                f"None of {len(done)} trials came to a model "
                f"({dict(Counter(trial.state for trial in done))}). Scale the features, or search "
                "lower step sizes and fewer factors."
            )
        log.info("training with the Params of trial %d", best.number)
        stage = search.stage(best.params)
        [outcome] = data.train([stage._request(dataset)])
    if isinstance(outcome, TrainingDivergedError):
        raise outcome
    model, found = stage._fitted(outcome), {**search.set_params, **best.params}
    return TuningResult(model, found, search.metric, done, search.space)


def _searched(
    search: Search,
    data: Trainer,
    *,
    trials: int,
    folder: str | PathLike[str] | None,
    limit: float,
) -> list[Trial]:
    """Return the trials, those of ``folder`` first; leave the reports there, come what may."""
    file = TrialsFile(folder, search.about(data.fingerprint)) if folder is not None else None
    done = file.trials if file is not None else []
    if done:
        log.info("going on from %d trial(s) in %s", len(done), folder)
    try:
        while len(done) < trials and (not done or time.monotonic() < limit):
            fresh = search.round(data, done, trials)
            if file is not None:
                file.append(fresh)
            else:
                done += fresh
            search.tell(done, len(fresh))  # of what is safe on the disk
    finally:
        done = done[:trials]
        if folder is not None and done:
            search.report(done, Path(folder))
    return done


# Params that change neither the trials nor how they are judged.
_BESIDE_THE_SEARCH = {
    "refit", "keepTrainingState", "checkpointDir", "checkpointInterval", "threshold", "scoreCol",
    "predictedLabelCol", "predictionCol", "probabilityCol", "rawPredictionCol",
}  # fmt: skip


class Search:
    """Says where trials lie, and trains them.

    Parameters
    ----------
    estimator : FactorizationMachine
    dataset : DataFrame
    space : mapping of str to Any
        As ``tune`` takes it.
    sampler : str
    parallel : int
        Trials a round.

    Raises
    ------
    InvalidParamError, InvalidColumnError
        Before any job.
    """

    def __init__(
        self,
        estimator: FactorizationMachine,
        dataset: DataFrame,
        space: Mapping[str, Any],
        *,
        sampler: str,
        parallel: int,
    ) -> None:
        if sampler not in SAMPLERS:
            raise InvalidParamError(
                f"sampler={sampler!r} is not allowed: expected {' or '.join(map(repr, SAMPLERS))}."
            )
        if parallel < 1:
            raise InvalidParamError(f"parallel={parallel!r} is not allowed: expected 1 or more.")
        self._estimator = estimator
        self._dataset = dataset
        self._sampler = sampler
        self._parallel = parallel
        self.request = estimator._request(dataset)
        self.request.check()
        check_training_columns(dataset.schema, self.request.columns)
        if self.request.columns.validation is None and not self.request.validation_fraction:
            raise InvalidParamError(
                "validationFraction=0.0 leaves no rows to judge trials by: set it above 0, or set "
                "validationIndicatorCol."
            )
        self.metric = self.request.metric
        metric = validation_metrics(self.request.spec.loss)[self.metric]
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
            self._trial_request(corner).check()
        if sampler == "tpe":  # says at once when Optuna is missing
            self._places([], [0])

    def stage(self, params: Mapping[str, Any]) -> FactorizationMachine:
        """Return the estimator with the Params of a trial."""
        estimator = self._estimator
        return estimator.copy({estimator.getParam(name): v for name, v in params.items()})

    def about(self, fingerprint: str) -> dict[str, Any]:
        """Return what must agree for a search to go on."""
        values = {n: v for n, v in self._values.items() if n not in _BESIDE_THE_SEARCH}
        return {
            "version": __version__,
            "data": fingerprint,
            "sampler": self._sampler,
            "space": self.space.to_json(),
            "params": values,
        }

    def round(self, data: Trainer, done: Sequence[Trial], n_trials: int) -> list[Trial]:
        """Train the trials of the next round, up to ``n_trials`` in all, and return them."""
        # Rounds begin at multiples of their size, also after a round that was cut short.
        first = len(done) - len(done) % self._parallel
        earlier = done[:first]
        numbers = range(first, min(first + self._parallel, n_trials))
        drawn = list(zip(numbers, self._places(earlier, numbers), strict=True))[len(done) - first :]
        settings = []
        for number, places in drawn:
            if number == 0:
                params = self._start()
                settings.append((number, params, self.space.places(params)))
            else:
                settings.append((number, self.space.params(places), places))
        curves = [self._curve(earlier) for _ in settings]
        requests = [self._trial_request(params if number else {}) for number, params, _ in settings]
        outcomes = self._train(data, requests, curves)
        trials: list[Trial] = []
        for (number, params, places), curve, outcome in zip(
            settings, curves, outcomes, strict=True
        ):
            state = _state(outcome, curve)
            has_model = state in (COMPLETE, PRUNED)
            trial = Trial(
                number=number, params=params, places=places, state=state,
                larger_is_better=self._larger_is_better, curve=curve.values if has_model else [],
                metrics=curve.best_metrics if has_model else {}, seconds=curve.seconds,
            )  # fmt: skip
            trials.append(trial)
        return trials

    def tell(self, done: Sequence[Trial], n_fresh: int) -> None:
        """Log a line for each of the last trials."""
        for count in range(len(done) - n_fresh + 1, len(done) + 1):
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
            found = {**self.set_params, **best.params}
            write_text(folder / "best.json", json.dumps(found, indent=2) + "\n")
        try:
            plot_trials(trials, self.space, self.metric, str(folder / "trials.png"))
        except ImportError as err:
            log.warning("no trials.png: %s", err)

    def _places(self, earlier: Sequence[Trial], numbers: Sequence[int]) -> list[Places]:
        return SAMPLERS[self._sampler](self.space, self.request.spec.seed, numbers, earlier)

    def _start(self) -> dict[str, Any]:
        """Return the values of the estimator as it is, the optimizer's step sizes filled in."""
        spec = self.request.spec
        rates = {f"{group}Lr": getattr(spec, group).lr for group in ("bias", "linear", "factors")}
        return self.space.counting({**self._values, **rates})

    def _trial_request(self, params: Mapping[str, Any]) -> TrainConfig:
        request = self.stage(params)._request(self._dataset)
        return replace(request, refit="never", keep_snapshot=False, checkpoint_dir="")

    def _curve(self, earlier: Sequence[Trial]) -> _Curve:
        return _Curve(
            self.metric,
            larger_is_better=self._larger_is_better,
            rivals=[trial.costs for trial in earlier if trial.curve],
        )

    def _train(
        self, data: Trainer, requests: Sequence[TrainConfig], curves: Sequence[_Curve]
    ) -> Sequence[Outcome | ModelTooLargeError]:
        """Train together; when one is too large for the memory, each by itself."""
        try:
            return data.train(requests, callbacks=curves)
        except ModelTooLargeError as err:
            if len(requests) == 1:
                return [err]
        for curve in curves:
            curve.clear()
        pairs = zip(requests, curves, strict=True)
        return [self._train(data, [request], [curve])[0] for request, curve in pairs]


class _Curve:
    """Takes in the epochs of a trial; ends it when it is hopeless."""

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
        """Take in an epoch; return whether to go on."""
        self.seconds += report.seconds
        if self.pruned:
            return False  # of a job that had begun: no part of the trial
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
    """Tell whether a trial is to be stopped: the median stopping rule [1]_.

    Its least cost so far is above the median of what the trials of earlier rounds had
    reached by the same epoch, or by their end where that came sooner. Trials that were
    stopped count too: a median of the survivors alone would rise until it stopped good
    ones.

    Parameters
    ----------
    costs : sequence of float
        Of the trial after each epoch, small ones better; infinity where undefined.
    rivals : sequence of sequence of float
        Costs of the trials of earlier rounds.

    Returns
    -------
    bool
        False during the first ``GRACE_EPOCHS`` epochs, and with fewer than
        ``FEWEST_RIVALS`` rivals.

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
