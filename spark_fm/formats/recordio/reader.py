"""Read recordIO-protobuf files, whole or in batches, local or on any store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import GZIP_ERRORS, unzipped
from spark_fm.formats.recordio import decode
from spark_fm.formats.recordio.decode import (
    DENSE,
    ENDS_INSIDE,
    SPARSE,
    UNSORTED,
    Frames,
    MalformedMessageError,
    NeedMoreError,
    NotAMessageError,
    Row,
    decode_float64,
    read_row,
)
from spark_fm.formats.recordio.framing import LENGTH_MASK
from spark_fm.learner.csr import frozen
from spark_fm.learner.jit import njit

CHUNK_BYTES = 2**23
MAX_RECORD_BYTES = 2**26
START_ROWS, START_ENTRIES = 2**14, 2**18
_NO_TEXTS = np.empty((0, 4), np.int64)


@dataclass(slots=True)
class _Rows:
    """Arrays that the kernel fills, with room to grow."""

    with_texts: bool
    n_rows: int = 0
    n_entries: int = 0
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    row_texts: list[tuple[bytes | None, bytes | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = {"ends": "i8", "labels": "f8", "widths": "i8", "kinds": "u1", "offsets": "i8"}
        self.arrays = {name: np.empty(START_ROWS, kind) for name, kind in kinds.items()}
        self.arrays["indices"] = np.empty(START_ENTRIES, np.int32)
        self.arrays["values"] = np.empty(START_ENTRIES, np.float64)
        self.arrays["texts"] = np.empty((START_ROWS, 4), np.int64) if self.with_texts else _NO_TEXTS

    def grow(self, entries: int) -> None:
        """Make room for another row of so many entries, and for many more of its kind."""
        if self.n_rows == len(self.arrays["ends"]):
            for name in ("ends", "labels", "widths", "kinds", "offsets"):
                self.arrays[name] = np.concatenate([self.arrays[name], self.arrays[name]])
            if self.with_texts:
                self.arrays["texts"] = np.concatenate([self.arrays["texts"]] * 2)
        room = len(self.arrays["values"])
        if self.n_entries + entries > room:
            size = max(2 * room, self.n_entries + entries)
            for name in ("indices", "values"):
                wider = np.empty(size, self.arrays[name].dtype)
                wider[: self.n_entries] = self.arrays[name][: self.n_entries]
                self.arrays[name] = wider

    def append(self, row: Row, offset: int) -> None:
        """Add a row that the protobuf library read."""
        self.grow(len(row.values))
        stop = self.n_entries + len(row.values)
        self.arrays["indices"][self.n_entries : stop] = row.indices
        self.arrays["values"][self.n_entries : stop] = row.values
        kind = DENSE if row.is_dense else SPARSE
        if not row.is_dense and len(row.indices) > 1 and (np.diff(row.indices) <= 0).any():
            kind = UNSORTED
        values = {
            "ends": stop, "labels": row.label, "widths": row.width, "kinds": kind,
            "offsets": offset,
        }  # fmt: skip
        for name, value in values.items():
            self.arrays[name][self.n_rows] = value
        self.n_entries = stop
        self.n_rows += 1


class RecordReader:
    """Iterate over the rows of a stream, of which only ``read`` is called, in batches.

    The stream is at byte ``offset`` of the file, where a record starts; records that start
    before byte ``stop`` are read, ``chunk_bytes`` at a time. A malformed record, or one that
    claims more than ``max_record_bytes``, raises InvalidDataError with ``advice``, unless
    ``on_malformed`` takes it. ``source`` is the name in messages.

    Memory: about five times the larger of chunk_bytes and the largest record.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        source: str = "<stream>",
        offset: int = 0,
        stop: int | None = None,
        on_malformed: Callable[[Malformed], None] | None = None,
        with_texts: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        max_record_bytes: int = MAX_RECORD_BYTES,
        advice: str = "Repair the file.",
    ) -> None:
        self._stream = stream
        self._source = source
        self._stop = stop
        self._on_malformed = on_malformed
        self._advice = advice
        self._with_texts = with_texts
        self._chunk_bytes = chunk_bytes
        self._frames = Frames(np.empty(0, np.uint8), False, max_record_bytes)
        self._since = offset
        self._origin = offset  # offset of the buffer's first byte in the file
        self._n_records = self._first_record = 0
        self._malformed: list[Malformed] = []
        self._in_gap = False  # between a broken frame and the next record

    def __iter__(self) -> Iterator[RowBatch]:
        """Yield batches; the last may have no rows, if only malformed ones remain."""
        position, done = 0, False
        while not done:
            position = self._refill(position)
            rows = _Rows(self._with_texts)
            self._first_record = self._n_records
            position, done = self._decode(rows, position)
            if rows.n_rows or self._malformed:
                yield self._batch(rows)

    def _refill(self, position: int) -> int:
        """Drop what was read, take the next chunk, return the new position: 0."""
        rest = self._frames.buffer[position:]
        try:  # much at once when a record is long, or each chunk would copy it again
            taken = self._stream.read(max(self._chunk_bytes, len(rest)))
        except GZIP_ERRORS as err:
            self._frames.end_reason = f"the compressed data are damaged ({err})"
            taken = b""
        self._frames.at_end = not taken
        self._origin += position
        fresh = np.frombuffer(taken, np.uint8)
        self._frames.buffer = frozen(np.concatenate([rest, fresh]) if len(rest) else fresh)
        return 0

    def _decode(self, rows: _Rows, position: int) -> tuple[int, bool]:
        """Read the buffer into ``rows``; return the next position and whether all is read."""
        while True:
            if self._in_gap:
                position, is_found = self._cross_gap(position)
                if not is_found:
                    return position, self._frames.at_end
            if self._is_past(position):
                return position, True
            position, status = self._decode_sure(rows, position)
            n_bytes = len(self._frames.buffer)
            if status == decode.AT_STOP and position >= n_bytes:
                if self._frames.at_end and self._frames.end_reason != ENDS_INSIDE:
                    self._report(rows, position, self._frames.end_reason)
                return position, self._frames.at_end
            if status == decode.FULL:
                rows.grow(self._length_at(position))
            elif status != decode.AT_STOP:
                try:
                    position = self._look_closer(rows, position)
                except NeedMoreError:
                    return position, False

    def _is_past(self, position: int) -> bool:
        return self._stop is not None and self._origin + position >= self._stop

    def _decode_sure(self, rows: _Rows, position: int) -> tuple[int, int]:
        """Let the kernel read all that it is sure of; return where and why it stopped."""
        buffer, a = self._frames.buffer, rows.arrays
        limit = len(buffer)
        if self._stop is not None:
            limit = min(limit, self._stop - self._origin)
        before = rows.n_rows
        status, position, rows.n_rows, rows.n_entries = decode_float64(
            buffer, position, limit, self._frames.max_record_bytes, a["ends"], a["labels"],
            a["widths"], a["kinds"], a["offsets"], a["texts"], a["indices"], a["values"],
            rows.n_rows, rows.n_entries,
        )  # fmt: skip
        self._n_records += rows.n_rows - before
        if self._with_texts:
            rows.row_texts += [self._texts(span) for span in a["texts"][before : rows.n_rows]]
        return position, status

    def _length_at(self, position: int) -> int:
        word = self._frames.buffer[position + 4 : position + 8].tobytes()
        return int(int.from_bytes(word, "little") & LENGTH_MASK)

    def _texts(self, span: NDArray[np.int64]) -> tuple[bytes | None, bytes | None]:
        buffer, uid, metadata = self._frames.buffer, span[:2], span[2:]
        return (
            None if uid[0] < 0 else buffer[uid[0] : uid[1]].tobytes(),
            None if metadata[0] < 0 else buffer[metadata[0] : metadata[1]].tobytes(),
        )

    def _look_closer(self, rows: _Rows, position: int) -> int:
        """Read or report the record at ``position``; return where to continue.

        After a message that is no row the next frame is trusted if there is one; after
        a frame that is none, or that holds no message, the next record is searched for.
        """
        is_framed = False
        try:
            parts, after = self._frames.extent(position)
            try:
                row = read_row(self._frames.payload(parts))
            except NotAMessageError:
                raise
            except MalformedMessageError:
                is_framed = self._frames.is_followed(after)
                raise
        except MalformedMessageError as err:
            self._report(rows, position, str(err))
            if is_framed:
                return after
            self._in_gap, self._frames.spent = True, 0
            return position + 1
        self._n_records += 1
        rows.append(row, position)
        if self._with_texts:
            rows.row_texts.append((row.uid, row.metadata))
        return after

    def _cross_gap(self, position: int) -> tuple[int, bool]:
        """Return the next record, or where to continue the search, and whether it was found."""
        try:
            found = self._frames.next_record(position)
        except NeedMoreError as err:
            # What lies past the end of the split is not of interest.
            return err.keep, self._is_past(err.keep)
        if found is None:
            return len(self._frames.buffer), False
        self._in_gap = False
        return found, True

    def _report(self, rows: _Rows, position: int, reason: str) -> None:
        found = Malformed(
            self._source, self._origin + position, self._n_records, rows.n_rows, reason,
            self._since,
        )  # fmt: skip
        self._n_records += 1
        if self._on_malformed is None:
            raise InvalidDataError(f"{found}. {self._advice}")
        self._on_malformed(found)
        self._malformed.append(found)

    def _batch(self, rows: _Rows) -> RowBatch:
        n, a = rows.n_rows, rows.arrays
        indptr = np.zeros(n + 1, np.int64)
        indptr[1:] = a["ends"][:n]
        indices, values = a["indices"][: rows.n_entries], a["values"][: rows.n_entries]
        kinds = a["kinds"][:n]
        if (kinds == UNSORTED).any():
            indptr, indices, values = summed(indptr, indices, values)
        malformed, self._malformed = self._malformed, []
        return RowBatch(
            indptr, indices.astype(np.int32, copy=False), values, a["labels"][:n], a["widths"][:n],
            kinds == DENSE, a["offsets"][:n] + self._origin,
            [uid for uid, _ in rows.row_texts], [text for _, text in rows.row_texts], malformed,
            self._first_record, self._since,
        )  # fmt: skip


def read_batches(
    file: str | os.PathLike[str] | BinaryIO, *, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RowBatch]:
    """Yield the rows of a recordIO-protobuf file in batches, in bounded memory.

    Parameters
    ----------
    file : path or binary file object
        Gzip-compressed or not; an object is read from its position.
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
        Columns of the matrix; by default what the records claim.
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
    """Return the number of features that records agree on; -1 if no record claims one.

    Raises InvalidDataError when two records differ and ``n_features`` is not set.
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


@dataclass(frozen=True, slots=True)
class Malformed:
    """A part of a file that holds no readable record.

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
        Number of features a row claims; -1 for no claim.
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
        """Return which rows are no vectors of ``width`` features.

        With ``is_set`` the caller chose the width: it holds for sparse rows whatever they
        claim, while dense ones must have exactly as many features.
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
    """Sort rows, add up what is repeated and close the gaps, in end."""
    end, start = 0, indptr[0]
    for row in range(len(indptr) - 1):
        stop, first = indptr[row + 1], end
        rises = True
        for p in range(start + 1, stop):
            rises &= indices[p] > indices[p - 1]
        if rises:
            for p in range(start, stop):
                indices[end], values[end] = indices[p], values[p]
                end += 1
        else:
            ids, numbers = indices[start:stop].copy(), values[start:stop].copy()
            for p in np.argsort(ids, kind="mergesort"):  # a stable one
                if end > first and indices[end - 1] == ids[p]:
                    values[end - 1] += numbers[p]
                else:
                    indices[end], values[end] = ids[p], numbers[p]
                    end += 1
        start = stop
        indptr[row + 1] = end


_sum_rows_inplace = njit(_sum_rows, tag="sum-rows")
