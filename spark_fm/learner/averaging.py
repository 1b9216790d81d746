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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.jit import njit
from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.learner.state import Layout, TrainState

# Constants of the progress estimate; chosen in docs/averaging.md.
PROGRESS_GAIN = 12.0
PROGRESS_FLOOR = 1.0
TOUCHES_TO_SETTLE = 20.0
STRETCH = 4096  # features merged at a time


@dataclass(frozen=True, slots=True)
class Delta:
    """What one partition did to a range of features.

    Parameters
    ----------
    ids : ndarray of shape (n,), int32
        Touched features, sorted.
    updates : ndarray of shape (n,), float32
        Weighted entries of each since the last round (> 0).
    columns : ndarray of shape (n, m), float32
        New values: k + 1 parameters, then optimizer statistics.
    """

    ids: NDArray[np.int32]
    n_updates: NDArray[np.float32]
    columns: NDArray[np.float32]

    @classmethod
    def of(cls, state: TrainState, first_id: int, stop_id: int) -> Delta:
        """Return what the touched features of a range of ids have become; O(range)."""
        layout, rows = state.layout, state.rows[first_id:stop_id]
        delta = cls.empty(int(np.count_nonzero(rows[:, layout.n_updates] > 0)), layout.n_synced)
        _collect(rows, first_id, layout.n_updates, delta.ids, delta.n_updates, delta.columns)
        return delta

    @classmethod
    def empty(cls, n: int, width: int) -> Delta:
        """Return uninitialised rows."""
        return cls(np.empty(n, np.int32), np.empty(n, np.float32), np.empty((n, width), "<f4"))

    def buffers(self) -> list[memoryview]:
        """Return the bytes of ids, updates and columns."""
        return [np.ascontiguousarray(a).data for a in (self.ids, self.n_updates, self.columns)]

    def to_bytes(self) -> bytes:
        """Return ids, updates and columns one after the other."""
        return b"".join(self.buffers())

    @classmethod
    def from_bytes(cls, payload: bytes | memoryview, width: int) -> Delta:
        """Read what ``to_bytes`` gave for columns of this width."""
        words = np.frombuffer(payload, "<i4")
        n = len(words) // (2 + width)
        floats = words.view("<f4")
        return cls(words[:n], floats[n : 2 * n], floats[2 * n :].reshape(n, width))


@dataclass(frozen=True, slots=True)
class AveragingRule:
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

    def constants(self) -> tuple[float, float, float, float, float]:
        """Return what the compiled merge takes of the rule.

        Progress a touch where updates count, or 0; gain over residual; step of the factors
        and of the linear weights; share of a partition.
        """
        fixed = 0.0 if OPTIMIZERS[self.layout.optimizer].sums_squares else 1 / TOUCHES_TO_SETTLE
        gain = PROGRESS_GAIN / max(self.residual, 1e-12)
        return fixed, gain, self.factors_lr, self.linear_lr, 1 / self.n_partitions


def average_deltas(
    old: NDArray[np.float32], first_id: int, deltas: Sequence[Delta], rule: AveragingRule
) -> Delta:
    """Return the merged values of every touched feature of a range of ids.

    Parameters
    ----------
    old : ndarray of shape (n_range, >= m), float32
        Values before the round of features ``first_id`` and up.
    first_id : int
    deltas : sequence of Delta
        One a partition, in the order of partitions: float addition has one order.
    rule : AveragingRule

    Notes
    -----
    O(sum of touched rows times m), bound by memory: stretches of the range are merged one
    after the other, so that the changes of each stay in the processor's cache.
    """
    n_range, width = len(old), rule.layout.n_synced
    merged = Delta.empty(min(n_range, sum(len(d.ids) for d in deltas)), width)
    change = np.zeros((min(n_range, STRETCH), width), np.float64)
    touching, n_updates = np.zeros(len(change), np.int32), np.zeros(len(change), np.float64)
    starts = np.arange(0, n_range + STRETCH, STRETCH)
    bounds = [np.searchsorted(delta.ids, starts + first_id).tolist() for delta in deltas]
    constants, n = rule.constants(), 0
    for number, start in enumerate(starts[:-1].tolist()):
        for delta, bound in zip(deltas, bounds, strict=True):
            first, stop = bound[number], bound[number + 1]
            if first < stop:
                _accumulate(
                    old, first_id, start, first, stop,
                    delta.ids, delta.n_updates, delta.columns, change, touching, n_updates,
                )  # fmt: skip
        n = _move(
            old, first_id, start, change, touching, n_updates, *constants, rule.layout.k,
            n, merged.ids, merged.n_updates, merged.columns,
        )  # fmt: skip
    return Delta(merged.ids[:n], merged.n_updates[:n], merged.columns[:n])


def _correction_of(progress, touching):  # type: ignore[no-untyped-def]
    """Return the factor on the sum of changes: s(L) / (N s(L / N)), 1/N to 1."""
    if touching == 1:
        return 1.0
    together = max(progress, 1e-9)  # the limit at 0 is 1
    return math.expm1(-together) / (math.expm1(-together / touching) * touching)


correction = njit(_correction_of, variant="correction")


def _progress_of(growth, before, lr, share, gain, floor):  # type: ignore[no-untyped-def]
    """Return the progress of factors or of a linear weight under AdaGrad.

    The accumulator grows by the squared gradient, which is the curvature times the
    residual: ``lr * growth / (sqrt(accumulator) * residual)`` is the sum of step times
    curvature, the exponent of the exact solution on a quadratic.
    """
    return max(gain * lr * growth / math.sqrt(max(before + growth * share, 1e-30)), floor)


_progress = njit(_progress_of, variant="progress")


def _collect_loop(rows, first_id, touch_column, ids, n_updates, columns):  # type: ignore[no-untyped-def]
    n = 0
    for j in range(len(rows)):
        if rows[j, touch_column] > 0:
            ids[n] = first_id + j
            n_updates[n] = rows[j, touch_column]
            for f in range(columns.shape[1]):
                columns[n, f] = rows[j, f]
            n += 1


_collect = njit(_collect_loop, tag="collect-touched")


def _accumulate_loop(  # type: ignore[no-untyped-def]
    old, first_id, start, first, stop, ids, n_updates, columns, change, touching, total
):
    for i in range(first, stop):
        place = ids[i] - first_id
        j = place - start
        touching[j] += 1
        total[j] += n_updates[i]
        for f in range(columns.shape[1]):
            change[j, f] += np.float64(columns[i, f]) - np.float64(old[place, f])


_accumulate = njit(_accumulate_loop, tag="accumulate-delta")


def _move_loop(  # type: ignore[no-untyped-def]
    old, first_id, start, change, touching, total, fixed, gain, factors_lr, linear_lr, share, k,
    n, ids, n_updates, columns,
):  # fmt: skip
    # Empties what was accumulated, and returns how many rows are filled.
    for j in range(min(len(change), len(old) - start)):
        if touching[j] == 0:
            continue
        place = start + j
        if fixed > 0:  # other optimizers keep no record of progress: updates count
            factors = linear = fixed * total[j]
        else:
            before_v, before_w = np.float64(old[place, k + 1]), np.float64(old[place, k + 2])
            root = math.sqrt(max(before_w + change[j, k + 2] * share, 1e-30))
            floor = PROGRESS_FLOOR * factors_lr * total[j] / root
            factors = _progress(change[j, k + 1], before_v, factors_lr, share, gain, floor)
            linear = _progress(change[j, k + 2], before_w, linear_lr, share, gain, floor)
        by_factors = correction(factors, touching[j])
        by_linear = correction(linear, touching[j])
        for f in range(k):
            columns[n, f] = old[place, f] + change[j, f] * by_factors
        columns[n, k] = old[place, k] + change[j, k] * by_linear
        for f in range(k + 1, columns.shape[1]):
            # AdaGrad's sums move as the values whose squares they add up, moments plainly.
            by = share if fixed > 0 else (by_factors if f == k + 1 else by_linear)
            columns[n, f] = old[place, f] + change[j, f] * by
        ids[n] = first_id + place
        n_updates[n] = total[j]
        n += 1
        touching[j] = 0
        total[j] = 0
        change[j, :] = 0
    return n


_move = njit(_move_loop, tag="move-by-changes")


def _move_towards_loop(table, rows, share):  # type: ignore[no-untyped-def]
    for i in range(table.shape[0]):
        for f in range(table.shape[1]):
            table[i, f] += share * (rows[i, f] - table[i, f])


move_towards_inplace = njit(_move_towards_loop, tag="move-towards")
