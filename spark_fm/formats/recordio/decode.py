"""Bytes of recordIO-protobuf to CSR arrays: frames, messages, and where a record begins."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from spark_fm.formats.recordio.framing import (
    ALIGNMENT,
    HEADER_SIZE,
    LENGTH_MASK,
    MAGIC,
    MAGIC_BYTES,
    padded,
)
from spark_fm.formats.recordio.record_pb2 import Record  # type: ignore[attr-defined]  # made at import
from spark_fm.learner.csr import MAX_FEATURE_ID
from spark_fm.learner.jit import njit

# Why the kernel stopped.
AT_STOP, INCOMPLETE, BAD_MAGIC, MULTIPART, UNSURE, FULL = range(6)
SPARSE, DENSE, UNSORTED = 0, 1, 2  # kinds of a row
TENSORS = ("float32_tensor", "float64_tensor", "int32_tensor")
ENDS_INSIDE = "the file ends inside a record"
MAX_PARTS = 2**16
# Work spent on offsets that turn out to be no records: bytes parsed, before the search
# after a broken frame steps over whole frames instead of trying every offset in them.
SEARCH_BYTES = 2**26
HEADER_COST = 64  # bytes that looking at a header counts for
WINDOW_BYTES = 2**20  # read on either side of a boundary
REACH_BYTES = 2**24  # searched for any record without a proven boundary

_FLOAT32, _FLOAT64, _INT32 = 2, 3, 7  # fields of Value
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_NO_WIDTH = -1
_KEY = np.frombuffer(b"values", np.uint8)
_MAGIC = re.compile(re.escape(MAGIC_BYTES))
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # flags of a length word


def _read_varint(buf, p, end):  # type: ignore[no-untyped-def]
    """Return (value, next position), or position -1 for what needs a second look."""
    value = 0
    shift = 0
    while p < end and shift < 63:
        byte = buf[p]
        p += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, p
        shift += 7
    return 0, -1


_varint = njit(_read_varint, variant="recordio")


def _read_int32(buf, p, end):  # type: ignore[no-untyped-def]
    """Return (value, next position): negative numbers take ten bytes."""
    value = 0
    for i in range(10):
        if p >= end:
            return 0, -1
        byte = buf[p]
        p += 1
        if i == 9 and byte > 1:
            return 0, -1
        if i < 5:  # the low 32 bits are what counts
            value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            value &= 0xFFFFFFFF
            return value - (value >> 31 << 32), p
    return 0, -1


_int32 = njit(_read_int32, variant="recordio")


def _read_length(buf, p, end):  # type: ignore[no-untyped-def]
    """Return (start, stop) of a length-delimited field, or start -1."""
    length, p = _varint(buf, p, end)
    if p < 0 or length > end - p:
        return -1, -1
    return p, p + length


_length = njit(_read_length, variant="recordio")


def _read_numbers(buf, p, stop, kind, values, position):  # type: ignore[no-untyped-def]
    """Append packed numbers to ``values``; return the next free position, or -1."""
    size = stop - p
    if kind == _FLOAT32:
        if size % 4:
            return -1
        floats = buf[p:stop].view(np.float32)
        for i in range(size // 4):
            values[position + i] = floats[i]
        return position + size // 4
    if kind == _FLOAT64:
        if size % 8:
            return -1
        doubles = buf[p:stop].view(np.float64)
        for i in range(size // 8):
            values[position + i] = doubles[i]
        return position + size // 8
    while p < stop:
        number, p = _int32(buf, p, stop)
        if p < 0:
            return -1
        values[position] = number
        position += 1
    return position


def _read_keys(buf, p, stop, indices, position):  # type: ignore[no-untyped-def]
    """Append packed keys to ``indices``; return the next free position, or -1."""
    while p < stop:
        byte = buf[p]
        if byte < 0x80:
            indices[position] = byte
            p += 1
        else:
            key, p = _varint(buf, p, stop)
            if p < 0 or key > MAX_FEATURE_ID:
                return -1
            indices[position] = key
        position += 1
    return position


_numbers = njit(_read_numbers, variant="recordio")
_keys = njit(_read_keys, variant="recordio")


def _read_tensor(buf, p, end, kind, indices, values, base):  # type: ignore[no-untyped-def]
    """Return (numbers, keys, dimensions, last dimension) of a tensor; numbers -1 if unsure."""
    n_values, n_keys, n_shape, size = base, base, 0, _NO_WIDTH
    unpacked = _VARINT if kind == _INT32 else (_FIXED32 if kind == _FLOAT32 else _FIXED64)
    while p < end:
        tag = buf[p]
        p += 1
        field, wire = tag >> 3, tag & 7
        if wire == _BYTES and 1 <= field <= 3:
            start, stop = _length(buf, p, end)
            if start < 0:
                return -1, 0, 0, 0
            p = stop
        elif field == 1 and wire == unpacked:
            start = p
            if kind == _INT32:
                _, p = (
                    _varint(buf, p, end)
                    if buf[p if p < end else end - 1] < 0x80
                    else _int32(buf, p, end)
                )
            else:
                p += 4 if kind == _FLOAT32 else 8
            if p < 0 or p > end:
                return -1, 0, 0, 0
            stop = p
        elif (field == 2 or field == 3) and wire == _VARINT:
            start = p
            _, p = _varint(buf, p, end)
            if p < 0:
                return -1, 0, 0, 0
            stop = p
        else:
            return -1, 0, 0, 0
        if field == 1:
            n_values = _numbers(buf, start, stop, kind, values, n_values)
            if n_values < 0:
                return -1, 0, 0, 0
        elif field == 2:
            n_keys = _keys(buf, start, stop, indices, n_keys)
            if n_keys < 0:
                return -1, 0, 0, 0
        else:
            while start < stop:
                size, start = _varint(buf, start, stop)
                if start < 0:
                    return -1, 0, 0, 0
                n_shape += 1
    return n_values - base, n_keys - base, n_shape, size


_tensor = njit(_read_tensor, variant="recordio")


def _read_entry(buf, p, end):  # type: ignore[no-untyped-def]
    """Return (kind, start, stop) of the tensor under the key "values"; kind 0 if unsure.

    The entry of a map: key, then value, which holds one tensor.
    """
    if p + 8 > end or buf[p] != 0x0A or buf[p + 1] != 6:
        return 0, 0, 0
    for i in range(6):
        if buf[p + 2 + i] != _KEY[i]:
            return 0, 0, 0
    p += 8
    if p >= end or buf[p] != 0x12:
        return 0, 0, 0
    start, stop = _length(buf, p + 1, end)
    if start < 0 or stop != end or start >= stop:
        return 0, 0, 0
    kind, wire = buf[start] >> 3, buf[start] & 7
    if wire != _BYTES or (kind != _FLOAT32 and kind != _FLOAT64 and kind != _INT32):
        return 0, 0, 0
    start, inner = _length(buf, start + 1, stop)
    if start < 0 or inner != stop:
        return 0, 0, 0
    return kind, start, stop


_entry = njit(_read_entry, variant="recordio")


def _kind_of_row(n_values, n_keys, n_shape, size, indices, base):  # type: ignore[no-untyped-def]
    """Return the kind of a row of features, or -1 if unsure; fills in dense indices."""
    if n_shape > 1 or size > MAX_FEATURE_ID + 1:
        return -1
    if n_keys == 0 and n_values > 0:
        if n_shape == 1 and size != n_values:
            return -1
        for i in range(n_values):
            indices[base + i] = i
        return DENSE
    if n_keys != n_values:
        return -1
    kind = SPARSE
    for i in range(n_keys):
        if n_shape == 1 and indices[base + i] >= size:
            return -1
        if i and indices[base + i] <= indices[base + i - 1]:
            kind = UNSORTED
    return kind


_row_kind = njit(_kind_of_row, variant="recordio")


def _decode(  # type: ignore[no-untyped-def]
    buf,
    pos,
    stop,
    most,
    ends,
    labels,
    widths,
    kinds,
    offsets,
    texts,
    indices,
    values,
    n_rows,
    n_entries,
):
    """Decode frames that start before ``stop``; return (status, position, rows, entries).

    Payloads of more than ``most`` bytes are left to others.
    ``texts`` takes the spans of uid and metadata, -1 for none, if it has rows.
    """
    n_bytes = len(buf)
    while pos < stop:
        if pos + 8 > n_bytes:
            return INCOMPLETE, pos, n_rows, n_entries
        words = buf[pos : pos + 8].view(np.uint32)
        if words[0] != MAGIC:
            return BAD_MAGIC, pos, n_rows, n_entries
        if words[1] > LENGTH_MASK:
            return MULTIPART, pos, n_rows, n_entries
        length = np.int64(words[1])
        if length > most:
            return UNSURE, pos, n_rows, n_entries
        p, end = pos + 8, pos + 8 + length
        after = end + (-length & 3)
        if after > n_bytes:
            return INCOMPLETE, pos, n_rows, n_entries
        # A byte makes at most one number or key.
        if n_rows == len(ends) or n_entries + length > len(values):
            return FULL, pos, n_rows, n_entries
        label = np.nan
        row_values, row_width, kind_of_row = -1, _NO_WIDTH, SPARSE
        has_label = False
        uid_start, uid_stop, meta_start, meta_stop = -1, -1, -1, -1
        while p < end:
            tag = buf[p]
            if tag != 0x0A and tag != 0x12 and tag != 0x1A and tag != 0x22 and tag != 0x2A:
                return UNSURE, pos, n_rows, n_entries
            start, p = _length(buf, p + 1, end)
            if start < 0:
                return UNSURE, pos, n_rows, n_entries
            if tag == 0x1A:
                uid_start, uid_stop = start, p
                continue
            if tag == 0x22:
                meta_start, meta_stop = start, p
                continue
            if tag == 0x2A:
                continue
            kind, start, inner = _entry(buf, start, p)
            if kind == 0 or (has_label if tag == 0x12 else row_values >= 0):
                return UNSURE, pos, n_rows, n_entries
            base = n_entries + max(row_values, 0)
            found, n_keys, n_shape, size = _tensor(buf, start, inner, kind, indices, values, base)
            if found < 0:
                return UNSURE, pos, n_rows, n_entries
            if tag == 0x12:
                if found != 1 or n_keys or n_shape > 1:
                    return UNSURE, pos, n_rows, n_entries
                label = values[base]
                has_label = True
                continue
            kind_of_row = _row_kind(found, n_keys, n_shape, size, indices, base)
            if kind_of_row < 0:
                return UNSURE, pos, n_rows, n_entries
            row_values = found
            row_width = found if kind_of_row == DENSE else size
        if row_values < 0:
            return UNSURE, pos, n_rows, n_entries
        labels[n_rows], widths[n_rows], kinds[n_rows] = label, row_width, kind_of_row
        offsets[n_rows] = pos
        if len(texts):
            texts[n_rows, 0], texts[n_rows, 1] = uid_start, uid_stop
            texts[n_rows, 2], texts[n_rows, 3] = meta_start, meta_stop
        n_entries += row_values
        ends[n_rows] = n_entries
        n_rows += 1
        pos = after
    return AT_STOP, pos, n_rows, n_entries


decode_float64 = njit(_decode, tag="recordio-decode-float64")


class MalformedMessageError(ValueError):
    """A payload is no row; the text says why."""


class NotAMessageError(MalformedMessageError):
    """A payload is no message at all, so that its length may be wrong too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of features."""

    indices: NDArray[np.int32]  # (nnz,), as in the record: possibly unsorted or repeated
    values: NDArray[np.float64]  # (nnz,)
    width: int  # number of features that the record claims; -1 for no claim
    is_dense: bool  # every feature has a value
    label: float  # NaN for none
    uid: bytes | None
    metadata: bytes | None


def read_row(payload: bytes) -> Row:
    """Return the row of a serialized Record, or raise MalformedMessageError.

    Values without keys are a dense row, a shape alone is a row of zeros, and keys may
    be unsorted or repeated (then their values add up). A matrix of one row is a row.
    """
    try:
        record = Record.FromString(payload)
        features = _tensor_of(record.features, "features")
        label = _label(record)
    except DecodeError as err:
        raise NotAMessageError(f"not a Record message ({err})") from None
    except UnicodeDecodeError:
        raise NotAMessageError("a feature or label name is not UTF-8") from None
    if features is None:
        names = ", ".join(sorted(map(repr, record.features)))[:100] or "none"
        raise MalformedMessageError(f'no features under the name "values" (names: {names})')
    values = np.array(features.values, np.float64)
    keys = np.array(features.keys, np.uint64)
    width = _width(list(features.shape))
    is_dense = not len(keys) and bool(len(values))
    if is_dense:
        keys = np.arange(len(values), dtype=np.uint64)
        if width not in (-1, len(values)):
            raise MalformedMessageError(f"{len(values)} dense values, but the shape says {width}")
        width = len(values)
    if len(keys) != len(values):
        raise MalformedMessageError(f"{len(keys)} keys for {len(values)} values")
    if len(keys) and width >= 0 and int(keys.max()) >= width:
        raise MalformedMessageError(
            f"key {int(keys.max())} is outside the {width} features of the shape"
        )
    if len(keys) and int(keys.max()) > MAX_FEATURE_ID:
        raise MalformedMessageError(f"key {int(keys.max())} is larger than {MAX_FEATURE_ID}")
    return Row(
        indices=keys.astype(np.int32),
        values=values,
        width=width,
        is_dense=is_dense,
        label=label,
        uid=record.uid if record.HasField("uid") else None,
        metadata=record.metadata if record.HasField("metadata") else None,
    )


def _fit(payload: bytes) -> int:
    """Return 0 for bytes that are no message, 1 for one with unknown fields, 2 for others."""
    try:
        record = Record.FromString(payload)
    except (DecodeError, UnicodeDecodeError):
        return 0
    size = record.ByteSize()
    record.DiscardUnknownFields()
    return 2 if record.ByteSize() == size else 1


def _tensor_of(entries: Any, what: str) -> Any:
    """Return the tensor under the name "values", None without one."""
    if "values" not in entries:
        return None
    value = entries["values"]
    kind = value.WhichOneof("value")
    if kind not in TENSORS:
        found = "bytes" if kind == "bytes" else "nothing"
        raise MalformedMessageError(f"the {what} hold {found}, not a tensor of numbers")
    return getattr(value, kind)


def _label(record: Any) -> float:
    tensor = _tensor_of(record.label, "labels")
    if tensor is None:
        return float("nan")
    if len(tensor.values) != 1 or len(tensor.keys):
        raise MalformedMessageError(
            f"a label of {len(tensor.values)} values and {len(tensor.keys)} keys; one value is "
            "what a row has"
        )
    return float(tensor.values[0])


def _width(shape: list[int]) -> int:
    if not shape:
        return -1
    if len(shape) > 1 and any(size != 1 for size in shape[:-1]):
        shown = str(shape[:8]) + ("..." if len(shape) > 8 else "")
        raise MalformedMessageError(f"a tensor of shape {shown}; a row has one dimension")
    if shape[-1] > MAX_FEATURE_ID + 1:
        raise MalformedMessageError(
            f"a shape of {shape[-1]} features; at most {MAX_FEATURE_ID + 1} are possible"
        )
    return int(shape[-1])


class NeedMoreError(Exception):
    """More bytes are needed to decide; ``keep`` is the first offset that is still needed."""

    def __init__(self, keep: int = 0) -> None:
        super().__init__(keep)
        self.keep = keep


@dataclass(slots=True)
class Frames:
    """Bytes of a file, from some offset on."""

    buffer: NDArray[np.uint8]
    at_end: bool  # nothing follows in the file
    max_record_bytes: int
    end_reason: str = ENDS_INSIDE  # why there is no more
    spent: int = 0  # work done since the last broken frame

    def extent(self, position: int) -> tuple[list[slice], int]:
        """Return where the parts of the record at ``position`` lie, and where it ends.

        Raises MalformedMessageError unless a whole record of frames starts there.
        """
        parts: list[slice] = []
        offset, total = position, 0
        while True:
            self.spent += HEADER_COST
            flag, length = self._header(offset)
            if not parts and flag not in (_WHOLE, _FIRST):
                raise MalformedMessageError(f"part {flag} of a record without its first part")
            if parts and flag not in (_MIDDLE, _LAST):
                raise MalformedMessageError(f"part {flag} inside a record of several parts")
            total += length + (HEADER_SIZE if parts else 0)
            if total > self.max_record_bytes:
                raise MalformedMessageError(
                    f"a record claims {total} bytes, more than the limit of "
                    f"{self.max_record_bytes}; raise maxRecordBytes if it is real"
                )
            if len(parts) == MAX_PARTS:
                raise MalformedMessageError(f"a record of more than {MAX_PARTS} parts")
            start = offset + HEADER_SIZE
            stop = start + padded(length)
            if stop > len(self.buffer):
                there = max(0, len(self.buffer) - start)
                self._missing(f"{there} of {padded(length)} bytes")
            parts.append(slice(start, start + length))
            offset = stop
            if flag in (_WHOLE, _LAST):
                return parts, offset

    def _header(self, offset: int) -> tuple[int, int]:
        header = self.buffer[offset : offset + HEADER_SIZE].tobytes()
        if len(header) < HEADER_SIZE:
            self._missing(f"{len(header)} bytes into a header of {HEADER_SIZE}")
        if header[:4] != MAGIC_BYTES:
            raise MalformedMessageError(
                f"expected the magic {MAGIC_BYTES.hex(' ')}, found {header[:4].hex(' ')}"
            )
        word = int.from_bytes(header[4:], "little")
        return word >> 29, word & LENGTH_MASK

    def _missing(self, what: str) -> None:
        if not self.at_end:
            raise NeedMoreError
        raise MalformedMessageError(f"{self.end_reason}, {what}")

    def payload(self, parts: list[slice]) -> bytes:
        """Return the parts joined, in the one of two ways that gives the better message.

        dmlc's writer cuts a payload at each aligned magic and leaves that out; AWS's readers
        (MLIO, in its XGBoost container) take parts that were cut anywhere and lack nothing.
        Four bytes more or less shift what follows the cut, so that one way fits better; where
        both fit as well, the cuts' alignment decides.
        """
        pieces = [self.buffer[part].tobytes() for part in parts]
        if len(pieces) == 1:
            return pieces[0]
        ways = [MAGIC_BYTES.join(pieces), b"".join(pieces)]
        if any(len(piece) % ALIGNMENT for piece in pieces[:-1]):
            ways.reverse()
        return max(ways, key=_fit)

    def is_followed(self, after: int) -> bool:
        """Return whether a magic, or the end of the file, is at ``after``."""
        there = self.buffer[after : after + len(MAGIC_BYTES)].tobytes()
        if len(there) < len(MAGIC_BYTES) and not self.at_end:
            raise NeedMoreError
        return there == MAGIC_BYTES[: len(there)]

    def next_record(self, position: int) -> int | None:
        """Return the next offset from ``position`` on of a record, None without one.

        It is complete, readable, and followed by another frame or the end. ``keep`` of a
        NeedMoreError is where to continue the search.
        """
        while True:
            found = _MAGIC.search(self.buffer, position)  # type: ignore[call-overload]
            if found is None:
                if self.at_end:
                    return None
                raise NeedMoreError(max(position, len(self.buffer) - len(MAGIC_BYTES) + 1))
            offset = int(found.start())
            before = self.spent
            try:
                after = self._end_of_record(offset)
            except NeedMoreError:
                self.spent = before  # it is looked at again
                raise NeedMoreError(offset) from None
            except MalformedMessageError:
                position = offset + 1
                continue
            if after < 0:
                return offset
            position = after if self.spent > SEARCH_BYTES else offset + 1

    def _end_of_record(self, offset: int) -> int:
        """Return -1 for a record, else where the frames that hold none end."""
        if self.spent > SEARCH_BYTES and self._header(offset)[0] != _WHOLE:
            raise MalformedMessageError("parts are not looked at any more")
        parts, after = self.extent(offset)
        if not self.is_followed(after):
            raise MalformedMessageError("nothing follows")
        self.spent += after - offset
        try:
            read_row(self.payload(parts))
        except MalformedMessageError:
            return after
        return -1


def find_boundary(
    read_at: Callable[[int, int], bytes],
    size: int,
    start: int,
    *,
    window: int = WINDOW_BYTES,
    max_record_bytes: int = 2**26,
    reach: int = REACH_BYTES,
) -> int:
    """Return the first proven start of a record at or after ``start``; the size without one.

    ``read_at(offset, length)`` returns bytes of the file, which has ``size`` of them. Reads
    ``window`` bytes on either side as a rule. A proof needs a true boundary among the bytes
    before ``start``, so the window is quadrupled, up to ``max_record_bytes``, until there is
    one. Around broken bytes there is no proof; then the first readable record that another
    one follows is taken, or, without any, the end of ``reach`` bytes. Every caller gets the
    same answer. A payload that holds a valid recordIO file itself, longer than the window,
    would be taken for records.
    """
    if start <= 0:
        return 0
    while start < size:
        first = max(0, start - window) // 4 * 4
        last = min(size, start + window)
        found = _proven(read_at, first, last, size, start)
        if found is not None:
            return found
        if first == 0 and last == size:
            break
        if window >= max_record_bytes:
            return _any_record(read_at, size, start, max_record_bytes, reach)
        window *= 4
    return size


def _any_record(
    read_at: Callable[[int, int], bytes], size: int, start: int, max_record_bytes: int, reach: int
) -> int:
    data = np.frombuffer(read_at(start, min(reach, size - start)), np.uint8)
    frames = Frames(data, at_end=start + len(data) == size, max_record_bytes=max_record_bytes)
    try:
        found = frames.next_record(0)
    except NeedMoreError:
        found = None
    return start + len(data) if found is None else start + found


def _proven(
    read_at: Callable[[int, int], bytes], first: int, last: int, size: int, start: int
) -> int | None:
    data = read_at(first, last - first)
    words = np.frombuffer(data[: len(data) // 4 * 4], "<u4")
    magic_words = np.flatnonzero(words[:-1] == MAGIC) if len(words) else np.empty(0, np.int64)
    following: dict[int, int] = {}  # frames that are followed by others up to the window's end
    is_start: dict[int, bool] = {}
    for index in magic_words[::-1].tolist():
        word = int(words[index + 1])
        offset = first + 4 * index
        after = offset + HEADER_SIZE + padded(word & LENGTH_MASK)
        if after == size or after in following or (after >= last and _is_magic(read_at, after)):
            following[offset] = after
            is_start[offset] = word >> 29 in (0, 1)
    reach = 0
    before = first == 0
    for offset in sorted(following):
        if offset >= start and before and reach <= offset and is_start[offset]:
            return offset
        before = before or offset < start
        reach = max(reach, following[offset])
    return size if before and reach >= size else None


def _is_magic(read_at: Callable[[int, int], bytes], offset: int) -> bool:
    return read_at(offset, 4) == MAGIC_BYTES
