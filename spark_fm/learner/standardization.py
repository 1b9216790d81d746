"""Standardize features before training, and fold that into the model after it; driver, executors.

A feature x_i trains as z_i = (x_i - m_i) / s_i. The model of w0, w and V on z is on x the one of

    V'  = V / s
    w'  = w / s - V' M + |V'|^2 m         with M = sum_i m_i V'_i
    w0' = w0 - sum_i w_i m_i / s_i + (|M|^2 - sum_i |V'_i|^2 m_i^2) / 2

because the pairs of z make (|X - M|^2 - sum_i |V'_i|^2 (x_i - m_i)^2) / 2, X = sum_i x_i V'_i
(Rendle 2010, lemma 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.jit import njit
from spark_fm.learner.predict import TablePositions, renumbered
from spark_fm.learner.statistics import FeatureMoments

# A feature is centred when its values differ and so many of all rows have it: a row without it
# then has an entry for it all the same.
CENTRED_FRACTION = 1 / 3
# Standard deviation, relative to the mean, below which values differ by rounding only.
CONSTANT = 1e-8
# Scales stay where float32 can hold them, their reciprocals, and products of the two; and above
# this fraction of the mean, whose square is lost from the digits of a score.
SMALLEST, LARGEST = 1e-30, 1e30
SMALLEST_OF_MEAN = 1 / 100

STRETCH = 2**16  # rows of a table at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Standardization:
    """Means and scales of the features that do not train as they are; arrays of shape (n,).

    All others, one-hot features above all, have mean 0 and scale 1.
    """

    ids: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))  # ascending
    means: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    scales: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # > 0
    n_added: int = 0  # entries of centred features that the rows do not have themselves

    @classmethod
    def of(cls, moments: FeatureMoments, n_rows: int, *, may_centre: bool) -> Standardization:
        """Choose means and scales for features with these moments among ``n_rows`` rows.

        Centred features, which most rows have, have their mean and standard deviation over all
        rows; the others mean 0 and the root mean square of the rows that have them.
        """
        n, mean, square = moments.count, moments.mean, moments.square
        differs = np.sqrt(square / n) > CONSTANT * np.abs(mean)
        is_centred = differs & (n >= CENTRED_FRACTION * n_rows) & may_centre
        over_all = n / n_rows * mean
        variance = (square + n * (mean - over_all) ** 2 + (n_rows - n) * over_all**2) / n_rows
        deviation = np.maximum(np.sqrt(variance), SMALLEST_OF_MEAN * np.abs(over_all))
        scales = np.where(is_centred, deviation, np.sqrt(mean**2 + square / n))
        scales = np.clip(scales, SMALLEST, LARGEST).astype(np.float32)
        means = np.where(is_centred, over_all, 0).astype(np.float32)
        used = (means != 0) | (scales != 1)
        return cls(
            moments.ids[used], means[used], scales[used],
            int((n_rows - n[used & (means != 0)]).sum()),
        )  # fmt: skip

    @property
    def changes_nothing(self) -> bool:
        """Whether all features train as they are."""
        return not len(self.ids)

    @property
    def digest(self) -> str:
        """Digest of all figures; "" where all features train as they are."""
        if self.changes_nothing:
            return ""
        arrays = (self.ids, self.means, self.scales)
        return sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]

    def apply(self, batch: CsrBatch, positions: TablePositions | None = None) -> CsrBatch:
        """Return the rows as they train; centred features have an entry in every row.

        Indices of ``batch`` are feature ids, whose places in ``ids`` the ``positions`` find.
        O(nnz + n_rows * centred features).
        """
        if self.changes_nothing:
            return batch
        places = (positions or TablePositions(self.ids)).of(batch.indices)
        centred = np.flatnonzero(self.means)
        indptr, indices, values = _standardize(
            batch.indptr, batch.indices, batch.values, places, self.means, self.scales,
            self.ids[centred], -self.means[centred] / self.scales[centred],
        )  # fmt: skip
        return replace(batch, indptr=indptr, indices=indices, values=values)

    def to_feature_units(
        self, table: NDArray[np.float32], bias: float, ids: NDArray[np.int32] | None
    ) -> tuple[NDArray[np.float32], float]:
        """Return the table and bias of the same scores on rows as they came.

        ``table`` has the shape (n_features, k + 1), V before w, and rows of the sorted ``ids``;
        None: of all ids. O(n_features k).
        """
        rows, m, s = self._of_table(len(table), ids)
        if not len(rows):
            return table, bias
        w = table[rows, -1] / s
        table = table.copy()
        table[rows, :-1] = table[rows, :-1] / s[:, None]
        v = table[rows, :-1].astype(np.float64)  # as rounded: what follows makes up for it
        own, mixed = _products(v, m)
        bias -= float(w @ m) - float(mixed @ mixed - own @ m**2) / 2
        if mixed.any():  # features that are not standardized interact with the means too
            _add_products(table, -mixed)
        w -= v @ mixed - own * m
        table[rows, -1] = w
        return table, bias + float((w - table[rows, -1]) @ m)

    def from_feature_units(
        self, table: NDArray[np.float32], bias: float, ids: NDArray[np.int32] | None
    ) -> tuple[NDArray[np.float32], float]:
        """Return what ``to_feature_units`` turns into this table and bias; O(n_features k)."""
        rows, m, s = self._of_table(len(table), ids)
        if not len(rows):
            return table, bias
        v, w = table[rows, :-1].astype(np.float64), table[rows, -1].astype(np.float64)
        own, mixed = _products(v, m)
        w = s * (w + v @ mixed - own * m)
        table = table.copy()
        bias += float(w @ (m / s)) - float(mixed @ mixed - own @ m**2) / 2
        if mixed.any():
            _add_products(table, mixed)
        table[rows, :-1] = v * s[:, None]
        table[rows, -1] = w
        return table, bias

    def centred_rows(self, n_features: int, ids: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """Return the rows of a table, as in ``to_feature_units``, of centred features."""
        rows, means, _ = self._of_table(n_features, ids)
        centred: NDArray[np.int32] = rows[means != 0]
        return centred

    def _of_table(
        self, n_features: int, ids: NDArray[np.int32] | None
    ) -> tuple[NDArray[np.int32], Floats, Floats]:
        """Return the rows of a table that are standardized, with their means and scales."""
        rows = np.where(self.ids < n_features, self.ids, -1)
        if ids is not None:
            rows = TablePositions(ids).of(self.ids)
        there = rows >= 0
        means, scales = (a[there].astype(np.float64) for a in (self.means, self.scales))
        return rows[there], means, scales


@dataclass(frozen=True, eq=False)
class Preparation:
    """What makes rows that train of packed ones: standardized, and numbered as the table's."""

    ids: NDArray[np.int32] | None  # ascending feature ids of the table's rows; None: all ids
    standardization: Standardization

    def apply(self, batch: CsrBatch) -> CsrBatch:
        """Return the rows as they train; a feature that the table lacks has index -1."""
        return renumbered(self.standardization.apply(batch, self._standardized), self._table_rows)

    @cached_property
    def _standardized(self) -> TablePositions:
        return TablePositions(self.standardization.ids)

    @cached_property
    def _table_rows(self) -> TablePositions | None:
        return None if self.ids is None else TablePositions(self.ids)

    @property
    def changes_nothing(self) -> bool:
        """Whether rows train as they were packed."""
        return self.ids is None and self.standardization.changes_nothing

    @property
    def n_bytes(self) -> int:
        """Size of the arrays."""
        return 12 * len(self.standardization.ids) + (0 if self.ids is None else self.ids.nbytes)


def _products(v: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Return |v_i|^2 of each feature, and sum_i m_i v_i."""
    own: Floats = np.einsum("if,if->i", v, v)
    return own, m @ v


def _add_products(table: NDArray[np.float32], vector: Floats) -> None:
    """Add v_i . vector to each w_i, in stretches: a float64 copy of all would be large."""
    for start in range(0, len(table), STRETCH):
        part = table[start : start + STRETCH]
        part[:, -1] += (part[:, :-1].astype(np.float64) @ vector).astype(np.float32)


def _standardize_loop(indptr, indices, values, places, means, scales, centred, empty):  # type: ignore[no-untyped-def]
    n_rows = len(indptr) - 1
    out_indptr = np.zeros(n_rows + 1, np.int64)
    for r in range(n_rows):
        missing = len(centred)
        for p in range(indptr[r], indptr[r + 1]):
            if places[p] >= 0 and means[places[p]] != 0:
                missing -= 1
        out_indptr[r + 1] = out_indptr[r] + indptr[r + 1] - indptr[r] + missing
    out_indices = np.empty(out_indptr[-1], np.int32)
    out_values = np.empty(out_indptr[-1], np.float32)
    for r in range(n_rows):
        out, c = out_indptr[r], 0
        for p in range(indptr[r], indptr[r + 1]):
            while c < len(centred) and centred[c] < indices[p]:
                out_indices[out], out_values[out] = centred[c], empty[c]
                out, c = out + 1, c + 1
            if c < len(centred) and centred[c] == indices[p]:
                c += 1
            x = np.float64(values[p])  # a difference of two float32 may be beyond float32
            if places[p] >= 0:
                x = (x - means[places[p]]) / scales[places[p]]
            out_indices[out], out_values[out] = indices[p], np.float32(x)
            out += 1
        while c < len(centred):
            out_indices[out], out_values[out] = centred[c], empty[c]
            out, c = out + 1, c + 1
    return out_indptr, out_indices, out_values


_standardize = njit(_standardize_loop, tag="standardize")
