"""SciPy's ``.npz`` files of sparse matrices, with labels beside the matrix, as streams.

What ``scipy.sparse.save_npz`` writes is a zip of NumPy arrays. Labels are one more array
in it, ``y``, which ``scipy.sparse.load_npz`` passes over and ``numpy.load`` finds.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.lib import format as npy
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.recordio.reader import Rows, summed
from spark_fm.learner.csr import MAX_FEATURE_ID

LABEL_NAMES = ("y", "label", "labels")
BATCH_ROWS = 2**16
BATCH_ENTRIES = 2**20


def read_npz(
    file: Any, *, source: str, advance: Callable[[float], None] = lambda share: None
) -> Iterator[Rows]:
    """Yield the rows of a sparse matrix.

    Parameters
    ----------
    file : file object that can seek
    source : str
        Name for messages.
    advance : callable
        Called with the share of the rows that were read, from 0 to 1.

    Raises
    ------
    InvalidDataError
        When it is no such file, or its arrays do not fit together.

    Notes
    -----
    CSR is read in bounded memory; other sparse formats are loaded and converted first.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            yield from _matrix_rows(archive, file, source, advance)
    except InvalidDataError:
        raise
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, EOFError,
            KeyError) as err:  # fmt: skip
        raise InvalidDataError(
            f"{source} is no file of scipy.sparse.save_npz: {err}. A matrix X becomes one by "
            "scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(X))."
        ) from None


def _matrix_rows(
    archive: zipfile.ZipFile, file: Any, source: str, advance: Callable[[float], None]
) -> Iterator[Rows]:
    members = {name.removesuffix(".npy") for name in archive.namelist()}
    if not {"format", "shape", "data"} <= members:
        raise ValueError(f"it holds {', '.join(sorted(members)) or 'nothing'}")
    n_rows, width = (int(size) for size in _whole(archive, "shape"))
    if not 1 <= width <= MAX_FEATURE_ID + 1:
        raise InvalidDataError(
            f"{source} has {width} columns; 1 to {MAX_FEATURE_ID + 1} are allowed."
        )
    label_name = next((name for name in LABEL_NAMES if name in members), None)
    labels = None if label_name is None else _Array(archive, label_name)
    if labels is not None and labels.length != n_rows:
        raise InvalidDataError(
            f"{source} has {labels.length} labels ({label_name}) for {n_rows} rows."
        )
    is_csr = _whole(archive, "format").item() in (b"csr", "csr")
    if is_csr:
        indptr, indices, data = (_Array(archive, name) for name in ("indptr", "indices", "data"))
        batches = _csr_batches(indptr, indices, data, n_rows)
    else:
        file.seek(0)
        batches = _loaded_batches(sp.csr_matrix(sp.load_npz(file)))
    n_read = 0
    for starts, columns, numbers in batches:
        n = len(starts) - 1
        if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < width:
            raise InvalidDataError(f"{source}: a column index lies outside 0 to {width - 1}.")
        y = np.full(n, np.nan) if labels is None else labels.take(n).astype(np.float64)
        entries = summed(starts, columns.astype(np.int32), numbers.astype(np.float64))
        yield Rows(*entries, y, np.full(n, width), np.zeros(n, np.bool_))
        n_read += n
        advance(n_read / n_rows)


_Batch = tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]


def _csr_batches(indptr: _Array, indices: _Array, data: _Array, n_rows: int) -> Iterator[_Batch]:
    if indptr.length != n_rows + 1 or indices.length != data.length:
        raise ValueError("its arrays have lengths that do not fit together")
    last = int(indptr.take(1)[0])
    if last:
        raise ValueError(f"its indptr starts at {last}, not at 0")
    done = 0
    while done < n_rows:
        ends = indptr.take(min(BATCH_ROWS, n_rows - done)).astype(np.int64)
        starts = np.concatenate([[last], ends])
        if (np.diff(starts) < 0).any() or starts[-1] > data.length:
            raise ValueError("its indptr does not rise, or ends after the data")
        at = 0
        while at < len(ends):  # rows of at most BATCH_ENTRIES, one row at least
            limit = starts[at] + BATCH_ENTRIES
            stop = max(at + 1, int(np.searchsorted(starts, limit, "right")) - 1)
            n_entries = int(starts[stop] - starts[at])
            yield starts[at : stop + 1] - starts[at], indices.take(n_entries), data.take(n_entries)
            at = stop
        last = int(starts[-1])
        done += len(ends)


def _loaded_batches(matrix: sp.csr_matrix) -> Iterator[_Batch]:
    for start in range(0, matrix.shape[0], BATCH_ROWS):
        part = matrix[start : start + BATCH_ROWS]
        yield part.indptr.astype(np.int64), part.indices, part.data


class _Array:
    """One array of the archive, read from front to back."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._stream: IO[bytes] = archive.open(f"{name}.npy")
        version = npy.read_magic(self._stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, self.dtype = read(self._stream)
        if len(shape) != 1 or self.dtype.kind not in "biuf":
            raise ValueError(f"its array {name} has shape {shape} and type {self.dtype}")
        self.length = shape[0]

    def take(self, count: int) -> NDArray[Any]:
        """Return the next numbers."""
        wanted = count * self.dtype.itemsize
        taken = self._stream.read(wanted)
        if len(taken) < wanted:
            raise EOFError("it ends early")
        return np.frombuffer(taken, self.dtype)


def _whole(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))


class NpzSink:
    """Write rows as a file of ``scipy.sparse.save_npz`` (CSR, not compressed) with ``y``.

    The arrays grow in temporary files, as a zip holds one after the other; ``close``
    puts them together. Values and labels become float32 where that changes none.

    Parameters
    ----------
    file : binary file that can seek
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._spools = {name: _Spool() for name in ("indptr", "indices", "data", "y")}
        self._spools["indptr"].append(np.zeros(1, np.int64))
        self._n_rows = self._nnz = self._width = 0

    def write(self, rows: Rows) -> None:
        """Take in rows."""
        self._spools["indptr"].append(rows.indptr[1:] + self._nnz)
        self._spools["indices"].append(rows.indices)
        self._spools["data"].append(rows.values)
        self._spools["y"].append(rows.labels)
        self._n_rows += rows.n_rows
        self._nnz += len(rows.indices)
        self._width = max(self._width, rows.n_features)

    def close(self) -> None:
        """Write the archive."""
        small = {
            "indptr": np.int32 if self._nnz < 2**31 else np.int64,
            "indices": np.int32,
            **{name: np.float32 if self._spools[name].fits_float32 else np.float64
               for name in ("data", "y")},
        }  # fmt: skip
        with zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED) as archive:
            for name, whole in (
                ("format", np.array(b"csr")),
                ("shape", np.array([self._n_rows, self._width], np.int64)),
            ):
                with archive.open(f"{name}.npy", "w") as stream:
                    npy.write_array(stream, whole)
            for name, dtype in small.items():
                if name == "y" and self._spools["y"].is_all_nan:
                    continue
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    self._spools[name].copy(stream, np.dtype(dtype))

    def discard(self) -> None:
        """Remove the temporary files."""
        for spool in self._spools.values():
            spool.close()


class _Spool:
    """An array that grows in a temporary file."""

    def __init__(self) -> None:
        self._stream = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self.dtype = np.dtype(np.int64)
        self.length = 0
        self.fits_float32 = True
        self.is_all_nan = True

    def append(self, numbers: NDArray[Any]) -> None:
        """Add numbers, always of one type."""
        self.dtype = numbers.dtype
        self.length += len(numbers)
        if numbers.dtype.kind == "f":
            with np.errstate(over="ignore"):
                small = numbers.astype(np.float32)
            self.fits_float32 &= bool(np.array_equal(small, numbers, equal_nan=True))
            self.is_all_nan &= bool(np.isnan(numbers).all())
        self._stream.write(np.ascontiguousarray(numbers).tobytes())

    def copy(self, out: IO[bytes], dtype: np.dtype[Any]) -> None:
        """Write everything as a ``.npy`` file of another type."""
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False,
                  "shape": (self.length,)}  # fmt: skip
        npy.write_array_header_1_0(out, header)
        self._stream.seek(0)
        if dtype == self.dtype:
            shutil.copyfileobj(self._stream, out, 2**22)
            return
        while taken := self._stream.read(2**22):
            out.write(np.frombuffer(taken, self.dtype).astype(dtype).tobytes())

    def close(self) -> None:
        """Remove the temporary file."""
        self._stream.close()
