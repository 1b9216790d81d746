"""A small training set that the tests of training share."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks.datasets import Rows, to_frame
from tests.training.builders import N_FEATURES


@pytest.fixture(scope="module")
def rows() -> Rows:
    """600 rows of two one-hot groups, labels from a planted machine."""
    rng = np.random.default_rng(11)
    n_rows, half = 600, N_FEATURES // 2
    factors = rng.normal(0, 1, (N_FEATURES, 3))
    pairs = np.stack([rng.integers(0, half, n_rows), rng.integers(half, N_FEATURES, n_rows)], 1)
    score = (factors[pairs[:, 0]] * factors[pairs[:, 1]]).sum(1)
    labels = (score + rng.normal(0, 0.3, n_rows) > 0).astype(float)
    matrix = sp.csr_matrix(
        (np.ones(2 * n_rows), pairs.ravel(), np.arange(0, 2 * n_rows + 1, 2)),
        shape=(n_rows, N_FEATURES),
    )
    return Rows(matrix, labels)


@pytest.fixture(scope="module")
def frame(spark, rows):
    return to_frame(spark, rows, 3).cache()
