"""Decode framed Record messages into arrays: the compiled fast path.

Reads the records that occur in practice straight from the bytes. Whatever it is not
sure of, it leaves to the protobuf library (``spark_fm.formats.messages``), so that both
together accept exactly what the library accepts. The schema is ``record.proto``; the
wire types are those of protobuf's encoding guide, the frames those of dmlc's recordio.
"""

from __future__ import annotations

import numpy as np

from spark_fm.formats.framing import LENGTH_MASK, MAGIC
from spark_fm.learner.csr import MAX_FEATURE_ID
from spark_fm.learner.jit import njit

# Why the kernel stopped.
AT_STOP, INCOMPLETE, BAD_MAGIC, MULTIPART, UNSURE, FULL = range(6)
SPARSE, DENSE, UNSORTED = 0, 1, 2  # kinds of a row

_FLOAT32, _FLOAT64, _INT32 = 2, 3, 7  # fields of Value
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_NO_WIDTH = -1
_KEY = np.frombuffer(b"values", np.uint8)


def _read_varint(buf, p, end):  # type: ignore[no-untyped-def]
    """Return (value, next place), or place -1 for what needs a second look."""
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
    """Return (value, next place): negative numbers take ten bytes."""
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


def _read_numbers(buf, p, stop, kind, values, place):  # type: ignore[no-untyped-def]
    """Append packed numbers to ``values``; return the next free place, or -1."""
    size = stop - p
    if kind == _FLOAT32:
        if size % 4:
            return -1
        floats = buf[p:stop].view(np.float32)
        for i in range(size // 4):
            values[place + i] = floats[i]
        return place + size // 4
    if kind == _FLOAT64:
        if size % 8:
            return -1
        doubles = buf[p:stop].view(np.float64)
        for i in range(size // 8):
            values[place + i] = doubles[i]
        return place + size // 8
    while p < stop:
        number, p = _int32(buf, p, stop)
        if p < 0:
            return -1
        values[place] = number
        place += 1
    return place


def _read_keys(buf, p, stop, indices, place):  # type: ignore[no-untyped-def]
    """Append packed keys to ``indices``; return the next free place, or -1."""
    while p < stop:
        byte = buf[p]
        if byte < 0x80:
            indices[place] = byte
            p += 1
        else:
            key, p = _varint(buf, p, stop)
            if p < 0 or key > MAX_FEATURE_ID:
                return -1
            indices[place] = key
        place += 1
    return place


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
    places,
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
        places[n_rows] = pos
        if len(texts):
            texts[n_rows, 0], texts[n_rows, 1] = uid_start, uid_stop
            texts[n_rows, 2], texts[n_rows, 3] = meta_start, meta_stop
        n_entries += row_values
        ends[n_rows] = n_entries
        n_rows += 1
        pos = after
    return AT_STOP, pos, n_rows, n_entries


decode_float64 = njit(_decode, tag="recordio-decode-float64")
