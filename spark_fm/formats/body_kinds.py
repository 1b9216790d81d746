"""Content types by name, and for a body that cannot be read what it looks like; no Spark."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from spark_fm.formats.recordio.framing import MAGIC_BYTES

JSON = "application/json"
JSONLINES = "application/jsonlines"
RECORDIO_PROTOBUF = "application/x-recordio-protobuf"

FORMS = (
    'An instance is {"features": [numbers]}, {"data": {"features": {"values": [numbers]}}} or '
    '{"data": {"features": {"keys": [...], "shape": [number of features], "values": [...]}}}, '
    'each with an optional object "configuration"'
)
EXPLAINED_BYTES = 2**20  # a larger body is not parsed again for an error's sake
SHOWN_NUMBERS = 8  # of a list in a message
SHOWN_CHARACTERS = 300

_BINARY = {
    MAGIC_BYTES: RECORDIO_PROTOBUF,
    b"\x1f\x8b": "gzip (send it uncompressed)",
    b"\x93NUMPY": "application/x-npy",
    b"PAR1": "application/x-parquet",
    b"PK\x03\x04": "a zip archive, such as an .npz file",
}
_NUMBER = rb"[-+]?[0-9.][-+0-9.eE]*"
_LIBSVM = re.compile(rb"\s*%b(\s+[0-9]+:%b)+\s*$" % (_NUMBER, _NUMBER))
_PYTHON = re.compile(rb"\s*[\[{][\s\[{]*'")
_WRAPPER = re.compile(rb'\s*\{\s*"instances"\s*:')
_INSTANCE_NAMES = {"features", "data", "configuration"}
_TENSOR_NAMES = {"keys", "shape", "values"}
# Where other services' bodies have their rows, before anything else in them.
_ROWS_FIRST = ("instances", "features", "data", "inputs", "values")


def advice(body: bytes, content_type: str, part: bytes | None = None) -> str:
    """Return what a body that cannot be read looks like and what to send instead.

    ``part`` is the line or instance at fault, None if that is the body. The form to send
    has the caller's own values where they can be read.
    """
    kind = looks_like(body)
    try:
        form = _form(body, content_type, part)
    except RecursionError:  # a body nested as deep as that means nothing
        form = ""
    missing = ""
    if content_type == JSON and kind in (None, JSONLINES) and b'"instances"' not in body:
        missing = 'The list "instances" is missing. '
    if kind in (None, content_type):
        if form:
            return f"{missing}Send {form}."
        wrapper = 'Send {"instances": [...]}. ' if missing else ""
        return f"{missing}{wrapper}{FORMS}; numbers are finite, as JSON has it, without quotes."
    if kind in (JSON, JSONLINES, RECORDIO_PROTOBUF):
        instead = f", or send {form} as {content_type}" if form else ""
        return f"{missing}The body looks like {kind}: send it with that content type{instead}."
    instead = f": send {form}" if form else f". {FORMS}"
    return f"The body looks like {kind}, which is not read{instead}."


def looks_like(body: bytes) -> str | None:
    """Return the content type of a body, or another name of what it is; None if unknown."""
    for magic, name in _BINARY.items():
        if body.startswith(magic):
            return name
    value = _parsed(body)
    is_long = len(body) > EXPLAINED_BYTES
    if _WRAPPER.match(body) if is_long else isinstance(value, dict) and "instances" in value:
        return JSON
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        return "JSON that was encoded twice (encode it once)"
    lines = _first_lines(body)
    if lines and all(_is_instance(_parsed(line)) for line in lines):
        return JSONLINES
    if lines and value is None and all(map(_csv_row, lines[1:] or lines)):  # with a header or not
        return "text/csv"
    if lines and all(_LIBSVM.match(line) for line in lines):
        return "text/libsvm"
    if _PYTHON.match(body):
        return "a Python object as text (write it with json.dumps)"
    return None


def _form(body: bytes, content_type: str, part: bytes | None) -> str:
    """Return the instances that a part or the body mean, as they are sent; "" if unknown."""
    if content_type == RECORDIO_PROTOBUF:
        return ""
    value = None if part is None else _parsed(part)
    found = _instances(value)
    if found and found != [value]:
        return _shown(found[0]) + (", each instance on a line" if len(found) > 1 else "")
    lines = _first_lines(body)
    found = (
        _instances(_parsed(body))
        or _instances([row for row in map(_parsed, lines) if isinstance(row, dict | list)])
        or _instances([row for row in map(_csv_row, lines) if row])
    )
    if not found:
        return ""
    return _shown({"instances": found}) if content_type == JSON else f"{_shown(found[0])} on a line"


def _first_lines(body: bytes) -> list[bytes]:
    lines = (line.strip() for line in body[:EXPLAINED_BYTES].split(b"\n"))
    return [line for line in lines if line][:3]


def _csv_row(line: bytes) -> Any:
    """Return the numbers between commas, None for another line."""
    row = _parsed(b"[" + line + b"]") if b"," in line else None
    return row if _is_numbers(row) else None


def _parsed(text: bytes) -> Any:
    """Return the value of a JSON text, None if it is none."""
    if len(text) > EXPLAINED_BYTES:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _instances(value: Any) -> list[dict[str, Any]] | None:
    """Return the instances that a value means, in a form that is read; None if unknown."""
    if _is_numbers(value):
        return [{"features": value}]
    if isinstance(value, list):
        found = [_instances(each) for each in value]
        rows = [each[0] for each in found if each is not None and len(each) == 1]
        return rows if rows and len(rows) == len(value) else None
    if isinstance(value, str):
        return _instances(_parsed(value.encode())) if value.lstrip()[:1] in ("{", "[") else None
    if not isinstance(value, dict):
        return None
    if _is_instance(value):
        return [value]
    if _is_tensor(value) and "keys" in value:
        return [{"data": {"features": value}}]
    names = dict.fromkeys((*_ROWS_FIRST, *value))  # each once: bodies may be nested
    members = (_instances(value[name]) for name in names if name in value)
    return next((found for found in members if found), None)


def _is_instance(value: Any) -> bool:
    """Return whether a value has the form of an instance, whatever its numbers are."""
    if not isinstance(value, dict) or not value.keys() <= _INSTANCE_NAMES:
        return False
    if not isinstance(value.get("configuration", {}), dict):
        return False
    if "data" not in value:
        return _is_numbers(value.get("features"))
    data = value["data"]
    is_data = isinstance(data, dict) and data.keys() == {"features"}
    return "features" not in value and is_data and _is_tensor(data["features"])


def _is_tensor(value: Any) -> bool:
    if not isinstance(value, dict) or not {"values"} <= value.keys() <= _TENSOR_NAMES:
        return False
    return all(map(_is_numbers, value.values()))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(x) in (int, float) for x in value)


def _shown(value: Any) -> str:
    """Return a value as JSON, its long lists cut."""
    text = json.dumps(_cut(value)).replace('"..."', "...")
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    n_shown = SHOWN_NUMBERS if _is_numbers(value) else 2
    return [_cut(each) for each in value[:n_shown]] + (["..."] if len(value) > n_shown else [])
