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


JAVA = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"  # HttpURLConnection's own


@pytest.mark.parametrize(
    "header",
    [JAVA, "*", "*;q=0.5", "*/*;q=.8", "*/*; q=0.12345", "text/csv", "text/html, image/png;q=0.8",
     "json", ",", "application/", "application/json;q=high", "application/jsonlines;q=-1", "*/*;q=",
     "*/*;q=7", "application/json;q=0, text/csv"],
)  # fmt: skip
@pytest.mark.parametrize("default", [JSONLINES, RECORDIO_PROTOBUF])
def test_what_names_no_format_is_answered_in_the_format_of_the_request(header, default):
    assert response_format(header, default) == default


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("application/json, json", JSON),
        ("<unset>, application/jsonlines", JSONLINES),
        ("text/html;level, application/jsonlines;q=0.3333333", JSONLINES),
        ("application/json;q=.1, application/jsonlines;q=.2", JSONLINES),
        ("application/json;q=one, application/jsonlines;q=0.1", JSONLINES),
        ("application/json;q=0.12345, application/jsonlines;q=0.12344", JSON),
        ("application/jsonlines, *;q=.2", JSONLINES),
    ],
)
def test_an_element_that_cannot_be_read_is_passed_over(header, expected):
    assert response_format(header, RECORDIO_PROTOBUF) == expected


@pytest.mark.parametrize(
    "header",
    ["application/json;q=0", "*/*;q=0.0", "*;q=0", "application/*;q=.0, text/csv", "json, */*;q=0"],
)
def test_the_format_of_the_request_is_not_answered_where_it_is_ruled_out(header):
    with pytest.raises(NotAcceptableError, match="rules out application/json with q=0"):
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
    if any(wanted.values()):
        assert wanted[response_format(header, JSON)] == max(wanted.values())
    elif JSON in wanted:
        with pytest.raises(NotAcceptableError):
            response_format(header, JSON)
    else:
        assert response_format(header, JSON) == JSON


@given(st.text(max_size=60))
def test_any_text_is_answered_or_refused(text):
    for function, refusal in (
        (request_format, UnsupportedTypeError),
        (lambda header: response_format(header, JSON), NotAcceptableError),
    ):
        with suppress(refusal):
            assert function(text) in CONTENT_TYPES
