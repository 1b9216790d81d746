"""Names of a caller's that look like paths: the instance that is blamed is the one at fault."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.errors import RequestError
from spark_fm.formats.requests import JSON, JSONLINES, decode_request
from tests.serving.bad_requests import IMITATIONS

GOOD = {"features": [1.0, 2.0]}
NAMES = [name + end for name in IMITATIONS for end in ("", "`", "`` ")]
NESTS = {
    "": lambda name: {name: 1, **GOOD},
    "data": lambda name: {"data": {name: 1}},
    "data.features": lambda name: {"data": {"features": {"values": [1, 2], name: 1}}},
}


def refused(body: bytes, content_type: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_request(body, content_type, feature_dim=2)
    return caught.value


@pytest.mark.parametrize("as_ascii", [False, True])
def test_a_name_beside_the_instances_blames_the_body_whatever_it_looks_like(as_ascii):
    for name in NAMES:
        for document in ({name: 1, "instances": []}, {"instances": [GOOD], name: [GOOD]}):
            err = refused(json.dumps(document, ensure_ascii=as_ascii).encode(), JSON)

            assert err.instance is None, name
            start = "The body cannot be read: Object contains unknown field "
            assert str(err).startswith(start), name


@pytest.mark.parametrize("where", NESTS)
def test_a_name_in_an_instance_blames_that_instance_whatever_it_looks_like(where):
    at = f"at {where}: " if where else ": "
    for name in NAMES:
        bad = NESTS[where](name)
        document = json.dumps({"instances": [GOOD, GOOD, bad]}).encode()
        lines = "\n".join(map(json.dumps, [GOOD, GOOD, bad])).encode()

        for err in (refused(document, JSON), refused(lines, JSONLINES)):
            assert err.instance == 2, name
            assert re.match(f"Instance 2 cannot be read ?{at}Object contains unknown", str(err))


@given(st.text(st.sampled_from("`$.-[]0199atinstances é\u2028"), max_size=40))
def test_no_name_at_all_blames_another_instance(name):
    name = "x` - at `$" + name
    assert refused(json.dumps({name: 1, "instances": []}).encode(), JSON).instance is None
    document = json.dumps({"instances": [GOOD, {name: 1}]}).encode()
    assert refused(document, JSON).instance == 1


def test_an_instance_that_is_no_json_is_found_behind_numbers_of_any_length():
    document = (
        b'{"instances": [{"features": [1, 2], "configuration": {"id": %s}}, {"features": [1,]}]}'
    )

    assert refused(document % (b"9" * 5000), JSON).instance == 1
