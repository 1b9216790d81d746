"""Fields: groups of features of which a row has at most one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch

MOST_FIELDS = 100  # beyond, features are taken for one group


def fields_of(batch: CsrBatch, n_features: int) -> NDArray[np.int32]:
    """Return the number of each feature's field, by the fewest intervals of ids that fit.

    No row has two ids within an interval: each pair of neighbours in a row, left and right,
    needs a boundary in (left, right], and boundaries as far right as possible are the fewest
    (stabbing intervals, greedily). More than MOST_FIELDS intervals mean that the ids have no
    such order, and all features are field 0. O(nnz + n_features).
    """
    is_pair = np.ones(max(0, batch.nnz - 1), bool)
    is_pair[batch.indptr[1:-1][(batch.indptr[1:-1] > 0) & (batch.indptr[1:-1] < batch.nnz)] - 1] = (
        False
    )
    nearest = np.full(n_features, -1, np.int64)  # left end of the shortest interval, by right end
    np.maximum.at(nearest, batch.indices[1:][is_pair], batch.indices[:-1][is_pair])
    starts = [0]
    for right in np.flatnonzero(nearest >= 0).tolist():
        if nearest[right] >= starts[-1]:
            starts.append(right)
            if len(starts) > MOST_FIELDS:
                return np.zeros(n_features, np.int32)
    lengths = np.diff([*starts, n_features])
    return np.repeat(np.arange(len(starts), dtype=np.int32), lengths)
