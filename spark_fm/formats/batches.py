"""Rows of a recordIO file as arrays, and the places that hold none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.jit import njit


@dataclass(frozen=True, slots=True)
class Malformed:
    """A place in a file that holds no readable record.

    Parameters
    ----------
    source : str
        File it lies in.
    offset : int
        Byte where the record starts, or should.
    record : int
        Records read before it, malformed ones included, since reading started.
    row : int
        Rows of the batch that come before it.
    reason : str
    since : int
        Byte of the file at which reading started.
    """

    source: str
    offset: int
    record: int
    row: int
    reason: str
    since: int = 0

    def __str__(self) -> str:
        """Return file, offset, record number and reason."""
        counted = f"record {self.record}" + (f" after byte {self.since}," if self.since else "")
        return f"{self.source}: {counted} at byte {self.offset}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with labels, of whatever format.

    Parameters
    ----------
    indptr : ndarray of shape (n + 1,), int64
    indices : ndarray of shape (nnz,), int32
        Strictly increasing within a row: repeated keys have been added up.
    values : ndarray of shape (nnz,), float64
    labels : ndarray of shape (n,), float64
        NaN where a row has none.
    widths : ndarray of shape (n,), int64
        Number of features a row claims; -1 where it does not say.
    is_dense : ndarray of shape (n,), bool
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float64]
    labels: NDArray[np.float64]
    widths: NDArray[np.int64]
    is_dense: NDArray[np.bool_]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def n_features(self) -> int:
        """Smallest number of features that holds what all rows have and claim."""
        return max(int(self.tops().max(initial=0)), int(self.widths.max(initial=0)))

    def tops(self) -> NDArray[np.int64]:
        """Return the largest index plus one of each row, 0 without entries; O(n)."""
        tops = np.zeros(self.n_rows, np.int64)
        filled = np.diff(self.indptr) > 0
        tops[filled] = self.indices[self.indptr[1:][filled] - 1].astype(np.int64) + 1
        return tops

    def misfits(self, width: int, *, is_set: bool) -> NDArray[np.bool_]:
        """Tell which rows are no vectors of ``width`` features.

        Parameters
        ----------
        width : int
        is_set : bool
            The caller chose the width: it holds for sparse rows whatever they claim,
            while dense ones must have just as many features.

        Returns
        -------
        ndarray of shape (n,), bool
        """
        differs: NDArray[np.bool_] = (self.widths >= 0) & (self.widths != width)
        if is_set:
            differs &= self.is_dense
        differs |= self.tops() > width
        return differs


@dataclass(frozen=True, slots=True)
class RowBatch(Rows):
    """Rows as they lie in a recordIO file, and what could not be read between them.

    Parameters
    ----------
    offsets : ndarray of shape (n,), int64
        Bytes of the file at which the records start.
    uids, metadata : list of bytes or None
        Empty unless asked for.
    malformed : list of Malformed
    first_record : int
        Records read before the batch, malformed ones included, since reading started.
    since : int
        Byte of the file at which it started.
    """

    offsets: NDArray[np.int64]
    uids: list[bytes | None]
    metadata: list[bytes | None]
    malformed: list[Malformed]
    first_record: int
    since: int


def summed(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:
    """Return the entries sorted within each row, repeated indices added up.

    Repeated ones are added in the order in which they come; O(nnz), plus a sort of each row
    that is out of order.
    """
    rising = np.diff(indices) > 0
    starts = indptr[1:-1]
    rising[starts[(starts > 0) & (starts < len(indices))] - 1] = True
    if rising.all():
        return indptr, indices, values
    # Copies, which also have one type whatever came.
    ends, ids, numbers = (
        np.array(indptr, np.int64), np.array(indices, np.int32), np.array(values, np.float64)
    )  # fmt: skip
    _sum_rows_inplace(ends, ids, numbers)
    return ends, ids[: ends[-1]], numbers[: ends[-1]]


def _sum_rows(indptr, indices, values):  # type: ignore[no-untyped-def]
    """Sort rows, add up what is repeated and close the gaps, in place."""
    place, start = 0, indptr[0]
    for row in range(len(indptr) - 1):
        stop, first = indptr[row + 1], place
        rises = True
        for p in range(start + 1, stop):
            rises &= indices[p] > indices[p - 1]
        if rises:
            for p in range(start, stop):
                indices[place], values[place] = indices[p], values[p]
                place += 1
        else:
            ids, numbers = indices[start:stop].copy(), values[start:stop].copy()
            for p in np.argsort(ids, kind="mergesort"):  # a stable one
                if place > first and indices[place - 1] == ids[p]:
                    values[place - 1] += numbers[p]
                else:
                    indices[place], values[place] = ids[p], numbers[p]
                    place += 1
        start = stop
        indptr[row + 1] = place


_sum_rows_inplace = njit(_sum_rows, tag="sum-rows")
