"""Read rows from a stream of framed Record messages, in bounded memory.

The compiled reader takes what it is sure of, the protobuf library the rest. A length
word is never believed before its bytes have arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError
from spark_fm.formats import decoding
from spark_fm.formats.batches import Malformed, RowBatch, summed
from spark_fm.formats.decoding import DENSE, SPARSE, UNSORTED, decode_float64
from spark_fm.formats.framing import HEADER_SIZE, LENGTH_MASK, MAGIC, MAGIC_BYTES, padded
from spark_fm.formats.messages import MalformedMessageError, Row, read_row
from spark_fm.learner.csr import frozen

log = logging.getLogger(__name__)

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
        kinds = {"ends": "i8", "labels": "f8", "widths": "i8", "kinds": "u1", "places": "i8"}
        self.arrays = {name: np.empty(START_ROWS, kind) for name, kind in kinds.items()}
        self.arrays["indices"] = np.empty(START_ENTRIES, np.int32)
        self.arrays["values"] = np.empty(START_ENTRIES, np.float64)
        self.arrays["texts"] = np.empty((START_ROWS, 4), np.int64) if self.with_texts else _NO_TEXTS

    def grow(self, entries: int) -> None:
        """Make room for another row of so many entries, and for many more of its kind."""
        if self.n_rows == len(self.arrays["ends"]):
            for name in ("ends", "labels", "widths", "kinds", "places"):
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

    def append(self, row: Row, place: int) -> None:
        """Add a row that the protobuf library read."""
        self.grow(len(row.values))
        stop = self.n_entries + len(row.values)
        self.arrays["indices"][self.n_entries : stop] = row.indices
        self.arrays["values"][self.n_entries : stop] = row.values
        kind = DENSE if row.is_dense else SPARSE
        if not row.is_dense and len(row.indices) > 1 and (np.diff(row.indices) <= 0).any():
            kind = UNSORTED
        facts = {"ends": stop, "labels": row.label, "widths": row.width, "kinds": kind}
        for name, fact in (facts | {"places": place}).items():
            self.arrays[name][self.n_rows] = fact
        self.n_entries = stop
        self.n_rows += 1


class RecordReader:
    """Iterate over the rows of a stream in batches.

    Parameters
    ----------
    stream : binary file
        Only ``read`` is called.
    source : str
        Name for messages.
    offset : int
        Byte of the file at which the stream stands; a record starts there.
    stop : int, optional
        Read the records that start before this byte of the file.
    on_malformed : callable, optional
        Called with each Malformed; by default InvalidDataError is raised.
    with_texts : bool
        Return uid and metadata too.
    chunk_bytes : int
        Bytes taken from the stream at a time; a batch holds their rows.
    max_record_bytes : int
        A record that claims more is malformed.

    Raises
    ------
    InvalidDataError
        At the first malformed record, unless ``on_malformed`` is given.

    Notes
    -----
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
    ) -> None:
        self._stream = stream
        self._source = source
        self._stop = stop
        self._on_malformed = on_malformed
        self._with_texts = with_texts
        self._chunk_bytes = chunk_bytes
        self._max_record_bytes = max_record_bytes
        self._buffer = np.empty(0, np.uint8)
        self._origin = offset  # place of the buffer's first byte in the file
        self._at_end = False
        self._n_records = 0
        self._malformed: list[Malformed] = []
        self._gap_end = -1  # where the search after a broken frame stands

    def __iter__(self) -> Iterator[RowBatch]:
        """Yield batches; the last may have no rows, when only malformed ones remain."""
        position = 0
        while not self._at_end or position < len(self._buffer):
            position = self._refill(position)
            rows = _Rows(self._with_texts)
            position, done = self._decode(rows, position)
            if rows.n_rows or self._malformed:
                yield self._batch(rows)
            if done:
                return

    def _refill(self, position: int) -> int:
        """Drop what was read, take the next chunk, return the new position: 0."""
        taken = self._stream.read(self._chunk_bytes)
        if not taken:
            self._at_end = True
        rest = self._buffer[position:]
        self._origin += position
        fresh = np.frombuffer(taken, np.uint8)
        self._buffer = frozen(np.concatenate([rest, fresh]) if len(rest) else fresh)
        return 0

    def _decode(self, rows: _Rows, position: int) -> tuple[int, bool]:
        """Read the buffer into ``rows``; return the next position and whether all is read."""
        buffer = self._buffer
        n_bytes = len(buffer)
        limit = n_bytes if self._stop is None else min(n_bytes, self._stop - self._origin)
        while True:
            before = rows.n_rows
            a = rows.arrays
            status, position, rows.n_rows, rows.n_entries = decode_float64(
                buffer, position, limit, a["ends"], a["labels"], a["widths"], a["kinds"],
                a["places"], a["texts"], a["indices"], a["values"], rows.n_rows, rows.n_entries,
            )  # fmt: skip
            self._n_records += rows.n_rows - before
            if self._with_texts:
                rows.row_texts += [self._texts(span) for span in a["texts"][before : rows.n_rows]]
            if status == decoding.AT_STOP:
                past = self._stop is not None and self._origin + position >= self._stop
                return position, past or (self._at_end and position >= n_bytes)
            if status == decoding.FULL:
                rows.grow(self._length_at(position))
                continue
            if status == decoding.INCOMPLETE:
                length = self._length_at(position) if n_bytes - position >= HEADER_SIZE else 0
                if not self._at_end and length <= self._max_record_bytes:
                    return position, False
            next_position = self._look_closer(rows, position, status)
            if next_position is None:
                return position, False  # needs more bytes
            position = next_position
            if position >= limit and self._stop is not None and limit < n_bytes:
                return position, True

    def _length_at(self, position: int) -> int:
        word = self._buffer[position + 4 : position + 8].tobytes()
        return int(int.from_bytes(word, "little") & LENGTH_MASK)

    def _texts(self, span: NDArray[np.int64]) -> tuple[bytes | None, bytes | None]:
        uid, metadata = span[:2], span[2:]
        return (
            None if uid[0] < 0 else self._buffer[uid[0] : uid[1]].tobytes(),
            None if metadata[0] < 0 else self._buffer[metadata[0] : metadata[1]].tobytes(),
        )

    def _look_closer(self, rows: _Rows, position: int, status: int) -> int | None:
        """Read or report the record at ``position``; return the next one's place.

        None when more bytes are needed to tell.
        """
        try:
            payload, after = self._payload(position, status)
        except _NeedMoreError:
            return None
        except MalformedMessageError as err:
            if self._origin + position != self._gap_end:  # else it was reported
                self._report(rows, position, str(err))
            following, is_sure = self._resynchronised(position)
            self._gap_end = -1 if is_sure else self._origin + following
            return following
        self._n_records += 1
        try:
            row = read_row(payload)
        except MalformedMessageError as err:
            self._n_records -= 1
            self._report(rows, position, str(err))
            return after
        rows.append(row, position)
        if self._with_texts:
            rows.row_texts.append((row.uid, row.metadata))
        return after

    def _payload(self, position: int, status: int) -> tuple[bytes, int]:
        """Return the payload of the record at ``position`` and where the next one starts.

        The parts of a record that was cut at the magic are joined with it put back.
        """
        parts: list[bytes] = []
        place, total = position, 0
        while True:
            header = self._buffer[place : place + HEADER_SIZE].tobytes()
            if len(header) < HEADER_SIZE:
                if not self._at_end:
                    raise _NeedMoreError
                raise MalformedMessageError(
                    f"the file ends inside a record, {len(header)} bytes into a header of 8"
                )
            if header[:4] != MAGIC_BYTES:
                raise MalformedMessageError(
                    f"expected the magic {MAGIC_BYTES.hex(' ')}, found {header[:4].hex(' ')}"
                )
            word = int.from_bytes(header[4:], "little")
            flag, length = word >> 29, word & LENGTH_MASK
            if flag != (0 if not parts else flag) and not (not parts and flag == 1):
                raise MalformedMessageError(f"part {flag} of a record without its first part")
            if parts and flag not in (2, 3):
                raise MalformedMessageError(f"part {flag} inside a record of several parts")
            total += length
            if total > self._max_record_bytes:
                raise MalformedMessageError(
                    f"a record claims {total} bytes, more than the limit of "
                    f"{self._max_record_bytes}; raise maxRecordBytes if it is real"
                )
            stop = place + HEADER_SIZE + padded(length)
            if stop > len(self._buffer):
                if not self._at_end:
                    raise _NeedMoreError
                there = len(self._buffer) - place - HEADER_SIZE
                raise MalformedMessageError(
                    f"the file ends inside a record, {there} of {padded(length)} bytes"
                )
            start = place + HEADER_SIZE
            parts.append(self._buffer[start : start + length].tobytes())
            place = stop
            if flag in (0, 3):
                return MAGIC_BYTES.join(parts), place

    def _report(self, rows: _Rows, position: int, reason: str) -> None:
        found = Malformed(
            self._source, self._origin + position, self._n_records, rows.n_rows, reason
        )
        self._n_records += 1
        if self._on_malformed is None:
            raise InvalidDataError(
                f"{found}. Repair the file, or leave such records out (mode DROPMALFORMED)."
            )
        self._on_malformed(found)
        self._malformed.append(found)

    def _resynchronised(self, position: int) -> tuple[int, bool]:
        """Return where to go on after a broken frame, and whether a record is there.

        One that is complete, readable, and followed by another or the end.
        """
        skip = -(self._origin + position) % 4  # records start at whole words of the file
        first = position + (skip or 4)
        usable = (len(self._buffer) - first) // 4
        if usable <= 0:
            return len(self._buffer), False
        words = self._buffer[first : first + 4 * usable].view("<u4")
        for word in np.flatnonzero(words == MAGIC):
            candidate = first + 4 * int(word)
            try:
                payload, after = self._payload(candidate, decoding.UNSURE)
                read_row(payload)
            except _NeedMoreError:
                return candidate, False
            except MalformedMessageError:
                continue
            follower = self._buffer[after : after + 4].tobytes()
            if follower == MAGIC_BYTES[: len(follower)]:
                return candidate, True
        return first + 4 * usable, False

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
            kinds == DENSE, a["places"][:n] + self._origin,
            [uid for uid, _ in rows.row_texts], [text for _, text in rows.row_texts], malformed,
        )  # fmt: skip


class _NeedMoreError(Exception):
    """The bytes at hand do not hold the whole record."""
