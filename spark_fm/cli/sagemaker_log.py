"""The log of a training in the format of SageMaker's algorithm."""

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
from spark_fm.cli.outputs import write_line
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.metrics import RUNNING_METRICS
from spark_fm.training.callbacks import EpochReport

ALGORITHM = "factorization-machines"
HOST = "algo-1"
# What follows a metric's name, by name, in the order in which metrics are logged.
KINDS = {
    name: "score" if metric.larger_is_better else "loss"
    for metrics in RUNNING_METRICS.values()
    for name, metric in metrics.items()
}


@dataclass(frozen=True, slots=True)
class Span:
    """Start and end in seconds since 1970."""

    start: float
    end: float

    @property
    def milliseconds(self) -> float:
        return 1000 * (self.end - self.start)


@dataclass(slots=True)
class ReadCounts:
    """How much of a channel was read so far."""

    records: int = 0
    batches: int = 0
    max_records: int = 0  # in the largest pass
    max_batches: int = 0
    passes: int = 0
    last_records: int = 0  # in the latest pass
    last_batches: int = 0

    def add_pass(self, records: int, batches: int) -> None:
        """Count one pass over the channel."""
        self.records += records
        self.batches += batches
        self.max_records = max(self.max_records, records)
        self.max_batches = max(self.max_batches, batches)
        self.passes += 1
        self.last_records, self.last_batches = records, batches

    def measures(self) -> dict[str, int]:
        """Return the counts under SageMaker's names."""
        return {
            "Total Records Seen": self.records,
            "Total Batches Seen": self.batches,
            "Max Records Seen Between Resets": self.max_records,
            "Max Batches Seen Between Resets": self.max_batches,
            "Reset Count": self.passes,
            "Number of Records Since Last Reset": self.last_records,
            "Number of Batches Since Last Reset": self.last_batches,
        }


class SageMakerLog:
    """Writes lines in the format of SageMaker's logs."""

    def __init__(
        self,
        host: str = HOST,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Write to ``stream``, by default what standard output is when a line is written."""
        self.host = host
        self._stream = stream
        self.now = clock

    def note(self, text: str, level: str = "INFO") -> None:
        """Write text as one line."""
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
        """Write the metrics of a batch, an epoch or a training, a line each."""
        prefix = f"host={self.host}, "
        prefix += "" if epoch is None else f"epoch={epoch}, "
        prefix += "" if batch is None else f"batch={batch} "
        for name in _ordered(metrics):
            kind, value = KINDS[name], shown(metrics[name])
            self.note(f"#quality_metric: {prefix}{channel} {name} <{kind}>={value}")

    def test_scores(self, metrics: Mapping[str, float]) -> None:
        """Write the metrics of the test channel."""
        for name in _ordered(metrics):
            self.note(f"#test_score ({self.host}) : ('{name}', {shown(metrics[name])})")

    def progress(self, percent: float) -> None:
        """Write the percentage of epochs that are done."""
        self.note(f"#progress_metric: host={self.host}, completed {shown(percent)} % of epochs")

    def throughput(self, records_per_second: float) -> None:
        """Write the speed of the training."""
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
        """Write a structured line, as JSON; a measure is one number, or several."""
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
            "Metrics": {name: _summarize(values) for name, values in measures.items()},
        }
        self._write(f"#metrics {json.dumps(content, allow_nan=False)}")

    def _write(self, line: str) -> None:
        if self._stream is None:
            write_line(line, sys.stdout)
        else:
            print(line, file=self._stream, flush=True)


def shown(value: float) -> str:
    """Return a number with all its digits."""
    return repr(float(value))


def _ordered(metrics: Mapping[str, float]) -> list[str]:
    """Return the names in SageMaker's order; KeyError for one that it does not have."""
    unknown = set(metrics) - set(KINDS)
    if unknown:
        raise KeyError(f"not metrics of SageMaker: {', '.join(sorted(unknown))}")
    return [name for name in KINDS if name in metrics]


def _summarize(values: float | Sequence[float]) -> dict[str, float]:
    values = [values] if isinstance(values, int | float) else values
    return {
        "sum": float(sum(values)), "count": len(values), "min": min(values), "max": max(values),
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
_F1 = _NAMES["f1"]


class SageMakerLogCallback(logging.Handler):
    """Writes the library's log, and of each epoch what SageMaker would log.

    Epochs arrive together, once per job, up to 16 seconds apart; the times in ``#metrics``
    are those of the epochs, computed from how long each took.
    """

    def __init__(self, log: SageMakerLog, *, epochs: int, batch_size: int) -> None:
        """Expect at most ``epochs`` epochs, with updates of ``batch_size`` rows."""
        super().__init__()
        self._log = log
        self._epochs = epochs
        self._batch_size = batch_size
        self._min_level = logging.INFO
        self._train_counts = ReadCounts()
        self._created = self._attached = self._epoch_start = log.now()
        self._last_epoch = -1
        self._last_metrics: Mapping[str, float] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Replace the log's other handlers inside the block."""
        logger = logging.getLogger(_LOGGER)
        others, level = list(logger.handlers), logger.level
        self._min_level = level
        self._attached = self._epoch_start = self._log.now()
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
            if record.levelno >= self._min_level:
                self._log.note(record.getMessage(), record.levelname)
            if self._last_epoch < 0:
                self._epoch_start = record.created  # training starts after what is logged first
        elif report.record.epoch > self._last_epoch:  # a refit counts from 0 again
            self.on_epoch_end(report, record.created)

    def on_epoch_end(self, report: EpochReport, now: float) -> None:
        """Write the lines of an epoch that a job has just reported."""
        log, number = self._log, report.record.epoch
        running = progressive_metrics(report)
        for batch in running["batches"]:
            log.quality("train", batch["metrics"], epoch=number, batch=batch["batch"])
        self._last_metrics = running["metrics"]
        log.quality("train", self._last_metrics, epoch=number)
        if report.record.validation is not None:
            validation = report.record.validation.values(report.spec.loss)
            log.quality("validation", sagemaker_metrics(validation), epoch=number)
        start = self._epoch_start
        span = Span(start, max(start, min(now, start + report.seconds)))
        measures: dict[str, float] = {"update.time": 1000 * report.seconds}
        if self._last_epoch < 0:
            before = {"initialize.time": 1000 * (start - self._attached)}
            measures = {**before, "epochs": self._epochs, **measures}
        log.measures(measures, span)
        log.progress(100 * (number + 1) / self._epochs)
        self._train_counts.add_pass(report.n_rows, math.ceil(report.n_rows / self._batch_size))
        meta = "training_data_iter"
        log.measures(self._train_counts.measures(), span, epoch=number, meta=meta)
        if report.seconds > 0:
            log.throughput(report.n_rows / report.seconds)
        self._epoch_start, self._last_epoch = span.end, number

    def on_fit_end(self) -> None:
        """Write the metrics after the last epoch."""
        if 0 <= self._last_epoch < self._epochs - 1:
            self._log.progress(100.0)  # stopped early
        self._log.quality("train", self._last_metrics)

    def on_save_end(self, path: str, seconds: float) -> None:
        """Write where the model was saved."""
        now = self._log.now()
        self._log.note(f"Saved the model to {path}")
        self._log.measures({"finalize.time": 1000 * seconds}, Span(now - seconds, now))

    def on_test_end(self, result: ChannelMetrics, seconds: float) -> None:
        """Write the metrics of the test channel."""
        now = self._log.now()
        metrics = sagemaker_metrics(result.metrics)
        self._log.quality("test", metrics)
        counts = ReadCounts()
        counts.add_pass(result.rows, math.ceil(result.rows / self._batch_size))
        self._log.measures(counts.measures(), Span(now - seconds, now), meta="test_data_iter")
        self._log.test_scores(metrics)

    def on_end(self) -> None:
        """Write how long everything took."""
        span = Span(self._created, self._log.now())
        setup = 1000 * (self._attached - self._created)
        self._log.measures({"setuptime": setup, "totaltime": span.milliseconds}, span)


def sagemaker_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics under SageMaker's names, without those that it does not have."""
    renamed = {_NAMES[name]: value for name, value in metrics.items() if name in _NAMES}
    if math.isnan(renamed.get(_F1, 0.0)):
        renamed[_F1] = 0.0  # undefined without rows of label 1, for which SageMaker has 0
    return renamed


def progressive_metrics(report: EpochReport) -> dict[str, Any]:
    """Return an epoch's progressive metrics, or its loss if the training computes none."""
    if report.record.running is not None:
        return report.record.running
    loss = report.record.train_loss
    names = {"logloss": loss} if LOSSES[report.spec.loss].is_classifier else {
        "rmse": math.sqrt(loss), "mse": loss,
    }  # fmt: skip
    return {"metrics": sagemaker_metrics(names), "batches": []}
