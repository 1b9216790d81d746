"""Rows of a recordIO file as arrays, and the places that hold none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    """Return the entries sorted within each row, repeated indices added up."""
    rising = np.diff(indices) > 0
    starts = indptr[1:-1]
    rising[starts[(starts > 0) & (starts < len(indices))] - 1] = True
    if rising.all():
        return indptr, indices, values
    lengths = np.diff(indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    is_bad = np.zeros(len(lengths), np.bool_)
    is_bad[rows[1:][~rising]] = True
    places = np.flatnonzero(np.repeat(is_bad, lengths))  # all entries of rows out of order
    # Stable: repeated ones are added in the order in which they came.
    order = places[np.lexsort((indices[places], rows[places]))]
    ids = indices[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (np.diff(ids) != 0) | (np.diff(rows[order]) != 0)
    sums = values[order[is_first]]
    np.add.at(sums, np.cumsum(is_first)[~is_first] - 1, values[order[~is_first]])
    indices, values = indices.copy(), values.copy()
    indices[places] = ids
    values[places[is_first]] = sums
    kept = np.ones(len(indices), np.bool_)
    kept[places[~is_first]] = False
    return np.concatenate([[0], np.cumsum(kept)])[indptr], indices[kept], values[kept]
