"""One Gibbs sweep over all features, compiled for each number of factors.

Rendle, "Factorization Machines with libFM" (TIST 2012), draws one parameter after the other.
Here the k + 1 parameters of a feature are drawn together: given all others the score is linear
in them, so their conditional is a normal distribution, and the chain mixes in fewer sweeps.
With theta_j = (v_j, w_j), prior N(mu, diag(1 / lambda)), and for each entry x of feature j in
row r

    z = x (S_r - x v_j, 1),    S_r = sum_i x_i v_i
    A = alpha sum omega_r z z^T + diag(lambda)
    b = alpha sum omega_r z (e_r + z . theta_j) + lambda mu

it is N(A^-1 b, A^-1): a draw is ``U^-1 (U^-T b + normals)`` with the Cholesky factor
A = U^T U. A row's state is a stretch of ``RowLayout.stride`` floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import frozen
from spark_fm.learner.jit import njit
from spark_fm.learner.simd import (
    WIDTH,
    load,
    load_at,
    local_floats,
    prefetch,
    spread,
    store,
    store_at,
    total,
)

AHEAD = 8  # entries that a row is asked for before its turn
FEW = 4096  # entries of a feature that are summed in float32; more of them would lose the prior


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Columns of a row's state: S_1 .. S_k, 1, then residual and precision."""

    k: int

    @property
    def width(self) -> int:
        """Columns that kernels load at once: k + 1, filled up to whole vectors."""
        return -(-(self.k + 1) // WIDTH) * WIDTH

    @property
    def residual(self) -> int:
        """Column of e, the target less the score; the row's precision omega is the next."""
        return self.k + 1 if self.width - self.k - 1 >= 2 else self.width

    @property
    def stride(self) -> int:
        """Floats from one row to the next: a multiple of 8, so vectors load aligned."""
        return self.width if self.residual < self.width else self.width + WIDTH


@lru_cache(maxsize=32)
def sweep_kernel(k: int) -> Any:
    """Return the compiled sweep, compiling or loading it now.

    Its arguments are the columns of the matrix (``starts`` of shape (n_features + 1,), ``rows``
    and ``values`` of shape (nnz,)), ``order``, the features to draw, the rows' ``state``,
    ``table`` of shape (n_features, k + 1), ``means`` of the same shape for the conditional means,
    the ``group`` of each feature, ``mu`` and ``precision`` of shape (n_groups, k + 1), ``alpha``,
    and ``normals`` of shape (len(order), k + 1). State, table and means are changed in place;
    O(nnz k^2 + n_features k^3).
    """
    kernel = njit(_make_sweep(k), tag=f"gibbs-k{k}")
    layout = RowLayout(k)
    floats = np.zeros((0, k + 1), np.float32)
    kernel(
        np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32),
        np.empty(0, np.int32), np.zeros((0, layout.stride), np.float32), floats, floats.copy(),
        np.empty(0, np.int32), np.zeros((1, k + 1)), np.zeros((1, k + 1)), 1.0, floats,
    )  # fmt: skip
    return kernel


def _make_sweep(k: int) -> Any:
    layout = RowLayout(k)
    m, width = k + 1, layout.width
    residual, omega = layout.residual, layout.residual + 1
    square = width * width
    ahead, few = AHEAD, FEW

    def sweep(  # type: ignore[no-untyped-def]
        starts, rows, values, order, state, table, means, group, mu, precision, alpha, normals
    ):
        z, theta, change = local_floats(width), local_floats(width), local_floats(width)
        b, is_used = local_floats(width), local_floats(width)
        sums = local_floats(square)  # of A, lower
        totals, right, mean, draw = np.zeros((m, m)), np.zeros(m), np.zeros(m), np.zeros(m)
        zero = spread(np.float32(0.0))
        for c in range(width):
            z[c] = theta[c] = change[c] = np.float32(0.0)
            is_used[c] = np.float32(1.0) if c < m else np.float32(0.0)
        for at in range(len(order)):
            j = order[at]
            first, end, g = starts[j], starts[j + 1], group[j]
            for c in range(k):
                theta[c] = table[j, c]
            linear = table[j, k]
            totals[:], right[:] = 0.0, 0.0
            is_heavy = end - first > few
            for c in range(0, square, WIDTH):
                store_at(sums, c, zero)
            for c in range(0, width, WIDTH):
                store_at(b, c, zero)

            for i in range(first, end):
                r, x = rows[i], values[i]
                if i + ahead < end:
                    prefetch(state, rows[i + ahead], 0)
                weight, wide = state[r, omega], spread(x)
                product = zero
                for c in range(0, width, WIDTH):
                    part = (load(state, r, c) - load_at(theta, c) * wide) * wide
                    part = part * load_at(is_used, c)
                    store_at(z, c, part)
                    product = product + part * load_at(theta, c)
                target = weight * (state[r, residual] + total(product) + x * linear)
                if is_heavy:
                    for a in range(m):
                        scaled = np.float64(weight) * z[a]
                        for c in range(a + 1):
                            totals[a, c] += scaled * z[c]
                        right[a] += np.float64(target) * z[a]
                    continue
                for c in range(0, width, WIDTH):
                    store_at(b, c, load_at(b, c) + spread(target) * load_at(z, c))
                for block in range(0, width, WIDTH):
                    for a in range(block, min(block + WIDTH, m)):
                        lanes = spread(weight * z[a])
                        for c in range(0, block + WIDTH, WIDTH):
                            place = a * width + c
                            store_at(sums, place, load_at(sums, place) + lanes * load_at(z, c))
            if not is_heavy:
                for a in range(m):
                    for c in range(a + 1):
                        totals[a, c] = sums[a * width + c]
                    right[a] = b[a]

            # Cholesky in float64, row by row, with the forward solve on the way: U over totals.
            for a in range(m):
                for c in range(a + 1):
                    totals[c, a] = alpha * totals[a, c]
                totals[a, a] += precision[g, a]
                right[a] = alpha * right[a] + precision[g, a] * mu[g, a]
            for a in range(m):
                # Exactly, no pivot is below the prior's precision.
                root = math.sqrt(max(totals[a, a], precision[g, a]))
                totals[a, a] = root
                for c in range(a + 1, m):
                    totals[a, c] /= root
                right[a] /= root
                for i in range(a + 1, m):
                    factor = totals[a, i]
                    right[i] -= factor * right[a]
                    for c in range(i, m):
                        totals[i, c] -= factor * totals[a, c]
            for a in range(m - 1, -1, -1):  # backward, for the mean and for the draw
                centre, value = right[a], right[a] + normals[at, a]
                for c in range(a + 1, m):
                    centre -= totals[a, c] * mean[c]
                    value -= totals[a, c] * draw[c]
                mean[a] = centre / totals[a, a]
                draw[a] = value / totals[a, a]
            for a in range(m):
                means[j, a] = mean[a]
                new = np.float32(draw[a])
                change[a] = new - table[j, a]
                table[j, a] = new
            step, change[k] = change[k], np.float32(0.0)

            for i in range(first, end):
                r, x = rows[i], values[i]
                if i + ahead < end:
                    prefetch(state, rows[i + ahead], 0)
                error, weight, wide = state[r, residual], state[r, omega], spread(x)
                product = zero
                for c in range(0, width, WIDTH):
                    part, moved = load(state, r, c), load_at(change, c)
                    product = product + (part - load_at(theta, c) * wide) * moved
                    store(state, r, c, part + moved * wide)
                state[r, residual] = error - x * (total(product) + step)
                state[r, omega] = weight

    return sweep


@lru_cache(maxsize=32)
def score_kernel(k: int) -> Any:
    """Return the compiled function that scores rows and writes their sums S into the state."""
    kernel = njit(_make_score(k), tag=f"gibbs-score-k{k}")
    kernel(
        frozen(np.zeros(1, np.int64)), frozen(np.empty(0, np.int32)),
        frozen(np.empty(0, np.float32)),
        np.zeros((0, k + 1), np.float32), 0.0, np.zeros((0, RowLayout(k).stride), np.float32),
        np.empty(0, np.float64),
    )  # fmt: skip
    return kernel


def _make_score(k: int) -> Any:
    def score(  # type: ignore[no-untyped-def]
        indptr, indices, values, table, bias, state, scores
    ):
        for r in range(len(scores)):
            for c in range(k):
                state[r, c] = np.float32(0.0)
            linear, squares = bias, 0.0
            for p in range(indptr[r], indptr[r + 1]):
                j, x = indices[p], values[p]
                linear += table[j, k] * x
                for c in range(k):
                    part = table[j, c] * x
                    state[r, c] += part
                    squares += part * part
            sums = 0.0
            for c in range(k):
                sums += state[r, c] * state[r, c]
            state[r, k] = np.float32(1.0)
            scores[r] = linear + 0.5 * (sums - squares)

    return score


def _sums(state, residual):  # type: ignore[no-untyped-def]
    weight = linear = square = 0.0
    for r in range(len(state)):
        omega, e = np.float64(state[r, residual + 1]), np.float64(state[r, residual])
        weight += omega
        linear += omega * e
        square += omega * e * e
    return weight, linear, square


def _shift(state, residual, change):  # type: ignore[no-untyped-def]
    for r in range(len(state)):
        state[r, residual] -= change


# Sums over rows of omega, omega e and omega e^2, float64.
residual_sums = njit(_sums, tag="gibbs-sums")
# Takes a number off all residuals.
shift_residuals = njit(_shift, tag="gibbs-shift")


def columns_of(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
    n_features: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return starts, rows and values of the entries by feature; O(nnz)."""
    row_of = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    order = np.argsort(indices, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(indices, minlength=n_features))])
    return starts.astype(np.int64), row_of[order], values[order]
