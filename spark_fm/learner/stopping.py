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

    def observe(self, epoch: int, value: float) -> bool:
        """Take in an epoch's metric; return whether it is the new best."""
        if self.best_epoch < 0 and not math.isnan(value):
            improved = True
        else:
            gain = value - self.best_value if self.larger_is_better else self.best_value - value
            improved = gain > self.tol * abs(self.best_value)  # False for NaN
        if improved:
            self.best_value, self.best_epoch, self.waited = value, epoch, 0
        else:
            self.waited += 1
        return improved

    @property
    def should_stop(self) -> bool:
        """Whether patience is used up."""
        return 0 < self.patience <= self.waited
