"""Rows shaped like Criteo's, of any number, whose best reachable log loss is known.

39 one-hot fields of very different sizes, ids drawn from Zipf's law in each, a million
features in all; labels are drawn from a hidden factorization machine. Rows are made in
chunks that depend on nothing but seed and number, so that workers can make their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks.datasets import Rows

N_FIELDS = 39
HIDDEN_FACTORS = 4


@dataclass(frozen=True)
class CriteoShape:
    """The recipe of a set.

    Parameters
    ----------
    n_features : int
    seed : int
    zipf : float
        Exponent of the popularity of ids, not 1; lower ones touch more features.
    """

    n_features: int = 1_000_000
    seed: int = 0
    zipf: float = 1.1

    def _rng(self, *words: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self.seed, *words)))

    def field_sizes(self) -> NDArray[np.int64]:
        """Return how many ids each field has: from a few to a quarter of all."""
        shares = np.geomspace(1e-5, 1, N_FIELDS)
        sizes = np.maximum(3, (shares / shares.sum() * self.n_features).astype(np.int64))
        sizes[-1] += self.n_features - sizes.sum()
        return sizes

    def hidden_machine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the linear weights and factors that the labels are drawn from."""
        return _hidden_machine(self)

    def chunk(self, number: int, n_rows: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return feature ids of shape (n_rows, 39), sorted, and the chance of label 1."""
        rng = self._rng(2, number)
        sizes = self.field_sizes()
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        # The inverse of a continuous Zipf law, cut at the size of the field.
        u = rng.random((n_rows, N_FIELDS))
        power = 1 - self.zipf
        ranks = ((sizes**power - 1) * u + 1) ** (1 / power)
        places = np.minimum(ranks.astype(np.int64) - 1, sizes - 1)
        ids = (starts + places).astype(np.int32)
        linear, factors = self.hidden_machine()
        sums = factors[ids].sum(1)
        squares = (factors[ids] ** 2).sum((1, 2))
        score = -1.2 + linear[ids].sum(1) + 0.5 * ((sums**2).sum(1) - squares)
        return ids, 1 / (1 + np.exp(-score))

    def rows(self, number: int, n_rows: int) -> tuple[Rows, float]:
        """Return a chunk with labels, and the log loss of the machine they come from."""
        ids, chance = self.chunk(number, n_rows)
        labels = (self._rng(3, number).random(n_rows) < chance).astype(np.float64)
        best = -np.mean(np.log(np.where(labels == 1, chance, 1 - chance)))
        indptr = np.arange(0, ids.size + 1, N_FIELDS, dtype=np.int64)
        values = np.ones(ids.size, np.float32)
        matrix = sp.csr_matrix((values, ids.ravel(), indptr), shape=(n_rows, self.n_features))
        return Rows(matrix, labels), float(best)


@lru_cache(maxsize=1)
def _hidden_machine(shape: CriteoShape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = shape._rng(1)
    linear = rng.normal(0, 0.25, shape.n_features)
    factors = rng.normal(0, 0.12, (shape.n_features, HIDDEN_FACTORS))
    return linear, factors
