"""One pass over rows: in which order, and by which backend (CPU here, GPU in ``cuda``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import PassStats, train_inplace
from spark_fm.learner.predict import margins
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import TrainState


class Backend(Protocol):
    """Trains on rows and scores them: ``CpuBackend``, or ``cuda.trainer.CudaBackend``."""

    def run_epoch(
        self,
        state: TrainState,
        batch: CsrBatch,
        row_order: RowOrder,
        *,
        spec: Hyperparameters,
        step_scale: float = 1.0,
        scores: NDArray[np.float32] | None = None,
    ) -> PassStats:
        """Change ``state`` in place by one pass over all rows, as ``kernels.train_inplace``.

        ``scores`` takes the raw scores in the order of training.
        """

    def margins(
        self, batch: CsrBatch, table: NDArray[np.float32], bias: float
    ) -> NDArray[np.float32]:
        """Return the raw score of each row, as ``predict.margins``."""


class CpuBackend:
    """Trains row after row on one core."""

    def run_epoch(
        self,
        state: TrainState,
        batch: CsrBatch,
        row_order: RowOrder,
        *,
        spec: Hyperparameters,
        step_scale: float = 1.0,
        scores: NDArray[np.float32] | None = None,
    ) -> PassStats:
        """Change ``state`` in place by one pass over all rows."""
        order = row_order.order(spec, batch.n_rows)
        return train_inplace(state, batch, order, spec=spec, step_scale=step_scale, scores=scores)

    def margins(
        self, batch: CsrBatch, table: NDArray[np.float32], bias: float
    ) -> NDArray[np.float32]:
        """Return the raw score of each row."""
        return margins(batch, table, bias)


CPU_BACKEND = CpuBackend()


# Up to so many rows are shuffled at once; of more, so many chunks of so many rows at a time.
SHUFFLED_AT_ONCE = 2**18
CHUNK_ROWS, SHUFFLED_CHUNKS = 512, 32


@dataclass(frozen=True, slots=True)
class RowOrder:
    """The order of one pass over the rows of a shard, the same on every backend."""

    epoch: int
    round_index: int = 0
    partition: int = 0
    shard: int = 0

    def rng(self, spec: Hyperparameters) -> np.random.Generator:
        """Return the generator of this pass."""
        words = (*spec.init_key, self.epoch, self.round_index, self.partition, self.shard)
        return np.random.default_rng(np.random.SeedSequence(words))

    def order(self, spec: Hyperparameters, n_rows: int) -> NDArray[np.int64]:
        """Return row numbers in the order of training."""
        return shuffled_order(self.rng(spec), n_rows) if spec.shuffle else np.arange(n_rows)


def shuffled_order(rng: np.random.Generator, n_rows: int) -> NDArray[np.int64]:
    """Return the numbers below ``n_rows`` in random order, many of them near each other.

    Up to SHUFFLED_AT_ONCE any order is as likely as any other. Beyond, chunks of CHUNK_ROWS
    rows in random order are shuffled SHUFFLED_CHUNKS at a time: a stretch of the order holds
    rows from everywhere, whose pages the CPU's caches can keep. One permutation shuffles all
    stretches, which hold other chunks in every pass: one for each would take three times
    as long; O(n_rows).
    """
    if n_rows <= SHUFFLED_AT_ONCE:
        return rng.permutation(n_rows)
    starts = rng.permutation(-(-n_rows // CHUNK_ROWS)) * CHUNK_ROWS
    order = (starts[:, None] + np.arange(CHUNK_ROWS)).ravel()
    order = order[order < n_rows]
    stretch = SHUFFLED_CHUNKS * CHUNK_ROWS
    n_full = n_rows - n_rows % stretch
    permutation = rng.permutation(stretch)
    order[:n_full] = np.take(order[:n_full].reshape(-1, stretch), permutation, axis=1).ravel()
    rng.shuffle(order[n_full:])
    return order


def round_order(spec: Hyperparameters, n_rounds: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's rounds, another one each epoch.

    The rows of a round stay the same, and the rows seen last weigh most: in a fixed
    order these would always be the same ones.
    """
    if not spec.shuffle:
        return np.arange(n_rounds)
    words = (*spec.init_key, epoch)
    return np.random.default_rng(np.random.SeedSequence(words)).permutation(n_rounds)
