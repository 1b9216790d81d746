"""Parameters that may become the model: the average of late epochs, or the last one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.jit import njit
from spark_fm.learner.metrics import MetricSums, metric_sums
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import TrainState
from spark_fm.learner.trainers import CPU, Trainer

# Weight of late epochs in the average: eta of Shamir and Zhang, "Stochastic Gradient
# Descent for Non-smooth Optimization" (ICML 2013), section 4, polynomial decay. Merged
# models are means already and need less of the past.
SERIAL_ETA = 1.0
MERGED_ETA = 8.0


@dataclass(slots=True)
class Candidate:
    """Parameters that may become the model: shape (n_features, k + 1), and the bias."""

    table: NDArray[np.float32]
    bias: float

    @classmethod
    def of(cls, state: TrainState) -> Candidate:
        """Copy the parameters out of a state."""
        return cls(state.parameters(), float(state.bias[0]))

    def copy(self) -> Candidate:
        """Return an independent copy."""
        return Candidate(self.table.copy(), self.bias)

    def move_towards_inplace(self, state: TrainState, epoch: int, eta: float) -> None:
        """Take epoch number ``epoch`` (from 0) into the polynomial-decay average."""
        share = (eta + 1) / (epoch + 1 + eta)
        _move_towards(self.table, state.rows, np.float32(share))
        self.bias += share * (float(state.bias[0]) - self.bias)


def _move_towards_loop(table, rows, share):  # type: ignore[no-untyped-def]
    for i in range(table.shape[0]):
        for f in range(table.shape[1]):
            table[i, f] += share * (rows[i, f] - table[i, f])


_move_towards = njit(_move_towards_loop, tag="move-towards")


def evaluate(
    candidate: Candidate,
    batch: CsrBatch,
    spec: TrainSpec,
    label_scale: float = 1.0,
    *,
    trainer: Trainer = CPU,
) -> MetricSums:
    """Return the metric sums of a candidate, in the caller's label units.

    ``trainer`` scores the rows.
    """
    scores = trainer.margins(batch, candidate.table, candidate.bias)
    scale = np.float32(label_scale)
    return metric_sums(spec.loss, scores * scale, batch.labels * scale, batch.weights)
