"""What moves a score: terms of single rows, and strengths of features over many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch, frozen
from spark_fm.learner.jit import njit
from spark_fm.learner.predict import table_positions
from spark_fm.learner.topk import offer, sort


@dataclass(frozen=True, slots=True)
class Explanations:
    """Strongest parts of the margins of n rows, strongest first, equal ones by feature."""

    margin: NDArray[np.float64]  # (n,), the bias plus all parts, listed or not
    linear_starts: NDArray[np.int64]  # (n + 1,), where the linear parts of each row start
    linear_entries: NDArray[np.int64]  # (n_linear,), entry of the batch
    linear: NDArray[np.float64]  # (n_linear,), w_j x_j
    other_linear: NDArray[np.float64]  # (n,), sum of the parts that are not listed
    pair_starts: NDArray[np.int64]  # (n + 1,)
    pair_entries: NDArray[np.int64]  # (n_pairs, 2), the smaller feature first
    pairs: NDArray[np.float64]  # (n_pairs,), <v_i, v_j> x_i x_j
    other_pairs: NDArray[np.float64]  # (n,)


def explain(
    batch: CsrBatch,
    table: NDArray[np.float32],
    bias: float,
    *,
    features: NDArray[np.int32] | None = None,
    num_pairs: int = 10,
    num_linear: int | None = None,
) -> Explanations:
    """Split margins of canonical rows into linear and pair parts.

    Without ``features``, ``indices < len(table)``, checked by the caller; ids outside
    ``features`` have a linear part of 0 and no pairs. ``num_linear`` None lists all linear
    parts. O(nnz^2 k) a row, because every pair is computed, and O(nnz k) memory.
    """
    table_rows = batch.indices if features is None else table_positions(features, batch.indices)
    lengths = np.diff(batch.indptr)
    known = np.concatenate([[0], np.cumsum(table_rows >= 0)])[batch.indptr]
    n_known = np.diff(known)
    n_linear = lengths if num_linear is None else np.minimum(lengths, num_linear)
    n_pairs = np.minimum(n_known * (n_known - 1) // 2, num_pairs)
    result = Explanations(
        margin=np.empty(batch.n_rows),
        linear_starts=_starts(n_linear),
        linear_entries=np.empty(int(n_linear.sum()), np.int64),
        linear=np.empty(int(n_linear.sum())),
        other_linear=np.empty(batch.n_rows),
        pair_starts=_starts(n_pairs),
        pair_entries=np.empty((int(n_pairs.sum()), 2), np.int64),
        pairs=np.empty(int(n_pairs.sum())),
        other_pairs=np.empty(batch.n_rows),
    )
    inputs = (np.ascontiguousarray(table, np.float32), batch.indptr, table_rows, batch.values)
    _explain_rows(
        *(frozen(array) for array in inputs), float(bias),
        result.margin,
        frozen(result.linear_starts), result.linear_entries, result.linear, result.other_linear,
        frozen(result.pair_starts), result.pair_entries, result.pairs, result.other_pairs,
    )  # fmt: skip
    return result


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _explain_into(  # type: ignore[no-untyped-def]
    table, indptr, table_rows, values, bias,
    margin, linear_starts, linear_entries, linear, other_linear,
    pair_starts, pair_entries, pairs, other_pairs,
):  # fmt: skip
    k = table.shape[1] - 1
    n_rows = len(indptr) - 1
    longest, most = 0, 0
    for r in range(n_rows):
        longest = max(longest, indptr[r + 1] - indptr[r])
        most = max(most, linear_starts[r + 1] - linear_starts[r])
        most = max(most, pair_starts[r + 1] - pair_starts[r])
    scaled = np.empty((longest, k), np.float64)
    known_entries = np.empty(longest, np.int64)
    keys = np.empty(most, np.float64)
    entries = np.empty(most, np.int64)
    for r in range(n_rows):
        first = indptr[r]
        n = indptr[r + 1] - first
        # Linear parts.
        start = linear_starts[r]
        room = linear_starts[r + 1] - start
        top, top_entries = keys[:room], entries[:room]  # views cost more than a pair
        size, linear_sum, n_known = 0, 0.0, 0
        for e in range(n):
            j = table_rows[first + e]
            part = 0.0
            if j >= 0:
                x = np.float64(values[first + e])
                part = table[j, k] * x
                for f in range(k):
                    scaled[n_known, f] = table[j, f] * x
                known_entries[n_known] = first + e
                n_known += 1
            linear_sum += part
            size = offer(top, top_entries, size, abs(part), first + e)
        sort(keys, entries, size)
        unlisted = linear_sum
        for i in range(size):
            j = table_rows[entries[i]]
            part = table[j, k] * np.float64(values[entries[i]]) if j >= 0 else 0.0
            linear_entries[start + i] = entries[i]
            linear[start + i] = part
            unlisted -= part
        other_linear[r] = unlisted if size < n else 0.0
        # Pair parts; the id of a pair combines its two entries.
        start = pair_starts[r]
        room = pair_starts[r + 1] - start
        top, top_entries = keys[:room], entries[:room]
        size, pair_sum = 0, 0.0
        weakest = -1.0 if room > 0 else np.inf  # of those entries, once there are enough
        for a in range(n_known):
            for b in range(a + 1, n_known):
                part = 0.0
                for f in range(k):
                    part += scaled[a, f] * scaled[b, f]
                pair_sum += part
                if abs(part) > weakest:
                    size = offer(top, top_entries, size, abs(part), a * n_known + b)
                    if size == room:
                        weakest = top[0]
        sort(keys, entries, size)
        unlisted = pair_sum
        for i in range(size):
            a, b = entries[i] // n_known, entries[i] % n_known
            part = 0.0
            for f in range(k):
                part += scaled[a, f] * scaled[b, f]
            pair_entries[start + i, 0] = known_entries[a]
            pair_entries[start + i, 1] = known_entries[b]
            pairs[start + i] = part
            unlisted -= part
        other_pairs[r] = unlisted if size < n_known * (n_known - 1) // 2 else 0.0
        margin[r] = bias + linear_sum + pair_sum


_explain_rows = njit(_explain_into, tag="explain")


LINEAR, PAIRS, TOTAL = 0, 1, 2  # columns of a feature's sums


class FeatureEffects:
    """Sums of what each feature contributes to the margins of rows."""

    def __init__(
        self, table: NDArray[np.float32], features: NDArray[np.int32] | None = None
    ) -> None:
        self._table = frozen(np.ascontiguousarray(table, np.float32))
        self._features = features
        self.counts = np.zeros(len(table), np.int64)  # rows in which the feature is not zero
        # Over rows: of |linear part|, |all its pairs together| and |both together|.
        self.sums = np.zeros((len(table), 3))

    def add(self, batch: CsrBatch) -> None:
        """Add canonical rows; O(nnz k)."""
        entries = _entries(batch, self._features)
        _add_features(self._table, *entries, self.counts, self.sums)


class GroupEffects:
    """Sums of what groups and pairs of groups contribute to the margins of rows.

    ``group_of`` has the group of each row of the table, -1 for none.
    """

    def __init__(
        self,
        table: NDArray[np.float32],
        group_of: NDArray[np.int32],
        n_groups: int,
        *,
        features: NDArray[np.int32] | None = None,
    ) -> None:
        self._table = frozen(np.ascontiguousarray(table, np.float32))
        self._features = features
        self._group_of = frozen(group_of)
        self.linear = np.zeros(n_groups)  # over rows, of |sum of the group's linear parts|
        # Over rows, of |sum of the pairs between a and b| for a <= b; a == b: within the group.
        self.pairs = np.zeros((n_groups, n_groups))

    def add(self, batch: CsrBatch) -> None:
        """Add canonical rows; O(nnz k + t^2 k) a row with entries in t groups."""
        entries = _entries(batch, self._features)
        _add_groups(self._table, *entries, self._group_of, self.linear, self.pairs)


def _entries(batch: CsrBatch, features: NDArray[np.int32] | None) -> tuple[NDArray[np.int64], ...]:
    table_rows = batch.indices if features is None else table_positions(features, batch.indices)
    return tuple(frozen(array) for array in (batch.indptr, table_rows, batch.values))


def _add_features_inplace(table, indptr, table_rows, values, counts, sums):  # type: ignore[no-untyped-def]
    """Add the rows' contributions to ``counts`` and ``sums``, in place."""
    k = table.shape[1] - 1
    s = np.empty(k, np.float64)
    for r in range(len(indptr) - 1):
        s[:] = 0
        for p in range(indptr[r], indptr[r + 1]):
            j = table_rows[p]
            if j >= 0:
                x = np.float64(values[p])
                for f in range(k):
                    s[f] += table[j, f] * x
        for p in range(indptr[r], indptr[r + 1]):
            j = table_rows[p]
            if j >= 0:
                x = np.float64(values[p])
                pairs = 0.0
                for f in range(k):
                    y = table[j, f] * x
                    pairs += y * (s[f] - y)
                linear = table[j, k] * x
                counts[j] += 1
                sums[j, LINEAR] += abs(linear)
                sums[j, PAIRS] += abs(pairs)
                sums[j, TOTAL] += abs(linear + pairs)


_add_features = njit(_add_features_inplace, tag="feature-effects")


def _add_groups_inplace(  # type: ignore[no-untyped-def]
    table, indptr, table_rows, values, group_of, linear, pairs
):
    """Add the rows' contributions to ``linear`` and ``pairs``, in place."""
    k = table.shape[1] - 1
    n_groups = len(linear)
    s = np.zeros((n_groups, k), np.float64)
    squares = np.zeros(n_groups, np.float64)
    linear_sums = np.zeros(n_groups, np.float64)
    is_here = np.zeros(n_groups, np.bool_)
    here = np.empty(n_groups, np.int64)
    for r in range(len(indptr) - 1):
        n_here = 0
        for p in range(indptr[r], indptr[r + 1]):
            j = table_rows[p]
            if j < 0 or group_of[j] < 0:
                continue
            g = group_of[j]
            if not is_here[g]:
                is_here[g] = True
                here[n_here] = g
                n_here += 1
                s[g, :] = 0
                squares[g] = 0
                linear_sums[g] = 0
            x = np.float64(values[p])
            linear_sums[g] += table[j, k] * x
            for f in range(k):
                y = table[j, f] * x
                s[g, f] += y
                squares[g] += y * y
        for i in range(n_here):
            a = here[i]
            is_here[a] = False
            linear[a] += abs(linear_sums[a])
            for m in range(i, n_here):
                b = here[m]
                product = 0.0
                for f in range(k):
                    product += s[a, f] * s[b, f]
                if a == b:
                    product = 0.5 * (product - squares[a])
                pairs[min(a, b), max(a, b)] += abs(product)


_add_groups = njit(_add_groups_inplace, tag="group-effects")
