"""What labels and weights are divided by before training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spark_fm.learner.csr import CsrBatch


@dataclass(frozen=True)
class Units:
    """What labels and weights are divided by before training.

    Labels by their standard deviation, where a regressor asks for it; weights by their
    mean, so that only their ratios matter.
    """

    label: float = 1.0
    weight: float = 1.0

    def apply(self, batch: CsrBatch) -> CsrBatch:
        """Return the batch with labels and weights in these units."""
        labels, weights = batch.labels, batch.weights
        if self.label != 1.0:
            labels = labels / np.float32(self.label)
        if self.weight != 1.0:
            weights = weights / np.float32(self.weight)
        return CsrBatch(batch.indptr, batch.indices, batch.values, labels, weights)
