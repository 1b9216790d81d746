"""Choose validation rows by their content, whatever partition they are in; executors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.jit import njit


def validation_rows(batch: CsrBatch, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Tell which rows belong to the validation set; equal rows go the same way.

    Parameters
    ----------
    batch : CsrBatch
        Canonical rows.
    fraction : float
        Expected share (0 to 1).
    seed : int
        Another seed chooses other rows.

    Notes
    -----
    A row's 64-bit hash covers label, feature ids and values: the MurmurHash3 finaliser
    (Appleby, public domain) folded over their words. O(nnz).
    """
    if fraction <= 0:
        return np.zeros(batch.n_rows, bool)
    hashes = _row_hashes(
        batch.indptr,
        batch.indices.view(np.uint32),
        batch.values.view(np.uint32),
        batch.labels.view(np.uint32),
        np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
    )
    chosen: NDArray[np.bool_] = (hashes >> np.uint64(11)).astype(np.float64) < fraction * 2.0**53
    return chosen


def _mix(h, word):  # type: ignore[no-untyped-def]
    h = (h ^ np.uint64(word)) * np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


_mix = njit(_mix)


def _hash_loop(indptr, indices, values, labels, seed):  # type: ignore[no-untyped-def]
    hashes = np.empty(len(labels), np.uint64)
    for r in range(len(labels)):
        h = _mix(seed, labels[r])
        for p in range(indptr[r], indptr[r + 1]):
            h = _mix(_mix(h, indices[p]), values[p])
        hashes[r] = h
    return hashes


_row_hashes = njit(_hash_loop, tag="row-hashes")
