"""The k best of many: a bounded heap, and the scores of contexts times candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch, frozen
from spark_fm.learner.jit import njit
from spark_fm.learner.predict import table_positions

CONTEXT_ROWS = 256  # of a block: 2 MiB of products
CANDIDATE_ROWS = 2048


def factor_sums(
    batch: CsrBatch, table: NDArray[np.float32], *, features: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return ``s`` of shape (n_rows, k) and the self interactions of canonical rows.

    The self interaction is the score of the row alone, without ``w0``. Without ``features``,
    ``indices < len(table)``; ids outside ``features`` add nothing. O(nnz k), in float64.
    """
    rows = batch.indices if features is None else table_positions(features, batch.indices)
    inputs = (np.ascontiguousarray(table, np.float32), batch.indptr, rows, batch.values)
    return _split(*(frozen(array) for array in inputs))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class TopK:
    """The best candidates of n contexts, best first."""

    counts: NDArray[np.int64]  # (n,), candidates of each context, at most k
    rows: NDArray[np.int64]  # (n, k), of the candidates; in row r the first counts[r] count
    products: NDArray[np.float64]  # (n, k)


def best_candidates(
    contexts: NDArray[np.float32],
    candidates: NDArray[np.float32],
    k: int,
    *,
    hidden: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> TopK:
    """Return for each context the k candidates with the largest inner product.

    Parameters
    ----------
    contexts : ndarray of shape (n, d), float32
    candidates : ndarray of shape (m, d), float32
    k : int
        At least 1; fewer come back when there are fewer candidates.
    hidden : (ndarray of shape (n + 1,), ndarray), int64, optional
        Starts and rows of candidates to leave out, rising within a context.

    Returns
    -------
    TopK
        Equal products rank by the candidate's row, the smaller first. A product that is
        not a number is left out.

    Notes
    -----
    O(n m d) by blocked matrix products in float32, with O(n k) memory for results and 2 MiB
    for a block. Their rounding depends on where in a block a candidate lies, so they only
    choose who may be among the best: those within the error bound
    ``d u |c| max |i|``, u = 2^-24 (Higham, "Accuracy and Stability of Numerical Algorithms",
    section 3.5, with Cauchy-Schwarz), have their product taken again in float64, always in
    the same order. So the result is exact for the given vectors, and candidates of equal
    vectors tie.
    """
    k = min(k, len(candidates))
    best = TopK(
        np.zeros(len(contexts), np.int64),
        np.zeros((len(contexts), k), np.int64),
        np.zeros((len(contexts), k)),
    )
    if k == 0:
        return best
    if hidden is None:
        hidden = (np.zeros(len(contexts) + 1, np.int64), np.empty(0, np.int64))
    largest = float(_norms(candidates).max())
    # Twice the bound: it is for products rounded once each, here some are fused.
    slack = 2.0 * (contexts.shape[1] + 1) * 2.0**-24 * largest * _norms(contexts)
    starts, hidden_rows = frozen(hidden[0]), frozen(hidden[1])
    left, right = frozen(np.ascontiguousarray(contexts)), frozen(np.ascontiguousarray(candidates))
    across = np.ascontiguousarray(candidates.T)
    for r in range(0, len(contexts), CONTEXT_ROWS):
        block = left[r : r + CONTEXT_ROWS]
        for c in range(0, len(candidates), CANDIDATE_ROWS):
            _take_best(
                frozen(block @ across[:, c : c + CANDIDATE_ROWS]), r, c, left, right, slack,
                starts, hidden_rows, best.counts, best.rows, best.products,
            )  # fmt: skip
    _sort_best(best.counts, best.rows, best.products)
    return best


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares)


def _split_rows(table, indptr, rows, values):  # type: ignore[no-untyped-def]
    n_rows, k = len(indptr) - 1, table.shape[1] - 1
    sums = np.empty((n_rows, k), np.float32)
    self_interactions = np.empty(n_rows, np.float64)
    s = np.empty(k, np.float64)
    for r in range(n_rows):
        s[:] = 0
        linear, squares = 0.0, 0.0
        for p in range(indptr[r], indptr[r + 1]):
            j = rows[p]
            if j >= 0:
                x = np.float64(values[p])
                linear += table[j, k] * x
                for f in range(k):
                    y = table[j, f] * x
                    s[f] += y
                    squares += y * y
        total = 0.0
        for f in range(k):
            total += s[f] * s[f]
            sums[r, f] = s[f]
        self_interactions[r] = linear + 0.5 * (total - squares)
    return sums, self_interactions


_split = njit(_split_rows, tag="split-terms")


def _take_best_inplace(  # type: ignore[no-untyped-def]
    block, first_row, first_column, left, right, slack, starts, hidden, counts, rows, products
):
    """Take a block of float32 products into the heaps of the best, in place."""
    n_factors = left.shape[1]
    k = rows.shape[1]
    for i in range(block.shape[0]):
        r = first_row + i
        size = counts[r]
        row_products, row_candidates = products[r], rows[r]
        at = starts[r] + np.searchsorted(hidden[starts[r] : starts[r + 1]], first_column)
        limit = np.float32(products[r, 0] - slack[r]) if size == k else np.float32(-np.inf)
        for j in range(block.shape[1]):
            # "Not below", so that an overflowed product is looked at too.
            if block[i, j] < limit:
                continue
            c = first_column + j
            while at < starts[r + 1] and hidden[at] < c:
                at += 1
            if at < starts[r + 1] and hidden[at] == c:
                continue
            product = 0.0
            for f in range(n_factors):
                product += np.float64(left[r, f]) * np.float64(right[c, f])
            size = offer(row_products, row_candidates, size, product, c)
            if size == k:
                limit = np.float32(products[r, 0] - slack[r])
        counts[r] = size


_take_best = njit(_take_best_inplace, tag="take-best")


def _sort_rows_inplace(counts, rows, products):  # type: ignore[no-untyped-def]
    """Sort each context's heap, in place."""
    for r in range(len(counts)):
        sort(products[r], rows[r], counts[r])


_sort_best = njit(_sort_rows_inplace, tag="sort-best")


def _weaker(keys, ids, i, j):  # type: ignore[no-untyped-def]
    return keys[i] < keys[j] or (keys[i] == keys[j] and ids[i] > ids[j])


_is_weaker = njit(_weaker)


def _sink_inplace(keys, ids, size):  # type: ignore[no-untyped-def]
    """Restore the heap after its root has changed, in place."""
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _is_weaker(keys, ids, child + 1, child):
            child += 1
        if not _is_weaker(keys, ids, child, i):
            return
        keys[i], keys[child] = keys[child], keys[i]
        ids[i], ids[child] = ids[child], ids[i]
        i = child


_sink = njit(_sink_inplace)


def _offer_inplace(keys, ids, size, key, id_):  # type: ignore[no-untyped-def]
    """Take a number into the heap, in place, if it is among the largest; return the size.

    Ids are offered in rising order, so an equal number never drives out another. The
    weakest one is ``keys[0]``. O(log len(keys)), O(1) when it is not taken; NaN never is.
    """
    if size < len(keys):
        if key != key:
            return size
        i = size
        keys[i], ids[i] = key, id_
        while i > 0 and _is_weaker(keys, ids, i, (i - 1) // 2):
            parent = (i - 1) // 2
            keys[i], keys[parent] = keys[parent], keys[i]
            ids[i], ids[parent] = ids[parent], ids[i]
            i = parent
        return size + 1
    if size > 0 and key > keys[0]:
        keys[0], ids[0] = key, id_
        _sink(keys, ids, size)
    return size


offer = njit(_offer_inplace)


def _sort_inplace(keys, ids, size):  # type: ignore[no-untyped-def]
    """Sort a heap, in place: largest first, equal ones by id. O(size log size)."""
    for last in range(size - 1, 0, -1):
        keys[0], keys[last] = keys[last], keys[0]
        ids[0], ids[last] = ids[last], ids[0]
        _sink(keys, ids, last)


sort = njit(_sort_inplace)
