"""JSONPath as SageMaker documents it, on bytes that stay as they are."""

from __future__ import annotations

import pytest

from spark_fm.errors import RequestError
from spark_fm.formats.json_records import JsonPath

RECORD = (
    b'{"id": 1.0, "a b": "x", "list": [0, 1e400, {"n": 2}, 3, 4, 5], '
    b'"deep": {"child1": 1, "child2": {"n": 9}, "it\'s": null}}'
)


def selected(path, text=RECORD):
    return JsonPath.parse(path, "output filter").select(text)


def test_each_documented_operator_selects_what_it_says():
    expected = {
        "$": RECORD,
        "$.id": b"1.0",
        "$['a b']": b'"x"',
        '$["id"]': b"1.0",
        "$.deep.*": b'[1,{"n": 9},null]',
        "$.deep['*']": None,
        "$.list[*]": b'[0,1e400,{"n": 2},3,4,5]',
        "$['id','a b']": b'{"id":1.0,"a b":"x"}',
        "$.deep.['child1','child2']": b'{"child1":1,"child2":{"n": 9}}',
        "$.deep['it\\'s']": b"null",
        "$.list[1]": b"1e400",
        "$.list[-1]": b"5",
        "$.list[1,3,5]": b"[1e400,3,5]",
        "$.list[2:5]": b'[{"n": 2},3,4]',
        "$.list[:2]": b"[0,1e400]",
        "$.list[4:]": b"[4,5]",
        "$.list[-2:]": b"[4,5]",
        "$.list[0,4:]": b"[0,4,5]",
        "$.list[2].n": b"2",
        "$.list[2:3].n": b"[2]",
    }
    for path, value in expected.items():
        if value is None:
            with pytest.raises(RequestError, match="finds no"):
                selected(path)
        else:
            assert selected(path) == value, path


def test_a_place_that_is_not_there_is_an_error_and_no_empty_output():
    for path in ("$.no", "$['id','no']", "$.list[6]", "$.list[-7]", "$.list.id", "$.id.x", "$[0]"):
        with pytest.raises(RequestError, match="finds no"):
            selected(path)
