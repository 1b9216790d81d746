"""How strongly features and groups of features act over many rows, in float64.

Runs on executors. With ``y_j = v_j x_j`` and ``s = sum_j y_j`` of a row (Rendle 2010,
eq. 5), all pairs of feature j together contribute ``<y_j, s - y_j>``, and all pairs
between two groups with sums s_a and s_b contribute ``<s_a, s_b>``: no pair is looked at
by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch, frozen
from spark_fm.learner.jit import njit
from spark_fm.learner.predict import table_positions

LINEAR, PAIRS, TOTAL = 0, 1, 2  # columns of a feature's sums


class FeatureEffects:
    """Sums of what each feature contributes to the margins of rows.

    Parameters
    ----------
    table : ndarray of shape (n, k + 1), float32
    features : ndarray of shape (n,), int32, optional
        Sorted feature ids of the table's rows.

    Attributes
    ----------
    counts : ndarray of shape (n,), int64
        Rows in which the feature is not zero.
    sums : ndarray of shape (n, 3), float64
        Sums over rows of |linear part|, |all its pairs together| and |both together|.
    """

    def __init__(
        self, table: NDArray[np.float32], features: NDArray[np.int32] | None = None
    ) -> None:
        self._table = frozen(np.ascontiguousarray(table, np.float32))
        self._features = features
        self.counts = np.zeros(len(table), np.int64)
        self.sums = np.zeros((len(table), 3))

    def add(self, batch: CsrBatch) -> None:
        """Add canonical rows; O(nnz k)."""
        entries = _entries(batch, self._features)
        _add_features(self._table, *entries, self.counts, self.sums)


class GroupEffects:
    """Sums of what groups and pairs of groups contribute to the margins of rows.

    Parameters
    ----------
    table : ndarray of shape (n, k + 1), float32
    group_of : ndarray of shape (n,), int32
        Group of each row of the table; -1 for none.
    n_groups : int
    features : ndarray of shape (n,), int32, optional
        Sorted feature ids of the table's rows.

    Attributes
    ----------
    linear : ndarray of shape (n_groups,), float64
        Sums over rows of |sum of the group's linear parts|.
    pairs : ndarray of shape (n_groups, n_groups), float64
        Sums over rows of |sum of the pairs between a and b|, for ``a <= b``; with ``a == b``
        the pairs within the group.
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
        self.linear = np.zeros(n_groups)
        self.pairs = np.zeros((n_groups, n_groups))

    def add(self, batch: CsrBatch) -> None:
        """Add canonical rows; O(nnz k + t^2 k) a row with entries in t groups."""
        entries = _entries(batch, self._features)
        _add_groups(self._table, *entries, self._group_of, self.linear, self.pairs)


def _entries(batch: CsrBatch, features: NDArray[np.int32] | None) -> tuple[NDArray[np.int64], ...]:
    places = batch.indices if features is None else table_positions(features, batch.indices)
    return tuple(frozen(array) for array in (batch.indptr, places, batch.values))


def _add_features_inplace(table, indptr, places, values, counts, sums):  # type: ignore[no-untyped-def]
    """Add the rows' contributions to ``counts`` and ``sums``, in place."""
    k = table.shape[1] - 1
    s = np.empty(k, np.float64)
    for r in range(len(indptr) - 1):
        s[:] = 0
        for p in range(indptr[r], indptr[r + 1]):
            j = places[p]
            if j >= 0:
                x = np.float64(values[p])
                for f in range(k):
                    s[f] += table[j, f] * x
        for p in range(indptr[r], indptr[r + 1]):
            j = places[p]
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
    table, indptr, places, values, group_of, linear, pairs
):
    """Add the rows' contributions to ``linear`` and ``pairs``, in place."""
    k = table.shape[1] - 1
    n_groups = len(linear)
    s = np.zeros((n_groups, k), np.float64)
    squares = np.zeros(n_groups, np.float64)
    own = np.zeros(n_groups, np.float64)
    is_here = np.zeros(n_groups, np.bool_)
    here = np.empty(n_groups, np.int64)
    for r in range(len(indptr) - 1):
        n_here = 0
        for p in range(indptr[r], indptr[r + 1]):
            j = places[p]
            if j < 0 or group_of[j] < 0:
                continue
            g = group_of[j]
            if not is_here[g]:
                is_here[g] = True
                here[n_here] = g
                n_here += 1
                s[g, :] = 0
                squares[g] = 0
                own[g] = 0
            x = np.float64(values[p])
            own[g] += table[j, k] * x
            for f in range(k):
                y = table[j, f] * x
                s[g, f] += y
                squares[g] += y * y
        for i in range(n_here):
            a = here[i]
            is_here[a] = False
            linear[a] += abs(own[a])
            for m in range(i, n_here):
                b = here[m]
                product = 0.0
                for f in range(k):
                    product += s[a, f] * s[b, f]
                if a == b:
                    product = 0.5 * (product - squares[a])
                pairs[min(a, b), max(a, b)] += abs(product)


_add_groups = njit(_add_groups_inplace, tag="group-effects")
