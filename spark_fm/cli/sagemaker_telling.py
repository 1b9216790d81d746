"""A training told in SageMaker's log grammar while it runs; driver only."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from spark_fm.cli.sagemaker_log import Reader, SageMakerLog, Span
from spark_fm.cli.testing import ChannelResult
from spark_fm.training.callbacks import EpochReport

_LOGGER = "spark_fm"
# Our names of metrics, and SageMaker's.
_NAMES = {
    "logloss": "binary_classification_cross_entropy",
    "accuracy": "binary_classification_accuracy",
    "f1": "binary_f_1.000",
    "rmse": "rmse",
    "mse": "mse",
    "mae": "absolute_loss",
}
# Undefined without rows of label 1: SageMaker's own code, MXNet's, takes it for 0.
_F_BETA = "binary_f_1.000"


class SageMakerTelling(logging.Handler):
    """Writes what the library logs, and of each epoch what SageMaker would.

    Parameters
    ----------
    log : SageMakerLog
    epochs : int
        How many there are at most.
    batch_size : int
        Rows an update.

    Notes
    -----
    Epochs come in stretches of up to 16 seconds, as jobs report them; the times in
    ``#metrics`` are those of the epochs, reckoned from how long each took.
    """

    def __init__(self, log: SageMakerLog, *, epochs: int, batch_size: int) -> None:
        super().__init__()
        self._log = log
        self._epochs = epochs
        self._batch_size = batch_size
        self._least_level = logging.INFO
        self._train = Reader()
        self._began = self._listens = self._at = log.now()
        self._last_epoch = -1
        self._last: Mapping[str, float] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the place of the log's other handlers inside the block."""
        logger = logging.getLogger(_LOGGER)
        others, level = list(logger.handlers), logger.level
        self._least_level = level
        self._listens = self._at = self._log.now()
        logger.handlers[:] = [self]
        logger.setLevel(min(level, logging.INFO))  # at which epochs are reported
        try:
            yield
        finally:
            logger.handlers[:] = others
            logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of the library's log."""
        report = getattr(record, "report", None)
        if report is None:
            if record.levelno >= self._least_level:
                self._log.note(record.getMessage(), record.levelname)
            if self._last_epoch < 0:
                self._at = record.created  # the training begins after the last word before it
        elif report.record.epoch > self._last_epoch:  # a refit counts from 0 again
            self.epoch(report, record.created)

    def epoch(self, report: EpochReport, now: float) -> None:
        """Write the lines of an epoch that a job has just reported."""
        log, number = self._log, report.record.epoch
        running = running_of(report)
        for batch in running["batches"]:
            log.quality("train", batch["metrics"], epoch=number, batch=batch["batch"])
        self._last = running["metrics"]
        log.quality("train", self._last, epoch=number)
        validation = validation_of(report)
        if validation:
            log.quality("validation", validation, epoch=number)
        span = Span(self._at, max(self._at, min(now, self._at + report.seconds)))
        measures: dict[str, float] = {"update.time": 1000 * report.seconds}
        if self._last_epoch < 0:
            before = {"initialize.time": 1000 * (self._at - self._listens)}
            measures = {**before, "epochs": self._epochs, **measures}
        log.measures(measures, span)
        log.progress(100 * (number + 1) / self._epochs)
        self._train.add_pass(report.n_rows, math.ceil(report.n_rows / self._batch_size))
        meta = "training_data_iter"
        log.measures(self._train.measures(), span, epoch=number, meta=meta)
        if report.seconds > 0:
            log.throughput(report.n_rows / report.seconds)
        self._at, self._last_epoch = span.end, number

    def trained(self) -> None:
        """Write the quality after the last epoch."""
        if 0 <= self._last_epoch < self._epochs - 1:
            self._log.progress(100.0)  # stopped early
        self._log.quality("train", self._last)

    def saved(self, path: str, seconds: float) -> None:
        """Write where the model was saved."""
        now = self._log.now()
        self._log.note(f"Saved the model to {path}")
        self._log.measures({"finalize.time": 1000 * seconds}, Span(now - seconds, now))

    def tested(self, result: ChannelResult, seconds: float) -> None:
        """Write the results of the test channel."""
        now = self._log.now()
        metrics = sagemaker_metrics(result.metrics)
        self._log.quality("test", metrics)
        reader = Reader()
        reader.add_pass(result.rows, math.ceil(result.rows / self._batch_size))
        self._log.measures(reader.measures(), Span(now - seconds, now), meta="test_data_iter")
        self._log.test_scores(metrics)

    def ended(self) -> None:
        """Write how long all took."""
        span = Span(self._began, self._log.now())
        setup = 1000 * (self._listens - self._began)
        self._log.measures({"setuptime": setup, "totaltime": span.milliseconds}, span)


def sagemaker_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics of ours under SageMaker's names, those that it has."""
    found = {_NAMES[name]: value for name, value in metrics.items() if name in _NAMES}
    if math.isnan(found.get(_F_BETA, 0.0)):
        found[_F_BETA] = 0.0
    return found


def running_of(report: EpochReport) -> dict[str, Any]:
    """Return an epoch's running metrics, or of a training that keeps none its loss."""
    if report.record.running is not None:
        return report.record.running
    loss = report.record.train_loss
    names = {"logloss": loss} if report.spec.loss == "logistic" else {
        "rmse": math.sqrt(loss), "mse": loss,
    }  # fmt: skip
    return {"metrics": sagemaker_metrics(names), "batches": []}


def validation_of(report: EpochReport) -> dict[str, float]:
    """Return the metrics of an epoch's validation, empty without one."""
    sums = report.record.validation
    return {} if sums is None else sagemaker_metrics(sums.values(report.spec.loss))
