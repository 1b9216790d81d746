"""A classifier's margins by class, counted in fixed bins, that partitions can add up."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.curves import ScoreGroups, areas
from spark_fm.learner.predict import sigmoid

Floats = NDArray[np.float64]

# Bins on either side of 0, and the margin below which half of them lie.
BINS = 4096
HALF = 4.0
_LARGEST = 1e30  # so that an infinite margin has a bin too


@dataclass(frozen=True, slots=True, eq=False)
class MarginHistogram:
    """Weight of either class by bin of the margin; empty bins are not kept.

    Parameters
    ----------
    bins : ndarray of shape (n,), int16
        Ascending, -4096 to 4096; negative bins hold the negative margins.
    positive, negative : ndarray of shape (n,), float64
        Weight of the rows of either class.

    Notes
    -----
    A margin m (the log-odds of label 1) belongs to bin ``floor(4096 m / (4 + |m|))``:
    exact arithmetic on every machine, 0.001 wide at m = 0, 0.004 at 4, 0.01 at 9, and
    every finite margin has one of 8,193 bins. Margins of one bin count as ties, that is
    half, in the ROC AUC. Against the exact areas of trained models on the test rows of
    a9a, frappe and ml-100k, well fitted and overfitted ones, the ROC AUC was off by
    6e-6 at most and the average precision by 8e-5. O(n_rows).
    """

    bins: NDArray[np.int16]
    positive: Floats
    negative: Floats

    @classmethod
    def empty(cls) -> MarginHistogram:
        """Return the histogram of no rows."""
        return cls(np.empty(0, np.int16), np.empty(0), np.empty(0))

    @classmethod
    def of(cls, margins: Floats, positive: NDArray[np.bool_], weights: Floats) -> MarginHistogram:
        """Count rows; all arrays of shape (n_rows,). NaN margins are left out."""
        known = ~np.isnan(margins)
        if not known.all():
            margins, positive, weights = margins[known], positive[known], weights[known]
        margins = np.clip(margins, -_LARGEST, _LARGEST)
        bins = np.floor(BINS * margins / (HALF + np.abs(margins))).astype(np.int64)
        return cls._counted(2 * (bins + BINS) + positive, weights)

    @classmethod
    def _counted(cls, cells: NDArray[np.int64], weights: Floats) -> MarginHistogram:
        """Add up weights by cell: even ones are of negative rows, odd ones of positive."""
        table = np.bincount(cells, weights, 2 * (2 * BINS + 1)).reshape(-1, 2)
        kept = np.flatnonzero(table.any(axis=1))
        return cls((kept - BINS).astype(np.int16), table[kept, 1], table[kept, 0])

    def __add__(self, other: MarginHistogram) -> MarginHistogram:
        """Return the histogram of both sets of rows."""
        if not len(self.bins) or not len(other.bins):
            return self if len(self.bins) else other
        bins = np.concatenate([self.bins, other.bins]).astype(np.int64) + BINS
        return self._counted(
            np.concatenate([2 * bins + 1, 2 * bins]),
            np.concatenate([self.positive, other.positive, self.negative, other.negative]),
        )

    def areas(self) -> tuple[float, float]:
        """Return ROC AUC and average precision; NaN where a class is missing."""
        return areas(self.bins, self.positive, self.negative)

    def confusion(self) -> tuple[float, float, float, float]:
        """Return true and false positives, false and true negatives, cut at margin 0."""
        said = self.bins >= 0
        return (
            float(self.positive[said].sum()),
            float(self.negative[said].sum()),
            float(self.positive[~said].sum()),
            float(self.negative[~said].sum()),
        )

    def groups(self) -> ScoreGroups:
        """Return the bins as groups of probabilities, a bin's middle for its rows."""
        bins = self.bins[::-1].astype(np.float64)
        return ScoreGroups(
            score=sigmoid(_margin(bins + 0.5)),
            threshold=sigmoid(_margin(bins)),
            positive=self.positive[::-1],
            negative=self.negative[::-1],
        )

    def to_text(self) -> str:
        """Return compressed text, for transport as JSON: some bytes a bin."""
        if not len(self.bins):
            return ""
        parts = (self.bins.astype("<i2"), self.positive.astype("<f8"), self.negative.astype("<f8"))
        return b64encode(zlib.compress(b"".join(part.tobytes() for part in parts))).decode()

    @classmethod
    def from_text(cls, text: str) -> MarginHistogram:
        """Rebuild a histogram from ``to_text``."""
        if not text:
            return cls.empty()
        data = zlib.decompress(b64decode(text))
        n = len(data) // 18
        positive, negative = np.frombuffer(data, "<f8", 2 * n, offset=2 * n).reshape(2, n)
        return cls(np.frombuffer(data, "<i2", n), positive, negative)


def _margin(edges: Floats) -> Floats:
    """Return the margins at bin edges: the inverse of the formula in the class."""
    share = np.clip(edges / BINS, -1 + 1e-9, 1 - 1e-9)
    margin: Floats = HALF * share / (1 - np.abs(share))
    return margin
