"""What makes passes over rows: the processor, or another device in its place."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import PassStats, train_inplace
from spark_fm.learner.predict import margins
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import TrainState
from spark_fm.learner.visit import Visit


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

    def margins(
        self, batch: CsrBatch, table: NDArray[np.float32], bias: float
    ) -> NDArray[np.float32]:
        """Return the raw score of each row, as ``predict.margins``."""


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

    def margins(
        self, batch: CsrBatch, table: NDArray[np.float32], bias: float
    ) -> NDArray[np.float32]:
        """Return the raw score of each row."""
        return margins(batch, table, bias)


CPU = CpuTrainer()
