"""The grammar of SageMaker's training logs, so that regular expressions made for it match.

Knows numbers, names and a stream, and neither Spark nor where the numbers come from. The
kinds of lines were taken from saved logs of SageMaker's factorization machines, and the
key order of ``#metrics`` from logs of 2021 and later.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from spark_fm.learner.metrics import RUNNING_METRICS

ALGORITHM = "factorization-machines"
HOST = "algo-1"
# What follows a metric's name, by name; the order in which they are told.
KINDS = {
    name: "score" if larger_is_better else "loss"
    for metrics in RUNNING_METRICS.values()
    for name, larger_is_better in metrics.items()
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
