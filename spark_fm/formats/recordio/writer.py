"""Matrices to recordIO files, for programs without Spark."""

from __future__ import annotations

import errno
import io
import json
import os
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.files import atomic_write, local_path
from spark_fm.formats.recordio.encode import encode_csr, encode_dense
from spark_fm.formats.vectors import array_of, as_float32, check_dtype, raise_value, rows_of
from spark_fm.learner.csr import MAX_FEATURE_ID

# Bounds of what is encoded at a time: some 30 MB, whatever the shape of the rows.
CHUNK_ROWS = 2**17
CHUNK_ENTRIES = 2**20

MANIFEST_NAME = ".amazon.manifest"

_Path = str | os.PathLike[str]


def write_records(file: _Path | BinaryIO, X: Any, y: Any = None) -> int:
    """Write the rows of a matrix as records that SageMaker's algorithms read.

    Parameters
    ----------
    file : str, path or binary file object
        A path gets a new file, which replaces an old one only when it is
        complete. A file object is appended to, and left open; it need not seek.
    X : sparse matrix, sparse array or array_like of shape (n_rows, n_features)
        Any SciPy format, any type of real numbers; written as float32. Repeated entries
        of a sparse matrix are added up. One dimension is one row.
    y : array_like of shape (n_rows,) or (n_rows, 1), optional
        Labels; without them the records have none.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    InvalidDataError
        If a number is not finite or too large for float32, a type is not one of real
        numbers, shapes do not fit, or a feature index is above 2**31 - 2. Rows in front
        of the wrong one may be in a file object already.
    InvalidParamError
        If ``file`` is neither a local path nor a file object open for bytes.

    Notes
    -----
    Sparse rows are written with indices and number of features, dense ones as all their
    values. Integers above 2**24 are rounded, as float32 has 24 bits of precision. A
    sparse pandas table is made dense; pass ``table.sparse.to_coo()`` to keep it sparse.

    Examples
    --------
    >>> import io, scipy.sparse
    >>> from spark_fm.recordio import write_records
    >>> file = io.BytesIO()
    >>> write_records(file, scipy.sparse.csr_array([[0, 2, 0, 3]]), [1])
    1
    >>> len(file.getvalue())
    60
    """
    rows = rows_of(X)
    labels = None if y is None else _labels_of(y, rows.shape[0])
    if isinstance(file, str | os.PathLike):
        with atomic_write(local_path(file, "file")) as out:
            _write(out, rows, labels, 0, rows.shape[0])
    elif callable(getattr(file, "write", None)) and not isinstance(file, io.TextIOBase):
        _write(file, rows, labels, 0, rows.shape[0])
    else:
        raise InvalidParamError(
            f"file must be a path or a file object open for bytes, got {type(file).__name__}. "
            f"Open files with mode 'wb' or 'ab'."
        )
    return int(rows.shape[0])


def write_record_set(
    folder: _Path, X: Any, y: Any = None, num_files: int = 1, prefix: str = "matrix"
) -> str:
    """Write the rows of a matrix to several files and a manifest that lists them.

    The files have the names and content of ``record_set`` of SageMaker's
    SDK: ``matrix_0.pbr`` and so on, and ``.amazon.manifest``.

    Parameters
    ----------
    folder : str or path
        Local folder; made when it does not exist. The manifest names it as it is
        given here, so after a copy to S3 its first entry must become its path there.
    X, y
        As in `write_records`.
    num_files : int, default 1
        The rows are assigned out in order, and the files differ by one row at most. From
        10 files on, numbers have leading zeros, so that names sort like rows.
    prefix : str, default "matrix"
        Start of the file names.

    Returns
    -------
    str
        Path of the manifest.

    Raises
    ------
    InvalidDataError
        As in `write_records`, or if there are fewer rows than files.
    InvalidParamError
        If another parameter is not legal.

    Notes
    -----
    Old files are replaced only when all new ones are complete.
    """
    base = local_path(folder, "folder")
    if isinstance(num_files, bool) or not isinstance(num_files, int | np.integer) or num_files < 1:
        raise InvalidParamError(
            f"num_files must be a whole number of at least 1, got {num_files!r}."
        )
    if not isinstance(prefix, str) or not prefix or "/" in prefix or os.sep in prefix:
        raise InvalidParamError(
            f"prefix must be the start of a file name, without slashes, got {prefix!r}. "
            f"Put folders into the parameter folder."
        )
    rows = rows_of(X)
    n_rows = rows.shape[0]
    labels = None if y is None else _labels_of(y, n_rows)
    if n_rows < num_files:
        raise InvalidDataError(
            f"{n_rows} rows do not fill {num_files} files: each file needs a row at least. "
            f"Set num_files to {max(1, n_rows)} or less."
        )
    os.makedirs(base, exist_ok=True)
    digits = len(str(num_files))
    names = [f"{prefix}_{i:0{digits}d}.pbr" for i in range(num_files)]
    bounds = [n_rows * i // num_files for i in range(num_files + 1)]
    manifest = os.path.join(base, MANIFEST_NAME)
    entries = [{"prefix": base if base.endswith("/") else base + "/"}, *names]
    with ExitStack() as stack:  # unwound backwards: the manifest comes last
        with stack.enter_context(atomic_write(manifest)) as listing:
            listing.write(json.dumps(entries).encode())
        for name, start, stop in zip(names, bounds, bounds[1:], strict=False):
            with stack.enter_context(atomic_write(os.path.join(base, name))) as out:
                _write(out, rows, labels, start, stop)
    return manifest


def _labels_of(y: Any, n_rows: int) -> NDArray[np.float32]:
    """Return checked labels, one a row."""
    if sp.issparse(y):  # a vector is a matrix of one row there, and of one column
        y = y.toarray().ravel() if 1 in y.shape else y.toarray()
    y = array_of(y, "y")
    check_dtype(y.dtype, "y")
    if y.ndim == 0 or (y.ndim == 2 and y.shape[1] == 1):
        y = y.reshape(-1)
    if y.ndim != 1:
        raise InvalidDataError(
            f"y has shape {y.shape}: it must be ({n_rows},) or ({n_rows}, 1), one label a row."
        )
    if len(y) != n_rows:
        raise InvalidDataError(
            f"y has {len(y)} labels but X has {n_rows} rows: pass one label a row, or leave y "
            f"out to write records without labels."
        )
    labels, wrong = as_float32(y)
    if wrong is not None:
        raise_value(y[wrong], f"Label of row {wrong}")
    return labels


def _write(
    out: BinaryIO, rows: Any, labels: NDArray[np.float32] | None, start: int, stop: int
) -> None:
    """Write a range of rows, chunk after chunk."""
    encode = _encode_sparse_chunk if sp.issparse(rows) else _encode_dense_chunk
    while start < stop:
        end = min(stop, start + CHUNK_ROWS)
        if sp.issparse(rows):
            limit = int(rows.indptr[start]) + CHUNK_ENTRIES
            fitting = int(np.searchsorted(rows.indptr[start : end + 1], limit, "right")) - 1
            end = start + max(1, fitting)
        else:
            end = min(end, start + max(1, CHUNK_ENTRIES // rows.shape[1]))
        chunk_labels = None if labels is None else labels[start:end]
        _send(out, encode(rows, chunk_labels, start, end))
        start = end


def _send(out: BinaryIO, data: bytes) -> None:
    """Write all bytes; files without a buffer may take some at a time."""
    if not isinstance(out, io.RawIOBase):
        out.write(data)
        return
    view = memoryview(data)
    while len(view):
        taken = out.write(view)
        if not taken:
            raise BlockingIOError(errno.EAGAIN, "The file takes no more bytes at present")
        view = view[taken:]


def _encode_dense_chunk(
    rows: NDArray[Any], labels: NDArray[np.float32] | None, start: int, stop: int
) -> bytes:
    """Check and encode rows of an array."""
    chunk = rows[start:stop]
    values, wrong = as_float32(chunk)
    if wrong is not None:
        row, column = divmod(wrong, chunk.shape[1])
        raise_value(chunk[row, column], f"X in row {start + row}, column {column}")
    return encode_dense(np.ascontiguousarray(values), labels, first_row=start)


def _encode_sparse_chunk(
    rows: Any, labels: NDArray[np.float32] | None, start: int, stop: int
) -> bytes:
    """Check, sort and encode rows of a CSR array, which stays as it is."""
    indptr = rows.indptr[start : stop + 1].astype(np.int64)
    used = slice(indptr[0], indptr[-1])
    indptr -= indptr[0]
    indices, data, n_features = rows.indices[used], rows.data[used], rows.shape[1]
    last = min(n_features - 1, MAX_FEATURE_ID)
    if len(indices) and (int(indices.max()) > last or int(indices.min()) < 0):
        entry = int(np.flatnonzero((indices > last) | (indices < 0))[0])
        row = start + int(np.searchsorted(indptr, entry, "right")) - 1
        raise InvalidDataError(
            f"Feature index {int(indices[entry])} in row {row} is not allowed: indices go from "
            f"0 to {last} here (number of columns: {n_features}; largest index in a vector: "
            f"{MAX_FEATURE_ID}). Hash the features into fewer, or mend the matrix."
        )
    # A view with new flags: those of the caller's matrix may be out of date.
    chunk = sp.csr_array((data, indices, indptr), shape=(stop - start, n_features))
    if not chunk.has_canonical_format:
        chunk = chunk.copy()
        chunk.sum_duplicates()
        indptr, indices, data = chunk.indptr, chunk.indices, chunk.data
    values, wrong = as_float32(data)
    if wrong is not None:
        row = int(np.searchsorted(indptr, wrong, "right")) - 1
        raise_value(data[wrong], f"X in row {start + row}, column {indices[wrong]}")
    return encode_csr(indptr, indices, values, n_features, labels, first_row=start)
