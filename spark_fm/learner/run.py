"""A training between two epochs, and the history of those behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.candidate import Candidate
from spark_fm.learner.metrics import METRICS, MetricSums
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import Layout, TrainState
from spark_fm.learner.stopping import EarlyStopping


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """History of one epoch."""

    epoch: int
    train_loss: float
    validation: MetricSums | None
    train_seconds: float
    validate_seconds: float
    compile_seconds: float
    step_scale: float
    n_rejected: int
    running: dict[str, Any] | None = None  # as ``running_metrics`` gives them

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for transport as JSON."""
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        sums = self.validation
        return {**facts, "validation": None if sums is None else sums.to_dict()}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> EpochRecord:
        """Rebuild a record from ``to_dict``."""
        sums = facts["validation"]
        validation = None if sums is None else MetricSums.from_dict(sums)
        return cls(**{**facts, "validation": validation})


@dataclass(slots=True)
class TrainRun:
    """A training between two epochs.

    Parameters
    ----------
    state : TrainState
    stopping : EarlyStopping
    epoch : int
        Next epoch.
    step_scale : float
        Factor on the step sizes, lowered by the safety net.
    loss_limit : float
        Mean loss above which an epoch counts as exploded; NaN before the first one.
    last_loss : float
        Mean squared loss of the last exchange, before that the variance of the labels;
        in the labels' units, for the merge rule.
    average, best : Candidate or None
    """

    state: TrainState
    stopping: EarlyStopping
    epoch: int = 0
    step_scale: float = 1.0
    loss_limit: float = float("nan")
    last_loss: float = float("nan")
    average: Candidate | None = None
    best: Candidate | None = None
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)

    def to_arrays(self, since: int = 0) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return plain data and arrays that ``from_arrays`` rebuilds the run from.

        Parameters
        ----------
        since : int
            First epoch whose history is included; earlier ones are known already.
        """
        arrays: dict[str, NDArray[Any]] = {"state": self.state.exchanged()}
        facts: dict[str, Any] = {
            "bias": self.state.bias.tolist(),
            "stopping": asdict(self.stopping),
            "epoch": self.epoch,
            "step_scale": self.step_scale,
            "loss_limit": self.loss_limit,
            "last_loss": self.last_loss,
            "finished": self.finished,
            "history": [record.to_dict() for record in self.history if record.epoch >= since],
        }
        for name, candidate in (("average", self.average), ("best", self.best)):
            facts[name] = None if candidate is None else candidate.bias
            if candidate is not None:
                arrays[name] = candidate.table
        return facts, arrays

    @classmethod
    def from_arrays(
        cls, layout: Layout, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]
    ) -> TrainRun:
        """Rebuild a run; its arrays are copied."""
        candidates = {
            name: None if facts[name] is None else Candidate(arrays[name].copy(), facts[name])
            for name in ("average", "best")
        }
        return cls(
            state=TrainState.from_exchanged(layout, arrays["state"], np.array(facts["bias"])),
            stopping=EarlyStopping(**facts["stopping"]),
            epoch=facts["epoch"],
            step_scale=facts["step_scale"],
            loss_limit=facts["loss_limit"],
            last_loss=facts["last_loss"],
            finished=facts["finished"],
            history=[EpochRecord.from_dict(record) for record in facts["history"]],
            **candidates,
        )

    def result(self) -> Candidate:
        """Return the parameters to keep: the best epoch's, otherwise the last ones."""
        return self.best or self.average or Candidate.of(self.state)


def loss_unit(spec: TrainSpec, label_scale: float) -> float:
    """Return what one unit of internal loss is in the caller's units."""
    return label_scale**2 if spec.loss == "squared" else 1.0


def new_stopping(spec: TrainSpec, metric: str, *, patience: int, tol: float) -> EarlyStopping:
    """Return a fresh EarlyStopping for one of the metrics of ``spec.loss``."""
    return EarlyStopping(METRICS[spec.loss][metric], patience, tol)
