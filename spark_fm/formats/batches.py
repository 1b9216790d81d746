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
    """

    source: str
    offset: int
    record: int
    row: int
    reason: str

    def __str__(self) -> str:
        """Return file, offset, record number and reason."""
        return f"{self.source}: record {self.record} at byte {self.offset}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows as they lie in the file, and what could not be read between them.

    Parameters
    ----------
    indptr : ndarray of shape (n + 1,), int64
    indices : ndarray of shape (nnz,), int32
        Strictly increasing within a row: repeated keys have been added up.
    values : ndarray of shape (nnz,), float64
    labels : ndarray of shape (n,), float64
        NaN where a record has none.
    widths : ndarray of shape (n,), int64
        Number of features a record claims; -1 where it does not say.
    is_dense : ndarray of shape (n,), bool
    offsets : ndarray of shape (n,), int64
        Bytes of the file at which the records start.
    uids, metadata : list of bytes or None
        Empty unless asked for.
    malformed : list of Malformed
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float64]
    labels: NDArray[np.float64]
    widths: NDArray[np.int64]
    is_dense: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    uids: list[bytes | None]
    metadata: list[bytes | None]
    malformed: list[Malformed]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)
