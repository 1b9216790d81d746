"""One fit of a model: what is trained, which callbacks hear of it, its outcome; driver only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.training import EpochRecord, Parameters, TrainingProgress, TrainingState
from spark_fm.training.callbacks import EpochCallback
from spark_fm.training.notes import LinearPart

CheckpointCallback = Callable[["Fit"], None]


@dataclass(slots=True)
class WorkerInfo:
    """Who made the passes of a training, and what came before them, as its tasks report."""

    workers: int = 1  # most partitions that trained in one pass
    gpus: set[str] = field(default_factory=set)  # host:address
    executors: dict[str, int] = field(default_factory=dict)  # partitions of each, of host:folder
    # Wall time of bringing the packed rows to where they train: into shards, or into one task.
    store_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Fit:
    """The initial fit of a model, or its refit on all rows.

    Whoever runs it advances ``progress`` to its end and calls ``on_epoch_end`` with each epoch,
    which returns False to end the fit there, and ``on_checkpoint`` wherever the fit may be
    resumed, at intervals of ``checkpoint_interval`` epochs or more.
    """

    progress: TrainingProgress
    spec: Hyperparameters  # ``epochs`` is the number at which the fit ends
    scaling: Scaling
    metric: str  # the validation metric that decides
    n_rows: int  # training rows of an epoch
    train_on_all: bool  # validation rows train too, and nothing is validated
    has_validation: bool
    worker_info: WorkerInfo
    on_epoch_end: EpochCallback
    on_checkpoint: CheckpointCallback | None = None
    checkpoint_interval: int = 1

    @property
    def epochs_left(self) -> int:
        """Most epochs that it still takes."""
        return 0 if self.progress.finished else self.spec.epochs - self.progress.epoch


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """The outcome of an initial fit."""

    parameters: Parameters
    scaling: Scaling
    best_epoch: int
    step_scale: float
    records: list[EpochRecord]
    linear: LinearPart | None  # None without held-out rows, or linear weights

    def to_state(self, state: TrainingState) -> None:
        """Add this to the training state of a refit."""
        state.metadata["first"] = {
            "bias": self.parameters.bias,
            "units": [self.scaling.label, self.scaling.weight, self.scaling.offset],
            "best_epoch": self.best_epoch,
            "step_scale": self.step_scale,
            "records": [record.to_dict() for record in self.records],
            "linear": None if self.linear is None else asdict(self.linear),
        }
        state.arrays["first"] = self.parameters.table

    @classmethod
    def from_state(cls, state: TrainingState) -> FitResult:
        """Rebuild the outcome from the training state of a refit."""
        saved = state.metadata["first"]
        return cls(
            Parameters(state.arrays["first"].copy(), saved["bias"]),
            Scaling(*saved["units"]),
            saved["best_epoch"],
            saved["step_scale"],
            [EpochRecord.from_dict(record) for record in saved["records"]],
            None if saved.get("linear") is None else LinearPart(**saved["linear"]),
        )
