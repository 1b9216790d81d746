"""The commonest wrong bodies: the error says what is missing, and shows what to send instead."""

from __future__ import annotations

import gzip
import io
import json
import re

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.errors import RequestError
from spark_fm.formats.body_kinds import advice, looks_like
from spark_fm.formats.requests import (
    CONTENT_TYPES,
    JSON,
    JSONLINES,
    RECORDIO_PROTOBUF,
    decode_request,
    encode_request,
)
from tests.formats.request_twins import rows_of

ROWS = [[1.5, 2, 3], [4, 5, 6]]
INSTANCES = [{"features": row} for row in ROWS]
LINES = "\n".join(map(json.dumps, INSTANCES))
SPARSE = {"keys": [0, 2], "shape": [3], "values": [7, 8.5]}


def refused(body: str | bytes, content_type: str) -> str:
    body = body if isinstance(body, bytes) else body.encode()
    with pytest.raises(RequestError) as caught:
        decode_request(body, content_type, feature_dim=3)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def rows_to_send(message: str, content_type: str) -> list[dict[int, float]]:
    """Return the rows of the form that a message says to send."""
    form = re.search(r"[Ss]end (\{.*\})", message)
    assert form is not None, message
    return rows_of(decode_request(form[1].encode(), content_type, feature_dim=3))


@pytest.mark.parametrize(
    "value",
    [INSTANCES[0], {"data": {"features": SPARSE}}, ROWS, ROWS[0], INSTANCES, {"data": ROWS},
     {"data": ROWS[0]}, {"inputs": ROWS}, {"instance": INSTANCES}, {"Instances": INSTANCES},
     {"features": ROWS}, SPARSE, {"values": ROWS[0]}, {"id": [7], "data": ROWS[0]},
     {"dataframe_split": {"columns": ["a", "b", "c"], "index": [0, 1], "data": ROWS}}],
    ids=json.dumps,
)  # fmt: skip
def test_a_document_without_the_wrapper_is_shown_it_with_its_own_values(value):
    message = refused(json.dumps(value), JSON)

    assert 'The list "instances" is missing.' in message
    both = [{0: 1.5, 1: 2, 2: 3}, {0: 4, 1: 5, 2: 6}]
    assert rows_to_send(message, JSON) in (both, both[:1], [{0: 7, 2: 8.5}])


@pytest.mark.parametrize("instances", [ROWS[0], INSTANCES[0], {"rows": ROWS}])
def test_instances_that_are_no_list_of_instances_are_shown_it(instances):
    message = refused(json.dumps({"instances": instances}), JSON)

    assert len(rows_to_send(message, JSON)) in (1, 2)


@pytest.mark.parametrize(
    "instance",
    [ROWS[0], {"values": ROWS[0]}, {"data": ROWS[0]}, {"data": {"features": ROWS[0]}},
     {"features": {"values": ROWS[0]}}, {"features": [ROWS[0]]}, {"row": ROWS[0]},
     {"features": ROWS[0], "label": 1}],
    ids=json.dumps,
)  # fmt: skip
def test_an_instance_in_another_form_is_shown_the_right_one(instance):
    in_document = refused(json.dumps({"instances": [INSTANCES[1], instance]}), JSON)
    in_lines = refused(f"{json.dumps(INSTANCES[1])}\n{json.dumps(instance)}\n", JSONLINES)

    for message in (in_document, in_lines):
        assert message.startswith("Instance 1 cannot be read")
        assert rows_to_send(message, JSONLINES) == [{0: 1.5, 1: 2, 2: 3}]


@pytest.mark.parametrize(
    ("body", "sent_as", "kind"),
    [
        (LINES, JSON, JSONLINES),
        (json.dumps(INSTANCES[0]), JSON, JSONLINES),
        (json.dumps({"instances": INSTANCES}), JSONLINES, JSON),
        (json.dumps({"instances": INSTANCES}, indent=1), JSONLINES, JSON),
        (json.dumps({"instances": INSTANCES}), RECORDIO_PROTOBUF, JSON),
        (LINES, RECORDIO_PROTOBUF, JSONLINES),
        (encode_request(ROWS, RECORDIO_PROTOBUF), JSON, RECORDIO_PROTOBUF),
        (encode_request(ROWS, RECORDIO_PROTOBUF), JSONLINES, RECORDIO_PROTOBUF),
    ],
)
def test_a_body_of_another_content_type_is_told_which(body, sent_as, kind):
    message = refused(body, sent_as)

    assert f"The body looks like {kind}: send it with that content type" in message
    body = body if isinstance(body, bytes) else body.encode()
    assert decode_request(body, kind, feature_dim=3).n_rows
    if sent_as != RECORDIO_PROTOBUF and kind != RECORDIO_PROTOBUF:
        assert f" as {sent_as}." in message
        assert rows_to_send(message.split(", or ")[1], sent_as)[0] == {0: 1.5, 1: 2, 2: 3}


def saved(write) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


@pytest.mark.parametrize("sent_as", CONTENT_TYPES)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1.5,2,3\n4,5,6\n", "text/csv"),
        ("a,b,c\n1.5,2,3\n4,5,6\n", "text/csv"),
        ("1 1:0.5 3:2\n0 2:1\n", "text/libsvm"),
        (str({"instances": INSTANCES}), "json.dumps"),
        (json.dumps(json.dumps({"instances": INSTANCES})), "encoded twice"),
        (gzip.compress(b"{}", mtime=0), "uncompressed"),
        (saved(lambda out: np.save(out, ROWS)), "application/x-npy"),
        (saved(lambda out: sp.save_npz(out, sp.csr_array(ROWS))), ".npz"),
    ],
)
def test_what_is_not_read_is_told_by_its_name(body, words, sent_as):
    message = refused(body, sent_as)

    assert words in message
    assert "which is not read" in message
    if words in ("text/csv", "encoded twice") and sent_as == JSON:
        assert rows_to_send(message, sent_as)[0] == {0: 1.5, 1: 2, 2: 3}


def test_one_instance_over_several_lines_is_shown_on_one():
    message = refused(json.dumps(INSTANCES[0], indent=2), JSONLINES)

    assert rows_to_send(message, JSONLINES) == [{0: 1.5, 1: 2, 2: 3}]


def test_what_nobody_can_guess_is_shown_the_forms():
    for body in (b"{}", b"null", b"[]", b'{"predictions": [{"score": 1}]}', b'{"user": 3}', b"7"):
        message = refused(body, JSON)
        assert 'The list "instances" is missing. Send {"instances": [...]}. An instance' in message


def test_long_values_are_cut_and_huge_bodies_are_not_parsed_again():
    wide = refused(json.dumps([[0.123456789] * 100] * 50), JSON)
    huge = refused(json.dumps([[0.5] * 100] * 3000), JSON)

    assert "0.123456789, ...]}, {" in wide
    assert 'The list "instances" is missing. Send {"instances": [...]}. An instance' in huge


def test_the_content_type_of_a_huge_body_is_known_by_its_beginning():
    many = [{"features": [0.5] * 100}] * 3000

    for sent_as in (JSONLINES, RECORDIO_PROTOBUF):
        assert f"looks like {JSON}" in refused(json.dumps({"instances": many}), sent_as)
    assert f"looks like {JSONLINES}" in refused("\n".join(map(json.dumps, many)), JSON)
    assert "looks like text/csv" in refused("1.5,2,3\n" * 200_000, JSON)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["instances", "features", "data", "values", "keys", "x"]), inner, max_size=3
    ),
)  # fmt: skip


@given(values, st.sampled_from(CONTENT_TYPES), st.booleans())
def test_a_form_that_is_shown_is_read(value, content_type, in_lines):
    body = json.dumps(value, indent=1 if in_lines else None).encode()
    looks_like(body)
    form = re.search(r"[Ss]end (\{.*\})", advice(body, content_type))
    if form is None or "..." in form[1]:
        return
    refusal = ""
    try:
        decode_request(form[1].encode(), content_type, feature_dim=1)
    except RequestError as err:  # of another width, or beyond float32
        refusal = str(err)
    assert "cannot be read" not in refusal


@given(st.binary(max_size=40), st.sampled_from(CONTENT_TYPES))
def test_any_bytes_have_an_advice(body, content_type):
    assert advice(body, content_type).endswith(".")


@pytest.mark.parametrize(
    "body",
    [
        '{"data":' * 60 + "1" + "}" * 60,
        '{"instances":' * 60 + "[]" + "}" * 60,
        "[" * 600 + "]" * 600,
        '{"instances":[1],"instances":[]}',
        '{"features":[1],"configuration":' + '{"a":' * 700 + "1" + "}" * 700 + "}",
    ],
    ids=["data", "instances", "lists", "twice", "configuration"],
)
def test_nested_and_repeated_names_are_refused_at_once(body):
    for content_type in CONTENT_TYPES:
        refused(body, content_type)
