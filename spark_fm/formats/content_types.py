"""Inference content types, an object each: requests, responses and joins of batch transform.

To add a content type, write a `ContentType` and list it in `REGISTRY`: the server, columns of
requests and responses, batch transform, the client and the command line all look there. No Spark.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, BinaryIO, ClassVar, NoReturn, TypeVar, cast

import msgspec
import numpy as np
import scipy.sparse as sp
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, InvalidParamError, RequestError
from spark_fm.formats.body_kinds import JSON, JSONLINES, RECORDIO_PROTOBUF, advice, looks_like
from spark_fm.formats.files import BYTE_ORDER_MARK
from spark_fm.formats.json_instances import decode_document, decode_lines, float32_values
from spark_fm.formats.json_records import (
    ALL,
    UNREADABLE,
    JsonPath,
    bare_instance,
    document_instances,
    joined,
    selected_instances,
)
from spark_fm.formats.recordio.decode import Frames, MalformedMessageError
from spark_fm.formats.recordio.framing import (
    ALIGNMENT,
    HEADER_SIZE,
    MAGIC_BYTES,
    MAX_PAYLOAD,
    padded,
)
from spark_fm.formats.recordio.reader import MAX_RECORD_BYTES, Malformed, RecordReader, RowBatch
from spark_fm.formats.recordio.record_pb2 import Record  # type: ignore[attr-defined]  # made at import
from spark_fm.formats.recordio.writer import write_records
from spark_fm.formats.vectors import as_float32, raise_value
from spark_fm.learner.csr import CsrBatch

CHUNK_BYTES = 2**20  # of lines that are parsed together
MAX_DOCUMENT_BYTES = 100 * 2**20  # SageMaker's largest payload
MAX_LINE_BYTES = MAX_RECORD_BYTES

SCORE, LABEL = "score", "predicted_label"

Scores = NDArray[np.float32]
Labels = NDArray[np.float32] | None
T = TypeVar("T")
Numbered = tuple["int | None", bytes]  # the number of a line from 1, and a record


@dataclass(frozen=True, slots=True)
class Predictions:
    """A model's scores of rows.

    Parameters
    ----------
    scores : ndarray of shape (n_rows,), float32
        P(label = 1) of a classifier, the value of a regressor.
    labels : ndarray of shape (n_rows,), float32, or None
        0 or 1 of a classifier; None of a regressor.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.float32] | None


class ContentType(ABC):
    """A format of requests and responses.

    Wherever rows are numbered, ``first`` is the number that errors give the first one.
    """

    name: ClassVar[str]
    is_text: ClassVar[bool] = True  # in UTF-8, and strings in columns
    batch_accept: ClassVar[str] = ""  # batch transform's default output; empty: this type

    @abstractmethod
    def decode(self, body: bytes, feature_dim: int) -> CsrBatch:
        """Return the rows of a request; raise RequestError for no row."""

    @abstractmethod
    def read(self, stream: BinaryIO, feature_dim: int) -> Iterator[CsrBatch]:
        """Yield the rows of a request of any length."""

    def decode_single_rows(self, bodies: list[bytes], feature_dim: int) -> CsrBatch | None:
        """Return one row a request, all decoded at once; None unless each surely holds one."""
        return None

    @abstractmethod
    def encode(self, rows: Any) -> bytes:
        """Return the request with the rows of a CSR matrix or 2-D array, at least one."""

    # A response is ``before``, the predictions of its rows with ``between`` after every
    # chunk but the last, and ``after``: chunks must be able to follow each other.
    before: ClassVar[bytes] = b""
    between: ClassVar[bytes] = b""
    after: ClassVar[bytes] = b""

    @abstractmethod
    def predictions(self, scores: Scores, labels: Labels, first: int = 0) -> bytes:
        """Return a chunk of a response."""

    @abstractmethod
    def responses(self, scores: Scores, labels: Labels, first: int = 0) -> list[bytes]:
        """Return a response for each row."""

    @abstractmethod
    def decode_response(self, body: bytes) -> Predictions:
        """Return the predictions in a response."""

    @abstractmethod
    def join(
        self, stream: BinaryIO, score: Callable[[CsrBatch], Predictions], feature_dim: int
    ) -> Iterator[tuple[bytes, int]]:
        """Yield a request with the predictions in its instances, and the numbers of rows."""

    def _check_not_empty(self, body: bytes) -> None:
        if not body:
            raise RequestError(
                f"The body is empty; expected instances as {self.name}. Send one at least."
            )


@dataclass(frozen=True, slots=True)
class Shape:
    """What batch transform writes of JSON."""

    accept: ContentType  # of the output; with ``join`` the input's
    join: bool = False  # write each record together with its output
    by_line: bool = False  # a JSON document, or an instance, is a line
    end: bytes = b""  # follows the output of each record
    input_filter: JsonPath = ALL
    output_filter: JsonPath = ALL


class JsonType(ContentType):
    """JSON, whose records (a document or a line) batch transform can filter and join.

    There they may have members of other names beside those of an instance or a document.
    """

    end: ClassVar[bytes] = b""  # of a record

    @abstractmethod
    def _records(self, stream: BinaryIO, shape: Shape) -> Iterator[list[Numbered]]:
        """Yield the records, some at a time."""

    @abstractmethod
    def _own_instances(self, record: bytes, shape: Shape) -> list[bytes]:
        """Return the instances of a record that no filter selects from, [] if there is none."""

    def join(
        self, stream: BinaryIO, score: Callable[[CsrBatch], Predictions], feature_dim: int
    ) -> Iterator[tuple[bytes, int]]:
        return self.shaped(stream, score, feature_dim, Shape(self, join=True, end=self.end))

    def shaped(
        self,
        stream: BinaryIO,
        score: Callable[[CsrBatch], Predictions],
        feature_dim: int,
        shape: Shape,
    ) -> Iterator[tuple[bytes, int]]:
        """Yield the output for all records in order, and the numbers of rows."""
        first = 0
        for records in self._records(stream, shape):
            parts = [
                _in_line(line, self._instances, record, feature_dim, shape)
                for line, record in records
            ]
            ends = np.cumsum([len(part) for part in parts])
            try:
                rows = decode_lines(b"\n".join(chain.from_iterable(parts)), feature_dim, first)
                if rows is None:
                    continue
                outputs = _answers(score(rows), shape, ends.tolist(), first)
            except RequestError as err:
                if err.instance is None:
                    raise
                line, _ = records[int(np.searchsorted(ends, err.instance - first, "right"))]
                raise _placed(err, line) from None
            if shape.join:
                outputs = [
                    _in_line(line, joined, record, output)
                    for (line, record), output in zip(records, outputs, strict=True)
                ]
            kept = map(shape.output_filter.select, outputs)
            yield b"".join(each + shape.end for each in kept), rows.n_rows
            first += rows.n_rows

    def _instances(self, record: bytes, feature_dim: int, shape: Shape) -> list[bytes]:
        try:
            if shape.input_filter.steps:
                found = selected_instances(shape.input_filter.select(record))
                if not found:
                    raise RequestError(
                        f"The input filter {shape.input_filter.text!r} selects no instance. Let it "
                        "select an instance, a list of them, a list of numbers, or keys, shape and "
                        "values."
                    )
            else:
                found = self._own_instances(record, shape)
        except UNREADABLE:
            found = []
        if not found:
            self.decode(record, feature_dim)  # says what is wrong
        return found


class JsonDocument(JsonType):
    """``{"instances": [...]}``, answered by ``{"predictions": [...]}``."""

    name = JSON
    before, between, after = b'{"predictions": [', b", ", b"]}"

    def decode(self, body: bytes, feature_dim: int) -> CsrBatch:
        body = body.removeprefix(BYTE_ORDER_MARK)
        self._check_not_empty(body)
        return decode_document(body, feature_dim)

    def read(self, stream: BinaryIO, feature_dim: int) -> Iterator[CsrBatch]:
        yield self.decode(_read_document(stream), feature_dim)

    def encode(self, rows: Any) -> bytes:
        return msgspec.json.encode({"instances": _json_instances(rows)})

    def predictions(self, scores: Scores, labels: Labels, first: int = 0) -> bytes:
        return self.between.join(_prediction_texts(scores, labels, first))

    def responses(self, scores: Scores, labels: Labels, first: int = 0) -> list[bytes]:
        texts = _prediction_texts(scores, labels, first)
        return [self.before + text + self.after for text in texts]

    def decode_response(self, body: bytes) -> Predictions:
        return _read_predictions(body, lambda body: _DOCUMENT.decode(body).predictions, self.name)

    def _records(self, stream: BinaryIO, shape: Shape) -> Iterator[list[Numbered]]:
        if shape.by_line:
            return _numbered_lines(stream)
        return iter([[(None, _read_document(stream))]])

    def _own_instances(self, record: bytes, shape: Shape) -> list[bytes]:
        found = document_instances(record)
        alone = None if found or not shape.by_line else bare_instance(record)
        return found if alone is None else [alone]


class JsonLines(JsonType):
    """An instance a line, answered by a prediction a line."""

    name = JSONLINES
    end = b"\n"

    def decode(self, body: bytes, feature_dim: int) -> CsrBatch:
        body = body.removeprefix(BYTE_ORDER_MARK)
        self._check_not_empty(body)
        rows = decode_lines(body, feature_dim)
        if rows is None:
            raise RequestError(
                "The body has no line with an instance; expected one at least. Send an object a "
                "line."
            )
        return rows

    def read(self, stream: BinaryIO, feature_dim: int) -> Iterator[CsrBatch]:
        first = 0
        for block in _line_blocks(stream):
            rows = decode_lines(block, feature_dim, first)
            if rows is not None:
                yield rows
                first += rows.n_rows

    def decode_single_rows(self, bodies: list[bytes], feature_dim: int) -> CsrBatch | None:
        if any(b"\n" in body for body in bodies):
            return None
        texts = [body.removeprefix(BYTE_ORDER_MARK) for body in bodies]
        rows = decode_lines(b"\n".join(texts), feature_dim)
        return rows if rows is not None and rows.n_rows == len(bodies) else None

    def encode(self, rows: Any) -> bytes:
        return msgspec.json.Encoder().encode_lines(_json_instances(rows))

    def predictions(self, scores: Scores, labels: Labels, first: int = 0) -> bytes:
        return b"".join(text + b"\n" for text in _prediction_texts(scores, labels, first))

    def responses(self, scores: Scores, labels: Labels, first: int = 0) -> list[bytes]:
        return _prediction_texts(scores, labels, first)

    def decode_response(self, body: bytes) -> Predictions:
        return _read_predictions(body, _LINE.decode_lines, self.name)

    def _records(self, stream: BinaryIO, shape: Shape) -> Iterator[list[Numbered]]:
        return _numbered_lines(stream)

    def _own_instances(self, record: bytes, shape: Shape) -> list[bytes]:
        return [bare_instance(record) or record]


class RecordIO(ContentType):
    """Framed Records, answered by Records with the prediction in their label map."""

    name = RECORDIO_PROTOBUF
    is_text = False
    batch_accept = JSONLINES

    def decode(self, body: bytes, feature_dim: int) -> CsrBatch:
        self._check_not_empty(body)
        if not body.startswith(MAGIC_BYTES) and looks_like(body) is not None:
            raise RequestError(f"The body is not {self.name}. {advice(body, self.name)}")
        batches = list(self.read(io.BytesIO(body), feature_dim))
        if not any(batch.n_rows for batch in batches):
            raise RequestError(f"The body has no record; expected one at least. {_RECORD_ADVICE}")
        return CsrBatch.concat(batches)

    def read(self, stream: BinaryIO, feature_dim: int) -> Iterator[CsrBatch]:
        first = 0
        for batch in RecordReader(stream, source="body", on_malformed=_raise_malformed):
            yield _scorable(batch, feature_dim, first)
            first += batch.n_rows

    def decode_single_rows(self, bodies: list[bytes], feature_dim: int) -> CsrBatch | None:
        starts = np.cumsum([0] + [len(body) for body in bodies])
        batches, n_rows = [], 0
        for batch in RecordReader(io.BytesIO(b"".join(bodies)), on_malformed=_raise_malformed):
            if not np.array_equal(batch.offsets, starts[n_rows : n_rows + batch.n_rows]):
                return None
            batches.append(_scorable(batch, feature_dim, n_rows))
            n_rows += batch.n_rows
        return CsrBatch.concat(batches) if n_rows == len(bodies) else None

    def encode(self, rows: Any) -> bytes:
        out = io.BytesIO()
        write_records(out, rows)
        return out.getvalue()

    def predictions(self, scores: Scores, labels: Labels, first: int = 0) -> bytes:
        _check_scores(scores, first)
        out = np.zeros(len(scores), _LAYOUTS[labels is not None].dtype)
        out[:] = _LAYOUTS[labels is not None]
        out["score"] = scores
        if labels is not None:
            out["label"] = labels
        return out.tobytes()

    def responses(self, scores: Scores, labels: Labels, first: int = 0) -> list[bytes]:
        data = self.predictions(scores, labels, first)
        size = _LAYOUTS[labels is not None].itemsize
        return [data[start : start + size] for start in range(0, len(data), size)]

    def decode_response(self, body: bytes) -> Predictions:
        for layout in _LAYOUTS.values():
            if _has_layout(body, layout):
                rows = np.frombuffer(body, layout.dtype)
                has_label = "label" in (layout.dtype.names or ())
                labels = rows["label"].astype(np.float32) if has_label else None
                return Predictions(rows["score"].astype(np.float32), labels)
        return _predictions_of(_read_records(body))

    def join(
        self, stream: BinaryIO, score: Callable[[CsrBatch], Predictions], feature_dim: int
    ) -> Iterator[tuple[bytes, int]]:
        # All else in a record stays as it is; parts of one are put together.
        buffered = _RecordBuffer(stream)
        first = 0
        for batch in RecordReader(cast(BinaryIO, buffered), on_malformed=_raise_malformed):
            found = score(_scorable(batch, feature_dim, first))
            entries = [
                record[HEADER_SIZE : HEADER_SIZE + int.from_bytes(record[4:8], "little")]
                for record in self.responses(found.scores, found.labels, first)
            ]
            payloads = buffered.payloads(batch.offsets.tolist())
            joined = [
                _framed(payload + entry, first + row)
                for row, (payload, entry) in enumerate(zip(payloads, entries, strict=True))
            ]
            yield b"".join(joined), batch.n_rows
            first += batch.n_rows


REGISTRY: dict[str, ContentType] = {
    each.name: each for each in (JsonDocument(), JsonLines(), RecordIO())
}
CONTENT_TYPES = tuple(REGISTRY)


def content_type_of(text: str, name: str = "content_type") -> ContentType:
    """Return the content type that a header names, in any case and with parameters or none.

    Raises InvalidParamError for any other, which it calls ``name``.
    """
    found = REGISTRY.get(text.split(";", 1)[0].strip().lower())
    if found is None:
        raise InvalidParamError(
            f"{name}={text[:100]!r} is not known; expected {', '.join(CONTENT_TYPES)}. "
            "Convert the data to one of these."
        )
    return found


# Requests


def _read_document(stream: BinaryIO) -> bytes:
    """Return a JSON document, or raise RequestError for one of more than 100 MiB."""
    body = taken = stream.read(MAX_DOCUMENT_BYTES + 1)
    while taken and len(body) <= MAX_DOCUMENT_BYTES:  # some streams return less
        taken = stream.read(MAX_DOCUMENT_BYTES + 1 - len(body))
        body += taken
    if len(body) > MAX_DOCUMENT_BYTES:
        raise RequestError(
            f"The JSON document has more than {MAX_DOCUMENT_BYTES >> 20} MiB, the most that is "
            "read at once. Cut it up, or send JSON lines or records."
        )
    return body.removeprefix(BYTE_ORDER_MARK)


def _line_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield a stream in blocks of whole lines; raise RequestError for a longer line."""
    parts: list[bytes] = []
    size = 0
    is_start = True
    while True:
        chunk = stream.read(CHUNK_BYTES)
        if is_start:
            chunk, is_start = chunk.removeprefix(BYTE_ORDER_MARK), False
        cut = chunk.rfind(b"\n") + 1
        if not chunk or cut:
            yield b"".join([*parts, chunk[:cut]])
            parts, size = [], 0
        if not chunk:
            return
        parts.append(chunk[cut:])
        size += len(parts[-1])
        if size > MAX_LINE_BYTES:
            raise RequestError(
                f"A line has more than {MAX_LINE_BYTES >> 20} MiB, the most that is read at once. "
                "Send one instance a line."
            )


def _numbered_lines(stream: BinaryIO) -> Iterator[list[Numbered]]:
    """Yield the lines that are not blank, some at a time."""
    before = 0
    for block in _line_blocks(stream):
        lines = [line.strip(b" \t\r") for line in block.split(b"\n")]
        records: list[Numbered] = [(before + i, line) for i, line in enumerate(lines, 1) if line]
        if records:
            yield records
        before += block.count(b"\n")


def _in_line(line: int | None, function: Callable[..., T], *args: Any) -> T:
    """Call a function, and name the line in a RequestError."""
    try:
        return function(*args)
    except RequestError as err:
        raise _placed(err, line) from None


def _placed(err: RequestError, line: int | None) -> RequestError:
    return err if line is None else RequestError(f"Line {line}: {err}", instance=err.instance)


def _answers(found: Predictions, shape: Shape, ends: list[int], first: int) -> list[bytes]:
    """Return the output for each record, whose instances end at ``ends``; of lines for each row."""
    accept, scores, labels = shape.accept, found.scores, found.labels
    if len(ends) == len(scores) or (accept.name == JSONLINES and not shape.join):
        return accept.responses(scores, labels, first)
    if accept.name == JSONLINES:
        raise RequestError(
            "The input filter selects several instances of one line, and a line is joined with one "
            f"prediction. Let it select one, or give the type {JSON} with the split type Line."
        )
    return [
        accept.before
        + accept.predictions(
            scores[start:end], None if labels is None else labels[start:end], first + start
        )
        + accept.after
        for start, end in pairwise([0, *ends])
    ]


def _json_instances(rows: Any) -> list[dict[str, Any]]:
    return _sparse_instances(rows) if sp.issparse(rows) else _dense_instances(rows)


def _dense_instances(rows: Any) -> list[dict[str, Any]]:
    _, wrong = as_float32(rows)
    if wrong is not None:
        row, column = divmod(wrong, rows.shape[1])
        raise_value(rows[row, column], f"X in row {row}, column {column}")
    return [{"features": row} for row in _plain(rows).tolist()]


def _sparse_instances(rows: Any) -> list[dict[str, Any]]:
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    _, wrong = as_float32(rows.data)
    if wrong is not None:
        row = int(np.searchsorted(rows.indptr, wrong, "right")) - 1
        raise_value(rows.data[wrong], f"X in row {row}, column {rows.indices[wrong]}")
    width, bounds = int(rows.shape[1]), rows.indptr.tolist()
    keys, values = rows.indices.tolist(), _plain(rows.data).tolist()
    return [
        {"data": {"features": {
            "keys": keys[start:stop], "shape": [width], "values": values[start:stop],
        }}}
        for start, stop in pairwise(bounds)
    ]  # fmt: skip


def _plain(numbers: Any) -> Any:
    """Return numbers in a type whose elements JSON can hold."""
    return numbers if numbers.dtype in (np.float32, np.float64) else numbers.astype(np.float64)


_RECORD_ADVICE = (
    "Send framed Records with a dense tensor of all features, or a sparse one with keys, values "
    "and shape."
)


def _raise_malformed(found: Malformed) -> NoReturn:
    raise RequestError(
        f"Instance {found.record} is no record (byte {found.offset}): {found.reason}. "
        f"{_RECORD_ADVICE}",
        instance=found.record,
    )


def _scorable(batch: RowBatch, feature_dim: int, first: int) -> CsrBatch:
    """Return the rows of records; raise RequestError for one that the model cannot score."""
    misfits = batch.misfits(feature_dim, is_set=False)
    if misfits.any():
        row = int(misfits.argmax())
        width, top = int(batch.widths[row]), int(batch.tops()[row])
        if batch.is_dense[row]:
            what = f"has {width} dense values; the model has {feature_dim} features"
        elif width >= 0 and width != feature_dim:
            what = f"has the shape [{width}]; the model's is [{feature_dim}]"
        else:
            what = f"has the key {top - 1}; expected 0 to {feature_dim - 1}"
        raise RequestError(f"Instance {first + row} {what}. {_RECORD_ADVICE}", instance=first + row)
    values = float32_values(batch.values, batch.indices, batch.indptr, first)
    return CsrBatch.from_arrays(batch.indptr, batch.indices, values)


# Responses


_LABEL_TEXTS = (b', "predicted_label": 0.0}', b', "predicted_label": 1.0}')


class _Prediction(msgspec.Struct, gc=False):
    score: float
    predicted_label: float | None = None


class _Document(msgspec.Struct, gc=False):
    predictions: list[_Prediction]


_DOCUMENT = msgspec.json.Decoder(_Document)
_LINE = msgspec.json.Decoder(_Prediction)


def _prediction_texts(scores: Scores, labels: Labels, first: int) -> list[bytes]:
    """Return a JSON object for each row."""
    if not len(scores):
        return []
    _check_scores(scores, first)
    # Made as one list of numbers and cut up: an object for each row would cost more.
    numbers = msgspec.json.encode(scores.astype(np.float64).tolist())[1:-1].split(b",")
    if labels is None:
        return [b'{"score": ' + number + b"}" for number in numbers]
    tails = [_LABEL_TEXTS[label] for label in (labels != 0).tolist()]
    return [b'{"score": ' + number + tail for number, tail in zip(numbers, tails, strict=True)]


def _check_scores(scores: Scores, first: int) -> None:
    is_finite = np.isfinite(scores)
    if not is_finite.all():
        row = int(is_finite.argmin())
        raise RequestError(
            f"Instance {first + row} has the score {scores[row]}; only finite ones can be "
            "answered. Its values are too large for the model: scale them as in training.",
            instance=first + row,
        )


def _read_predictions(
    body: bytes, decode: Callable[[bytes], list[_Prediction]], name: str
) -> Predictions:
    try:
        found = decode(body.removeprefix(BYTE_ORDER_MARK))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as err:
        raise InvalidDataError(
            f"The response is not {name} with predictions: {str(err)[:400]}. It starts with "
            f"{body[:60]!r}; look at what the server says."
        ) from None
    return _predictions_of([(each.score, each.predicted_label) for each in found])


def _predictions_of(pairs: list[tuple[float, float | None]]) -> Predictions:
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


def _has_layout(body: bytes, layout: NDArray[np.void]) -> bool:
    """Return whether a body is as this module writes it, but for the floats."""
    if not body or len(body) % layout.itemsize:
        return False
    rows = np.frombuffer(body, layout.dtype)
    return all(
        (rows[name] == layout[name]).all()
        for name in layout.dtype.names or ()
        if name not in ("score", "label")
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


def _framed(payload: bytes, number: int) -> bytes:
    size = len(payload)
    if size > MAX_PAYLOAD:
        raise RequestError(
            f"Instance {number} has {size} bytes with its prediction; a record has up to "
            f"{MAX_PAYLOAD}. Leave zeros out.",
            instance=number,
        )
    return MAGIC_BYTES + size.to_bytes(4, "little") + payload + bytes(padded(size) - size)


class _RecordBuffer:
    """A stream whose bytes are kept until their records have been taken out."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._bytes = bytearray()
        self._start = 0  # offset of the first kept byte in the stream

    def read(self, size: int) -> bytes:
        taken: bytes = self._stream.read(size)
        self._bytes += taken
        return taken

    def payloads(self, offsets: list[int]) -> list[bytes]:
        """Return the payloads of the records at rising offsets, and forget their bytes."""
        data = np.frombuffer(bytes(self._bytes), np.uint8)
        frames = Frames(data, True, MAX_PAYLOAD)
        found, end = [], 0
        for offset in offsets:
            parts, end = frames.extent(offset - self._start)
            found.append(frames.payload(parts))
        del self._bytes[:end]
        self._start += end
        return found
