"""Read a whole recordIO-protobuf file into a SciPy matrix; no Spark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.batches import RowBatch
from spark_fm.formats.reading import MAX_RECORD_BYTES, RecordReader
from spark_fm.formats.streams import unzipped


def read_batches(
    file: str | os.PathLike[str] | BinaryIO, *, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RowBatch]:
    """Yield the rows of a recordIO-protobuf file in batches, in bounded memory.

    Parameters
    ----------
    file : path or binary file object
        Gzip-compressed or not; an object is read from where it stands.
    max_record_bytes : int
        A record that claims more is an error; at most 2**29 - 1.

    Raises
    ------
    InvalidDataError
        Naming file, byte offset, record number and reason, at the first broken record.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            yield from RecordReader(
                unzipped(stream), source=os.fspath(file), max_record_bytes=max_record_bytes
            )
    else:
        name = str(getattr(file, "name", "<stream>"))
        yield from RecordReader(unzipped(file), source=name, max_record_bytes=max_record_bytes)


def read_records(
    file: str | os.PathLike[str] | BinaryIO,
    *,
    n_features: int | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> tuple[sp.csr_matrix, NDArray[np.float32]]:
    """Return the rows and labels of a recordIO-protobuf file.

    Parameters
    ----------
    file : path or binary file object
    n_features : int, optional
        Columns of the matrix; by default what the records say.
    max_record_bytes : int
        As in `read_batches`.

    Returns
    -------
    X : csr_matrix of shape (n_rows, n_features), float32
        Dense records keep their zeros as stored entries.
    y : ndarray of shape (n_rows,), float32
        NaN where a record has no label.

    Raises
    ------
    InvalidDataError
        When a record is broken, when records disagree on the number of features, when one
        has a feature outside ``n_features`` or a number too large for float32.

    Examples
    --------
    >>> import io
    >>> from spark_fm.recordio import read_records, write_records
    >>> file = io.BytesIO()
    >>> write_records(file, [[0.0, 2.0], [1.0, 0.0]], [1, 0])
    2
    >>> _ = file.seek(0)
    >>> X, y = read_records(file)
    >>> X.shape, y.tolist()
    ((2, 2), [1.0, 0.0])
    """
    batches = list(read_batches(file, max_record_bytes=max_record_bytes))
    indptr = [np.zeros(1, np.int64)]
    total = 0
    for batch in batches:
        indptr.append(batch.indptr[1:] + total)
        total += len(batch.indices)
    indices = np.concatenate([np.empty(0, np.int32), *(b.indices for b in batches)])
    values = np.concatenate([np.empty(0, np.float32), *(_float32(b.values) for b in batches)])
    labels = np.concatenate([np.empty(0, np.float32), *(_float32(b.labels) for b in batches)])
    widths = np.concatenate([np.empty(0, np.int64), *(b.widths for b in batches)])
    width = common_width(widths, n_features)
    top = int(indices.max()) + 1 if len(indices) else 0
    if top > width >= 0:
        raise InvalidDataError(
            f"A record has feature {top - 1}, outside n_features={width}. Pass a larger n_features."
        )
    shape = (len(labels), top if width < 0 else width)
    return sp.csr_matrix((values, indices, np.concatenate(indptr)), shape=shape), labels


def common_width(widths: NDArray[np.int64], n_features: int | None = None) -> int:
    """Return the number of features that records agree on; -1 when none says.

    Raises
    ------
    InvalidDataError
        When two records say differently and ``n_features`` is not given.
    """
    if n_features is not None:
        return n_features
    known = widths[widths >= 0]
    if not len(known):
        return -1
    if (known != known[0]).any():
        row = int(np.flatnonzero((widths >= 0) & (widths != known[0]))[0])
        raise InvalidDataError(
            f"Records disagree on the number of features: {known[0]} at first, {widths[row]} in "
            f"record {row}. Pass the number that holds for all (n_features, option featureDim)."
        )
    return int(known[0])


def _float32(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        small = numbers.astype(np.float32)
    if np.isinf(small).any():
        large = np.isinf(small) & np.isfinite(numbers)
        if large.any():
            raise InvalidDataError(
                f"A record holds {numbers[large][0]}, too large for float32. Read it by "
                "read_batches, which gives float64."
            )
    return small
