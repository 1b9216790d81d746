"""Find records in bytes that may be broken, a frame at a time; slow and sure."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.formats.framing import HEADER_SIZE, LENGTH_MASK, MAGIC_BYTES, padded
from spark_fm.formats.messages import MalformedMessageError, read_row

ENDS_INSIDE = "the file ends inside a record"
MAX_PARTS = 2**16
# Work spent on places that turn out to be no records: bytes parsed, before the search
# after a broken frame steps over whole frames instead of trying every place in them.
SEARCH_BYTES = 2**26
HEADER_COST = 64  # bytes that looking at a header counts for

_MAGIC = re.compile(re.escape(MAGIC_BYTES))
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)  # what the flag of a length word says


class NeedMoreError(Exception):
    """The bytes at hand do not tell; ``keep`` is the first place that is still needed."""

    def __init__(self, keep: int = 0) -> None:
        super().__init__(keep)
        self.keep = keep


@dataclass(slots=True)
class Frames:
    """Bytes of a file, from some place on.

    Parameters
    ----------
    buffer : ndarray of uint8
    at_end : bool
        Nothing follows in the file.
    max_record_bytes : int
    end_reason : str
        Why there is no more.
    spent : int
        Work done since the last broken frame.
    """

    buffer: NDArray[np.uint8]
    at_end: bool
    max_record_bytes: int
    end_reason: str = ENDS_INSIDE
    spent: int = 0

    def extent(self, position: int) -> tuple[list[slice], int]:
        """Return where the parts of the record at ``position`` lie, and where it ends.

        Raises
        ------
        MalformedMessageError
            When no whole record of frames starts there.
        NeedMoreError
        """
        parts: list[slice] = []
        place, total = position, 0
        while True:
            self.spent += HEADER_COST
            flag, length = self._header(place)
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
            start = place + HEADER_SIZE
            stop = start + padded(length)
            if stop > len(self.buffer):
                there = max(0, len(self.buffer) - start)
                self._missing(f"{there} of {padded(length)} bytes")
            parts.append(slice(start, start + length))
            place = stop
            if flag in (_WHOLE, _LAST):
                return parts, place

    def _header(self, place: int) -> tuple[int, int]:
        header = self.buffer[place : place + HEADER_SIZE].tobytes()
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
        """Return the parts joined, with the magic put back at which they were cut."""
        return MAGIC_BYTES.join(self.buffer[part].tobytes() for part in parts)

    def is_followed(self, after: int) -> bool:
        """Tell whether a magic stands at ``after``, or the end of the file."""
        there = self.buffer[after : after + len(MAGIC_BYTES)].tobytes()
        if len(there) < len(MAGIC_BYTES) and not self.at_end:
            raise NeedMoreError
        return there == MAGIC_BYTES[: len(there)]

    def next_record(self, position: int) -> int | None:
        """Return the next place from ``position`` on where a record is; None for none.

        It is complete, readable, and followed by another frame or the end.

        Raises
        ------
        NeedMoreError
            Its ``keep`` is where to search on.
        """
        while True:
            found = _MAGIC.search(self.buffer, position)  # type: ignore[call-overload]
            if found is None:
                if self.at_end:
                    return None
                raise NeedMoreError(max(position, len(self.buffer) - len(MAGIC_BYTES) + 1))
            place = int(found.start())
            before = self.spent
            try:
                after = self._end_of_record(place)
            except NeedMoreError:
                self.spent = before  # it is looked at again
                raise NeedMoreError(place) from None
            except MalformedMessageError:
                position = place + 1
                continue
            if after < 0:
                return place
            position = after if self.spent > SEARCH_BYTES else place + 1

    def _end_of_record(self, place: int) -> int:
        """Return -1 for a record, else where the frames that hold none end."""
        if self.spent > SEARCH_BYTES and self._header(place)[0] != _WHOLE:
            raise MalformedMessageError("parts are not looked at any more")
        parts, after = self.extent(place)
        if not self.is_followed(after):
            raise MalformedMessageError("nothing follows")
        self.spent += after - place
        try:
            read_row(self.payload(parts))
        except MalformedMessageError:
            return after
        return -1
