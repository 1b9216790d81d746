"""Large results of a task as rows of at most 4 MiB, and back; both ends.

One row carries a part of a named array of one of the models that a job trains, or the
JSON facts of a partition (``name`` is ``"facts"``). One row of 100 MB is known to kill a
1 GB driver; many small ones are not.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PIECE_BYTES = 4 * 2**20
FACTS = "facts"

PIECE_SCHEMA = pa.schema(
    [
        pa.field("model", pa.int32()),
        pa.field("partition", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("part", pa.int32()),
        pa.field("payload", pa.binary()),
    ]
)
PIECE_DDL = "model int, partition int, name string, part int, payload binary"


def piece(
    partition: int, name: str, part: int, payload: bytes, *, model: int = 0
) -> pa.RecordBatch:
    """Return the record batch of one piece."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([model], pa.int32()),
            pa.array([partition], pa.int32()),
            pa.array([name], pa.string()),
            pa.array([part], pa.int32()),
            pa.array([payload], pa.binary()),
        ],
        schema=PIECE_SCHEMA,
    )


def array_pieces(
    partition: int, facts: dict[str, Any], arrays: dict[str, NDArray[Any]], *, model: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield the pieces of arrays and facts; the facts also keep shapes and dtypes."""
    flats = {n: np.ascontiguousarray(a).reshape(-1).view(np.uint8) for n, a in arrays.items()}
    forms = {n: [a.dtype.str, list(a.shape), zlib.crc32(flats[n].data)] for n, a in arrays.items()}
    content = json.dumps({**facts, "arrays": forms}).encode()
    yield piece(partition, FACTS, 0, content, model=model)
    for name, flat in flats.items():
        for part, start in enumerate(range(0, len(flat), PIECE_BYTES)):
            payload = flat[start : start + PIECE_BYTES].tobytes()
            yield piece(partition, name, part, payload, model=model)


def join_pieces(
    rows: Iterable[tuple[str, int, Any]],
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return facts and arrays from their pieces (name, part, payload), in any order."""
    parts: dict[str, list[tuple[int, Any]]] = {}
    for name, part, payload in rows:
        parts.setdefault(name, []).append((part, payload))
    facts = json.loads(bytes(parts[FACTS][0][1]))
    arrays = {}
    for name, (dtype, shape, checksum) in facts.pop("arrays").items():
        array = np.empty(shape, dtype)
        flat = array.reshape(-1).view(np.uint8)
        place = 0
        for _, payload in sorted(parts.get(name, []), key=lambda item: item[0]):
            flat[place : place + len(payload)] = np.frombuffer(payload, np.uint8)
            place += len(payload)
        if place != len(flat):
            raise RuntimeError(f"{name}: {place} of {len(flat)} bytes arrived")
        if zlib.crc32(flat.data) != checksum:
            raise RuntimeError(f"{name}: its pieces are of two attempts of a task, or damaged")
        arrays[name] = array
    return facts, arrays
