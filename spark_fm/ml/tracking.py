"""Trainings and searches as runs of MLflow; driver only.

MLflow is never imported here: before a caller imports it, there is no active run. Whatever it
raises is a warning, and training continues; of a store that is gone a fit or search asks no more.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from spark_fm.ml.trials import COMPLETE, PRUNED, Trial
from spark_fm.training.callbacks import EpochCallback, EpochReport

if TYPE_CHECKING:
    from pyspark.ml.param import Params

    from spark_fm.ml.model import FactorizationMachineModel
    from spark_fm.ml.summary import FMTrainingSummary

log = logging.getLogger(__name__)

_PARENT = "mlflow.parentRunId"  # MLflow's tag of a nested run


@dataclass(frozen=True, slots=True)
class Autologging:
    """What ``spark_fm.mlflow.autolog`` was asked for; ``log_model`` is None for no models."""

    log_model: Callable[[FactorizationMachineModel], object] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # of runs that are made


_autologging: Autologging | None = None


def set_autologging(asked: Autologging | None) -> None:
    """Log every later training, or none of them."""
    global _autologging
    _autologging = asked


class _Store:
    """MLflow's store of runs, as a fit or search finds it; nothing is asked of one that is gone."""

    def __init__(self, *, warns: bool = True) -> None:
        self.gone = False
        self._warns = warns

    def attempt(self, what: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return what the call does; warn and return None where it fails."""
        if self.gone:
            return None
        try:
            return call(*args, **options)
        except Exception as err:  # noqa: BLE001 - whatever MLflow raises, training continues
            self.gone = _is_outage(err)
            log.log(
                logging.WARNING if self._warns else logging.DEBUG,
                "%s were not logged to MLflow%s, training continues: %s: %s",
                what, " and no more is logged" if self.gone else "", type(err).__name__, err,
            )  # fmt: skip
            return None


def _is_outage(err: BaseException | None) -> bool:
    """Return whether the store does not answer; one that refuses a value takes others."""
    while err is not None:
        status = getattr(err, "get_http_status_code", None)
        if isinstance(err, OSError) or (status is not None and status() >= 500):
            return True
        err = err.__cause__ or err.__context__
    return False


_store: ContextVar[_Store | None] = ContextVar("store", default=None)  # of the fit in progress


def _this_store() -> _Store:
    return _store.get() or _Store()


def active_run() -> Any:
    """Return the run that is active in this thread, or None."""
    if "mlflow" in sys.modules:
        # Of a module of that name that is not MLflow the function is missing.
        return _this_store().attempt("Runs", lambda: sys.modules["mlflow"].active_run())
    return None


def mlflow_callback() -> EpochCallback | None:
    """Return a callback that logs each epoch to the active run; None without one.

    Every column of the summary's history is a metric, the epoch is its step. After a failure no
    more is logged.
    """
    run = active_run()
    if run is None:
        return None
    store, works = _this_store(), True

    def log_epoch(report: EpochReport) -> bool:
        nonlocal works
        works = works and bool(store.attempt("Epochs", _log_history, run, [report.row()]))
        return True

    return log_epoch


Fits = Sequence[tuple["Params", "FactorizationMachineModel"]]


@contextmanager
def autologged() -> Iterator[Callable[[Fits], None]]:
    """Give autologging, where it is on, a run for what is done inside.

    The active run, or one that ends with the block. What the block is given takes the models
    that came out of it, with the estimators that have their Params. Fits that compare, within
    Spark's tuning, are not logged.
    """
    asked = None if _compares() else _autologging
    store = _Store()
    token = _store.set(store)
    made, status = None, "FAILED"
    try:
        if asked is not None and active_run() is None:
            start = sys.modules["mlflow"].start_run
            made = store.attempt("Runs", start, tags=dict(asked.tags))
        yield lambda fits: None if asked is None else _log_fits(asked, fits)
        status = "FINISHED"
    finally:
        _store.reset(token)
        if made is not None:  # a store that is gone is asked, too: the run must not stay active
            _Store(warns=not store.gone).attempt("Ends", sys.modules["mlflow"].end_run, status)


def _compares() -> bool:
    """Return whether this is a fold of Spark's tuning, or a class of its OneVsRest.

    Told by their tasks alone: a caller may fit in threads of its own, too.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in _TASKS and frame.f_globals["__name__"].startswith("pyspark.ml."):
            return True
        frame = frame.f_back
    return False


_TASKS = {"singleTask", "trainSingleClass"}  # what Spark's thread pools run


def log_trials(trials: Sequence[Trial], metric: str) -> None:
    """Log trials of a search as runs within the active one, if there is one."""
    run = active_run()
    if run is not None:
        store = _this_store()
        for trial in trials:
            store.attempt("Trials", _log_trial, run, trial, metric)


def _log_trial(run: Any, trial: Trial, metric: str) -> None:
    client = sys.modules["mlflow"].MlflowClient()
    now = _milliseconds()
    child = client.create_run(
        run.info.experiment_id, start_time=now - int(1000 * trial.seconds),
        tags={_PARENT: run.info.run_id, "state": trial.state}, run_name=f"trial {trial.number}",
    )  # fmt: skip
    try:
        _log_params(child, trial.params)
        name = f"validation_{metric}"
        _log_history(child, ({"epoch": e, name: value} for e, value in enumerate(trial.curve)))
        if trial.best_epoch is not None:
            values = {f"validation_{key}": value for key, value in trial.metrics.items()}
            best = {"bestEpoch": trial.best_epoch, **values}
            _log_history(child, [{"epoch": len(trial.curve), **best}])
    finally:
        status = {COMPLETE: "FINISHED", PRUNED: "KILLED"}.get(trial.state, "FAILED")
        client.set_terminated(child.info.run_id, status)


def _log_fits(asked: Autologging, fits: Fits) -> None:
    """Log a model to the active run; of several, each to a run within it."""
    run = active_run()
    if run is None:
        return
    if len(fits) == 1:
        _log_fit(asked, run, *fits[0])
        return
    for estimator, model in fits:
        _this_store().attempt("Models", _log_nested, asked, estimator, model)


def _log_nested(asked: Autologging, estimator: Params, model: FactorizationMachineModel) -> None:
    with sys.modules["mlflow"].start_run(nested=True) as child:
        if model.summary is not None:
            _this_store().attempt("Epochs", _log_history, child, model.summary.rows)
        _log_fit(asked, child, estimator, model)


def _log_fit(
    asked: Autologging, run: Any, estimator: Params, model: FactorizationMachineModel
) -> None:
    """Log what can be logged: a run that has other Params from an earlier fit refuses these."""
    store = _this_store()
    is_set = [param for param in estimator.params if estimator.isSet(param)]
    values = {param.name: estimator.getOrDefault(param) for param in is_set}
    store.attempt("Params", _log_params, run, values)
    if model.summary is not None:
        store.attempt("Metrics", _log_history, run, [_best_of(model.summary)])
        store.attempt("Plots", _log_plot, run, model.summary)
    if asked.log_model is not None:
        store.attempt("Models", asked.log_model, model)


def _best_of(summary: FMTrainingSummary) -> dict[str, float]:
    """Return the best epoch's metrics, in a step after the last: runs are compared by the latest.

    MLflow's own flavours do so with the best of their iterations.
    """
    row = summary.rows[summary.bestEpoch]
    found = {name: row[name] for name in row if name.startswith(("trainLoss", "validation"))}
    simpler = {"baseline": summary.baseline, "linearLoss": summary.linearLoss}
    found |= {name: value for name, value in simpler.items() if value is not None}
    if summary.facts.get("linearKept"):
        found["validationLoss"] = summary.linearLoss  # of the model that was kept
    return {"epoch": summary.totalIterations, "bestEpoch": summary.bestEpoch, **found}


def _log_plot(run: Any, summary: FMTrainingSummary) -> None:
    try:
        figure = summary.plot()
    except ImportError as err:
        log.info("no summary.png: %s", err)
        return
    sys.modules["mlflow"].MlflowClient().log_figure(run.info.run_id, figure, "summary.png")


def _log_params(run: Any, params: Mapping[str, Any]) -> None:
    mlflow = sys.modules["mlflow"]
    pairs = [mlflow.entities.Param(name, _public(value)) for name, value in params.items()]
    mlflow.MlflowClient().log_batch(run.info.run_id, params=pairs)


def _public(value: Any) -> str:
    """Return a value as text; of a URI without user, password and query, which may be secrets."""
    text = str(value)
    return _SECRETS.sub("", text) if "://" in text else text


# A user in front of a host; secret keys may hold slashes, a colon before a number is a port's.
_SECRETS = re.compile(r"(?<=://)(?:[^/?#]*@|[^/?#@]*:(?!\d+/)[^?#]*@)|[?#].*", re.DOTALL)


def _log_history(run: Any, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Log rows of a history; each has an ``epoch``, its step. Return that it is done."""
    mlflow, now = sys.modules["mlflow"], _milliseconds()
    metrics = [
        mlflow.entities.Metric(name, float(value), now, int(row["epoch"]))
        for row in rows
        for name, value in row.items()
        if name != "epoch"
    ]
    for start in range(0, len(metrics), _MOST_METRICS):
        batch = metrics[start : start + _MOST_METRICS]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=batch)
    return True


_MOST_METRICS = 1000  # that MLflow takes in a request


def _milliseconds() -> int:
    return time.time_ns() // 10**6
