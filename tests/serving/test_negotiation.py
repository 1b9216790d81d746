"""Content-Type and Accept, as RFC 9110 has them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from spark_fm.formats.requests import CONTENT_TYPES, JSON, JSONLINES, RECORDIO_PROTOBUF
from spark_fm.serving.app import negotiate
from spark_fm.serving.http import (
    NotAcceptableError,
    UnsupportedTypeError,
    request_format,
    response_format,
)
from spark_fm.serving.settings import ServeSettings


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("application/json", JSON),
        ("Application/JSON; charset=UTF-8", JSON),
        ('application/json;charset="utf-8"; x=y', JSON),
        (" application/jsonlines ;", JSONLINES),
        ("application/x-recordio-protobuf", RECORDIO_PROTOBUF),
    ],
)
def test_a_content_type_is_known_in_any_case_and_with_parameters(header, expected):
    assert request_format(header) == expected


@pytest.mark.parametrize(
    "header",
    [None, "", "text/csv", "json", "application/", "application/json; charset=latin-1",
     "application/json, application/json", "application/json; =", "application/jso\u0131"],
)  # fmt: skip
def test_another_content_type_is_told_what_is_served(header):
    with pytest.raises(UnsupportedTypeError, match=r"Send|Encode"):
        request_format(header)


@pytest.mark.parametrize(
    ("header", "default", "expected"),
    [
        (None, JSONLINES, JSONLINES),
        (" ", JSON, JSON),
        ("*/*", RECORDIO_PROTOBUF, RECORDIO_PROTOBUF),
        ("application/*", JSONLINES, JSONLINES),
        ("application/JSONLINES; charset=utf-8", JSON, JSONLINES),
        ("text/html, application/jsonlines;q=0.2, application/json;q=0.1", JSON, JSONLINES),
        ("application/json;q=0.5, */*;q=0.1", RECORDIO_PROTOBUF, JSON),
        ("application/json;q=0, */*", JSON, JSONLINES),
        ("application/jsonlines, application/x-recordio-protobuf", JSON, JSONLINES),
        ("application/x-recordio-protobuf, application/jsonlines", JSON, RECORDIO_PROTOBUF),
        ('text/plain;a=",q", application/json', JSONLINES, JSON),
        (",application/json,", JSONLINES, JSON),
    ],
)
def test_the_preferred_format_is_chosen(header, default, expected):
    assert response_format(header, default) == expected


@pytest.mark.parametrize(
    "header",
    ["text/csv", "application/json;q=0", "*/*;q=0.0", "application/json;q=2", "json",
     "application/json;q=x", "application/json;q=0.1234", ",", "*", "text/*;q=1"],
)  # fmt: skip
def test_what_excludes_all_formats_or_cannot_be_read_is_refused(header):
    with pytest.raises(NotAcceptableError, match="Accept"):
        response_format(header, JSON)


@pytest.mark.parametrize(
    ("is_batch", "accept", "expected"),
    [(True, None, JSONLINES), (False, None, RECORDIO_PROTOBUF), (True, "*/*", JSONLINES),
     (True, RECORDIO_PROTOBUF, RECORDIO_PROTOBUF)],
)  # fmt: skip
def test_a_batch_transform_of_records_gets_lines_unless_it_says_otherwise(
    is_batch, accept, expected
):
    headers = [(b"content-type", RECORDIO_PROTOBUF.encode())]
    headers += [(b"accept", accept.encode())] if accept else []
    settings = ServeSettings(is_batch=is_batch)
    assert negotiate(Headers(raw=headers), settings) == (RECORDIO_PROTOBUF, expected)


qualities = st.integers(0, 1000)


@given(st.dictionaries(st.sampled_from(CONTENT_TYPES), qualities, min_size=1))
def test_the_highest_quality_wins(wanted):
    header = ", ".join(f"{media};q={quality / 1000:.3f}" for media, quality in wanted.items())
    if not any(wanted.values()):
        with pytest.raises(NotAcceptableError):
            response_format(header, JSON)
        return
    assert wanted[response_format(header, JSON)] == max(wanted.values())


@given(st.text(max_size=60))
def test_any_text_is_answered_or_refused(text):
    for function, refusal in (
        (request_format, UnsupportedTypeError),
        (lambda header: response_format(header, JSON), NotAcceptableError),
    ):
        with suppress(refusal):
            assert function(text) in CONTENT_TYPES
