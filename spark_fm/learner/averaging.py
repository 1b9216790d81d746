"""Merge what partitions learned from the same start: progress-corrected averaging.

Runs on the driver, or on executors when these merge first. Plain averaging over P
partitions is far behind serial SGD on rare features, which move only 1/P of what they
should, while summing diverges on frequent ones. With N the partitions that touched a
feature, L its progress towards its optimum in all of them together, and
s(L) = 1 - exp(-L) the share of the way that progress L takes,

    new = old + mean over touching partitions (change_p) * s(L) / s(L / N)

adds where evidence is thin and averages where it is thick. AdaGrad's sums grow by the
same rule, so that steps shrink as fast as the values move. docs/averaging.md derives
it and shows the measurements. The bias and Adam's moments are averaged plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.jit import njit
from spark_fm.learner.state import Layout, TrainState

# Constants of the progress estimate; chosen in docs/averaging.md.
PROGRESS_GAIN = 12.0
PROGRESS_FLOOR = 1.0
TOUCHES_TO_SETTLE = 20.0


@dataclass(frozen=True, slots=True)
class Delta:
    """What one partition did to a range of features.

    Parameters
    ----------
    ids : ndarray of shape (n,), int32
        Touched features, sorted.
    touches : ndarray of shape (n,), float32
        Weighted entries of each since the last exchange (> 0).
    columns : ndarray of shape (n, m), float32
        New values: k + 1 parameters, then optimizer statistics.
    """

    ids: NDArray[np.int32]
    touches: NDArray[np.float32]
    columns: NDArray[np.float32]

    @classmethod
    def of(cls, state: TrainState, first_id: int, stop_id: int) -> Delta:
        """Return what the touched features of a range of ids have become; O(range)."""
        layout, rows = state.layout, state.rows[first_id:stop_id]
        width = layout.n_exchanged
        n = int(np.count_nonzero(rows[:, layout.touches] > 0))
        delta = cls(np.empty(n, np.int32), np.empty(n, np.float32), np.empty((n, width), "<f4"))
        _collect(rows, first_id, layout.touches, delta.ids, delta.touches, delta.columns)
        return delta

    def buffers(self) -> list[memoryview]:
        """Return the bytes of ids, touches and columns."""
        return [np.ascontiguousarray(a).data for a in (self.ids, self.touches, self.columns)]

    def to_bytes(self) -> bytes:
        """Return ids, touches and columns one after the other."""
        return b"".join(self.buffers())

    @classmethod
    def from_bytes(cls, payload: bytes | memoryview, width: int) -> Delta:
        """Read what ``to_bytes`` gave for columns of this width."""
        words = np.frombuffer(payload, "<i4")
        n = len(words) // (2 + width)
        floats = words.view("<f4")
        return cls(words[:n], floats[n : 2 * n], floats[2 * n :].reshape(n, width))


@dataclass(frozen=True, slots=True)
class MergeRule:
    """What the progress of a feature is worked out from.

    Parameters
    ----------
    layout : Layout
    n_partitions : int
        Partitions that trained.
    linear_lr, factors_lr : float
        Step sizes in force.
    residual : float
        Mean squared loss, in the labels' unit, for squared loss; 1 for logistic loss,
        whose mean squared slope is its curvature.
    """

    layout: Layout
    n_partitions: int
    linear_lr: float
    factors_lr: float
    residual: float = 1.0

    def progress(
        self,
        touches: NDArray[np.float64],
        before: NDArray[np.float64],
        growth: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the progress of factors and linear weights, each of shape (n,).

        Parameters
        ----------
        touches : ndarray of shape (n,)
            Weighted entries in all partitions.
        before, growth : ndarray of shape (n, n_statistics)
            Optimizer statistics at the start, and the sum of their changes.

        Notes
        -----
        AdaGrad's accumulator grows by the squared gradient, which is the curvature
        times the residual: ``lr * growth / (sqrt(accumulator) * residual)`` is the sum
        of step times curvature, the exponent of the exact solution on a quadratic.
        The other optimizers keep no such record: a fixed number of touches counts.
        """
        if self.layout.optimizer != "adagrad":
            fixed = touches / TOUCHES_TO_SETTLE
            return fixed, fixed
        roots = np.sqrt(np.maximum(before + growth / self.n_partitions, 1e-30))
        scale = PROGRESS_GAIN / max(self.residual, 1e-12)
        floor = PROGRESS_FLOOR * self.factors_lr * touches / roots[:, 1]
        factors = scale * self.factors_lr * growth[:, 0] / roots[:, 0]
        linear = scale * self.linear_lr * growth[:, 1] / roots[:, 1]
        return np.maximum(factors, floor), np.maximum(linear, floor)


def merge_deltas(
    old: NDArray[np.float32], first_id: int, deltas: Sequence[Delta], rule: MergeRule
) -> Delta:
    """Return the merged values of every touched feature of a range of ids.

    Parameters
    ----------
    old : ndarray of shape (n_range, >= m), float32
        Values before the exchange of features ``first_id`` and up.
    first_id : int
    deltas : sequence of Delta
        One a partition, in the order of partitions: float addition has one order.
    rule : MergeRule

    Notes
    -----
    O(sum of touched rows times m); memory: twice the range, in float64.
    """
    n_range = len(old)
    k, width = rule.layout.k, rule.layout.n_exchanged
    change = np.zeros((n_range, width), np.float64)
    touching = np.zeros(n_range, np.int32)
    touches = np.zeros(n_range, np.float64)
    for delta in deltas:
        _accumulate(
            old, first_id, delta.ids, delta.touches, delta.columns, change, touching, touches
        )
    rows = np.flatnonzero(touching)
    before, growth = (np.empty((len(rows), width - k - 1)) for _ in range(2))
    _statistics(old, change, rows, k + 1, before, growth)
    factors, linear = rule.progress(touches[rows], before, growth)
    by_factors = correction(factors, touching[rows])
    by_linear = correction(linear, touching[rows])
    plain = 0.0 if rule.layout.optimizer == "adagrad" else 1 / rule.n_partitions
    columns = np.empty((len(rows), width), np.float32)
    _move(old, change, rows, by_factors, by_linear, plain, k, columns)
    return Delta((rows + first_id).astype(np.int32), touches[rows].astype(np.float32), columns)


def correction(progress: NDArray[np.float64], touching: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the factor on the sum of changes: s(L) / (N s(L / N)), 1/N to 1."""
    together = np.maximum(progress, 1e-9)  # the limit at 0 is 1
    return -np.expm1(-together) / (-np.expm1(-together / touching) * touching)


def _collect_loop(rows, first_id, touch_column, ids, touches, columns):  # type: ignore[no-untyped-def]
    n = 0
    for j in range(len(rows)):
        if rows[j, touch_column] > 0:
            ids[n] = first_id + j
            touches[n] = rows[j, touch_column]
            for f in range(columns.shape[1]):
                columns[n, f] = rows[j, f]
            n += 1


_collect = njit(_collect_loop, tag="collect-touched")


def _accumulate_loop(  # type: ignore[no-untyped-def]
    old, first_id, ids, touches, columns, change, touching, total
):
    for i in range(len(ids)):
        j = ids[i] - first_id
        touching[j] += 1
        total[j] += touches[i]
        for f in range(columns.shape[1]):
            change[j, f] += np.float64(columns[i, f]) - np.float64(old[j, f])


_accumulate = njit(_accumulate_loop, tag="accumulate-delta")


def _statistics_loop(old, change, rows, first, before, growth):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        for f in range(before.shape[1]):
            before[i, f] = old[rows[i], first + f]
            growth[i, f] = change[rows[i], first + f]


_statistics = njit(_statistics_loop, tag="statistics-of-rows")


def _move_loop(  # type: ignore[no-untyped-def]
    old, change, rows, by_factors, by_linear, plain, k, moved
):
    # Statistics move by ``plain``, or as the values whose squares they add up where it is 0.
    for i in range(len(rows)):
        j = rows[i]
        for f in range(k):
            moved[i, f] = old[j, f] + change[j, f] * by_factors[i]
        moved[i, k] = old[j, k] + change[j, k] * by_linear[i]
        for f in range(k + 1, moved.shape[1]):
            by = plain
            if plain == 0:
                by = by_factors[i] if f == k + 1 else by_linear[i]
            moved[i, f] = old[j, f] + change[j, f] * by


_move = njit(_move_loop, tag="move-by-changes")
