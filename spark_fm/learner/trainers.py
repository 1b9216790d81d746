"""What makes a training pass: the processor, or another device in its place."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import PassStats, train_inplace
from spark_fm.learner.run import Visit
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import TrainState


class Trainer(Protocol):
    """Makes passes over rows."""

    def train_inplace(
        self,
        state: TrainState,
        batch: CsrBatch,
        visit: Visit,
        *,
        spec: TrainSpec,
        step_scale: float = 1.0,
        scores: NDArray[np.float32] | None = None,
    ) -> PassStats:
        """Change ``state`` in place by one visit of all rows, as ``kernels.train_inplace``.

        ``scores`` takes the raw scores in the order of the visit.
        """


class CpuTrainer:
    """Visits row after row on one core."""

    def train_inplace(
        self,
        state: TrainState,
        batch: CsrBatch,
        visit: Visit,
        *,
        spec: TrainSpec,
        step_scale: float = 1.0,
        scores: NDArray[np.float32] | None = None,
    ) -> PassStats:
        """Change ``state`` in place by one visit of all rows."""
        order = visit.order(spec, batch.n_rows)
        return train_inplace(state, batch, order, spec=spec, step_scale=step_scale, scores=scores)


CPU = CpuTrainer()
