"""Frames of a recordIO file: magic, length, payload, padding; no Spark."""

from __future__ import annotations

RECORDIO = "recordio-protobuf"  # what Spark and the command line call the format

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")

# The upper three bits of a length word say which part of a record follows; 0 is all of it.
LENGTH_BITS = 29
LENGTH_MASK = 2**LENGTH_BITS - 1
MAX_PAYLOAD = LENGTH_MASK

HEADER_SIZE = 8  # magic and length word
ALIGNMENT = 4


def padded(length: int) -> int:
    """Return the length rounded up to whole words, as a payload lies in a file."""
    return (length + ALIGNMENT - 1) & ~(ALIGNMENT - 1)
