"""Instances together with their predictions, in the format of the instances; no Spark.

JSON is joined as SageMaker's batch transform does it: the prediction is the member
``SageMakerOutput`` of the input's object. A record gets score and label as two more
entries of its label map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import numpy as np

from spark_fm.errors import RequestError
from spark_fm.formats.content_types import JSON, RECORDIO_PROTOBUF
from spark_fm.formats.frames import Frames
from spark_fm.formats.framing import HEADER_SIZE, MAGIC_BYTES, MAX_PAYLOAD, padded
from spark_fm.formats.instances import decode_lines
from spark_fm.formats.reading import RecordReader
from spark_fm.formats.requests import (
    checked_records,
    decode_request,
    line_blocks,
    read_document,
    refuse_record,
)
from spark_fm.formats.responses import Predictions, encode_each, encode_response, prediction_texts
from spark_fm.learner.csr import CsrBatch

MEMBER = b'"SageMakerOutput": '

Scorer = Callable[[CsrBatch], Predictions]


def join_document(
    stream: BinaryIO, scorer: Scorer, *, feature_dim: int
) -> Iterator[tuple[bytes, int]]:
    """Yield a JSON document with its response in it, and the number of rows."""
    body = read_document(stream)
    rows = decode_request(body, JSON, feature_dim=feature_dim)
    found = scorer(rows)
    yield _with_member(body.strip(), encode_response(found.scores, found.labels, JSON)), rows.n_rows


def join_lines(
    stream: BinaryIO, scorer: Scorer, *, feature_dim: int
) -> Iterator[tuple[bytes, int]]:
    """Yield JSON lines with their predictions in them, and their number."""
    first = 0
    for block in line_blocks(stream):
        rows = decode_lines(block, feature_dim, first)
        if rows is None:
            continue
        found = scorer(rows)
        texts = prediction_texts(found.scores, found.labels, first)
        lines = filter(None, (line.strip(b" \t\r") for line in block.split(b"\n")))
        joined = [_with_member(*each) + b"\n" for each in zip(lines, texts, strict=True)]
        yield b"".join(joined), rows.n_rows
        first += rows.n_rows


def _with_member(instance: bytes, prediction: bytes) -> bytes:
    """Return an object, which has members already, with one more."""
    return instance[:-1] + b", " + MEMBER + prediction + b"}"


def join_records(
    stream: BinaryIO, scorer: Scorer, *, feature_dim: int
) -> Iterator[tuple[bytes, int]]:
    """Yield records with score and label in their label maps, and their number.

    All else in a record stays as it is; parts of one are put together.
    """
    kept = _Kept(stream)
    first = 0
    for batch in RecordReader(cast(BinaryIO, kept), on_malformed=refuse_record):
        found = scorer(checked_records(batch, feature_dim, first))
        entries = [
            record[HEADER_SIZE : HEADER_SIZE + int.from_bytes(record[4:8], "little")]
            for record in encode_each(found.scores, found.labels, RECORDIO_PROTOBUF, first)
        ]
        payloads = kept.payloads(batch.offsets.tolist())
        joined = [
            _framed(payload + entry, first + row)
            for row, (payload, entry) in enumerate(zip(payloads, entries, strict=True))
        ]
        yield b"".join(joined), batch.n_rows
        first += batch.n_rows


def _framed(payload: bytes, number: int) -> bytes:
    size = len(payload)
    if size > MAX_PAYLOAD:
        raise RequestError(
            f"Instance {number} has {size} bytes with its prediction; a record has up to "
            f"{MAX_PAYLOAD}. Leave zeros out.",
            instance=number,
        )
    return MAGIC_BYTES + size.to_bytes(4, "little") + payload + bytes(padded(size) - size)


class _Kept:
    """A stream whose bytes are kept until their records have been taken out."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._bytes = bytearray()
        self._start = 0  # place of the first kept byte in the stream

    def read(self, size: int) -> bytes:
        taken: bytes = self._stream.read(size)
        self._bytes += taken
        return taken

    def payloads(self, offsets: list[int]) -> list[bytes]:
        """Return the payloads of the records at these places, which rise, and forget them."""
        data = np.frombuffer(bytes(self._bytes), np.uint8)
        frames = Frames(data, True, MAX_PAYLOAD)
        found, end = [], 0
        for offset in offsets:
            parts, end = frames.extent(offset - self._start)
            found.append(frames.payload(parts))
        del self._bytes[:end]
        self._start += end
        return found
