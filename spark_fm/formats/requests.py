"""Bodies of inference requests, as SageMaker takes them, to rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO, NoReturn

import msgspec
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, InvalidParamError, RequestError
from spark_fm.formats.json_instances import decode_document, decode_lines, float32_values
from spark_fm.formats.recordio.reader import MAX_RECORD_BYTES, Malformed, RecordReader, RowBatch
from spark_fm.formats.recordio.writer import write_records
from spark_fm.formats.vectors import as_float32, raise_value, rows_of
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
CHUNK_BYTES = 2**20  # of lines that are parsed together
MAX_DOCUMENT_BYTES = 100 * 2**20  # SageMaker's largest payload
MAX_LINE_BYTES = MAX_RECORD_BYTES

_RECORD_ADVICE = (
    "Send framed Records with a dense tensor of all features, or a sparse one with keys, values "
    "and shape."
)


def decode_request(body: bytes, content_type: str, *, feature_dim: int) -> CsrBatch:
    """Return the rows of a request.

    Parameters
    ----------
    body : bytes
    content_type : str
        One of CONTENT_TYPES; parameters such as a charset are passed over.
    feature_dim : int
        Number of features of the model (>= 1).

    Returns
    -------
    CsrBatch
        One row an instance, in order, at least one. Labels are 0 whatever the body says.
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
    kind = plain_type(content_type)
    if not body:
        raise RequestError(f"The body is empty; expected instances as {kind}. Send one at least.")
    if kind == JSON:
        return decode_document(body, feature_dim)
    if kind == JSONLINES:
        rows = decode_lines(body, feature_dim)
        if rows is None:
            raise RequestError(
                "The body has no line with an instance; expected one at least. Send an object a "
                "line."
            )
        return rows
    return CsrBatch.concat(list(_record_batches(io.BytesIO(body), feature_dim)))


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
        As in `decode_request`, when the faulty instance is come to; batches before it have
        been given out. Lines and records may hold no instance at all: then there are no
        batches.

    Notes
    -----
    Memory is bounded for JSON lines (1 MiB of lines at a time, about 20 MB in all; one line
    has 64 MiB at most) and records (8 MiB at a time, about 80 MB in all; one record has
    64 MiB at most). A JSON document is read as a whole: up to 100 MiB, SageMaker's largest
    payload; longer ones are refused.
    """
    kind = plain_type(content_type)
    if kind == JSON:
        body = read_document(stream)
        batches: Iterator[CsrBatch] = iter([decode_request(body, kind, feature_dim=feature_dim)])
    elif kind == JSONLINES:
        batches = _line_batches(stream, feature_dim)
    else:
        batches = _record_batches(stream, feature_dim, may_be_empty=True)
    for batch in batches:
        yield from _cut(batch, max_rows)


def read_document(stream: BinaryIO) -> bytes:
    """Return a JSON document, or raise RequestError for one of more than 100 MiB."""
    body = taken = stream.read(MAX_DOCUMENT_BYTES + 1)
    while taken and len(body) <= MAX_DOCUMENT_BYTES:  # some streams give less than asked for
        taken = stream.read(MAX_DOCUMENT_BYTES + 1 - len(body))
        body += taken
    if len(body) > MAX_DOCUMENT_BYTES:
        raise RequestError(
            f"The JSON document has more than {MAX_DOCUMENT_BYTES >> 20} MiB, the most that is "
            "read at once. Cut it up, or send JSON lines or records."
        )
    return body


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


def _line_batches(stream: BinaryIO, feature_dim: int) -> Iterator[CsrBatch]:
    first = 0
    for block in line_blocks(stream):
        rows = decode_lines(block, feature_dim, first)
        if rows is not None:
            first += rows.n_rows
            yield rows


def line_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield a stream in blocks of whole lines.

    Raises
    ------
    RequestError
        For a line of more than MAX_LINE_BYTES.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        chunk = stream.read(CHUNK_BYTES)
        cut = chunk.rfind(b"\n") + 1
        if not chunk or cut:
            yield b"".join([*parts, chunk[:cut]])
            parts, size = [], 0
        if not chunk:
            return
        parts.append(chunk[cut:])
        size += len(parts[-1])
        if size > MAX_LINE_BYTES:
            raise RequestError(
                f"A line has more than {MAX_LINE_BYTES >> 20} MiB, the most that is read at once. "
                "Send one instance a line."
            )


def _record_batches(
    stream: BinaryIO, feature_dim: int, *, may_be_empty: bool = False
) -> Iterator[CsrBatch]:
    first = 0
    for batch in RecordReader(stream, source="body", on_malformed=refuse_record):
        yield checked_records(batch, feature_dim, first)
        first += batch.n_rows
    if not first and not may_be_empty:
        raise RequestError(f"The body has no record; expected one at least. {_RECORD_ADVICE}")


def refuse_record(found: Malformed) -> NoReturn:
    """Raise RequestError for a place that holds no record."""
    raise RequestError(
        f"Instance {found.record} is no record (byte {found.offset}): {found.reason}. "
        f"{_RECORD_ADVICE}",
        instance=found.record,
    )


def checked_records(batch: RowBatch, feature_dim: int, first: int) -> CsrBatch:
    """Return rows of records as the model scores them, or raise.

    Parameters
    ----------
    batch : RowBatch
    feature_dim : int
    first : int
        What errors call the first row.

    Raises
    ------
    RequestError
    """
    misfits = batch.misfits(feature_dim, is_set=False)
    if misfits.any():
        row = int(misfits.argmax())
        width, top = int(batch.widths[row]), int(batch.tops()[row])
        if batch.is_dense[row]:
            what = f"has {width} dense values; the model has {feature_dim} features"
        elif width >= 0 and width != feature_dim:
            what = f"has the shape [{width}]; the model's is [{feature_dim}]"
        else:
            what = f"has the key {top - 1}; expected 0 to {feature_dim - 1}"
        raise RequestError(f"Instance {first + row} {what}. {_RECORD_ADVICE}", instance=first + row)
    values = float32_values(batch.values, batch.indices, batch.indptr, first)
    return CsrBatch.from_arrays(batch.indptr, batch.indices, values)


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
    kind = plain_type(content_type)
    rows = rows_of(X)
    if not rows.shape[0]:
        raise InvalidDataError(
            "X has no rows: a request has one at least. Score an empty table without a request."
        )
    if kind == RECORDIO_PROTOBUF:
        out = io.BytesIO()
        write_records(out, rows)
        return out.getvalue()
    instances = _sparse_instances(rows) if sp.issparse(rows) else _dense_instances(rows)
    if kind == JSON:
        return msgspec.json.encode({"instances": instances})
    return msgspec.json.Encoder().encode_lines(instances)


def _dense_instances(rows: Any) -> list[dict[str, Any]]:
    _, wrong = as_float32(rows)
    if wrong is not None:
        row, column = divmod(wrong, rows.shape[1])
        raise_value(rows[row, column], f"X in row {row}, column {column}")
    return [{"features": row} for row in _plain(rows).tolist()]


def _sparse_instances(rows: Any) -> list[dict[str, Any]]:
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    _, wrong = as_float32(rows.data)
    if wrong is not None:
        row = int(np.searchsorted(rows.indptr, wrong, "right")) - 1
        raise_value(rows.data[wrong], f"X in row {row}, column {rows.indices[wrong]}")
    width, bounds = int(rows.shape[1]), rows.indptr.tolist()
    keys, values = rows.indices.tolist(), _plain(rows.data).tolist()
    return [
        {"data": {"features": {
            "keys": keys[start:stop], "shape": [width], "values": values[start:stop],
        }}}
        for start, stop in pairwise(bounds)
    ]  # fmt: skip


def _plain(numbers: Any) -> Any:
    """Return numbers in a type whose elements JSON can hold."""
    return numbers if numbers.dtype in (np.float32, np.float64) else numbers.astype(np.float64)


JSON = "application/json"
JSONLINES = "application/jsonlines"
RECORDIO_PROTOBUF = "application/x-recordio-protobuf"
CONTENT_TYPES = (JSON, JSONLINES, RECORDIO_PROTOBUF)


def plain_type(content_type: str, name: str = "content_type") -> str:
    """Return one of CONTENT_TYPES, without parameters such as a charset.

    Parameters
    ----------
    content_type : str
        As in a header: case does not matter.
    name : str
        What errors call it.

    Raises
    ------
    InvalidParamError
        For any other type.
    """
    plain = content_type.split(";", 1)[0].strip().lower()
    if plain not in CONTENT_TYPES:
        raise InvalidParamError(
            f"{name}={content_type[:100]!r} is not known; expected {', '.join(CONTENT_TYPES)}. "
            "Convert the data to one of these."
        )
    return plain


@dataclass(frozen=True, slots=True)
class Cells:
    """What the cells of a column hold.

    Parameters
    ----------
    rows : CsrBatch
        The instances of all cells, one after the other.
    counts : ndarray of shape (n_cells,), int64
        Instances of each cell; 0 for one that is null or wrong.
    reasons : dict of int to str
        What is wrong, by cell.
    """

    rows: CsrBatch
    counts: NDArray[np.int64]
    reasons: dict[int, str]


def decode_cells(
    cells: Sequence[bytes | None], content_type: str, feature_dim: int, *, one_each: bool
) -> Cells:
    """Return the instances of cells, each of which is a request of its own.

    Parameters
    ----------
    cells : sequence of bytes or None
    content_type : str
        One of CONTENT_TYPES, without parameters.
    feature_dim : int
    one_each : bool
        A cell with more instances than one is wrong.

    Notes
    -----
    Lines and records are decoded all at once where each cell holds one, the rule: about 3
    and 0.3 microseconds a cell of ten entries instead of 40 and 100.
    """
    is_there = np.array([cell is not None for cell in cells], np.int64)
    together = _decode_together([cell for cell in cells if cell is not None], content_type,
                                feature_dim)  # fmt: skip
    if together is not None:
        return Cells(together, is_there, {})
    found: list[CsrBatch] = []
    counts = np.zeros(len(cells), np.int64)
    reasons: dict[int, str] = {}
    for place, cell in enumerate(cells):
        if cell is None:
            continue
        try:
            rows = decode_request(cell, content_type, feature_dim=feature_dim)
        except RequestError as err:
            reasons[place] = str(err)
            continue
        if one_each and rows.n_rows != 1:
            reasons[place] = (
                f"The cell holds {rows.n_rows} instances; expected one. Read it with "
                "request_vectors, or explode it first."
            )
            continue
        found.append(rows)
        counts[place] = rows.n_rows
    return Cells(CsrBatch.concat([*found, _NO_ROWS]), counts, reasons)


_NO_ROWS = CsrBatch.from_arrays(
    np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
)


def _decode_together(cells: list[bytes], content_type: str, feature_dim: int) -> CsrBatch | None:
    """Return one row a cell, None unless each cell certainly holds one that is right."""
    if not cells:
        return _NO_ROWS
    try:
        if content_type == JSONLINES and not any(b"\n" in cell for cell in cells):
            rows = decode_lines(b"\n".join(cells), feature_dim)
            return rows if rows is not None and rows.n_rows == len(cells) else None
        if content_type == RECORDIO_PROTOBUF:
            return _one_record_each(cells, feature_dim)
    except RequestError:
        pass  # which cell it is comes to light when each is read by itself
    return None


def _one_record_each(cells: list[bytes], feature_dim: int) -> CsrBatch | None:
    starts = np.cumsum([0] + [len(cell) for cell in cells])
    found, n_rows = [], 0
    for batch in RecordReader(io.BytesIO(b"".join(cells)), on_malformed=refuse_record):
        if not np.array_equal(batch.offsets, starts[n_rows : n_rows + batch.n_rows]):
            return None
        found.append(checked_records(batch, feature_dim, n_rows))
        n_rows += batch.n_rows
    return CsrBatch.concat(found) if n_rows == len(cells) else None
