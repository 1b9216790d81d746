"""What follows a training: progress and history; driver only."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.training import EpochRecord

log = logging.getLogger(__name__)

CURVE_POINTS = 200
COMPILING = "compiling kernels (once): some seconds, later trainings on this machine load them"


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One finished epoch."""

    record: EpochRecord
    spec: Hyperparameters
    n_rows: int  # training rows visited
    # Wall time of the epoch as the driver saw it, or the task's own when one job ran several.
    seconds: float
    # Seconds of broadcast, train, merge and validate. When one task trains, broadcast is all of
    # the job but its arithmetic: its start, and the model's way there and back.
    phases: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Return the epoch's row of the summary's history."""
        record = self.record
        row: dict[str, Any] = {"epoch": record.epoch, "trainLoss": record.train_loss}
        if record.validation is not None:
            row["validationLoss"] = record.validation.mean_loss()
            for name, value in record.validation.values(self.spec.loss).items():
                row[f"validation_{name}"] = value
        row["rowsPerSecond"] = self.n_rows / self.seconds if self.seconds else float("nan")
        row["seconds"] = self.seconds
        row |= {f"{name}Seconds": value for name, value in self.phases.items()}
        row["compileSeconds"] = record.compile_seconds
        if record.sampled is not None:  # a sweep has no learning rate
            return row | record.sampled
        row["stepScale"] = record.step_scale
        for name in ("bias", "linear", "factors"):
            row[f"{name}Lr"] = getattr(self.spec, name).lr * record.step_scale
        row["rejected"] = record.n_rejected
        return row

    def text(self) -> str:
        """Return the log line."""
        row = self.row()
        parts = [f"epoch {row['epoch']}", f"loss {row['trainLoss']:.6g}"]
        parts += [
            f"{name.replace('validation_', 'validation ')} {value:.6g}"
            for name, value in row.items()
            if name.startswith("validation_")
        ]
        parts += [f"{row['rowsPerSecond']:,.0f} rows/s", f"{row['seconds']:.2f} s"]
        if row["compileSeconds"] > 1:
            parts.append(f"{row['compileSeconds']:.1f} s of it compiling kernels (once)")
        if self.record.n_rejected:
            parts.append(f"{row['rejected']} diverged attempt(s), steps now x{row['stepScale']:g}")
        return ", ".join(parts)


def reports_of(
    records: list[EpochRecord], n_rows: int, spec: Hyperparameters, job_seconds: float = 0.0
) -> list[EpochReport]:
    """Return a report of each epoch of a job; the job's own overhead is divided evenly."""
    inside = sum(r.train_seconds + r.validate_seconds for r in records)
    overhead = max(0.0, job_seconds - inside) / max(1, len(records))
    return [
        EpochReport(
            record=record,
            spec=spec,
            n_rows=n_rows,
            seconds=record.train_seconds + record.validate_seconds + overhead,
            phases={
                "train": max(0.0, record.train_seconds - record.compile_seconds),
                "validate": record.validate_seconds,
                "broadcast": overhead,
                "merge": 0.0,
            },
        )
        for record in records
    ]


EpochCallback = Callable[[EpochReport], bool]  # returns False to end the training


def validation_curve(history: list[EpochRecord], epoch: int) -> dict[str, Any] | None:
    """Return a classifier's validation rows of an epoch in groups by score, to draw curves of.

    None for a regressor, and for an epoch without validation.
    """
    for record in history:
        if record.epoch == epoch and record.validation is not None:
            groups = record.validation.histogram.groups()
            return groups.thinned(CURVE_POINTS).to_dict() if len(groups.score) else None
    return None


def running_history(history: list[EpochRecord], n_rows: int) -> list[dict[str, Any]]:
    """Return the running metrics of each epoch that has any, with its rows and seconds."""
    return [
        {"epoch": r.epoch, "rows": n_rows, "seconds": r.train_seconds, **r.running}
        for r in history
        if r.running is not None
    ]


class Progress:
    """Log a line an epoch; on a terminal or in a notebook also draw a bar.

    ``epochs`` are those of all models together, of which an interrupted run has shown
    ``n_shown``; ``what`` names the bar.
    """

    def __init__(self, epochs: int, what: str, *, n_shown: int = 0) -> None:
        self._bar = _bar(epochs, what, n_shown)

    def __call__(self, report: EpochReport, of: str = "") -> None:
        """Show a finished epoch; ``of`` names the model where several train."""
        # A handler that wants more than the text finds it in the record.
        log.info("%s%s", of and f"{of}, ", report.text(), extra={"report": report})
        if self._bar is not None:
            self._bar.set_postfix_str(report.text().split(", ", 1)[1])
            self._bar.update(1)

    def __enter__(self) -> Progress:
        """Start showing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def tell_compiling() -> None:
    """Say, before a pass that compiles, that it takes seconds this once."""
    log.info(COMPILING)
    if _is_watched():  # where nobody sets up a log, seconds without a word look like a hang
        sys.stderr.write(f"{COMPILING}\n")


def _is_watched() -> bool:
    """Return whether a person sees what is drawn: on a terminal, or in a notebook."""
    # ipykernel alone says nothing: libraries load it wherever it is installed.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel") or (sys.stderr is not None and sys.stderr.isatty())


def _bar(epochs: int, what: str, n_shown: int) -> Any:
    if not _is_watched():
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=epochs, initial=n_shown, desc=what, unit="epoch", dynamic_ncols=True)
