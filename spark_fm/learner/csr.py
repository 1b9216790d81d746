"""Rows of a training or scoring set in compressed sparse form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.learner.jit import njit

MAX_FEATURE_ID = 2**31 - 2  # the last index a Spark vector can hold


@dataclass(frozen=True, slots=True)
class CsrBatch:
    """Sparse rows with labels and weights; driver and executors."""

    # (n_rows + 1,); row r has the entries indptr[r] to indptr[r + 1], and indptr[0] == 0
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]  # (nnz,), feature of each entry, increasing within a row
    values: NDArray[np.float32]  # (nnz,)
    # (n_rows,), float64 as rows are packed, float32 once ``Scaling`` was applied to train on them
    labels: NDArray[Any]
    weights: NDArray[Any]  # (n_rows,), the same, >= 0; a row of weight 0 has no effect

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.indices)

    @property
    def n_bytes(self) -> int:
        """Bytes of the five arrays."""
        return sum(
            a.nbytes for a in (self.indptr, self.indices, self.values, self.labels, self.weights)
        )

    @classmethod
    def from_arrays(
        cls,
        indptr: NDArray[np.int64],
        indices: NDArray[np.int32],
        values: NDArray[np.float32],
        *,
        labels: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> CsrBatch:
        """Fill in absent labels with 0 and absent weights with 1; O(n_rows)."""
        n_rows = len(indptr) - 1
        return cls(
            indptr=np.ascontiguousarray(indptr, np.int64),
            indices=np.ascontiguousarray(indices, np.int32),
            values=np.ascontiguousarray(values, np.float32),
            labels=np.zeros(n_rows, np.float32) if labels is None else labels,
            weights=np.ones(n_rows, np.float32) if weights is None else weights,
        )

    @classmethod
    def from_matrix(cls, X: Any, *, labels: Any = None, weights: Any = None) -> CsrBatch:
        """Convert a SciPy sparse matrix or a 2-D array; repeated entries are added up."""
        import scipy.sparse as sp  # not by workers that pack and train: 0.2 s each

        matrix = sp.csr_matrix(X) if sp.issparse(X) else sp.csr_matrix(np.atleast_2d(np.asarray(X)))
        if matrix.nnz and int(matrix.indices.max()) > MAX_FEATURE_ID:
            raise InvalidDataError(
                f"Feature index {int(matrix.indices.max())} is too large: the largest is "
                f"{MAX_FEATURE_ID}. Hash the features into fewer."
            )
        batch = cls.from_arrays(
            matrix.indptr,
            matrix.indices,
            matrix.data,
            labels=None if labels is None else np.ascontiguousarray(labels, np.float32),
            weights=None if weights is None else np.ascontiguousarray(weights, np.float32),
        )
        return canonical(batch)

    @classmethod
    def concat(cls, batches: Sequence[CsrBatch]) -> CsrBatch:
        """Stack batches in order; O(total nnz)."""
        if len(batches) == 1:
            return batches[0]
        offsets = np.cumsum([0] + [batch.nnz for batch in batches])
        pointers = [np.zeros(1, np.int64)]
        pointers += [b.indptr[1:] + offset for b, offset in zip(batches, offsets, strict=False)]
        return cls(
            indptr=np.concatenate(pointers),
            indices=np.concatenate([np.empty(0, np.int32)] + [b.indices for b in batches]),
            values=np.concatenate([np.empty(0, np.float32)] + [b.values for b in batches]),
            labels=np.concatenate([np.empty(0, np.float32)] + [b.labels for b in batches]),
            weights=np.concatenate([np.empty(0, np.float32)] + [b.weights for b in batches]),
        )

    def take(self, rows: NDArray[np.int64]) -> CsrBatch:
        """Return the given rows in the given order; O(nnz taken)."""
        indptr = self.pointers_of(rows)
        indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        self.copy_entries(rows, indptr, indices, values)
        return CsrBatch(indptr, indices, values, self.labels[rows], self.weights[rows])

    def pointers_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ``indptr`` of the given rows in the given order."""
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        return indptr

    def copy_entries(
        self,
        rows: NDArray[np.int64],
        indptr: NDArray[np.int64],
        indices: NDArray[np.int32],
        values: NDArray[np.float32],
    ) -> None:
        """Copy the entries of rows into arrays in place, where ``pointers_of`` them points."""
        given = [frozen(a) for a in (self.indptr, self.indices, self.values, rows, indptr)]
        _copy_entries(*given, indices, values)

    def between(self, start: int, stop: int) -> CsrBatch:
        """Return the rows from ``start`` up to ``stop``, views but for the pointers."""
        indptr = self.indptr[start : stop + 1]
        first, last = indptr[0], indptr[-1]
        return CsrBatch(
            indptr - first, self.indices[first:last], self.values[first:last],
            self.labels[start:stop], self.weights[start:stop],
        )  # fmt: skip

    def padded(self, multiple: int) -> CsrBatch:
        """Return the batch with empty rows of label 0 and weight 1 up to a whole multiple."""
        missing = -self.n_rows % multiple
        if not missing:
            return self
        return CsrBatch(
            np.concatenate([self.indptr, np.full(missing, self.indptr[-1])]),
            self.indices,
            self.values,
            np.concatenate([self.labels, np.zeros(missing, np.float32)]),
            np.concatenate([self.weights, np.ones(missing, np.float32)]),
        )


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view: kernels take their inputs in this one form.

    Arrays that may be written are another type to Numba, and would compile again.
    """
    view = array.view()
    view.flags.writeable = False
    return view


def canonical(batch: CsrBatch) -> CsrBatch:
    """Return the batch with sorted indices in each row and repeated ones added up.

    A feature vector has one value a feature, so a repeated index is a sum. Batches
    that are sorted already, the rule, are returned as they are; O(nnz).
    """
    if _rows_strictly_increase(batch.indptr, batch.indices):
        return batch
    import scipy.sparse as sp

    n_features = int(batch.indices.max()) + 1
    matrix = sp.csr_matrix(
        (batch.values, batch.indices, batch.indptr), shape=(batch.n_rows, n_features), copy=True
    )
    matrix.sum_duplicates()
    return CsrBatch.from_arrays(
        matrix.indptr, matrix.indices, matrix.data, labels=batch.labels, weights=batch.weights
    )


def _strictly_increasing(indptr, indices):  # type: ignore[no-untyped-def]
    for r in range(len(indptr) - 1):
        for p in range(indptr[r] + 1, indptr[r + 1]):
            if indices[p] <= indices[p - 1]:
                return False
    return True


_rows_strictly_increase = njit(_strictly_increasing, tag="rows-strictly-increase")


def _copy_entries_loop(indptr, indices, values, rows, starts, out_indices, out_values):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        shift = indptr[rows[i]] - starts[i]
        for q in range(starts[i], starts[i + 1]):
            out_indices[q] = indices[q + shift]
            out_values[q] = values[q + shift]


_copy_entries = njit(_copy_entries_loop, tag="copy-entries")
