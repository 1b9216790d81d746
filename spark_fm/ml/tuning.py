"""Search for the hyperparameters that do best on the validation rows; driver only."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame

from spark_fm.errors import InvalidDataError, InvalidParamError, TrainingDivergedError
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.search import Search
from spark_fm.ml.search_space import SearchSpace
from spark_fm.ml.trial_plot import plot_trials
from spark_fm.ml.trials import Trial, TrialsFile, best_trial, trials_frame
from spark_fm.spark.schema import check_batch_frame, internal_rows
from spark_fm.training.trainer import TrainingSet, training_set

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
    with training_set(internal_rows(dataset, search.request.columns), search.request) as data:
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
    data: TrainingSet,
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
