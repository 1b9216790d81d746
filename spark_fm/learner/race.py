"""Choose learning rates by a race on held-out rows; executors.

Successive halving: all candidates train for a few epochs, the better half of them for some more,
and so on (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016, figure 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.metrics import validation_metrics
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import initial_state
from spark_fm.learner.training import TrainingProgress, advance, new_stopping

# Candidates are these times the learning rates of the optimizer; the first wins a tie.
FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25, 0.1)
# Epochs that a candidate has trained for at the end of each heat, and most that race in it.
HEATS = ((2, 6), (20, 3))
PATIENCE = 3
# Relative lead below which a better candidate is not worth leaving the optimizer's own rates.
TIE = 1e-3


@dataclass(frozen=True, slots=True)
class RaceResult:
    """Which factor on the learning rates won, and what each candidate reached."""

    factor: float
    tried: list[dict[str, Any]]  # {"factor", "epochs", "value"}; a value is None if undefined


def with_factor(spec: Hyperparameters, groups: Sequence[str], factor: float) -> Hyperparameters:
    """Return the hyperparameters with the learning rates of some groups multiplied."""
    changed = {
        group: replace(getattr(spec, group), lr=scaled_rate(getattr(spec, group).lr, factor))
        for group in groups
    }
    return replace(spec, **changed)


def scaled_rate(rate: float, factor: float) -> float:
    """Return a learning rate times a factor, without the digits of rounding."""
    return float(f"{rate * factor:.9g}")


def race_epochs() -> int:
    """Return the most epochs that all candidates train for together."""
    total, before = 0, 0
    for epochs, n_candidates in HEATS:
        total += n_candidates * (epochs - before)
        before = epochs
    return total


def race(
    train: CsrBatch,
    validation: CsrBatch,
    spec: Hyperparameters,
    groups: Sequence[str],
    *,
    metric: str,
    label_mean: float,
    label_scale: float = 1.0,
) -> RaceResult:
    """Train candidates side by side and return the one that is best on the validation rows.

    Parameters
    ----------
    train, validation : CsrBatch
        Scaled rows; indices may have gaps.
    spec : Hyperparameters
        With the optimizer's own learning rates; ``epochs`` is not read, so that a training that
        is continued later has the rates of one that never stopped.
    groups : sequence of str
        Of "bias", "linear" and "factors", those whose learning rate is to be chosen.
    metric : str
        One of ``validation_metrics(spec.loss)``.

    Notes
    -----
    At most ``race_epochs()`` passes over ``train`` of O(nnz k) each.
    """
    train, validation = _without_gaps(train, validation)
    larger_is_better = validation_metrics(spec.loss)[metric].larger_is_better
    counts = np.bincount(train.indices, minlength=_n_features(train, validation))
    racers = []
    for factor in FACTORS:
        candidate = with_factor(spec, groups, factor)
        progress = TrainingProgress(
            state=initial_state(candidate, counts, label_mean=label_mean),
            stopping=new_stopping(candidate, metric, patience=PATIENCE, tol=TIE),
        )
        racers.append(_Racer(factor, candidate, progress, larger_is_better))
    running = racers
    for epochs, n_candidates in HEATS:
        # Sorting is stable: the optimizer's own rates win a tie.
        running = sorted(running, key=lambda racer: racer.cost)[:n_candidates]
        for racer in running:
            racer.run(train, validation, epochs, metric=metric, label_scale=label_scale)
    best = min(running, key=lambda racer: racer.cost)
    own = racers[0]
    if own in running and own.cost - best.cost <= TIE * abs(best.cost):
        best = own
    return RaceResult(best.factor, [racer.to_dict() for racer in racers])


@dataclass(slots=True, eq=False)
class _Racer:
    """One candidate."""

    factor: float
    spec: Hyperparameters
    progress: TrainingProgress
    larger_is_better: bool
    has_diverged: bool = field(default=False, init=False)

    @property
    def cost(self) -> float:
        """What to minimise: the best metric so far, or its negative."""
        value = self.progress.stopping.best_value
        if math.isnan(value) or self.has_diverged:
            return math.inf
        return -value if self.larger_is_better else value

    def run(
        self, train: CsrBatch, validation: CsrBatch, epochs: int, *, metric: str, label_scale: float
    ) -> None:
        """Go on until ``epochs`` epochs are done, or it gets no better."""
        spec = replace(self.spec, epochs=epochs)
        try:
            for _ in advance(
                self.progress, train, validation, spec, metric=metric, label_scale=label_scale
            ):
                pass
        except TrainingDivergedError:
            self.has_diverged = True
        # One that a divergence slowed down stands for another rate than its own.
        self.has_diverged |= self.progress.step_scale < 1

    def to_dict(self) -> dict[str, Any]:
        value = self.progress.stopping.best_value
        is_known = math.isfinite(value) and not self.has_diverged
        return {
            "factor": self.factor,
            "epochs": self.progress.epoch,
            "value": value if is_known else None,
        }


def _n_features(*batches: CsrBatch) -> int:
    return max((int(batch.indices.max()) + 1 for batch in batches if batch.nnz), default=0)


def _without_gaps(*batches: CsrBatch) -> list[CsrBatch]:
    """Renumber the features that these rows have, so that tables hold no others."""
    ids, places = np.unique(
        np.concatenate([batch.indices for batch in batches]), return_inverse=True
    )
    if len(ids) and int(ids[-1]) + 1 == len(ids):
        return list(batches)
    cuts = np.cumsum([batch.nnz for batch in batches])[:-1]
    return [
        replace(batch, indices=np.ascontiguousarray(indices, np.int32))
        for batch, indices in zip(batches, np.split(places, cuts), strict=True)
    ]
