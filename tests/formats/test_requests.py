"""Requests: all forms give the same rows, as slow readers do, and bad ones RequestError."""

from __future__ import annotations

import doctest
import json
import pickle
import random
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.errors import InvalidDataError, InvalidParamError, RequestError
from spark_fm.formats import requests, responses
from spark_fm.formats.recordio.decode import MalformedMessageError, read_row
from spark_fm.formats.requests import (
    CONTENT_TYPES,
    JSON,
    JSONLINES,
    RECORDIO_PROTOBUF,
    decode_request,
    encode_request,
)
from tests.formats.mutations import framed, mutated, random_record
from tests.formats.request_twins import (
    DIM,
    ENTRIES,
    FLOAT32,
    INSTANCE,
    dense_instance,
    odd_value,
    read_lines_slowly,
    read_slowly,
    record,
    rows_of,
    sparse_instance,
    spoilt,
)

# The bodies that SageMaker's documentation shows.
DENSE_LINES = b'{"features": [1.5, 16.0, 14.0, 23.0]}\n{"features": [-2.0, 100.2, 15.2, 9.2]}'
DENSE_BODIES = [
    b'{"instances": [%s, %s]}' % tuple(DENSE_LINES.splitlines()),
    b'{"instances": [{"data": %s}, {"data": %s}]}'
    % tuple(
        line.replace(b"[", b'{"values": [').replace(b"]", b"]}")
        for line in DENSE_LINES.split(b"\n")
    ),
]
SPARSE_BODY = (
    b'{"instances": [{"data": {"features": {"keys": [26, 182, 232, 243, 431], "shape": [2000],'
    b' "values": [1, 1, 1, 4, 1]}}}]}'
)
# As SageMaker's SDK writes them, but for the labels.
SPARSE_RECORD = bytes.fromhex(
    "0a23d7ce1f0000000a1d0a0676616c756573121312110a080000004000004040120201031a010400"
)
DENSE_RECORD = bytes.fromhex("0a23d7ce180000000a160a0676616c756573120c120a0a080000c03f00008041")
EMPTY_RECORD = bytes.fromhex("0a23d7ce110000000a0f0a0676616c756573120512031a0104000000")
MATRIX = np.array([[0, 2, 0, 3], [1.5, 0, 0, 0], [0, 0, 0, 0]])


def decoded(body: bytes, content_type: str, feature_dim: int = DIM) -> list[dict[int, float]]:
    return rows_of(decode_request(body, content_type, feature_dim=feature_dim))


def as_json(instances: list[object]) -> bytes:
    return json.dumps({"instances": instances}).encode()


def refused(body: bytes, content_type: str = JSON, feature_dim: int = DIM) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_request(body, content_type, feature_dim=feature_dim)
    return caught.value


@pytest.mark.parametrize("body", DENSE_BODIES)
def test_documented_dense_bodies_are_read(body):
    expected = [
        [1.5, 16.0, 14.0, 23.0],
        [-2.0, np.float32(100.2), np.float32(15.2), np.float32(9.2)],
    ]

    assert [list(row.values()) for row in decoded(body, JSON, 4)] == expected
    assert decoded(body, JSON, 4) == decoded(DENSE_LINES, JSONLINES, 4)


def test_the_documented_sparse_body_is_read():
    expected = {26: 1.0, 182: 1.0, 232: 1.0, 243: 4.0, 431: 1.0}

    assert decoded(SPARSE_BODY, JSON, 2000) == [expected]


def test_records_as_the_sdk_writes_them_are_read_and_written():
    assert decoded(SPARSE_RECORD + EMPTY_RECORD, RECORDIO_PROTOBUF, 4) == [{1: 2.0, 3: 3.0}, {}]
    assert decoded(DENSE_RECORD, RECORDIO_PROTOBUF, 2) == [{0: 1.5, 1: 16.0}]
    assert encode_request(sp.csr_array(MATRIX[:1]), RECORDIO_PROTOBUF) == SPARSE_RECORD
    assert encode_request([1.5, 16], RECORDIO_PROTOBUF) == DENSE_RECORD


def test_requests_are_written_as_these_bytes():
    sparse, dense = sp.csr_array(MATRIX[:2]), np.array([[0.1, 2], [3, -0.5]])

    assert encode_request(sparse, JSONLINES) == (
        b'{"data":{"features":{"keys":[1,3],"shape":[4],"values":[2.0,3.0]}}}\n'
        b'{"data":{"features":{"keys":[0],"shape":[4],"values":[1.5]}}}\n'
    )
    assert encode_request(dense, JSON) == (
        b'{"instances":[{"features":[0.1,2.0]},{"features":[3.0,-0.5]}]}'
    )


@given(st.lists(ENTRIES, min_size=1, max_size=5))
@settings(max_examples=60)
def test_all_forms_give_the_same_rows(rows):
    def without_zeros(found):
        return [{key: x for key, x in row.items() if x} for row in found]

    sparse = [sparse_instance(row) for row in rows]
    short = [dense_instance(row, short=True) for row in rows]
    long = [dense_instance(row, short=False) for row in rows]
    expected = [dict(sorted(row.items())) for row in rows]

    assert decoded(as_json(sparse), JSON) == expected
    assert decoded(as_json(short), JSON) == decoded(as_json(long), JSON)
    assert without_zeros(decoded(as_json(short), JSON)) == without_zeros(expected)
    for forms in (sparse, short, long):
        lines = "\n".join(map(json.dumps, forms)).encode()
        assert decoded(lines, JSONLINES) == decoded(as_json(forms), JSON)
    for dense, forms in ((False, sparse), (True, short)):
        records = b"".join(record(row, dense=dense) for row in rows)
        assert decoded(records, RECORDIO_PROTOBUF) == decoded(as_json(forms), JSON)


KINDS = st.sampled_from(["array", "csr_matrix", "csr_array", "coo_array", "csc_matrix"])
DTYPES = st.sampled_from(["float64", "float32", "int64", "bool", "uint8", "float16"])


@given(st.lists(st.lists(FLOAT32, min_size=3, max_size=3), min_size=1, max_size=4), KINDS, DTYPES)
@settings(max_examples=80)
def test_what_is_written_is_read_back(numbers, kind, dtype):
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.array(numbers).astype(dtype)
    array[~np.isfinite(array.astype(np.float64))] = 0
    with np.errstate(over="ignore"):
        array[~np.isfinite(array.astype(np.float32))] = 0
    entries = array.astype(np.float32) if dtype == "float16" else array  # SciPy has no float16
    X = array if kind == "array" else getattr(sp, kind)(entries)
    for content_type in CONTENT_TYPES:
        batch = decode_request(encode_request(X, content_type), content_type, feature_dim=3)
        read = sp.csr_array((batch.values, batch.indices, batch.indptr), shape=array.shape)
        assert (read.toarray() == array.astype(np.float32)).all()
        assert kind == "array" or batch.nnz == X.nnz


@given(st.lists(INSTANCE, min_size=1, max_size=3), st.data())
@settings(max_examples=400)
def test_odd_json_has_the_verdict_of_a_slow_reader(instances, data):
    document = {"instances": instances}
    if data.draw(st.booleans()):
        document = data.draw(odd_value(document))
    body = json.dumps(document, ensure_ascii=data.draw(st.booleans())).encode()
    if data.draw(st.booleans()):
        body = data.draw(spoilt(body))

    assert_same_verdict(body, JSON, read_slowly)


@given(st.lists(INSTANCE, min_size=1, max_size=3), st.data())
@settings(max_examples=250)
def test_odd_lines_have_the_verdict_of_a_slow_reader(instances, data):
    body = "\n".join(map(json.dumps, instances)).encode()
    if data.draw(st.integers(0, 5)):
        body = data.draw(spoilt(body))

    assert_same_verdict(body, JSONLINES, read_lines_slowly)


def assert_same_verdict(body, content_type, slow):
    try:
        expected = slow(body, DIM)
    except ValueError:
        refused(body, content_type)
    else:
        assert decoded(body, content_type) == expected


def test_odd_records_have_the_verdict_of_the_protobuf_library():
    n_read = 0
    for case in range(1500):
        rng = random.Random(case)
        payload = random_record(rng)
        if rng.random() < 0.5:
            payload = mutated(payload, rng)
        n_read += check_record(payload, rng.choice((5, 200, 1)))
    assert n_read > 100


def check_record(payload: bytes, dim: int) -> bool:
    try:
        row = read_row(payload)
        with np.errstate(over="ignore"):
            small = row.values.astype(np.float32)
        fits = np.isfinite(small).all() and (row.indices < dim).all() and row.width in (-1, dim)
    except MalformedMessageError:
        fits = False
    if not fits:
        assert refused(framed(payload), RECORDIO_PROTOBUF, dim).instance == 0
        return False
    order = np.argsort(row.indices, kind="stable")
    expected: dict[int, float] = {}
    for j, x in zip(row.indices[order].tolist(), row.values[order].tolist(), strict=True):
        expected[j] = expected[j] + x if j in expected else x
    assert decoded(framed(payload), RECORDIO_PROTOBUF, dim) == [
        {j: float(np.float32(x)) for j, x in expected.items()}
    ]
    return True


@pytest.mark.parametrize(
    ("instance", "words"),
    [
        ('{"features": [1, 2, null, 4, 5]}', "features[2]: Expected float, got null"),
        ('{"features": [1, 2, "x", 4, 5]}', '("x")'),
        ('{"features": [1, 2, true, 4, 5]}', "got bool (true)"),
        ('{"features": [1, 2, NaN, 4, 5]}', "invalid character"),
        ('{"features": [1, 2, Infinity, 4, 5]}', "invalid character"),
        ('{"features": [1, 2, 1e39, 4, 5]}', "the value 1e+39 in feature 2"),
        ('{"features": [1, 2, 1e999, 4, 5]}', "out of range"),
        ('{"features": [1, 2, ' + "9" * 5000 + ", 4, 5]}", "out of range"),
        ('{"features": [1, 2, 3, 4]}', "has 4 dense values; the model has 5 features"),
        ('{"features": []}', "has 0 dense values"),
        ('{"features": {"values": [1, 2, 3, 4, 5]}}', "Expected array, got object"),
        ('{"data": {"features": [1, 2, 3, 4, 5]}}', "Expected object, got array"),
        ('{"data": {"features": {"keys": [5], "shape": [5], "values": [1]}}}', "key 5; expected"),
        ('{"data": {"features": {"keys": [-1], "shape": [5], "values": [1]}}}', "key -1; expected"),
        ('{"data": {"features": {"keys": [0.5], "shape": [5], "values": [1]}}}', "the key 0.5"),
        ('{"data": {"features": {"keys": [1, 1], "shape": [5], "values": [1, 2]}}}', "than once"),
        ('{"data": {"features": {"keys": [1], "shape": [5], "values": [1, 2]}}}', "1 keys for 2"),
        ('{"data": {"features": {"keys": [1], "shape": [6], "values": [1]}}}', "the shape [6]"),
        ('{"data": {"features": {"keys": [1], "shape": [], "values": [1]}}}', "the shape []"),
        ('{"data": {"features": {"keys": [1], "values": [1]}}}', "keys but no shape"),
        ('{"data": {"features": {"keys": [1], "shape": [5]}}}', "required field values"),
        ('{"features": [1, 2, 3, 4, 5], "label": 1}', "unknown field label"),
        ('{"features": [1, 2, 3, 4, 5], "features": [1, 2, 3, 4, 5]}', "a name twice"),
        ('{"features": [1, 2, 3, 4, 5], "configuration": 1}', "the configuration b'1'"),
        ('{"features": [1, 2, 3, 4, 5], "data": {"features": {"values": []}}}', "both"),
        ("{}", "neither features nor data"),
        ("7", "Expected object, got int (7)"),
    ],
)
def test_the_error_names_the_instance_and_what_is_wrong_with_it(instance, words):
    good = '{"features": [1, 2, 3, 4, 5]}'
    in_document = refused(f'{{"instances": [{good}, {instance}, {good}]}}'.encode())
    in_lines = refused(f"{good}\n{instance}\n{good}".encode(), JSONLINES)

    for err in (in_document, in_lines):
        assert err.instance == 1
        assert "Instance 1 " in str(err)
        assert words in str(err)
        assert str(err).endswith(".")
        assert len(str(err)) < 1000


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"\n", b"{}", b"[]", b"null", b'{"instances": []}', b'{"instances": {}}',
     b'{"instances": [{"features": [1, 2, 3, 4, 5]}]} x', b'{"instances": [{"features": [1, 2',
     b'{"instances": [{"features": [1, 2, 3, 4, 5]}], "instances": []}',
     b'{"instances": [], "instances": [{"features": [1, 2, 3, 4, 5]}]}',
     b'{"instances": [{"features": [1, 2, 3, 4, 5], "configuration": {"a": "\xff"}}]}',
     "{\"instances\": [{\"features\": [1]}]}".encode("utf-16")],
)  # fmt: skip
def test_other_bodies_are_refused_in_every_format(body):
    for content_type in CONTENT_TYPES:
        refused(body, content_type)


@pytest.mark.parametrize(
    "start",
    [b"[", b'{"a":', b'{"instances": [{"configuration": {"a": ', b'{"instances": [{"features": ',
     b'{"instances": [{"data": {"features": {"keys": '],
)  # fmt: skip
def test_deep_nesting_is_refused(start):
    refused(start + b"[" * 10**6)
    refused(start + b"[" * 10**6 + b"]" * 10**6)
    refused(start + b'{"a":' * 10**6, JSONLINES)


def test_broken_records_name_the_instance():
    err = refused(SPARSE_RECORD * 2 + SPARSE_RECORD[:-4], RECORDIO_PROTOBUF, 4)
    assert err.instance == 2
    assert "Instance 2 is no record (byte 80)" in str(err)

    for wrong, words in [
        (record({0: 1.0}, dense=False, dim=6), "the shape [6]; the model's is [5]"),
        (record({}, dense=True, dim=4), "has 4 dense values; the model has 5 features"),
        (record({2: float("nan")}, dense=False), "the value nan in feature 2"),
        (record({2: float("inf")}, dense=True), "the value inf in feature 2"),
    ]:
        err = refused(record({1: 1.0}, dense=False) + wrong, RECORDIO_PROTOBUF)
        assert err.instance == 1
        assert words in str(err)


def test_a_record_without_a_shape_is_taken_and_its_keys_are_checked():
    bare = bytes.fromhex("0a180a0676616c756573120e120c0a080000004000004040") + b"\x12\x00"
    with pytest.raises(RequestError):
        decoded(framed(bare), RECORDIO_PROTOBUF, 4)
    bare = bytes.fromhex("0a1a0a0676616c7565731210120e0a08000000400000404012020103")
    assert decoded(framed(bare), RECORDIO_PROTOBUF, 4) == [{1: 2.0, 3: 3.0}]

    assert "the key 3; expected 0 to 2" in str(refused(framed(bare), RECORDIO_PROTOBUF, 3))


def test_keys_may_come_in_any_order_and_as_whole_floats():
    instance = (
        b'{"data": {"features": {"keys": [3, 0.0, 2e0], "shape": [5.0], "values": [1, 2, 3]}}}'
    )

    assert decoded(instance, JSONLINES) == [{0: 2.0, 2: 3.0, 3: 1.0}]


def test_a_configuration_is_passed_over_whatever_is_in_it():
    configuration = {"k": ['"', "\\", {"features": [1], "features ": "\u20ac"}], "n": None}
    instance = {"configuration": configuration, "features": [1, 2, 3, 4, 5]}

    assert len(decoded(as_json([instance, instance]), JSON)) == 2


def test_types_are_known_by_their_names_whatever_the_parameters():
    assert decoded(DENSE_LINES, "Application/JSONLines; charset=utf-8", 4)
    with pytest.raises(InvalidParamError, match="text/csv"):
        decode_request(b"1,2", "text/csv", feature_dim=2)
    with pytest.raises(InvalidParamError, match="text/csv"):
        encode_request(MATRIX, "text/csv")


def test_sparse_requests_cost_their_entries_whatever_the_features():
    X = sp.csr_array(([1.0, 2.0], ([0, 0], [7, 2**31 - 2])), shape=(1, 2**31 - 1))
    for content_type in CONTENT_TYPES:
        body = encode_request(X, content_type)
        tracemalloc.start()
        batch = decode_request(body, content_type, feature_dim=2**31 - 1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert batch.indices.tolist() == [7, 2**31 - 2]
        assert peak < 10 * 2**20


@pytest.mark.parametrize(
    "wrong", [[[np.nan]], [[1e39]], [["a"]], np.empty((0, 3)), [[1j]], sp.csr_array([[np.inf]])]
)
def test_what_cannot_be_sent_is_refused(wrong):
    for content_type in CONTENT_TYPES:
        with pytest.raises(InvalidDataError):
            encode_request(wrong, content_type)


def test_repeated_entries_of_a_matrix_are_added_up_and_the_matrix_stays():
    X = sp.csr_array(([1.0, 2.0], [3, 3], [0, 2]), shape=(1, 4))
    for content_type in CONTENT_TYPES:
        assert decoded(encode_request(X, content_type), content_type, 4) == [{3: 3.0}]
    assert X.nnz == 2


def test_the_error_keeps_its_instance_from_process_to_process():
    err = pickle.loads(pickle.dumps(RequestError("Instance 3 is odd.", instance=3)))

    assert (err.instance, str(err)) == (3, "Instance 3 is odd.")
    assert RequestError("all").instance is None
    assert isinstance(err, InvalidDataError)


def test_the_examples_print_what_they_say():
    for module in (requests, responses):
        failures, tried = doctest.testmod(module)
        assert tried > 0
        assert failures == 0


def test_the_documented_instances_are_read():
    text = (Path(__file__).parents[2] / "docs" / "inference.md").read_text()
    dense, wrapped, sparse = re.search(r"```json\n(.*?)```", text, re.S)[1].splitlines()

    assert decoded(dense.encode(), JSONLINES, 4) == decoded(wrapped.encode(), JSONLINES, 4)
    assert decoded(sparse.encode(), JSONLINES, 2000) == [{26: 1.0, 182: 1.0, 232: 4.0}]
