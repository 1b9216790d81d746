"""SciPy's ``.npz`` files of sparse matrices, with labels beside the matrix.

What ``scipy.sparse.save_npz`` writes is a zip of NumPy arrays. Labels are one more array
in it, ``y``, which ``scipy.sparse.load_npz`` ignores and ``numpy.load`` finds. The matrix
is held in memory, as SciPy does it.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.recordio.reader import Rows, summed
from spark_fm.learner.csr import MAX_FEATURE_ID

LABEL_NAMES = ("y", "label", "labels")
BATCH_ROWS = 2**14


def read_npz(
    file: Any, *, source: str, advance: Callable[[float], None] = lambda fraction: None
) -> Iterator[Rows]:
    """Yield the rows of a sparse matrix, or raise InvalidDataError.

    ``advance`` is called with the fraction of the rows that were read, ``source`` is the
    file's name in messages.
    """
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("File is not a zip file")
        file.seek(0)
        with np.load(file) as archive:
            (indptr, indices, values), width, labels = _load(archive, file, source)
    except InvalidDataError:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, TypeError, EOFError,
            KeyError) as err:  # fmt: skip
        raise InvalidDataError(
            f"{source} is no file of scipy.sparse.save_npz: {err}. A matrix X becomes one by "
            "scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(X))."
        ) from None
    n_rows = len(labels)
    for start in range(0, n_rows, BATCH_ROWS):
        starts = indptr[start : start + BATCH_ROWS + 1]
        n = len(starts) - 1
        entries = slice(int(starts[0]), int(starts[-1]))
        row_values = values[entries].astype(np.float64)
        parts = summed(starts - starts[0], indices[entries].astype(np.int32), row_values)
        y = labels[start : start + n].astype(np.float64)
        yield Rows(*parts, y, np.full(n, width), np.zeros(n, np.bool_))
        advance((start + n) / n_rows)


def _load(archive: Any, file: Any, source: str) -> tuple[list[NDArray[Any]], int, NDArray[Any]]:
    """Return indptr, indices and values, the number of columns, and labels or NaN."""
    if not {"format", "shape", "data"} <= set(archive.files):
        raise ValueError(f"it holds {', '.join(sorted(archive.files)) or 'nothing'}")
    n_rows, width = (int(size) for size in archive["shape"])
    if not 1 <= width <= MAX_FEATURE_ID + 1:
        raise InvalidDataError(
            f"{source} has {width} columns; 1 to {MAX_FEATURE_ID + 1} are allowed."
        )
    labels: NDArray[Any] = np.full(n_rows, np.nan)
    for name in LABEL_NAMES:
        if name in archive.files:
            labels = _vector(name, archive[name])
            break
    if len(labels) != n_rows:
        raise InvalidDataError(f"{source} has {len(labels)} labels ({name}) for {n_rows} rows.")
    if archive["format"].item() in (b"csr", "csr"):
        arrays = [_vector(part, archive[part]) for part in ("indptr", "indices", "data")]
    else:
        file.seek(0)
        matrix = sp.load_npz(file)
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)  # unchecked, a conversion reads beyond arrays
        matrix = matrix.tocsr()
        arrays = [matrix.indptr, matrix.indices, _vector("data", matrix.data)]
    arrays[0] = arrays[0].astype(np.int64)
    indptr, indices, values = arrays
    if len(indptr) != n_rows + 1 or len(indices) != len(values):
        raise ValueError("its arrays have lengths that do not fit together")
    if indptr[0]:
        raise ValueError(f"its indptr starts at {indptr[0]}, not at 0")
    if (np.diff(indptr) < 0).any() or indptr[-1] > len(values):
        raise ValueError("its indptr does not rise, or ends after the data")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < width:
        raise InvalidDataError(f"{source}: a column index lies outside 0 to {width - 1}.")
    return arrays, width, labels


def _vector(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"its array {name} has shape {array.shape} and type {array.dtype}")
    return array


class NpzSink:
    """Write rows as a file of ``scipy.sparse.save_npz`` (CSR, not compressed) with ``y``.

    Values and labels become float32 where that changes none.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._batches: list[Rows] = []

    def write(self, rows: Rows) -> None:
        """Keep rows until all are known."""
        self._batches.append(rows)

    def close(self) -> None:
        """Write the archive."""
        lengths = self._joined(lambda rows: np.diff(rows.indptr), np.int64)
        ends = np.cumsum(lengths)
        width = max((rows.n_features for rows in self._batches), default=0)
        is_small = not len(ends) or ends[-1] < 2**31
        arrays: dict[str, Any] = {
            "format": np.array(b"csr"),
            "shape": np.array([len(lengths), width], np.int64),
            "indptr": np.concatenate([[0], ends]).astype(np.int32 if is_small else np.int64),
            "indices": self._joined(lambda rows: rows.indices, np.int32),
            "data": _smallest(self._joined(lambda rows: rows.values, np.float64)),
            "y": _smallest(self._joined(lambda rows: rows.labels, np.float64)),
        }
        if np.isnan(arrays["y"]).all():
            del arrays["y"]
        np.savez(self._file, **arrays)

    def discard(self) -> None:
        """Drop the rows."""
        self._batches = []

    def _joined(self, part: Callable[[Rows], NDArray[Any]], dtype: type) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *map(part, self._batches)])


def _smallest(numbers: NDArray[np.float64]) -> NDArray[Any]:
    """Return numbers as float32 if all are the same in it."""
    with np.errstate(over="ignore"):
        small = numbers.astype(np.float32)
    return small if np.array_equal(small, numbers, equal_nan=True) else numbers
