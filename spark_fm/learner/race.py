"""Choose learning rates by a race on held-out rows; executors.

Successive halving: all candidates train for a few epochs, the better half of them for some more,
and so on (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016, figure 1). Where few rows are held out, all take turns: forty rows
alone would choose a rate that is far too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.state import NO_SCALING, initial_state
from spark_fm.learner.statistics import row_draws
from spark_fm.learner.training import (
    Parameters,
    TrainingProgress,
    advance,
    evaluate,
    new_stopping,
)

# Candidates are these times the learning rates of the optimizer; the first wins a tie.
FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25, 0.1)
# Epochs that a candidate has trained for at the end of each heat, and most that race in it.
HEATS = ((2, 6), (20, 3))
PATIENCE = 3
MOST_EPOCHS = HEATS[-1][0]
# Relative lead below which a better candidate is not worth leaving the optimizer's own rates.
TIE = 1e-3
FOLD_SEED = 20260401  # any number: folds must not be those of the validation rows


@dataclass(frozen=True, slots=True)
class RaceResult:
    """Which factor on the learning rates won, and what each candidate reached."""

    factor: float
    tried: list[dict[str, Any]]  # {"factor", "epochs", "value"}; a value is None if undefined
    # Where all rows took turns: the epochs that were best for it, and the metric after them, with
    # the factors and without. 0 and None: fewer rows judged.
    epochs: int = 0
    value: float | None = None
    linear: float | None = None


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
    scaling: Scaling = NO_SCALING,
    n_folds: int = 1,
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
    label_mean : float
        In units of the labels, from which ``scaling`` has made those of the rows.
    metric : str
        One of ``validation_metrics(spec.loss)``.
    n_folds : int
        1 judges by ``validation``; more cut all rows anew into as many parts, each of which judges
        those that train on the others.

    Notes
    -----
    At most ``n_folds * race_epochs()`` passes over ``train`` of O(nnz k) each.
    """
    train, validation = _without_gaps(train, validation)
    folds = [(train, validation)]
    if n_folds > 1:
        folds = _folds(CsrBatch.concat([train, validation]), n_folds)
    racers = [
        _Racer(factor, with_factor(spec, groups, factor), folds, metric, label_mean, scaling)
        for factor in FACTORS
    ]
    running = racers
    for epochs, n_candidates in HEATS:
        # Sorting is stable: the optimizer's own rates win a tie.
        running = sorted(running, key=lambda racer: racer.cost)[:n_candidates]
        for racer in running:
            racer.run(epochs)
    best = min(running, key=lambda racer: racer.cost)
    own = racers[0]
    if own in running and own.cost - best.cost <= TIE * abs(best.cost):
        best = own
    result = RaceResult(best.factor, [racer.to_dict() for racer in racers])
    if n_folds == 1 or math.isnan(best.value):
        return result
    epoch = best.stopping.best_epoch
    linear = None if math.isnan(best.linear[epoch]) else best.linear[epoch]
    return replace(result, epochs=epoch + 1, value=best.value, linear=linear)


class _Racer:
    """One candidate, with a training for each fold, all of them at the same epoch."""

    def __init__(
        self,
        factor: float,
        spec: Hyperparameters,
        folds: list[tuple[CsrBatch, CsrBatch]],
        metric: str,
        label_mean: float,
        scaling: Scaling,
    ) -> None:
        self.factor = factor
        self.stopping = new_stopping(spec, metric, patience=PATIENCE, tol=TIE)
        self._spec = spec
        self._metric = metric
        self._label_scale = scaling.label
        self._folds = folds
        self._trainings = []
        self.linear: list[float] = []  # by epoch, the metric without the factors; with folds
        self._n_epochs = 0
        self._has_diverged = False
        for train, validation in folds:
            counts = np.bincount(train.indices, minlength=_n_features(train, validation))
            state = initial_state(spec, counts, label_mean=label_mean, scaling=scaling)
            never = new_stopping(spec, metric, patience=0, tol=TIE)
            self._trainings.append(TrainingProgress(state, never))

    def run(self, epochs: int) -> None:
        """Go on until ``epochs`` epochs are done, or the mean over the folds gets no better."""
        while not (self._n_epochs == epochs or self.stopping.should_stop or self._has_diverged):
            values = []
            for progress, fold in zip(self._trainings, self._folds, strict=True):
                values.append(self._next_epoch(progress, *fold))
            self.stopping.observe(self._n_epochs, _mean(values))
            self._n_epochs += 1
            if len(self._folds) > 1:
                pairs = zip(self._trainings, self._folds, strict=True)
                self.linear.append(_mean([self._of_linear(each, fold[1]) for each, fold in pairs]))

    def _next_epoch(
        self, progress: TrainingProgress, train: CsrBatch, validation: CsrBatch
    ) -> float:
        """Train one epoch more; return its metric."""
        spec, sums = replace(self._spec, epochs=progress.epoch + 1), None
        try:
            for record in advance(
                progress, train, validation, spec,
                metric=self._metric, label_scale=self._label_scale,
            ):  # fmt: skip
                sums = record.validation
        except TrainingDivergedError:
            self._has_diverged = True
        # One that a divergence slowed down stands for another rate than its own.
        self._has_diverged |= progress.step_scale < 1
        return self._metric_of(sums)

    def _of_linear(self, progress: TrainingProgress, validation: CsrBatch) -> float:
        parameters = progress.average or Parameters.of(progress.state)
        return self._metric_of(
            evaluate(parameters.linear_part(), validation, self._spec, self._label_scale)
        )

    def _metric_of(self, sums: MetricSums | None) -> float:
        return math.nan if sums is None else sums.values(self._spec.loss)[self._metric]

    @property
    def value(self) -> float:
        """Best mean over the folds so far, NaN where it is undefined."""
        return math.nan if self._has_diverged else self.stopping.best_value

    @property
    def cost(self) -> float:
        """What to minimise: the value, or its negative."""
        if math.isnan(self.value):
            return math.inf
        return -self.value if self.stopping.larger_is_better else self.value

    def to_dict(self) -> dict[str, Any]:
        """Return what it reached, as in ``RaceResult.tried``."""
        return {
            "factor": self.factor,
            "epochs": self._n_epochs,
            "value": None if math.isnan(self.value) else self.value,
        }


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the defined values, NaN without any."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _folds(rows: CsrBatch, n_folds: int) -> list[tuple[CsrBatch, CsrBatch]]:
    """Return the rows to train and to judge on, for each part that judges."""
    fold = row_draws(rows, FOLD_SEED) % np.uint64(n_folds)
    parts = [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(n_folds)]
    return [(rows.take(a), rows.take(b)) for a, b in parts if len(a) and len(b)]


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
