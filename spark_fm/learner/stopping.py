"""Early stopping on a validation metric; plain data, so that it can travel."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class EarlyStopping:
    """Remember the best epoch and say when to give up.

    Parameters
    ----------
    larger_is_better : bool
        Direction of the metric.
    patience : int
        Epochs without improvement before stopping (>= 0); 0 never stops.
    tol : float
        Smallest relative improvement that counts (>= 0).
    """

    larger_is_better: bool
    patience: int
    tol: float
    best_value: float = math.nan
    best_epoch: int = -1
    waited: int = 0
    mark: float = math.nan  # the value that the next one must beat by tol

    def observe(self, epoch: int, value: float) -> bool:
        """Take in an epoch's metric; return whether it is the new best.

        Any improvement makes an epoch the best one; only one by ``tol`` starts the
        count of epochs anew.
        """
        if math.isnan(value):
            self.waited += 1
            return False
        first = self.best_epoch < 0
        if first or self._gain(value, self.mark) > self.tol * abs(self.mark):
            self.mark, self.waited = value, 0
        else:
            self.waited += 1
        improved = first or self._gain(value, self.best_value) > 0
        if improved:
            self.best_value, self.best_epoch = value, epoch
        return improved

    def _gain(self, value: float, before: float) -> float:
        return value - before if self.larger_is_better else before - value

    @property
    def should_stop(self) -> bool:
        """Whether patience is used up."""
        return 0 < self.patience <= self.waited
