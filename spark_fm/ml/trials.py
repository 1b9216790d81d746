"""Trials of a search, and the file from which an interrupted search resumes; driver only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spark_fm.errors import CheckpointError
from spark_fm.formats.files import atomic_write

COMPLETE, PRUNED, DIVERGED, TOO_LARGE = "complete", "pruned", "diverged", "too large"
FILE_NAME = "trials.jsonl"
_FORMAT = 1

UnitPoint = dict[str, float]  # a coordinate from 0 to 1 for each Param searched


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a search.

    Parameters
    ----------
    number : int
        From 0, which is the estimator as it was given.
    params : dict of str to Any
        Values of the searched Params that have an effect.
    places : dict of str to float
        The sampler's point in the unit cube.
    state : {"complete", "pruned", "diverged", "too large"}
    larger_is_better : bool
        Direction of the metric that decides.
    curve : list of float
        That metric on the validation rows after each epoch of the trial; empty without a
        model.
    metrics : dict of str to float
        All validation metrics of the best epoch; empty without one.
    seconds : float
        Wall time of its epochs, including those already running when the trial was pruned.
    """

    number: int
    params: dict[str, Any]
    places: UnitPoint
    state: str
    larger_is_better: bool
    curve: list[float]
    metrics: dict[str, float]
    seconds: float

    @property
    def costs(self) -> list[float]:
        """Return the curve with smaller values better, and infinity where undefined."""
        sign = -1.0 if self.larger_is_better else 1.0
        return [math.inf if math.isnan(value) else sign * value for value in self.curve]

    @property
    def cost(self) -> float:
        """Return the least cost; infinity without one."""
        return min(self.costs, default=math.inf)

    @property
    def best_epoch(self) -> int | None:
        """Return the first epoch of the least cost."""
        return self.costs.index(self.cost) if math.isfinite(self.cost) else None

    @property
    def value(self) -> float:
        """Return the metric at the best epoch, NaN without one."""
        return math.nan if self.best_epoch is None else self.curve[self.best_epoch]

    def to_json(self) -> str:
        """Return the trial as one line; NaN becomes null."""
        return json.dumps({k: _without_nan(v) for k, v in asdict(self).items()}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Trial:
        """Return the trial from a line of ``to_json``."""
        fields = json.loads(line)
        for name in ("curve", "metrics"):
            fields[name] = _with_nan(fields[name])
        return cls(**fields)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the first complete trial of the least cost; None without one."""
    complete = [trial for trial in trials if trial.state == COMPLETE and trial.cost < math.inf]
    return min(complete, key=lambda trial: trial.cost, default=None)


def trials_frame(trials: Sequence[Trial], metric: str) -> pd.DataFrame:
    """Return one row per trial: number, state, epochs, metrics, seconds, Params."""
    rows = []
    for trial in trials:
        others = {name: value for name, value in trial.metrics.items() if name != metric}
        rows.append(
            {
                "number": trial.number, "state": trial.state, "epochs": len(trial.curve),
                "bestEpoch": trial.best_epoch, metric: trial.value, **others,
                "seconds": round(trial.seconds, 3), **trial.params,
            }
        )  # fmt: skip
    # Objects, so that a whole number beside an empty cell stays a whole number.
    return pd.DataFrame(rows, dtype=object)


class TrialsFile:
    """Lines of JSON: the first describes the search, the others a trial each.

    ``about`` must agree for a search to resume, else CheckpointError is raised, as it is for a
    damaged file.
    """

    def __init__(self, folder: str | os.PathLike[str], about: dict[str, Any]) -> None:
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.trials: list[Trial] = []
        if not self.path.exists() or not self._read(about):
            self._write("w", [json.dumps({"format": _FORMAT, "about": about}, allow_nan=False)])

    def append(self, trials: Sequence[Trial]) -> None:
        """Add trials; they are on disk when this returns."""
        self._write("a", [trial.to_json() for trial in trials])
        self.trials += trials

    def _write(self, mode: str, lines: list[str]) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def _read(self, about: dict[str, Any]) -> bool:
        """Read the saved trials; return False if even the first line is incomplete."""
        text = self.path.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]  # a killed process may leave a partial line
        if not complete:
            return False
        advice = f"give another folder, or remove {self.path} to start over."
        head, *lines = complete.splitlines()
        try:
            saved_about = json.loads(head)["about"]
            self.trials = [Trial.from_json(line) for line in lines]
            if [trial.number for trial in self.trials] != list(range(len(lines))):
                raise ValueError("trials are missing or stand twice")
        except (ValueError, KeyError, TypeError) as err:
            raise CheckpointError(f"{self.path} is damaged ({err}); {advice}") from err
        differences = _differences(saved_about, about)
        if differences:
            raise CheckpointError(
                f"{self.path} holds the trials of another search: {'; '.join(differences)}. Use "
                f"the same data and Params to go on with it, or {advice}"
            )
        if len(complete) < len(text):
            os.truncate(self.path, len(complete.encode()))
        return True


def write_text(path: Path, content: str) -> None:
    """Write a file that appears under its name when it is whole."""
    with atomic_write(str(path)) as file:
        file.write(content.encode())


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Describe each difference; dicts are compared key by key."""
    texts = []
    for name in sorted(saved.keys() | current.keys()):
        before, now = saved.get(name), current.get(name)
        if before == now:
            continue
        if name == "data":
            texts.append("the rows, or the partitions they come in, are others")
        elif isinstance(before, dict) and isinstance(now, dict):
            texts += [
                f"{name} {key} is {before.get(key)!r} there and {now.get(key)!r} here"
                for key in sorted(before.keys() | now.keys())
                if before.get(key) != now.get(key)
            ]
        else:
            texts.append(f"{name} is {before!r} there and {now!r} here")
    return texts


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
