"""Log lines of a training, as SageMaker's algorithm writes them."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from spark_fm.cli.evaluate import ChannelMetrics
from spark_fm.learner.metrics import RUNNING_METRICS
from spark_fm.training.callbacks import EpochReport

ALGORITHM = "factorization-machines"
HOST = "algo-1"
# What follows a metric's name, by name; the order in which they are told.
KINDS = {
    name: "score" if metric.larger_is_better else "loss"
    for metrics in RUNNING_METRICS.values()
    for name, metric in metrics.items()
}


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when something went on, in seconds since 1970."""

    start: float
    end: float

    @property
    def milliseconds(self) -> float:
        """How long that was."""
        return 1000 * (self.end - self.start)


@dataclass(slots=True)
class Reader:
    """What was read from a channel so far.

    Parameters
    ----------
    records, batches : int
        In all.
    most_records, most_batches : int
        In the largest pass.
    passes : int
    last_records, last_batches : int
        In the latest pass.
    """

    records: int = 0
    batches: int = 0
    most_records: int = 0
    most_batches: int = 0
    passes: int = 0
    last_records: int = 0
    last_batches: int = 0

    def add_pass(self, records: int, batches: int) -> None:
        """Count one pass over the channel."""
        self.records += records
        self.batches += batches
        self.most_records = max(self.most_records, records)
        self.most_batches = max(self.most_batches, batches)
        self.passes += 1
        self.last_records, self.last_batches = records, batches

    def measures(self) -> dict[str, int]:
        """Return the counts under SageMaker's names."""
        return {
            "Total Records Seen": self.records,
            "Total Batches Seen": self.batches,
            "Max Records Seen Between Resets": self.most_records,
            "Max Batches Seen Between Resets": self.most_batches,
            "Reset Count": self.passes,
            "Number of Records Since Last Reset": self.last_records,
            "Number of Batches Since Last Reset": self.last_batches,
        }


class SageMakerLog:
    """Writes lines of the grammar.

    Parameters
    ----------
    host : str, default "algo-1"
    stream : text file, optional
        Default: standard output, whichever that is when a line is written.
    clock : callable
        Returns seconds since 1970.
    """

    def __init__(
        self,
        host: str = HOST,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.host = host
        self._stream = stream
        self.now = clock

    def note(self, text: str, level: str = "INFO") -> None:
        """Write free text, as one line."""
        when = time.strftime("%m/%d/%Y %H:%M:%S", time.localtime(self.now()))
        line = " ".join(text.split())
        self._write(f"[{when} {level} {threading.get_ident()}] {line}")

    def quality(
        self,
        channel: str,
        metrics: Mapping[str, float],
        *,
        epoch: int | None = None,
        batch: int | None = None,
    ) -> None:
        """Write the quality of a batch, of an epoch or of the whole, a line a metric."""
        where = f"host={self.host}, "
        where += "" if epoch is None else f"epoch={epoch}, "
        where += "" if batch is None else f"batch={batch} "
        for name in _ordered(metrics):
            kind, value = KINDS[name], shown(metrics[name])
            self.note(f"#quality_metric: {where}{channel} {name} <{kind}>={value}")

    def test_scores(self, metrics: Mapping[str, float]) -> None:
        """Write the results of the test channel."""
        for name in _ordered(metrics):
            self.note(f"#test_score ({self.host}) : ('{name}', {shown(metrics[name])})")

    def progress(self, percent: float) -> None:
        """Write how much of the epochs is done."""
        self.note(f"#progress_metric: host={self.host}, completed {shown(percent)} % of epochs")

    def throughput(self, records_per_second: float) -> None:
        """Write how fast the training was."""
        rate = shown(records_per_second)
        self.note(f"#throughput_metric: host={self.host}, train throughput={rate} records/second")

    def measures(
        self,
        measures: Mapping[str, float | Sequence[float]],
        span: Span,
        *,
        epoch: int | None = None,
        meta: str | None = None,
    ) -> None:
        """Write a structured line, as JSON; one number a measure, or several."""
        dimensions: dict[str, Any] = {
            "Algorithm": ALGORITHM, "Host": self.host, "Operation": "training",
        }  # fmt: skip
        if epoch is not None:
            dimensions["epoch"] = epoch
        if meta is not None:
            dimensions["Meta"] = meta
        content = {
            "StartTime": span.start,
            "EndTime": span.end,
            "Dimensions": dimensions,
            "Metrics": {name: _summed(values) for name, values in measures.items()},
        }
        self._write(f"#metrics {json.dumps(content, allow_nan=False)}")

    def _write(self, line: str) -> None:
        stream = sys.stdout if self._stream is None else self._stream
        tqdm: Any = sys.modules.get("tqdm")
        if tqdm is not None and self._stream is None:
            tqdm.tqdm.write(line, file=stream)  # above a progress bar on the terminal
            stream.flush()
        else:
            print(line, file=stream, flush=True)


def shown(value: float) -> str:
    """Return a number as these logs have it: all its digits, never a space."""
    return repr(float(value))


def _ordered(metrics: Mapping[str, float]) -> list[str]:
    """Return the names in the grammar's order; a KeyError for one that it does not have."""
    unknown = set(metrics) - set(KINDS)
    if unknown:
        raise KeyError(f"no metrics of this grammar: {', '.join(sorted(unknown))}")
    return [name for name in KINDS if name in metrics]


def _summed(values: float | Sequence[float]) -> dict[str, float]:
    several = [values] if isinstance(values, int | float) else values
    return {
        "sum": float(sum(several)), "count": len(several), "min": min(several), "max": max(several),
    }  # fmt: skip


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


class SageMakerLogCallback(logging.Handler):
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
        running = progressive_metrics(report)
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

    def tested(self, result: ChannelMetrics, seconds: float) -> None:
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


def progressive_metrics(report: EpochReport) -> dict[str, Any]:
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
