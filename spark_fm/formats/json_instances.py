"""Instances of JSON requests as sparse rows; no Spark.

The msgspec library parses and checks the structure, in one pass and without a Python
call for each number; what depends on the model is checked on whole arrays afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray

from spark_fm.errors import RequestError
from spark_fm.formats.body_kinds import EXPLAINED_BYTES, FORMS, JSON, JSONLINES, advice, looks_like
from spark_fm.learner.csr import CsrBatch

SHOWN = 60  # characters of a value in a message

_PATH_START = " - at `$"
_PATH = re.compile(r"((?:\.[a-z]+|\[[0-9]{1,9}\])+)`")  # no body has more than 10^9 numbers
_INSTANCE = re.compile(r"\.instances\[([0-9]+)\]\.?")
_STEP = re.compile(r"\[([0-9]+)\]|\.([a-z]+)")
_LIST_START = re.compile(r'\s*\{\s*"instances"\s*:\s*\[\s*')
_BETWEEN = re.compile(r"\s*,\s*")


class _Tensor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    # Keys and shape as floats: JSON has one type of number, and all that are allowed are
    # exact. What is not whole is found on arrays.
    values: list[float]
    keys: list[float] | UnsetType = UNSET
    shape: list[float] | UnsetType = UNSET


class _Data(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    features: _Tensor


class _Instance(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    features: list[float] | UnsetType = UNSET
    data: _Data | UnsetType = UNSET
    configuration: Raw | UnsetType = UNSET


class _Document(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    instances: list[_Instance]


class _RawDocument(msgspec.Struct, gc=False):
    instances: list[Raw]


class _OpenInstance(_Instance, forbid_unknown_fields=False, gc=False):
    """Other names are allowed beside those of an instance, but not further inside."""


class _OpenDocument(_Document, forbid_unknown_fields=False, gc=False):
    """Other names are allowed beside the list of instances, too."""


_DOCUMENT = msgspec.json.Decoder(_Document)
_INSTANCE_DECODER = msgspec.json.Decoder(_Instance)
_OPEN_DOCUMENT = msgspec.json.Decoder(_OpenDocument)
_OPEN_INSTANCE = msgspec.json.Decoder(_OpenInstance)
_RAW_DOCUMENT = msgspec.json.Decoder(_RawDocument)


def decode_document(body: bytes, feature_dim: int) -> CsrBatch:
    """Return the rows of ``{"instances": [...]}``; errors as in `decode_request`."""
    _check_text(body, None)
    try:
        instances = _DOCUMENT.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
        _raise_unread(err, body, None)
    found = instances.instances
    if not found:
        raise RequestError(
            'The list "instances" is empty; expected one instance at least. ' + FORMS + "."
        )
    rows = _rows(found, feature_dim, 0)
    if body.count(b'"') != 2 * (1 + sum(map(_count_names, found))) + _quotes_within(found):
        _raise_repeated(found, [bytes(text) for text in _RAW_DOCUMENT.decode(body).instances], 0)
    return rows


def decode_lines(body: bytes, feature_dim: int, first: int = 0) -> CsrBatch | None:
    """Return the rows of lines with an instance each, None if all are blank.

    ``first`` is the number of the first instance in errors.
    """
    lines = [line for line in (raw.strip(b" \t\r") for raw in body.split(b"\n")) if line]
    decode = _INSTANCE_DECODER.decode
    found = []
    for line in lines:
        try:
            found.append(decode(line))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
            number = first + len(found)
            _check_text(line, number, body)
            _raise_unread(err, line, number, body)
    if not found:
        return None
    if not body.isascii():
        for number, line in enumerate(lines, first):
            _check_text(line, number)
    rows = _rows(found, feature_dim, first)
    if body.count(b'"') != 2 * sum(map(_count_names, found)) + _quotes_within(found):
        _raise_repeated(found, lines, first)
    return rows


def _check_text(text: bytes, number: int | None, lines: bytes | None = None) -> None:
    """Raise if the bytes are not UTF-8; ASCII costs next to nothing."""
    if text.isascii():
        return
    try:
        text.decode()
    except UnicodeDecodeError as err:
        fix = "Encode JSON as UTF-8."
        if looks_like(lines or text) is not None:
            fix = advice(text, JSON) if lines is None else advice(lines, JSONLINES, text)
        raise RequestError(
            f"{_name(number)}is not UTF-8: byte {err.start} is 0x{text[err.start]:02x}. {fix}",
            instance=number,
        ) from None


def _name(number: int | None) -> str:
    return "The body " if number is None else f"Instance {number} "


def _raise_unread(
    err: Exception, text: bytes, number: int | None, lines: bytes | None = None
) -> NoReturn:
    """Raise for an error of msgspec in a document, or in one of ``lines``."""
    if isinstance(err, RecursionError):
        raise RequestError(
            f"{_name(number)}is nested too deeply. {FORMS}.", instance=number
        ) from None
    reason, path = str(err), ""
    seen = ""
    if isinstance(err, msgspec.ValidationError):
        reason, path = _located(reason, text, _OPEN_DOCUMENT if number is None else _OPEN_INSTANCE)
        seen = _shown_at(text, path)
    elif number is None:
        number = _first_unread(text)
    inside = _INSTANCE.match(path)
    part = lines and text
    if inside:
        number, path = int(inside[1]), path[inside.end() :]
        part = _raw_instance(text, number)
    where = path.lstrip(".")
    fix = advice(text, JSON, part) if lines is None else advice(lines, JSONLINES, part)
    raise RequestError(
        f"{_name(number)}cannot be read{' at ' + where if where else ''}: "
        f"{reason[:400].replace('`', '')}{seen}. {fix}",
        instance=number,
    ) from None


def _raw_instance(body: bytes, number: int) -> bytes:
    """Return the text of an instance, or nothing if the document is too long or broken."""
    try:
        return bytes(_RAW_DOCUMENT.decode(body[:EXPLAINED_BYTES]).instances[number])
    except (msgspec.MsgspecError, ValueError, LookupError, RecursionError):
        return b""


def _located(message: str, text: bytes, decoder: msgspec.json.Decoder[Any]) -> tuple[str, str]:
    """Return a message of msgspec's without the path at its end, and that path, or "".

    A message quotes an unknown name as it is, and the name may end like a message with a path.
    Only the outermost object's names come without one, and the decoder allows those: if it
    fails in the same way, msgspec meant another object, and the path is its own.
    """
    reason, _, end = message.rpartition(_PATH_START)
    path = _PATH.fullmatch(end) if reason else None
    if path is None:
        return message, ""
    try:
        decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
        if str(err) == message:
            return reason, path[1]
    return message, ""


def _first_unread(body: bytes) -> int | None:
    """Return the first instance of a document that is no JSON, None if the error is outside."""
    text = body.decode() if len(body) <= EXPLAINED_BYTES else ""
    start = _LIST_START.match(text)
    number = 0
    # As floats, since Python reads whole numbers of 4300 digits at most.
    decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=float).raw_decode
    while start is not None:
        try:
            _, end = decode(text, start.end())
        except (ValueError, RecursionError):
            return number
        start = _BETWEEN.match(text, end)
        number += 1
    return None


def _refuse_constant(name: str) -> NoReturn:
    """Raise for NaN and Infinity, which JSON does not have."""
    raise ValueError(name)


def _shown_at(text: bytes, path: str) -> str:
    """Return the value at a path as text, or nothing if it cannot be shown."""
    if len(text) > EXPLAINED_BYTES:
        return ""
    try:
        value = msgspec.json.decode(text)
        for index, name in _STEP.findall(path):
            value = value[int(index)] if index else value[name]
        shown = msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f" ({shown[:SHOWN]}{'...' if len(shown) > SHOWN else ''})"


def _count_names(instance: _Instance) -> int:
    """Return how many names of members an instance has, each of them written once."""
    names = (instance.features is not UNSET) + (instance.configuration is not UNSET)
    if instance.data is not UNSET:
        tensor = instance.data.features
        names += 3 + (tensor.keys is not UNSET) + (tensor.shape is not UNSET)
    return names


def _quotes_within(found: Sequence[_Instance]) -> int:
    """Return the quotes in configurations, the only strings but names."""
    return sum(
        bytes(instance.configuration).count(b'"')
        for instance in found
        if instance.configuration is not UNSET
    )


def _raise_repeated(found: Sequence[_Instance], texts: list[bytes], first: int) -> NoReturn:
    """Raise for a name that occurs twice, of which a parser silently takes the last."""
    number = None
    for row, (instance, text) in enumerate(zip(found, texts, strict=False)):
        if text.count(b'"') != 2 * _count_names(instance) + _quotes_within([instance]):
            number = first + row
            break
    raise RequestError(
        f"{_name(number)}has a name twice in one object; names must differ. Leave one of them out.",
        instance=number,
    )


def _rows(found: Sequence[_Instance], feature_dim: int, first: int) -> CsrBatch:
    """Check instances against the model and return them as rows."""
    numbers: list[list[float]] = []
    keys: list[list[float]] = []
    is_dense = np.zeros(len(found), np.bool_)
    for number, instance in enumerate(found):
        its_values, its_keys = _parts(instance, feature_dim, first + number)
        numbers.append(its_values)
        if its_keys is None:
            is_dense[number] = True
        else:
            keys.append(its_keys)
    lengths = np.fromiter(map(len, numbers), np.int64, len(found))
    indptr = np.zeros(len(found) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    values64 = np.fromiter(chain.from_iterable(numbers), np.float64, int(indptr[-1]))
    in_dense = np.repeat(is_dense, lengths)
    indices = np.empty(len(values64), np.float64)
    if is_dense.any():  # each of them has a value a feature, so this is no longer than the body
        indices[in_dense] = np.tile(np.arange(feature_dim), int(is_dense.sum()))
    indices[~in_dense] = np.fromiter(chain.from_iterable(keys), np.float64, int((~in_dense).sum()))
    _check_keys(indices, indptr, feature_dim, first)
    values = float32_values(values64, indices, indptr, first)
    return _sorted(indptr, indices.astype(np.int32), values, first)


def _parts(
    instance: _Instance, feature_dim: int, number: int
) -> tuple[list[float], list[float] | None]:
    """Return values and keys of an instance; no keys: dense."""
    raw = instance.configuration
    if raw is not UNSET and bytes(raw)[:1] != b"{":
        _refuse(number, f"has the configuration {bytes(raw)[:SHOWN]!r}; expected an object")
    if instance.data is UNSET:
        if instance.features is UNSET:
            _refuse(number, "has neither features nor data")
        values: list[float] = instance.features
        keys: list[float] | UnsetType = UNSET
        shape: list[float] | UnsetType = UNSET
    elif instance.features is not UNSET:
        _refuse(number, "has both features and data; expected one of them")
    else:
        tensor = instance.data.features
        values, keys, shape = tensor.values, tensor.keys, tensor.shape
    if shape is not UNSET and shape != [feature_dim]:
        shown = "[" + ", ".join(f"{size:.15g}" for size in shape[:4])
        shown += ", ...]" if len(shape) > 4 else "]"
        _refuse(number, f"has the shape {shown}; the model's is [{feature_dim}]", "")
    if keys is UNSET:
        if len(values) != feature_dim:
            _refuse(
                number,
                f"has {len(values)} dense values; the model has {feature_dim} features",
                "Send a value for each feature, or the non-zero ones with keys and shape.",
            )
        return values, None
    if shape is UNSET:
        _refuse(number, f"has keys but no shape; expected [{feature_dim}]")
    if len(keys) != len(values):
        _refuse(
            number, f"has {len(keys)} keys for {len(values)} values; expected as many",
            "Send one key for each value.",
        )  # fmt: skip
    return values, keys


def _refuse(number: int, what: str, fix: str = FORMS + ".") -> NoReturn:
    advice = fix or "Send rows made for this model, or ask the model that they were made for."
    raise RequestError(f"Instance {number} {what}. {advice}", instance=number)


def _check_keys(
    keys: NDArray[np.float64], indptr: NDArray[np.int64], feature_dim: int, first: int
) -> None:
    wrong = ~((keys >= 0) & (keys < feature_dim) & (keys == np.floor(keys)))
    if wrong.any():
        entry = int(wrong.argmax())
        _refuse(
            first + row_of(indptr, entry),
            f"has the key {keys[entry]:.15g}; expected whole numbers from 0 to {feature_dim - 1}",
            "Keys count the features from 0.",
        )


def row_of(indptr: NDArray[np.int64], entry: int) -> int:
    """Return the row that an entry belongs to."""
    return int(np.searchsorted(indptr, entry, "right")) - 1


def float32_values(
    values: NDArray[np.float64], keys: NDArray[Any], indptr: NDArray[np.int64], first: int
) -> NDArray[np.float32]:
    """Return values as float32, or raise for one that is not finite in it."""
    with np.errstate(over="ignore", invalid="ignore"):
        small = values.astype(np.float32)
    is_finite = np.isfinite(small)
    if not is_finite.all():
        entry = int(is_finite.argmin())
        _refuse(
            first + row_of(indptr, entry),
            f"has the value {values[entry]} in feature {int(keys[entry])}; expected a finite "
            f"number of at most {np.finfo(np.float32).max!s}",
            "Scale the feature as in training, and fill missing values in.",
        )
    return small


def _sorted(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], values: NDArray[np.float32], first: int
) -> CsrBatch:
    """Return rows with rising keys, or raise for a repeated key."""
    rises = np.diff(indices) > 0
    starts = indptr[1:-1]
    rises[starts[(starts > 0) & (starts < len(indices))] - 1] = True
    if not rises.all():
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        order = np.lexsort((indices, rows))
        indices, values = indices[order], values[order]
        repeated = (np.diff(indices) == 0) & (np.diff(rows) == 0)
        if repeated.any():
            entry = int(repeated.argmax())
            _refuse(
                first + int(rows[entry]),
                f"has the key {indices[entry]} more than once; expected one value a feature",
                "Add the values up, or leave all but one out.",
            )
    return CsrBatch.from_arrays(indptr, indices, values)
