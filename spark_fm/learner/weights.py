"""Parameters of a fitted model, and draws of them, frozen; driver, executors and servers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.predict import margins
from spark_fm.learner.spec import LossName


@dataclass(frozen=True, eq=False)
class FMWeights:
    """``w0``, ``w`` and ``V`` of a factorization machine."""

    bias: float  # w0
    # (n, k + 1), read-only: V in the first k columns, w in the last, so that one feature is one
    # stretch of memory
    table: NDArray[np.float32]
    feature_dim: int  # length of the feature vectors
    # (n,), sorted ids of the table's rows; None when row j is feature j and n == feature_dim
    features: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Make the arrays read-only: copies of a model share them."""
        self.table.flags.writeable = False
        if self.features is not None:
            self.features.flags.writeable = False

    @property
    def k(self) -> int:
        """Dimension of the factor vectors."""
        return int(self.table.shape[1]) - 1

    @property
    def linear(self) -> NDArray[np.float32]:
        """View of ``w``, shape (n,)."""
        return self.table[:, -1]

    @property
    def factors(self) -> NDArray[np.float32]:
        """View of ``V``, shape (n, k)."""
        return self.table[:, :-1]

    def margins(self, batch: CsrBatch) -> NDArray[np.float64]:
        """Return raw scores, of float32 sums but for the bias.

        Raises InvalidDataError for an id >= ``feature_dim``.
        """
        if batch.nnz:
            low, high = int(batch.indices.min()), int(batch.indices.max())
            if low < 0 or high >= self.feature_dim:
                raise InvalidDataError(
                    f"Feature index {low if low < 0 else high} is outside the model's range 0 to "
                    f"{self.feature_dim - 1}. Score vectors that were encoded like the training "
                    "data, or train with a larger featureDim."
                )
        return self.bias + margins(batch, self.table, 0.0, features=self.features).astype(float)

    def predict(self, batch: CsrBatch, loss: LossName) -> NDArray[np.float32]:
        """Return scores: probabilities under logistic loss, values under squared loss."""
        scores: NDArray[np.float32] = LOSSES[loss].link(self.margins(batch)).astype(np.float32)
        return scores


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Posterior:
    """Draws from the posterior, thinned, in units of features and labels.

    Parameters
    ----------
    members : tuple of FMWeights
    noise : ndarray of shape (n_members,), float64
        Standard deviation of a label about its score, with each member; 0 of a classifier.
    """

    members: tuple[FMWeights, ...]
    noise: NDArray[np.float64]

    @property
    def n_bytes(self) -> int:
        """Size of all tables."""
        return sum(member.table.nbytes for member in self.members)

    def predict(
        self, batch: CsrBatch, loss: LossName
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of each row, float64 of shape (n_rows,).

        Under squared loss those of the label, noise included; under logistic loss those of the
        probability. O(members nnz k).
        """
        total, squares = np.zeros(batch.n_rows), np.zeros(batch.n_rows)
        shift = 0.0 if loss == "logistic" else self.members[0].bias
        for member in self.members:
            score = LOSSES[loss].link(member.margins(batch)) - shift
            total += score
            squares += score**2
        mean = total / len(self.members)
        variance = np.maximum(squares / len(self.members) - mean**2, 0.0)
        return mean + shift, np.sqrt(variance + np.mean(self.noise**2))
