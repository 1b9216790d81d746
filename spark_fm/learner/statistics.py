"""Count features and rows, fingerprint batches, and split rows by hash; executors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.jit import njit

# Below this id counts are plain arrays, 24 bytes a feature; from it on, sorted ids.
DENSE_IDS = 2**22
CANDIDATES = 32
UNSCALED = 100.0  # times the median


@dataclass(frozen=True, slots=True)
class FeatureCounts:
    """Features seen, and their rows in training and validation set."""

    ids: NDArray[np.int32]  # sorted, without repetition
    train: NDArray[np.int64]
    validation: NDArray[np.int64]

    def to_table(self) -> NDArray[Any]:
        """Return a structured array, 12 bytes a feature, for transport."""
        return _to_table(self, _COUNTS)

    @classmethod
    def from_table(cls, data: bytes) -> FeatureCounts:
        """Rebuild the counts from the bytes of ``to_table``, or of a stretch of it."""
        return cls(**_from_table(data, _COUNTS))

    @classmethod
    def merge(cls, parts: Iterable[FeatureCounts]) -> FeatureCounts:
        """Add up the counts of several row sets; O(total ids log total ids)."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        empty = [np.empty(0, np.int32)]
        all_ids = np.concatenate(empty + [part.ids for part in parts])
        ids, index = np.unique(all_ids, return_inverse=True)
        sums = []
        for name in ("train", "validation"):
            total = np.zeros(len(ids), np.int64)
            counts = np.concatenate([np.empty(0, np.int64)] + [getattr(p, name) for p in parts])
            np.add.at(total, index, counts)
            sums.append(total)
        return cls(ids, *sums)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMoments:
    """Values of features in the rows that have them; arrays of shape (n,), ids ascending."""

    ids: NDArray[np.int32]
    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]  # sum of the squared differences from the mean

    @classmethod
    def of(cls, indices: NDArray[np.int32], values: NDArray[np.float32]) -> FeatureMoments:
        """Return the moments of the entries of some rows; O(nnz log nnz)."""
        ids, places, count = np.unique(indices, return_inverse=True, return_counts=True)
        x = values.astype(np.float64)
        mean = np.bincount(places, x, len(ids)) / count
        square = np.bincount(places, (x - mean[places]) ** 2, len(ids)).astype(np.float64)
        return cls(ids.astype(np.int32), count, mean, square)

    @classmethod
    def of_ones(cls, ids: NDArray[np.int32], count: NDArray[np.int64]) -> FeatureMoments:
        """Return the moments of features whose every value is 1."""
        return cls(ids, count, np.ones(len(ids)), np.zeros(len(ids)))

    def to_table(self) -> NDArray[Any]:
        """Return a structured array, 24 bytes a feature, for transport."""
        return _to_table(self, _MOMENTS)

    @classmethod
    def from_table(cls, data: bytes) -> FeatureMoments:
        """Rebuild the moments from the bytes of ``to_table``, or of a stretch of it."""
        return cls(**_from_table(data, _MOMENTS))

    @classmethod
    def merge(cls, parts: Iterable[FeatureMoments]) -> FeatureMoments:
        """Return the moments of several row sets together; O(total ids log total ids).

        Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances" (1979), eq. (2.1), for any number of sets at once.
        """
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        ids, places = np.unique(
            np.concatenate([np.empty(0, np.int32)] + [part.ids for part in parts]),
            return_inverse=True,
        )
        n, mean, square = (
            np.concatenate([np.empty(0)] + [getattr(part, name) for part in parts])
            for name in ("count", "mean", "square")
        )
        count = np.bincount(places, n, len(ids))
        total_mean = np.bincount(places, n * mean, len(ids)) / np.maximum(count, 1)
        between = n * (mean - total_mean[places]) ** 2
        total = np.bincount(places, square + between, len(ids)).astype(np.float64)
        return cls(ids, count.astype(np.int64), total_mean, total)


_COUNTS = np.dtype([("ids", "<i4"), ("train", "<i4"), ("validation", "<i4")])
_MOMENTS = np.dtype([("ids", "<i4"), ("count", "<i4"), ("mean", "<f8"), ("square", "<f8")])


def _to_table(columns: FeatureCounts | FeatureMoments, kind: np.dtype[Any]) -> NDArray[Any]:
    table = np.empty(len(columns.ids), kind)
    for name in kind.names or ():
        table[name] = getattr(columns, name)
    return table


def _from_table(data: bytes, kind: np.dtype[Any]) -> dict[str, NDArray[Any]]:
    """Return the columns by name; counts as int64."""
    table = np.frombuffer(data, kind)
    return {
        name: table[name].astype(np.int64)
        if name != "ids" and kind[name] == np.int32
        else np.ascontiguousarray(table[name])
        for name in kind.names or ()
    }


class FeatureCounter:
    """Counts over batches that arrive one after another."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, 0), np.int64)
        self._low = np.zeros(0, np.float32)
        self._high = np.zeros(0, np.float32)
        self._sparse: list[FeatureCounts] = []
        self._moments = np.zeros((3, 0))  # count, mean and squares of the values other than 1
        self._sparse_moments: list[FeatureMoments] = []

    def add(self, batch: CsrBatch, *, validation: bool) -> None:
        """Take in a batch; O(nnz), O(nnz log nnz) for ids of 2**22 and more."""
        if batch.nnz == 0:
            return
        indices, values = batch.indices, batch.values
        if int(indices.max()) >= DENSE_IDS:
            hashed = indices >= DENSE_IDS
            self._add_sparse(indices[hashed], values[hashed], validation)
            indices, values = indices[~hashed], values[~hashed]
            if len(indices) == 0:
                return
        top = int(indices.max())
        if top >= self._counts.shape[1]:
            self._grow(top + 1)
        _count(indices, values, self._counts[int(validation)], self._low, self._high)
        is_other = values != 1
        if is_other.any():
            missing = self._counts.shape[1] - self._moments.shape[1]
            if missing:
                self._moments = np.pad(self._moments, ((0, 0), (0, missing)))
            _add_moments(indices[is_other], values[is_other], *self._moments)

    def _grow(self, needed: int) -> None:
        size = max(needed, min(DENSE_IDS, 2 * self._counts.shape[1]))
        extra = size - self._counts.shape[1]
        self._counts = np.pad(self._counts, ((0, 0), (0, extra)))
        self._low = np.pad(self._low, (0, extra), constant_values=np.inf)
        self._high = np.pad(self._high, (0, extra), constant_values=-np.inf)

    def _add_sparse(
        self, indices: NDArray[np.int32], values: NDArray[np.float32], validation: bool
    ) -> None:
        ids, counts = np.unique(indices, return_counts=True)
        zeros = np.zeros(len(ids), np.int64)
        pair = (zeros, counts) if validation else (counts, zeros)
        self._sparse.append(FeatureCounts(ids, *pair))
        if len(self._sparse) > 16:
            self._sparse = [FeatureCounts.merge(self._sparse)]
        is_other = values != 1
        if is_other.any():
            self._sparse_moments.append(FeatureMoments.of(indices[is_other], values[is_other]))
            if len(self._sparse_moments) > 16:
                self._sparse_moments = [FeatureMoments.merge(self._sparse_moments)]

    def counts(self) -> FeatureCounts:
        """Return the counts so far."""
        seen = np.flatnonzero(self._counts.any(axis=0))
        dense = FeatureCounts(seen.astype(np.int32), *self._counts[:, seen])
        return FeatureCounts.merge([dense, *self._sparse])

    def moments(self) -> FeatureMoments:
        """Return the moments of the values other than 1: one-hot features have none."""
        seen = np.flatnonzero(self._moments[0])
        count, mean, square = self._moments[:, seen]
        dense = FeatureMoments(seen.astype(np.int32), count.astype(np.int64), mean, square)
        return FeatureMoments.merge([dense, *self._sparse_moments])

    def value_ranges(self) -> tuple[float, list[tuple[int, float, float]]]:
        """Return the median largest |x|, and (id, low, high) of the largest features."""
        top = np.maximum(np.abs(self._low), np.abs(self._high))
        seen = np.flatnonzero(self._counts.any(axis=0))
        if len(seen) == 0:
            return 0.0, []
        largest = seen[np.argsort(top[seen], kind="stable")[-CANDIDATES:]]
        ranges = [(int(j), float(self._low[j]), float(self._high[j])) for j in largest]
        # The lower of two middle ones: of two features, one may be far larger.
        return float(np.quantile(top[seen], 0.5, method="lower")), ranges


def unscaled_features(
    parts: list[tuple[float, list[tuple[int, float, float]]]],
) -> list[tuple[int, float, float]]:
    """Return (id, low, high) of features 100 times as large as the median one.

    ``parts`` are the ``FeatureCounter.value_ranges`` of each row set.
    """
    ranges: dict[int, tuple[float, float]] = {}
    for _, candidates in parts:
        for j, low, high in candidates:
            before = ranges.get(j, (low, high))
            ranges[j] = (min(low, before[0]), max(high, before[1]))
    medians = [part_median for part_median, candidates in parts if candidates]
    median = float(np.quantile(medians, 0.5, method="lower")) if medians else 0.0
    unscaled = [
        (j, low, high)
        for j, (low, high) in ranges.items()
        if max(abs(low), abs(high)) > UNSCALED * median > 0
    ]
    return sorted(unscaled, key=lambda item: -max(abs(item[1]), abs(item[2])))


def _count_loop(indices, values, counts, low, high):  # type: ignore[no-untyped-def]
    for p in range(len(indices)):
        j = indices[p]
        x = values[p]
        counts[j] += 1
        if x < low[j]:
            low[j] = x
        if x > high[j]:
            high[j] = x


_count = njit(_count_loop, tag="count-features")


def _add_moments_loop(indices, values, count, mean, square):  # type: ignore[no-untyped-def]
    # Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products" (1962).
    for p in range(len(indices)):
        j = indices[p]
        difference = values[p] - mean[j]
        count[j] += 1
        mean[j] += difference / count[j]
        square[j] += difference * (values[p] - mean[j])


_add_moments = njit(_add_moments_loop, tag="add-moments")


def validation_rows(
    batch: CsrBatch, fraction: float, seed: int, part: int = 0
) -> NDArray[np.bool_]:
    """Return which canonical rows belong to the validation set; their labels have no say in it.

    As ``row_draws`` has it; O(nnz + n_rows log n_rows).
    """
    if fraction <= 0:
        return np.zeros(batch.n_rows, bool)
    draws = row_draws(batch, seed, part)
    selected: NDArray[np.bool_] = (draws >> np.uint64(11)).astype(np.float64) < fraction * 2.0**53
    return selected


def row_draws(batch: CsrBatch, seed: int, part: int = 0) -> NDArray[np.uint64]:
    """Return a random number for each canonical row, by which rows are split.

    A row whose features no other row of the batch has gets their hash, wherever it stands. Of
    rows with equal features one gets it, and each other a number of its own. If equal rows went
    the same way, a label would be missing among the training rows wherever validation rows with
    these features have it. ``part`` is the batch's number; the order of its rows makes no
    difference, except between rows that differ in nothing but their weights.
    """
    cells = row_hashes(replace(batch, labels=np.zeros_like(batch.labels)), seed)
    if len(np.unique(cells)) == len(cells):
        return cells
    rows = row_hashes(batch, seed)
    order = np.argsort(rows, kind="stable")
    copies = np.empty(len(rows), np.uint64)
    copies[order] = _places_in_runs(rows[order])
    ranks = _mixed(_mixed(rows, np.uint64(part)), copies)
    order = np.lexsort((ranks, cells))
    first = order[_places_in_runs(cells[order]) == 0]
    draws: NDArray[np.uint64] = _mixed(ranks, np.uint64(1))
    draws[first] = cells[first]
    return draws


def _places_in_runs(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each of sorted values how many equal ones stand before it."""
    return np.arange(len(values)) - np.searchsorted(values, values)


def distinct_rows(batch: CsrBatch) -> int:
    """Return how many rows differ in labels, features or values; O(nnz + n_rows log n_rows)."""
    return len(np.unique(row_hashes(batch, 0)))


def row_hashes(batch: CsrBatch, seed: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each canonical row's label, feature ids and values.

    The MurmurHash3 finaliser (Appleby, public domain) folded over their words.
    """
    hashes: NDArray[np.uint64] = _row_hashes(
        batch.indptr,
        batch.indices.view(np.uint32),
        batch.values.view(np.uint32),
        batch.labels.astype(np.float32).view(np.uint32),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
    )
    return hashes


def _mixed(h, word):  # type: ignore[no-untyped-def]
    h = (h ^ word) * np.uint64(0xFF51AFD7ED558CCD)
    h = h ^ (h >> np.uint64(33))
    h = h * np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


_mix = njit(_mixed)


def _hash_loop(indptr, indices, values, labels, seed):  # type: ignore[no-untyped-def]
    hashes = np.empty(len(labels), np.uint64)
    for r in range(len(labels)):
        h = _mix(seed, np.uint64(labels[r]))
        for p in range(indptr[r], indptr[r + 1]):
            h = _mix(_mix(h, np.uint64(indices[p])), np.uint64(values[p]))
        hashes[r] = h
    return hashes


_row_hashes = njit(_hash_loop, tag="row-hashes")
