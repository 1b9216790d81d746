"""Find where records start in the middle of a recordIO file.

The magic alone proves nothing, since the usual writers do not escape it in payloads. A
place is taken when every chain of frames that the bytes around it allow passes through
it: the true chain is one of these, so the place is on it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spark_fm.formats.frames import Frames, NeedMoreError
from spark_fm.formats.framing import HEADER_SIZE, LENGTH_MASK, MAGIC, MAGIC_BYTES, padded

WINDOW_BYTES = 2**20
REACH_BYTES = 2**24


def find_boundary(
    read_at: Callable[[int, int], bytes],
    size: int,
    start: int,
    *,
    window: int = WINDOW_BYTES,
    max_record_bytes: int = 2**26,
    reach: int = REACH_BYTES,
) -> int:
    """Return the first proven start of a record at or after ``start``.

    Parameters
    ----------
    read_at : callable
        ``read_at(offset, length)`` returns these bytes of the file.
    size : int
        Bytes of the file; returned when no record starts in the rest of it.
    start : int
    window : int
        Bytes looked at on either side, quadrupled until there is a proof.
    max_record_bytes : int
        The window grows no further than this.
    reach : int
        Without a proof, how far to look for any readable record.

    Notes
    -----
    Reads two windows as a rule. A proof needs a true boundary among the bytes before
    ``start``, so records longer than the window are proven by widening it. Around broken
    bytes there is no proof; then the first readable record that another one follows is
    taken, or, without any, the end of the reach. Everybody who asks gets the same answer.
    A payload that holds a valid recordIO file of its own, longer than the window, would
    be taken for records.
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
    places = np.flatnonzero(words[:-1] == MAGIC) if len(words) else np.empty(0, np.int64)
    following: dict[int, int] = {}  # frames whose chain goes on as far as can be seen
    is_start: dict[int, bool] = {}
    for place in places[::-1].tolist():
        word = int(words[place + 1])
        offset = first + 4 * place
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
