"""In which order rows and exchanges are visited: a pure function of seed and place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.spec import TrainSpec

# Rows that are mixed as a whole; of more, so many pieces of so many rows at a time.
MIXED_WHOLE = 2**18
PIECE, MIXED_PIECES = 512, 32


@dataclass(frozen=True, slots=True)
class Visit:
    """One pass over the rows of a window: it decides their order, whoever makes it.

    Parameters
    ----------
    epoch, exchange, partition, window : int
    """

    epoch: int
    exchange: int = 0
    partition: int = 0
    window: int = 0

    def rng(self, spec: TrainSpec) -> np.random.Generator:
        """Return the generator of this pass."""
        words = (*spec.init_key, self.epoch, self.exchange, self.partition, self.window)
        return np.random.default_rng(np.random.SeedSequence(words))

    def order(self, spec: TrainSpec, n_rows: int) -> NDArray[np.int64]:
        """Return the order in which the rows are visited."""
        return mixed_order(self.rng(spec), n_rows) if spec.shuffle else np.arange(n_rows)


def mixed_order(rng: np.random.Generator, n_rows: int) -> NDArray[np.int64]:
    """Return the numbers below ``n_rows`` in random order, many of them near each other.

    Up to MIXED_WHOLE any order is as likely as any other. Beyond, pieces of PIECE rows in
    random order are mixed MIXED_PIECES at a time: a stretch of the order holds rows from
    everywhere, whose pages the processor's caches can keep. One permutation mixes all
    stretches, which hold other pieces in every pass: one for each would take three times
    as long; O(n_rows).
    """
    if n_rows <= MIXED_WHOLE:
        return rng.permutation(n_rows)
    starts = rng.permutation(-(-n_rows // PIECE)) * PIECE
    order = (starts[:, None] + np.arange(PIECE)).ravel()
    order = order[order < n_rows]
    stretch = MIXED_PIECES * PIECE
    whole = n_rows - n_rows % stretch
    mix = rng.permutation(stretch)
    order[:whole] = np.take(order[:whole].reshape(-1, stretch), mix, axis=1).ravel()
    rng.shuffle(order[whole:])
    return order


def exchange_order(spec: TrainSpec, n_exchanges: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's exchanges, another one each epoch.

    The rows of an exchange stay the same, and the rows seen last weigh most: in a fixed
    order these would always be the same ones.
    """
    if not spec.shuffle:
        return np.arange(n_exchanges)
    words = (*spec.init_key, epoch)
    return np.random.default_rng(np.random.SeedSequence(words)).permutation(n_exchanges)
