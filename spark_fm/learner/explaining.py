"""The parts of a score: bias, linear terms and pair terms of each row, in float64.

Runs on executors. With ``y_j = v_j x_j`` the margin is
``w0 + sum_j w_j x_j + sum_{i<j} <y_i, y_j>`` (Rendle 2010, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch, frozen
from spark_fm.learner.jit import njit
from spark_fm.learner.predict import table_positions
from spark_fm.learner.strongest import offer, sort


@dataclass(frozen=True, slots=True)
class Explanations:
    """Strongest parts of the margins of n rows, strongest first, equal ones by feature.

    Parameters
    ----------
    margin : ndarray of shape (n,), float64
        ``bias`` plus all parts, listed or not.
    linear_starts, pair_starts : ndarray of shape (n + 1,), int64
        Where the parts of each row start in the arrays below.
    linear_entries : ndarray of shape (n_linear,), int64
        Entry of the batch that each linear part belongs to.
    linear : ndarray of shape (n_linear,), float64
        ``w_j x_j``.
    pair_entries : ndarray of shape (n_pairs, 2), int64
        The two entries of each pair part, the smaller feature first.
    pairs : ndarray of shape (n_pairs,), float64
        ``<v_i, v_j> x_i x_j``.
    other_linear, other_pairs : ndarray of shape (n,), float64
        Sums of the parts that are not listed.
    """

    margin: NDArray[np.float64]
    linear_starts: NDArray[np.int64]
    linear_entries: NDArray[np.int64]
    linear: NDArray[np.float64]
    other_linear: NDArray[np.float64]
    pair_starts: NDArray[np.int64]
    pair_entries: NDArray[np.int64]
    pairs: NDArray[np.float64]
    other_pairs: NDArray[np.float64]


def explain(
    batch: CsrBatch,
    table: NDArray[np.float32],
    bias: float,
    *,
    features: NDArray[np.int32] | None = None,
    num_pairs: int = 10,
    num_linear: int | None = None,
) -> Explanations:
    """Take margins apart.

    Parameters
    ----------
    batch : CsrBatch
        Canonical rows; without ``features``, ``indices < len(table)``, checked by the
        caller.
    table : ndarray of shape (n_features, k + 1), float32
    bias : float
    features : ndarray of shape (n_features,), int32, optional
        Sorted feature ids of the table's rows. An id that is not there has a linear part
        of 0 and no pairs.
    num_pairs : int
        Pairs to list a row (>= 0).
    num_linear : int, optional
        Linear parts to list a row (>= 0); None lists all.

    Notes
    -----
    O(nnz^2 k) a row, because every pair is looked at, and O(nnz k) memory.
    """
    places = batch.indices if features is None else table_positions(features, batch.indices)
    lengths = np.diff(batch.indptr)
    known = np.concatenate([[0], np.cumsum(places >= 0)])[batch.indptr]
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
    inputs = (np.ascontiguousarray(table, np.float32), batch.indptr, places, batch.values)
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
    table, indptr, places, values, bias,
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
    own = np.empty(longest, np.int64)
    keys = np.empty(most, np.float64)
    kept = np.empty(most, np.int64)
    for r in range(n_rows):
        first = indptr[r]
        n = indptr[r + 1] - first
        # Linear parts.
        start = linear_starts[r]
        room = linear_starts[r + 1] - start
        top, top_kept = keys[:room], kept[:room]  # views cost more than a pair
        size, linear_sum, n_known = 0, 0.0, 0
        for e in range(n):
            j = places[first + e]
            part = 0.0
            if j >= 0:
                x = np.float64(values[first + e])
                part = table[j, k] * x
                for f in range(k):
                    scaled[n_known, f] = table[j, f] * x
                own[n_known] = first + e
                n_known += 1
            linear_sum += part
            size = offer(top, top_kept, size, abs(part), first + e)
        sort(keys, kept, size)
        rest = linear_sum
        for i in range(size):
            j = places[kept[i]]
            part = table[j, k] * np.float64(values[kept[i]]) if j >= 0 else 0.0
            linear_entries[start + i] = kept[i]
            linear[start + i] = part
            rest -= part
        other_linear[r] = rest if size < n else 0.0
        # Pair parts; a pair's place is the number of its two entries in one.
        start = pair_starts[r]
        room = pair_starts[r + 1] - start
        top, top_kept = keys[:room], kept[:room]
        size, pair_sum = 0, 0.0
        weakest = -1.0 if room > 0 else np.inf  # of those kept, once there are enough
        for a in range(n_known):
            for b in range(a + 1, n_known):
                part = 0.0
                for f in range(k):
                    part += scaled[a, f] * scaled[b, f]
                pair_sum += part
                if abs(part) > weakest:
                    size = offer(top, top_kept, size, abs(part), a * n_known + b)
                    if size == room:
                        weakest = top[0]
        sort(keys, kept, size)
        rest = pair_sum
        for i in range(size):
            a, b = kept[i] // n_known, kept[i] % n_known
            part = 0.0
            for f in range(k):
                part += scaled[a, f] * scaled[b, f]
            pair_entries[start + i, 0] = own[a]
            pair_entries[start + i, 1] = own[b]
            pairs[start + i] = part
            rest -= part
        other_pairs[r] = rest if size < n_known * (n_known - 1) // 2 else 0.0
        margin[r] = bias + linear_sum + pair_sum


_explain_rows = njit(_explain_into, tag="explain")
