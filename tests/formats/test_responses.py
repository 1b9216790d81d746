"""Responses: golden bytes, the json module and the protobuf library agree, and back again."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.errors import InvalidDataError, InvalidParamError, RequestError
from spark_fm.formats.recordio.record_pb2 import Record
from spark_fm.formats.requests import CONTENT_TYPES, JSON, JSONLINES, RECORDIO_PROTOBUF
from spark_fm.formats.responses import (
    Predictions,
    decode_response,
    encode_response,
    write_responses,
)
from tests.formats.mutations import framed
from tests.formats.request_twins import FLOAT32, read_responses_slowly

SCORES = np.array([0.4, 0.75], np.float32)
LABELS = np.array([0, 1], np.float32)
# The float32 nearest to 0.4, as a double.
JSON_ROWS = (
    b'{"score": 0.4000000059604645, "predicted_label": 0.0}',
    b'{"score": 0.75, "predicted_label": 1.0}',
)
RECORD_ROWS = (
    bytes.fromhex(
        "0a23d7ce30000000"
        "12110a0573636f7265120812060a04cdcccc3e"
        "121b0a0f7072656469637465645f6c6162656c120812060a0400000000"
    ),
    bytes.fromhex(
        "0a23d7ce30000000"
        "12110a0573636f7265120812060a040000403f"
        "121b0a0f7072656469637465645f6c6162656c120812060a040000803f"
    ),
)
NUMBERS = st.lists(FLOAT32, max_size=6).map(lambda found: np.array(found, np.float32))


def with_labels(scores: np.ndarray, has_labels: bool) -> np.ndarray | None:
    return (scores > 0).astype(np.float32) if has_labels else None


def test_classifier_responses_are_these_bytes():
    assert encode_response(SCORES, LABELS, JSON) == b'{"predictions": [%s, %s]}' % JSON_ROWS
    assert encode_response(SCORES, LABELS, JSONLINES) == b"%s\n%s\n" % JSON_ROWS
    assert encode_response(SCORES, LABELS, RECORDIO_PROTOBUF) == b"".join(RECORD_ROWS)


def test_regressor_responses_are_these_bytes():
    scores = np.array([3, -1.5], np.float32)

    assert encode_response(scores, None, JSON) == (
        b'{"predictions": [{"score": 3.0}, {"score": -1.5}]}'
    )
    assert encode_response(scores, None, JSONLINES) == b'{"score": 3.0}\n{"score": -1.5}\n'
    assert encode_response(scores[:1], None, RECORDIO_PROTOBUF) == bytes.fromhex(
        "0a23d7ce1300000012110a0573636f7265120812060a040000404000"
    )


def test_no_rows_are_a_response_too():
    assert encode_response(SCORES[:0], LABELS[:0], JSON) == b'{"predictions": []}'
    assert encode_response(SCORES[:0], LABELS[:0], JSONLINES) == b""
    assert encode_response(SCORES[:0], LABELS[:0], RECORDIO_PROTOBUF) == b""


@given(NUMBERS, st.booleans())
@settings(max_examples=100)
def test_slow_readers_find_the_same_scores(scores, has_labels):
    labels = with_labels(scores, has_labels)
    expected = [{"score": float(score)} for score in scores]
    for place, row in enumerate(expected):
        if labels is not None:
            row["predicted_label"] = float(labels[place])

    document = json.loads(encode_response(scores, labels, JSON))
    lines = encode_response(scores, labels, JSONLINES).decode().splitlines()
    records = encode_response(scores, labels, RECORDIO_PROTOBUF)

    assert document == {"predictions": expected}
    assert [json.loads(line) for line in lines] == expected
    assert all(list(json.loads(line)) == list(expected[0]) for line in lines)
    assert read_responses_slowly(records) == expected


@given(NUMBERS, st.booleans())
@settings(max_examples=60)
def test_what_is_written_is_read_back_bit_for_bit(scores, has_labels):
    labels = with_labels(scores, has_labels)
    for content_type in CONTENT_TYPES:
        found = decode_response(encode_response(scores, labels, content_type), content_type)
        assert found.scores.dtype == np.float32
        assert found.scores.tobytes() == scores.tobytes()
        if labels is None or not len(scores):
            assert found.labels is None
        else:
            assert found.labels.tolist() == labels.tolist()


@given(NUMBERS, st.booleans(), st.integers(1, 4))
@settings(max_examples=40)
def test_writing_in_chunks_gives_the_same_bytes(scores, has_labels, size):
    labels = with_labels(scores, has_labels)
    chunks = [
        Predictions(scores[i : i + size], None if labels is None else labels[i : i + size])
        for i in range(0, len(scores) + size, size)  # the last ones are empty
    ]
    for content_type in CONTENT_TYPES:
        out = io.BytesIO()
        assert write_responses(chunks, out, content_type) == len(scores)
        assert out.getvalue() == encode_response(scores, labels, content_type)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(wrong):
    scores = np.array([1, wrong], np.float32)
    for content_type in CONTENT_TYPES:
        with pytest.raises(RequestError, match="Instance 1 has the score") as caught:
            encode_response(scores, None, content_type)
        assert caught.value.instance == 1
        chunks = [Predictions(SCORES, None), Predictions(scores, None)]
        with pytest.raises(RequestError) as caught:
            write_responses(chunks, io.BytesIO(), content_type)
        assert caught.value.instance == 3


def test_responses_of_other_servers_are_read():
    """Integers, more members, other orders; records as a library may write them."""
    document = b'{"model": "x", "predictions": [{"predicted_label": 0, "score": 1, "a": []}]}'
    found = decode_response(document, "application/json; charset=utf-8")
    assert (found.scores.tolist(), found.labels.tolist()) == ([1.0], [0.0])

    message = Record()
    message.label["predicted_label"].float32_tensor.values.append(1)
    message.label["score"].float32_tensor.values.append(0.75)
    message.uid = b"7"
    found = decode_response(framed(message.SerializeToString()) * 2, RECORDIO_PROTOBUF)
    assert (found.scores.tolist(), found.labels.tolist()) == ([0.75, 0.75], [1.0, 1.0])


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", JSON),
        (b"[]", JSON),
        (b'{"predictions": [{"predicted_label": 1}]}', JSON),
        (b'{"predictions": [{"score": "1"}]}', JSON),
        (b'{"predictions": [{"score": NaN}]}', JSON),
        (b'{"predictions": [{"score": 1}, {"score": 1, "predicted_label": 0}]}', JSON),
        (b'{"predictions": [{"a": ' + b"[" * 10**5, JSON),
        (b'{"score": 1}\n{"score"', JSONLINES),
        (b"\xff", JSONLINES),
        (RECORD_ROWS[0][:-1], RECORDIO_PROTOBUF),
        (RECORD_ROWS[0] + b"\0", RECORDIO_PROTOBUF),
        (framed(b""), RECORDIO_PROTOBUF),
        (framed(b"\xff\xff"), RECORDIO_PROTOBUF),
        (b"{}", RECORDIO_PROTOBUF),
    ],
)
def test_what_is_no_response_is_refused(body, content_type):
    with pytest.raises(InvalidDataError, match="what the server says"):
        decode_response(body, content_type)


def test_other_types_are_refused():
    with pytest.raises(InvalidParamError, match="accept='text/csv'"):
        encode_response(SCORES, None, "text/csv")
    with pytest.raises(InvalidParamError, match="text/csv"):
        decode_response(b"1", "text/csv")
