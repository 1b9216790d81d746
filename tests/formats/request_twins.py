"""Slow readers of requests, made of the json module and the protobuf library, and bad bodies."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from spark_fm.formats.recordio.record_pb2 import Record
from spark_fm.learner.csr import CsrBatch
from tests.formats.mutations import framed

DIM = 5

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ENTRIES = st.dictionaries(st.integers(0, DIM - 1), FLOAT32, max_size=DIM)


def rows_of(batch: CsrBatch) -> list[dict[int, float]]:
    """Return the entries of each row."""
    bounds = batch.indptr.tolist()
    return [
        dict(zip(batch.indices[a:b].tolist(), batch.values[a:b].tolist(), strict=True))
        for a, b in pairwise(bounds)
    ]


def read_slowly(body: bytes, feature_dim: int) -> list[dict[int, float]]:
    """Return the rows of a JSON request, or raise ValueError."""
    document = _parsed(body)
    _demand(isinstance(document, dict) and list(document) == ["instances"])
    instances = document["instances"]
    _demand(isinstance(instances, list) and bool(instances))
    return [_instance(instance, feature_dim) for instance in instances]


def read_lines_slowly(body: bytes, feature_dim: int) -> list[dict[int, float]]:
    """Return the rows of JSON lines, or raise ValueError."""
    lines = [line for line in body.decode().split("\n") if line.strip(" \t\r")]
    _demand(bool(lines))
    return [_instance(_parsed(line.encode()), feature_dim) for line in lines]


def _parsed(body: bytes) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _demand(len({name for name, _ in pairs}) == len(pairs))
        return dict(pairs)

    return json.loads(body.decode(), parse_constant=refuse, object_pairs_hook=members)


def _instance(instance: Any, feature_dim: int) -> dict[int, float]:
    _demand(isinstance(instance, dict))
    _demand(isinstance(instance.pop("configuration", {}), dict))
    _demand(len(instance) == 1)
    if "features" in instance:
        tensor = {"values": instance["features"]}
    else:
        _demand("data" in instance and isinstance(instance["data"], dict))
        _demand(list(instance["data"]) == ["features"])
        tensor = instance["data"]["features"]
        _demand(isinstance(tensor, dict) and "values" in tensor)
        _demand(set(tensor) <= {"keys", "shape", "values"})
    values = [_number(value) for value in _list(tensor["values"])]
    if "shape" in tensor:
        _demand([_number(size) for size in _list(tensor["shape"])] == [feature_dim])
    if "keys" in tensor:
        _demand("shape" in tensor)
        keys = [_number(key) for key in _list(tensor["keys"])]
        _demand(all(key in range(feature_dim) for key in keys))
        _demand(len(set(keys)) == len(keys) == len(values))
    else:
        keys = list(range(len(values)))
        _demand(len(values) == feature_dim)
    with np.errstate(over="ignore"):
        small = [float(np.float32(value)) for value in values]
    _demand(all(np.isfinite(small)))
    return {int(key): value for key, value in sorted(zip(keys, small, strict=True))}


def _list(value: Any) -> list[Any]:
    _demand(isinstance(value, list))
    return list(value)


def _number(value: Any) -> float:
    _demand(isinstance(value, int | float) and not isinstance(value, bool))
    try:
        number = float(value)
    except OverflowError as err:
        raise ValueError("too large") from err
    _demand(bool(np.isfinite(number)))
    return number


def _demand(holds: bool) -> None:
    if not holds:
        raise ValueError("not a request")


def record(row: dict[int, float], *, dense: bool, dim: int = DIM) -> bytes:
    """Return a framed Record, by the protobuf library."""
    message = Record()
    tensor = message.features["values"].float32_tensor
    if dense:
        tensor.values.extend(row.get(j, 0.0) for j in range(dim))
    else:
        tensor.keys.extend(row)
        tensor.values.extend(row.values())
        tensor.shape.append(dim)
    return framed(message.SerializeToString())


def read_responses_slowly(body: bytes) -> list[dict[str, float]]:
    """Return the label maps of framed Records, by the protobuf library."""
    found, place = [], 0
    while place < len(body):
        magic, length = struct.unpack_from("<II", body, place)
        assert magic == 0xCED7230A
        message = Record.FromString(body[place + 8 : place + 8 + length])
        assert not message.features
        for tensor in message.label.values():
            assert len(tensor.float32_tensor.values) == 1
            assert not tensor.float32_tensor.keys
        found.append({name: t.float32_tensor.values[0] for name, t in message.label.items()})
        place += 8 + (length + 3) // 4 * 4
    return found


def dense_instance(row: dict[int, float], *, short: bool) -> dict[str, Any]:
    """Return one of the two dense forms."""
    values = [row.get(j, 0.0) for j in range(DIM)]
    return {"features": values} if short else {"data": {"features": {"values": values}}}


def sparse_instance(row: dict[int, float]) -> dict[str, Any]:
    """Return the sparse form."""
    keys, values = list(row), list(row.values())
    return {"data": {"features": {"keys": keys, "shape": [DIM], "values": values}}}


INSTANCE = st.one_of(
    st.builds(dense_instance, ENTRIES, short=st.booleans()),
    st.builds(sparse_instance, ENTRIES),
    st.builds(lambda row: {**sparse_instance(row), "configuration": {"a": "\u00e9"}}, ENTRIES),
)
# What may stand in the place of anything else.
ODD = st.sampled_from(
    [None, True, "1", "", [], {}, [[]], -1, 1.5, 1e39, 3.5e38, 1e-320, 10**30, 2**31, DIM, -0.0, 0,
     [DIM], {"values": []}, {"features": [0.0] * DIM}]
)  # fmt: skip
TOKENS = st.sampled_from(
    [b"NaN", b"-Infinity", b"1e400", b"01", b"1.", b",", b"[", b"]", b"{", b"}", b'"', b":", b"\n",
     b"\r", b" ", b"\xff", b"\xef\xbb\xbf", b"\0", b"9" * 400, b'"features":[1,2,3,4,5],',
     b'"instances":[],', b'"keys":[0],', b"\\u0061", b"\xc3\xa9", b"tru", b"3.0", b"/**/"]
)  # fmt: skip


@st.composite
def odd_value(draw: Any, value: Any) -> Any:
    """Return the value with some part of it replaced, removed, repeated or added to."""
    parts = list(value) if isinstance(value, dict) else range(len(value))
    if parts and draw(st.integers(0, 3)):
        part = draw(st.sampled_from(list(parts)))
        changed = value.copy()
        if isinstance(value[part], dict | list) and draw(st.integers(0, 4)):
            changed[part] = draw(odd_value(value[part]))
        elif draw(st.booleans()):
            changed[part] = draw(ODD)
        else:
            del changed[part]
        return changed
    if isinstance(value, dict):
        return {**value, draw(st.sampled_from(["features", "data", "keys", "x"])): draw(ODD)}
    return [*value, draw(st.one_of(ODD, st.sampled_from(value) if value else ODD))]


@st.composite
def spoilt(draw: Any, body: bytes) -> bytes:
    """Return the bytes with a few cut out, cut off, repeated or put in."""
    data = bytearray(body)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        what = draw(st.integers(0, 3))
        if what == 0:
            data[place:place] = draw(TOKENS)
        elif what == 1:
            del data[place : place + draw(st.integers(1, 4))]
        elif what == 2:
            data[place:place] = data[place : place + draw(st.integers(1, 40))]
        else:
            data[place : place + 1] = draw(TOKENS)
    return bytes(data)
