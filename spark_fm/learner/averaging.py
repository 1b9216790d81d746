"""Average the models of partitions that trained from the same start, corrected for progress.

Runs on the driver, or on executors when these average first. Plain averaging over P
partitions is far behind sequential SGD on rare features, which move only 1/P of what they
should, while summing diverges on frequent ones. With N the partitions that touched a
feature, L its progress towards its optimum in all of them together, and
s(L) = 1 - exp(-L) the fraction of the way that progress L takes,

    new = old + mean over these partitions (change_p) * s(L) / s(L / N)

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
SHORT_ROW, LONG_ROW = 12.0, 38.0  # entries of a row between which the gain grows
UPDATES_TO_SETTLE = 20.0
STRETCH = 4096  # features averaged at a time


@dataclass(frozen=True, slots=True)
class Delta:
    """What one partition did to a range of features."""

    ids: NDArray[np.int32]  # (n,), of the features with updates, sorted
    n_updates: NDArray[np.float32]  # (n,), weighted entries since the last round (> 0)
    columns: NDArray[np.float32]  # (n, m), new values: k + 1 parameters, then statistics

    @classmethod
    def of(cls, state: TrainState, first_id: int, stop_id: int) -> Delta:
        """Return the updated features of a range of ids; O(range)."""
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
        """Read the result of ``to_bytes`` for columns of this width."""
        words = np.frombuffer(payload, "<i4")
        n = len(words) // (2 + width)
        floats = words.view("<f4")
        return cls(words[:n], floats[n : 2 * n], floats[2 * n :].reshape(n, width))


@dataclass(frozen=True, slots=True)
class AveragingRule:
    """What the progress of a feature is estimated from."""

    layout: Layout
    n_partitions: int  # that trained
    linear_lr: float  # in force
    factors_lr: float
    # Mean number of entries of a row: what long rows' features learn together overshoots.
    row_length: float = 1.0
    # Mean squared loss in the labels' units; 1 for logistic loss, whose mean squared slope is
    # its curvature.
    residual: float = 1.0

    def constants(self) -> tuple[float, float, float, float, float]:
        """Return the constants of the kernel.

        Progress per update where updates count, or 0; gain over residual; learning rates of
        factors and of linear weights; weight of one partition.
        """
        fixed = 0.0 if OPTIMIZERS[self.layout.optimizer].sums_squares else 1 / UPDATES_TO_SETTLE
        length = min(max(self.row_length, SHORT_ROW), LONG_ROW)
        gain = PROGRESS_GAIN * (length / SHORT_ROW) ** 2
        gain /= max(self.residual, 1e-12)
        return fixed, gain, self.factors_lr, self.linear_lr, 1 / self.n_partitions


def average_deltas(
    old: NDArray[np.float32], first_id: int, deltas: Sequence[Delta], rule: AveragingRule
) -> Delta:
    """Return the averaged values of every updated feature of a range of ids.

    ``old`` has the values of features ``first_id`` and up before the round. ``deltas`` are in the
    order of partitions: float addition has one order. O(sum of updated rows times m), bound by
    memory: stretches of the range are averaged one after the other, so that the changes of each
    stay in the CPU's cache.
    """
    n_range, width = len(old), rule.layout.n_synced
    averaged = Delta.empty(min(n_range, sum(len(d.ids) for d in deltas)), width)
    change = np.zeros((min(n_range, STRETCH), width), np.float64)
    n_changes, n_updates = np.zeros(len(change), np.int32), np.zeros(len(change), np.float64)
    starts = np.arange(0, n_range + STRETCH, STRETCH)
    bounds = [np.searchsorted(delta.ids, starts + first_id).tolist() for delta in deltas]
    constants, n = rule.constants(), 0
    for number, start in enumerate(starts[:-1].tolist()):
        for delta, bound in zip(deltas, bounds, strict=True):
            first, stop = bound[number], bound[number + 1]
            if first < stop:
                _accumulate(
                    old, first_id, start, first, stop,
                    delta.ids, delta.n_updates, delta.columns, change, n_changes, n_updates,
                )  # fmt: skip
        n = _move(
            old, first_id, start, change, n_changes, n_updates, *constants, rule.layout.k,
            n, averaged.ids, averaged.n_updates, averaged.columns,
        )  # fmt: skip
    return Delta(averaged.ids[:n], averaged.n_updates[:n], averaged.columns[:n])


def _correction_of(progress, n_changes):  # type: ignore[no-untyped-def]
    """Return the factor on the sum of changes: s(L) / (N s(L / N)), 1/N to 1."""
    if n_changes == 1:
        return 1.0
    together = max(progress, 1e-9)  # the limit at 0 is 1
    return math.expm1(-together) / (math.expm1(-together / n_changes) * n_changes)


correction = njit(_correction_of, variant="correction")


def _progress_of(growth, before, lr, fraction, gain, floor):  # type: ignore[no-untyped-def]
    """Return the progress of factors or of a linear weight under AdaGrad.

    The accumulator grows by the squared gradient, which is the curvature times the
    residual: ``lr * growth / (sqrt(accumulator) * residual)`` is the sum of step times
    curvature, the exponent of the exact solution on a quadratic.
    """
    return max(gain * lr * growth / math.sqrt(max(before + growth * fraction, 1e-30)), floor)


_progress = njit(_progress_of, variant="progress")


def _collect_loop(rows, first_id, updates_column, ids, n_updates, columns):  # type: ignore[no-untyped-def]
    n = 0
    for j in range(len(rows)):
        if rows[j, updates_column] > 0:
            ids[n] = first_id + j
            n_updates[n] = rows[j, updates_column]
            for f in range(columns.shape[1]):
                columns[n, f] = rows[j, f]
            n += 1


_collect = njit(_collect_loop, tag="collect-touched")


def _accumulate_loop(  # type: ignore[no-untyped-def]
    old, first_id, start, first, stop, ids, n_updates, columns, change, n_changes, total
):
    for i in range(first, stop):
        row = ids[i] - first_id
        j = row - start
        n_changes[j] += 1
        total[j] += n_updates[i]
        for f in range(columns.shape[1]):
            change[j, f] += np.float64(columns[i, f]) - np.float64(old[row, f])


_accumulate = njit(_accumulate_loop, tag="accumulate-delta")


def _move_loop(  # type: ignore[no-untyped-def]
    old, first_id, start, change, n_changes, total, fixed, gain, factors_lr, linear_lr, fraction, k,
    n, ids, n_updates, columns,
):  # fmt: skip
    # Empties what was accumulated, and returns how many rows are filled.
    for j in range(min(len(change), len(old) - start)):
        if n_changes[j] == 0:
            continue
        row = start + j
        if fixed > 0:  # other optimizers keep no record of progress: updates count
            factors = linear = fixed * total[j]
        else:
            before_v, before_w = np.float64(old[row, k + 1]), np.float64(old[row, k + 2])
            root = math.sqrt(max(before_w + change[j, k + 2] * fraction, 1e-30))
            floor = PROGRESS_FLOOR * factors_lr * total[j] / root
            factors = _progress(change[j, k + 1], before_v, factors_lr, fraction, gain, floor)
            linear = _progress(change[j, k + 2], before_w, linear_lr, fraction, gain, floor)
        by_factors = correction(factors, n_changes[j])
        by_linear = correction(linear, n_changes[j])
        for f in range(k):
            columns[n, f] = old[row, f] + change[j, f] * by_factors
        columns[n, k] = old[row, k] + change[j, k] * by_linear
        for f in range(k + 1, columns.shape[1]):
            # AdaGrad's sums move as the values whose squares they add up, moments plainly.
            by = fraction if fixed > 0 else (by_factors if f == k + 1 else by_linear)
            columns[n, f] = old[row, f] + change[j, f] * by
        ids[n] = first_id + row
        n_updates[n] = total[j]
        n += 1
        n_changes[j] = 0
        total[j] = 0
        change[j, :] = 0
    return n


_move = njit(_move_loop, tag="move-by-changes")


def _move_towards_loop(table, rows, fraction):  # type: ignore[no-untyped-def]
    for i in range(table.shape[0]):
        for f in range(table.shape[1]):
            table[i, f] += fraction * (rows[i, f] - table[i, f])


move_towards_inplace = njit(_move_towards_loop, tag="move-towards")
