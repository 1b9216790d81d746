"""Scores as responses: JSON, JSON lines and recordIO-protobuf, and back; no Spark.

The formats are those of SageMaker's factorization machines: a score and, of a classifier,
a predicted label for each instance, in the order of the request.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, cast

import msgspec
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, RequestError
from spark_fm.formats.recordio.decode import Frames, MalformedMessageError
from spark_fm.formats.recordio.framing import ALIGNMENT, MAGIC_BYTES, MAX_PAYLOAD
from spark_fm.formats.recordio.record_pb2 import Record  # type: ignore[attr-defined]  # made at import
from spark_fm.formats.requests import JSON, JSONLINES, plain_type

SCORE, LABEL = "score", "predicted_label"

_HEAD = {JSON: b'{"predictions": [', JSONLINES: b""}
_BETWEEN = {JSON: b", ", JSONLINES: b"\n"}
_TAIL = {JSON: b"]}", JSONLINES: b"\n"}
_LABEL_TEXTS = (b', "predicted_label": 0.0}', b', "predicted_label": 1.0}')


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says of rows.

    Parameters
    ----------
    scores : ndarray of shape (n_rows,), float32
        P(label = 1) of a classifier, the value of a regressor.
    labels : ndarray of shape (n_rows,), float32, or None
        0 or 1 of a classifier; None of a regressor.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.float32] | None


class _Prediction(msgspec.Struct, gc=False):
    score: float
    predicted_label: float | None = None


class _Document(msgspec.Struct, gc=False):
    predictions: list[_Prediction]


_DOCUMENT = msgspec.json.Decoder(_Document)
_LINE = msgspec.json.Decoder(_Prediction)


def encode_response(
    scores: NDArray[np.float32], labels: NDArray[np.float32] | None, accept: str
) -> bytes:
    """Return scores as the body of a response.

    Parameters
    ----------
    scores : ndarray of shape (n_rows,), float32
    labels : ndarray of shape (n_rows,), float32, or None
        0 or 1 for each row; None leaves them out, as of a regressor.
    accept : str
        One of CONTENT_TYPES.

    Returns
    -------
    bytes

    Raises
    ------
    RequestError
        For a score that is not finite: the values of that instance are too large.
    InvalidParamError
        For another content type.

    Notes
    -----
    O(n_rows). Scores are written with the digits of a double, so that they are read back
    as the same float32, and labels as 0.0 or 1.0.

    Examples
    --------
    >>> import numpy as np
    >>> from spark_fm.formats.responses import encode_response
    >>> scores, labels = np.array([0.25, 0.75], np.float32), np.array([0, 1], np.float32)
    >>> encode_response(scores, labels, "application/jsonlines").decode().splitlines()[1]
    '{"score": 0.75, "predicted_label": 1.0}'
    """
    kind = plain_type(accept, "accept")
    if kind not in _HEAD:
        return _records(scores, labels, 0)
    rows = _BETWEEN[kind].join(prediction_texts(scores, labels))
    return _HEAD[kind] + rows + (_TAIL[kind] if kind == JSON or rows else b"")


def write_responses(chunks: Iterable[Predictions], stream: BinaryIO, accept: str) -> int:
    """Write the scores of many rows as one response, chunk after chunk.

    Parameters
    ----------
    chunks : iterable of Predictions
    stream : binary file
        Only ``write`` is called.
    accept : str

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    RequestError
        As in `encode_response`; chunks before it have been written.
    InvalidParamError

    Notes
    -----
    The bytes are those of `encode_response` for all rows at once.
    """
    kind = plain_type(accept, "accept")
    n_rows = 0
    stream.write(_HEAD.get(kind, b""))
    for chunk in chunks:
        if not len(chunk.scores):
            continue
        if kind in _HEAD:
            rows = _BETWEEN[kind].join(prediction_texts(chunk.scores, chunk.labels, n_rows))
            stream.write(_BETWEEN[kind] + rows if n_rows else rows)
        else:
            stream.write(_records(chunk.scores, chunk.labels, n_rows))
        n_rows += len(chunk.scores)
    if kind == JSON or (kind == JSONLINES and n_rows):
        stream.write(_TAIL[kind])
    return n_rows


def encode_each(
    scores: NDArray[np.float32], labels: NDArray[np.float32] | None, accept: str, first: int = 0
) -> list[bytes]:
    """Return a response of its own for each row; JSON lines come without their ends.

    Errors call the first row ``first``; all else is as in `encode_response`.
    """
    kind = plain_type(accept, "accept")
    if kind in _HEAD:
        texts = prediction_texts(scores, labels, first)
        return texts if kind == JSONLINES else [_HEAD[kind] + t + _TAIL[kind] for t in texts]
    data = _records(scores, labels, first)
    size = _LAYOUTS[labels is not None].itemsize
    return [data[start : start + size] for start in range(0, len(data), size)]


def prediction_texts(
    scores: NDArray[np.float32], labels: NDArray[np.float32] | None, first: int = 0
) -> list[bytes]:
    """Return a JSON object for each row; ``first`` is what errors call the first one."""
    if not len(scores):
        return []
    _check_scores(scores, first)
    # Made as one list of numbers and cut up: an object for each row would cost more.
    numbers = msgspec.json.encode(scores.astype(np.float64).tolist())[1:-1].split(b",")
    if labels is None:
        return [b'{"score": ' + number + b"}" for number in numbers]
    tails = [_LABEL_TEXTS[label] for label in (labels != 0).tolist()]
    return [b'{"score": ' + number + tail for number, tail in zip(numbers, tails, strict=True)]


def _check_scores(scores: NDArray[np.float32], first: int) -> None:
    is_finite = np.isfinite(scores)
    if not is_finite.all():
        row = int(is_finite.argmin())
        raise RequestError(
            f"Instance {first + row} has the score {scores[row]}; only finite ones can be "
            "answered. Its values are too large for the model: scale them as in training.",
            instance=first + row,
        )


def _records(scores: NDArray[np.float32], labels: NDArray[np.float32] | None, first: int) -> bytes:
    """Return framed records."""
    _check_scores(scores, first)
    out = np.zeros(len(scores), _LAYOUTS[labels is not None].dtype)
    out[:] = _LAYOUTS[labels is not None]
    out["score"] = scores
    if labels is not None:
        out["label"] = labels
    return out.tobytes()


def _entry(name: str) -> bytes:
    """Return an entry of a record's label map up to the float in it."""
    key = b"\x0a" + bytes([len(name)]) + name.encode()
    value = b"\x12\x08" + b"\x12\x06" + b"\x0a\x04"  # entry's value, float32 tensor, values
    return b"\x12" + bytes([len(key) + len(value) + 4]) + key + value


def _layout(*, has_label: bool) -> NDArray[np.void]:
    """Return a frame with zeros for the floats; all records differ in these only."""
    parts = [("score", _entry(SCORE))] + ([("label", _entry(LABEL))] if has_label else [])
    size = sum(len(head) + 4 for _, head in parts)
    start = MAGIC_BYTES + size.to_bytes(4, "little")
    fields: list[tuple[str, str]] = []
    content = b""
    for name, head in parts:
        before = (b"" if content else start) + head
        fields += [(f"before_{name}", f"V{len(before)}"), (name, "<f4")]
        content += before + bytes(4)
    if size % ALIGNMENT:
        fields.append(("padding", f"V{-size % ALIGNMENT}"))
    return np.frombuffer(content + bytes(-size % ALIGNMENT), np.dtype(fields))


_LAYOUTS = {has_label: _layout(has_label=has_label) for has_label in (False, True)}


def decode_response(body: bytes, content_type: str) -> Predictions:
    """Return the scores in a response.

    Parameters
    ----------
    body : bytes
    content_type : str
        One of CONTENT_TYPES.

    Returns
    -------
    Predictions
        Labels are None when no row has one.

    Raises
    ------
    InvalidDataError
        For a body that is no such response, or when only some of the rows have a label.
    InvalidParamError
        For another content type.

    Notes
    -----
    What else a server adds to a prediction is passed over.

    Examples
    --------
    >>> from spark_fm.formats.responses import decode_response
    >>> decode_response(b'{"predictions": [{"score": 0.5}]}', "application/json").scores
    array([0.5], dtype=float32)
    """
    kind = plain_type(content_type)
    if kind in _HEAD:
        try:
            found = (
                _LINE.decode_lines(body)
                if kind == JSONLINES
                else _DOCUMENT.decode(body).predictions
            )
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
            raise InvalidDataError(
                f"The response is not {kind} with predictions: {str(err)[:400]}. It starts with "
                f"{body[:60]!r}; look at what the server says."
            ) from None
        pairs = [(each.score, each.predicted_label) for each in found]
    else:
        for layout in _LAYOUTS.values():
            if _is_laid_out(body, layout):
                return _laid_out(body, layout)
        pairs = _read_records(body)
    scores = np.array([score for score, _ in pairs], np.float64).astype(np.float32)
    labels = [label for _, label in pairs if label is not None]
    if not labels:
        return Predictions(scores, None)
    if len(labels) < len(pairs):
        raise InvalidDataError(
            f"The response has {len(labels)} labels for {len(pairs)} scores; expected one for "
            "each, or none. Look at what the server says."
        )
    return Predictions(scores, np.array(labels, np.float32))


def _is_laid_out(body: bytes, layout: NDArray[np.void]) -> bool:
    """Tell whether a body is as this module writes it, but for the floats."""
    if not body or len(body) % layout.itemsize:
        return False
    rows = np.frombuffer(body, layout.dtype)
    return all(
        (rows[name] == layout[name]).all()
        for name in layout.dtype.names or ()
        if name not in ("score", "label")
    )


def _laid_out(body: bytes, layout: NDArray[np.void]) -> Predictions:
    rows = np.frombuffer(body, layout.dtype)
    has_label = "label" in (layout.dtype.names or ())
    return Predictions(
        rows["score"].astype(np.float32), rows["label"].astype(np.float32) if has_label else None
    )


def _read_records(body: bytes) -> list[tuple[float, float | None]]:
    """Return score and label of each record."""
    frames = Frames(np.frombuffer(body, np.uint8), True, MAX_PAYLOAD, "the response ends inside")
    pairs: list[tuple[float, float | None]] = []
    position = 0
    while position < len(body):
        try:
            parts, position = frames.extent(position)
            record = Record.FromString(frames.payload(parts))
            score = _scalar(record, SCORE)
            if score is None:
                raise MalformedMessageError("a record without a score")
            pairs.append((score, _scalar(record, LABEL)))
        except (MalformedMessageError, DecodeError, UnicodeDecodeError) as err:
            raise InvalidDataError(
                f"The response's record {len(pairs)} holds no prediction (byte {position}): {err}. "
                "Look at what the server says."
            ) from None
    return pairs


def _scalar(record: Record, name: str) -> float | None:
    """Return the number under a name of the label map, None without one."""
    if name not in record.label:
        return None
    values = record.label[name].float32_tensor.values
    if len(values) != 1:
        raise MalformedMessageError(f"{len(values)} values of {name}; expected one")
    return cast(float, values[0])
