"""ROC, precision-recall and calibration curves from the weight of either class by score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def areas(scores: NDArray[Any], positive: Floats, negative: Floats) -> tuple[float, float]:
    """Return ROC AUC and average precision; NaN where a class is missing.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Distinct scores, in any order; NaN ones are left out.
    positive, negative : ndarray of shape (n,), float64
        Weight of either class at each score.

    Notes
    -----
    Ties count half in the ROC AUC: it is the chance that a positive row scores higher
    than a negative one, plus half the chance that they score the same. The average
    precision is the sum over scores, from the highest down, of the precision down to
    there times the recall gained there. O(n log n).
    """
    scores = np.asarray(scores, np.float64)
    order = np.argsort(-scores)
    order = order[~np.isnan(scores[order])]
    hits, misses = np.cumsum(positive[order]), np.cumsum(negative[order])
    if not len(order) or not hits[-1] or not misses[-1]:
        return math.nan, math.nan
    recall = np.concatenate([[0.0], hits / hits[-1]])
    fall_out = np.concatenate([[0.0], misses / misses[-1]])
    precision = _ratio(hits, hits + misses)
    roc_auc = float(np.sum(np.diff(fall_out) * (recall[1:] + recall[:-1]) / 2))
    return roc_auc, float(np.sum(np.diff(recall) * precision))


@dataclass(frozen=True, slots=True, eq=False)
class ScoreGroups:
    """Rows grouped by score, from the highest score down.

    Parameters
    ----------
    score : ndarray of shape (n,), float64
        Weighted mean score of each group.
    threshold : ndarray of shape (n,), float64
        Lowest score of each group.
    positive, negative : ndarray of shape (n,), float64
        Weight of either class.
    """

    score: Floats
    threshold: Floats
    positive: Floats
    negative: Floats

    def thinned(self, n_groups: int) -> ScoreGroups:
        """Return at most ``n_groups`` groups, cut so that both axes of the ROC are covered."""
        shares = (w / w.sum() if w.sum() else w for w in (self.positive, self.negative))
        return self._merged(sum(shares, np.zeros(len(self.score))), n_groups)

    def equal_weights(self, n_groups: int) -> ScoreGroups:
        """Return at most ``n_groups`` groups of about equal weight: for calibration."""
        return self._merged(self.positive + self.negative, n_groups)

    def _merged(self, mass: Floats, n_groups: int) -> ScoreGroups:
        starts = run_starts(mass, n_groups)
        if not len(starts):
            return self
        weight = self.positive + self.negative
        total = np.add.reduceat(weight, starts)
        ends = np.append(starts[1:], len(mass)) - 1
        return ScoreGroups(
            score=_ratio(np.add.reduceat(weight * self.score, starts), total),
            threshold=self.threshold[ends],
            positive=np.add.reduceat(self.positive, starts),
            negative=np.add.reduceat(self.negative, starts),
        )

    def roc(self) -> dict[str, Floats]:
        """Return ``FPR`` and ``TPR`` of predicting 1 from each ``threshold`` on.

        The first point is (0, 0) at an infinite threshold, the last one (1, 1); NaN where
        a class is missing.
        """
        recall, fall_out, _ = self._rates()
        return {
            "FPR": np.concatenate([[0.0], fall_out]),
            "TPR": np.concatenate([[0.0], recall]),
            "threshold": np.concatenate([[np.inf], self.threshold]),
        }

    def precision_recall(self) -> dict[str, Floats]:
        """Return ``recall`` and ``precision`` of predicting 1 from each ``threshold`` on."""
        recall, _, precision = self._rates()
        return {"recall": recall, "precision": precision, "threshold": self.threshold}

    def calibration(self) -> dict[str, Floats]:
        """Return mean ``score``, share of positives (``rate``) and ``weight`` by group."""
        weight = self.positive + self.negative
        columns = (self.score, _ratio(self.positive, weight), weight)
        return dict(zip(("score", "rate", "weight"), (c[::-1] for c in columns), strict=True))

    def to_dict(self) -> dict[str, list[float]]:
        """Return plain data, for the model's metadata."""
        return {name: getattr(self, name).tolist() for name in self.__slots__}

    @classmethod
    def from_dict(cls, columns: dict[str, list[float]]) -> ScoreGroups:
        """Rebuild groups from ``to_dict``."""
        return cls(**{name: np.array(columns[name], np.float64) for name in cls.__slots__})

    def _rates(self) -> tuple[Floats, Floats, Floats]:
        hits, misses = np.cumsum(self.positive), np.cumsum(self.negative)
        return (
            _ratio(hits, hits[-1:]),
            _ratio(misses, misses[-1:]),
            _ratio(hits, hits + misses),
        )


def run_starts(mass: Floats, n_runs: int) -> NDArray[np.int64]:
    """Return where at most ``n_runs`` runs of about equal mass start.

    Parameters
    ----------
    mass : ndarray of shape (n,), float64
        >= 0; an element is never split, so one heavy element may be a run of its own.
    n_runs : int
    """
    if not mass.sum() > 0:
        return np.arange(len(mass))[:1]
    middle = np.cumsum(mass) - mass / 2
    run = np.minimum((middle / mass.sum() * n_runs).astype(np.int64), n_runs - 1)
    return np.flatnonzero(np.diff(run, prepend=-1))


def _ratio(part: Floats, whole: Floats) -> Floats:
    shape = np.broadcast_shapes(part.shape, whole.shape)
    ratio: Floats = np.divide(part, whole, out=np.full(shape, np.nan), where=whole > 0)
    return ratio
