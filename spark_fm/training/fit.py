"""One fit of a model: what is trained, and which callbacks hear of it; driver only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.training import TrainingProgress
from spark_fm.training.callbacks import EpochCallback

CheckpointCallback = Callable[["Fit"], None]


@dataclass(slots=True)
class WorkerInfo:
    """Who made the passes of a training, as its tasks report."""

    workers: int = 1  # most partitions that trained in one pass
    gpus: set[str] = field(default_factory=set)  # host:address


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
