"""Bodies of inference requests, as SageMaker takes them, to rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, RequestError
from spark_fm.formats.body_kinds import JSON, JSONLINES, RECORDIO_PROTOBUF
from spark_fm.formats.content_types import CONTENT_TYPES, content_type_of
from spark_fm.formats.vectors import rows_of
from spark_fm.learner.csr import CsrBatch

__all__ = [
    "CONTENT_TYPES",
    "JSON",
    "JSONLINES",
    "RECORDIO_PROTOBUF",
    "decode_request",
    "encode_request",
    "read_requests",
]

MAX_ROWS = 2**16  # of a batch


def decode_request(body: bytes, content_type: str, *, feature_dim: int) -> CsrBatch:
    """Return the rows of a request.

    Parameters
    ----------
    body : bytes
    content_type : str
        One of CONTENT_TYPES; parameters such as a charset are ignored.
    feature_dim : int
        Number of features of the model (>= 1).

    Returns
    -------
    CsrBatch
        One row an instance, in order, at least one. Labels are 0 whatever the body holds.
        Dense instances keep their zeros as entries.

    Raises
    ------
    RequestError
        For a body that is malformed, holds no instance, or one that the model cannot score.
    InvalidParamError
        For another content type.

    Notes
    -----
    O(bytes of the body), whatever ``feature_dim`` is. Memory: up to some 16 times the body
    for JSON (a number of two characters becomes an object of 32 bytes), twice for records.

    Values are rounded to float32 and must be finite in it. Keys may come in any order. A
    repeated key is an error in JSON; in a record the values are added up, as when records
    are read for training. A record may leave its shape out.

    Examples
    --------
    >>> from spark_fm.formats.requests import JSONLINES, decode_request
    >>> rows = decode_request(b'{"features": [0.5, 0, 2]}', JSONLINES, feature_dim=3)
    >>> rows.values.tolist()
    [0.5, 0.0, 2.0]
    """
    return content_type_of(content_type).decode(body, feature_dim)


def read_requests(
    stream: BinaryIO, content_type: str, *, feature_dim: int, max_rows: int = MAX_ROWS
) -> Iterator[CsrBatch]:
    """Yield the rows of a request of any length in batches.

    Parameters
    ----------
    stream : binary file
        Only ``read`` is called.
    content_type : str
    feature_dim : int
    max_rows : int
        Rows of a batch at most.

    Raises
    ------
    RequestError
        As in `decode_request`, when the invalid instance is reached; batches before it have
        been yielded. Lines and records may hold no instance at all: then there are no
        batches.

    Notes
    -----
    Memory is bounded for JSON lines (1 MiB of lines at a time, about 20 MB in all; one line
    has 64 MiB at most) and records (8 MiB at a time, about 80 MB in all; one record has
    64 MiB at most). A JSON document is read as a whole: up to 100 MiB, SageMaker's largest
    payload; longer ones are refused.
    """
    for batch in content_type_of(content_type).read(stream, feature_dim):
        yield from _cut(batch, max_rows)


def _cut(batch: CsrBatch, max_rows: int) -> Iterator[CsrBatch]:
    """Yield views of so many rows each."""
    for start in range(0, batch.n_rows, max_rows):
        indptr = batch.indptr[start : start + max_rows + 1]
        entries = slice(int(indptr[0]), int(indptr[-1]))
        yield CsrBatch(
            indptr - indptr[0],
            batch.indices[entries],
            batch.values[entries],
            batch.labels[start : start + max_rows],
            batch.weights[start : start + max_rows],
        )


def encode_request(X: Any, content_type: str) -> bytes:
    """Return rows as the body of a request.

    Parameters
    ----------
    X : array_like or sparse matrix or array of shape (n_rows, n_features)
        An array is written in the dense form, a sparse matrix in the sparse form. One
        dimension is one row.
    content_type : str
        One of CONTENT_TYPES.

    Returns
    -------
    bytes

    Raises
    ------
    InvalidDataError
        For a number that is not finite as float32, a type that is not one of real numbers,
        or no row at all.
    InvalidParamError
        For another content type.

    Notes
    -----
    JSON numbers are written as they are, with up to 17 digits, and records in float32, so
    that both arrive as the same float32.

    Examples
    --------
    >>> import scipy.sparse
    >>> from spark_fm.formats.requests import JSON, encode_request
    >>> encode_request(scipy.sparse.csr_array([[0, 2, 0, 3.5]]), JSON)
    b'{"instances":[{"data":{"features":{"keys":[1,3],"shape":[4],"values":[2.0,3.5]}}}]}'
    """
    kind = content_type_of(content_type)
    rows = rows_of(X)
    if not rows.shape[0]:
        raise InvalidDataError(
            "X has no rows: a request has one at least. Score an empty table without a request."
        )
    return kind.encode(rows)


@dataclass(frozen=True, slots=True)
class Cells:
    """What the cells of a column hold."""

    rows: CsrBatch  # the instances of all cells, one after the other
    counts: NDArray[np.int64]  # (n_cells,): instances of each cell, 0 for a null or invalid one
    reasons: dict[int, str]  # why a cell is invalid, by its index


def decode_cells(
    cells: Sequence[bytes | None], content_type: str, feature_dim: int, *, one_each: bool
) -> Cells:
    """Return the instances of cells with a request each; with ``one_each`` of one instance.

    Lines and records are decoded all at once where each cell holds one, the rule: about 3
    and 0.3 microseconds a cell of ten entries instead of 40 and 100.
    """
    kind = content_type_of(content_type)
    bodies = [cell for cell in cells if cell is not None]
    no_rows = CsrBatch.from_arrays(
        np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    )
    try:
        rows = kind.decode_single_rows(bodies, feature_dim) if bodies else no_rows
    except RequestError:
        rows = None  # which cell is invalid shows when each is decoded by itself
    if rows is not None:
        return Cells(rows, np.array([cell is not None for cell in cells], np.int64), {})
    batches = [no_rows]
    counts = np.zeros(len(cells), np.int64)
    reasons: dict[int, str] = {}
    for index, cell in enumerate(cells):
        if cell is None:
            continue
        try:
            rows = kind.decode(cell, feature_dim)
        except RequestError as err:
            reasons[index] = str(err)
            continue
        if one_each and rows.n_rows != 1:
            reasons[index] = (
                f"The cell holds {rows.n_rows} instances; expected one. Read it with "
                "request_vectors, or explode it first."
            )
            continue
        batches.append(rows)
        counts[index] = rows.n_rows
    return Cells(CsrBatch.concat(batches), counts, reasons)
