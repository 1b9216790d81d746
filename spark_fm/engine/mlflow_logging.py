"""Metrics of each epoch to the MLflow run that is active while a model trains; driver only."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from spark_fm.engine.history import EpochReport
from spark_fm.engine.model_training import Listener

log = logging.getLogger(__name__)


def logged_to_mlflow() -> Listener | None:
    """Return what logs each epoch to the active MLflow run, None where there is none.

    Notes
    -----
    Every column of the summary's history is a metric, the epoch is its step. MLflow is
    never imported here: before a caller imports it there is no active run. After a
    failure, of which one warning tells, no more is logged, and training goes on.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None:
        return None
    try:
        run = mlflow.active_run()
    except Exception as err:  # noqa: BLE001 - whatever MLflow raises, training goes on
        _warn(err)
        return None
    if run is None:
        return None
    works = True

    def tell(report: EpochReport) -> bool:
        nonlocal works
        if works:
            try:
                _log(mlflow, run.info.run_id, report.row())
            except Exception as err:  # noqa: BLE001 - likewise
                _warn(err)
                works = False
        return True

    return tell


def _log(mlflow: Any, run_id: str, row: dict[str, Any]) -> None:
    step, now = int(row.pop("epoch")), time.time_ns() // 10**6
    metrics = [mlflow.entities.Metric(name, float(v), now, step) for name, v in row.items()]
    mlflow.MlflowClient().log_batch(run_id, metrics=metrics)


def _warn(err: Exception) -> None:
    log.warning(
        "Epochs are not logged to MLflow any more, training goes on: %s: %s",
        type(err).__name__, err,
    )  # fmt: skip
