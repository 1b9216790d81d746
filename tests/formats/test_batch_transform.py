"""Batch transform: a file of predictions a file, whole or not there, and joined to its input."""

from __future__ import annotations

import gzip
import io
import json
import os

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.errors import InvalidDataError, InvalidParamError, RequestError
from spark_fm.formats import content_types
from spark_fm.formats.batch_transform import (
    Scorer,
    Transform,
    default_accept,
    plan,
    transform,
    transform_file,
)
from spark_fm.formats.models.native import read_model
from spark_fm.formats.recordio.framing import MAGIC_BYTES
from spark_fm.formats.recordio.record_pb2 import Record
from spark_fm.formats.requests import (
    CONTENT_TYPES,
    JSON,
    JSONLINES,
    RECORDIO_PROTOBUF,
    encode_request,
)
from spark_fm.formats.responses import decode_response, encode_response
from spark_fm.learner.csr import CsrBatch
from spark_fm.serving.models import ServedModel
from tests.formats.models import saved_model
from tests.formats.mutations import cut, framed
from tests.formats.request_twins import dense_instance, sparse_instance
from tests.formats.test_encode import payloads

X = sp.csr_array(np.array([[0, 2, 0, 3.5], [0, 0, 0, 0], [1, -1, 1, 1], [3, 0, 0, 0]]))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_model(saved_model(tmp_path_factory.mktemp("models") / "classifier"))


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "regressor"
    return read_model(saved_model(path, kind="regressor"))


def expected_of(model, rows=X):
    scores = model.predict(CsrBatch.from_matrix(rows))
    labels = (scores >= 0.5).astype(np.float32) if model.loss == "logistic" else None
    return scores, labels


def transformed(model, body, content_type, accept, **how):
    out = io.BytesIO()
    job = Transform(content_type, accept, "nowhere", **how)
    transform(io.BytesIO(body), out, Scorer(model), job)
    return out.getvalue()


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("accept", CONTENT_TYPES)
def test_each_format_in_gives_each_format_out_in_the_order_of_rows(
    model, regressor, content_type, accept
):
    for each in (model, regressor):
        out = transformed(each, encode_request(X, content_type), content_type, accept)

        assert out == encode_response(*expected_of(each), accept)


def test_both_labels_occur_in_these_tests(model):
    assert set(expected_of(model)[1]) == {0.0, 1.0}


@pytest.fixture
def folder(tmp_path):
    """Two good files, one of them below a folder, and one whose third line is wrong."""
    lines = encode_request(X, JSONLINES)
    base = tmp_path / "in"
    (base / "deep").mkdir(parents=True)
    (base / "a.jsonl").write_bytes(lines)
    (base / "bad.jsonl").write_bytes(lines.replace(b"1.0,1.0]", b"1.0,null]"))
    (base / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(lines * 3))
    (base / "_SUCCESS").write_bytes(b"x")
    return base


def files_below(path):
    return sorted(
        os.path.relpath(os.path.join(where, name), path)
        for where, _, names in os.walk(path)
        for name in names
    )


def test_a_bad_instance_fails_its_file_and_the_others_are_written(model, folder, tmp_path):
    job = Transform(JSONLINES, JSONLINES, str(tmp_path / "out"))

    works = plan([str(folder)], job, overwrite=False)
    outcomes = {os.path.basename(w.file.path): transform_file(model, job, w) for w in works}

    assert outcomes["a.jsonl"].n_rows == 4
    assert outcomes["b.jsonl.gz"].n_rows == 12
    assert "Instance 2 cannot be read" in outcomes["bad.jsonl"].error
    assert files_below(tmp_path / "out") == ["a.jsonl.out", "deep/b.jsonl.gz.out"]
    found = decode_response((tmp_path / "out/a.jsonl.out").read_bytes(), JSONLINES)
    assert found.scores.tolist() == expected_of(model)[0].tolist()


def test_an_error_far_on_leaves_no_half_of_an_output_nor_an_old_one_harmed(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(content_types, "CHUNK_BYTES", 100)
    source = tmp_path / "a"
    source.write_bytes(encode_request(X, JSONLINES) * 50 + b"{}")
    job = Transform(JSONLINES, JSONLINES, str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.out").write_bytes(b"old")

    (work,) = plan([str(source)], job, overwrite=True)
    outcome = transform_file(model, job, work)

    assert "Instance 200 has neither features nor data" in outcome.error
    assert files_below(tmp_path / "out") == ["a.out"]
    assert (tmp_path / "out" / "a.out").read_bytes() == b"old"


def test_damaged_and_missing_files_are_outcomes_too(model, tmp_path):
    job = Transform(JSONLINES, JSONLINES, str(tmp_path / "out"))
    lines = encode_request(X, JSONLINES)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(lines * 100)[:-20])
    (tmp_path / "gone").write_bytes(lines)
    works = plan([str(tmp_path / "cut.gz"), str(tmp_path / "gone")], job, overwrite=False)
    (tmp_path / "gone").unlink()

    cut, gone = (transform_file(model, job, work) for work in works)

    assert "compressed data are damaged" in cut.error
    assert "gone" in gone.error
    assert files_below(tmp_path / "out") == []


def test_an_error_that_nobody_foresaw_is_an_outcome_too(model, tmp_path, monkeypatch):
    job = Transform(JSONLINES, JSONLINES, str(tmp_path / "out"))
    (tmp_path / "a").write_bytes(encode_request(X, JSONLINES))
    (work,) = plan([str(tmp_path / "a")], job, overwrite=False)

    def fail(*_):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Scorer, "__call__", fail)
    outcome = transform_file(model, job, work)

    assert "(ZeroDivisionError: by nothing)" in outcome.error
    assert files_below(tmp_path / "out") == []


def test_an_interruption_leaves_nothing(model, tmp_path, monkeypatch):
    job = Transform(JSONLINES, JSONLINES, str(tmp_path / "out"))
    (tmp_path / "a").write_bytes(encode_request(X, JSONLINES))
    (work,) = plan([str(tmp_path / "a")], job, overwrite=False)

    def interrupt(*_):
        assert files_below(tmp_path / "out")[0].startswith(".a.out.")
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        transform_file(model, job, work)

    assert files_below(tmp_path / "out") == []


def test_other_stores_are_read_and_written(model):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe("/batch/in/deep/a", encode_request(X, JSONLINES))
    memory.pipe("/batch/in/b", b"{}")
    job = Transform(JSONLINES, JSONLINES, "memory://batch/out")

    for work in plan(["memory://batch/in"], job, overwrite=False):
        transform_file(model, job, work)

    assert memory.find("/batch/out") == ["/batch/out/deep/a.out"]
    assert memory.cat("/batch/out/deep/a.out") == encode_response(*expected_of(model), JSONLINES)
    with pytest.raises(InvalidDataError, match="exists"):
        plan(["memory://batch/in"], job, overwrite=False)
    memory.rm("/batch", recursive=True)


def test_what_must_not_be_overwritten_or_mixed_up_is_refused_before_anything_is_done(
    folder, tmp_path
):
    out = tmp_path / "out"
    job = Transform(JSONLINES, JSONLINES, str(out))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jsonl").write_bytes(b"{}")

    with pytest.raises(InvalidDataError, match="would both become a"):
        plan([str(folder), str(tmp_path / "other")], job, overwrite=False)
    with pytest.raises(InvalidDataError, match="lies in the input"):
        plan([str(tmp_path)], job, overwrite=False)
    with pytest.raises(InvalidDataError, match="does not exist"):
        plan([str(tmp_path / "no")], job, overwrite=False)
    out.mkdir()
    (out / "a.jsonl.out").write_bytes(b"old")
    with pytest.raises(InvalidDataError, match=r"a\.jsonl\.out exists \(1 of 3 outputs do\)"):
        plan([str(folder)], job, overwrite=False)
    assert len(plan([str(folder)], job, overwrite=True)) == 3


def test_the_default_output_is_sagemaker_s():
    assert default_accept(JSON, join=False) == JSON
    assert default_accept(JSONLINES, join=False) == JSONLINES
    assert default_accept(RECORDIO_PROTOBUF, join=False) == JSONLINES
    assert default_accept(RECORDIO_PROTOBUF, join=True) == RECORDIO_PROTOBUF


def test_a_join_into_another_format_is_refused():
    with pytest.raises(InvalidParamError, match="A join writes instances as they came"):
        Transform(RECORDIO_PROTOBUF, JSONLINES, "out", join=True)


def test_a_joined_document_is_these_bytes(regressor):
    body = b' {"instances": [{"features": [1, 0, 0, 0]}]}\n'
    score = float(expected_of(regressor, [[1, 0, 0, 0]])[0][0])

    out = transformed(regressor, body, JSON, JSON, join=True)

    assert json.loads(out) == {
        "instances": [{"features": [1, 0, 0, 0]}],
        "SageMakerOutput": {"predictions": [{"score": score}]},
    }
    assert out.startswith(b'{"instances": [{"features": [1, 0, 0, 0]}], "SageMakerOutput": {')


ROWS = st.lists(
    st.dictionaries(st.integers(0, 3), st.sampled_from([0.0, 1.5, -2.0, 7.0]), max_size=4),
    min_size=1, max_size=6,
)  # fmt: skip


@given(ROWS, st.booleans(), st.sampled_from([b"\n", b"\r\n", b" \n\n"]))
@settings(max_examples=30)
def test_joined_lines_are_the_instances_with_their_predictions(model, rows, dense, end):
    instances = [{"features": [row.get(j, 0) for j in range(4)]} if dense else
                 {**sparse_instance(row), "configuration": {"id": i}}
                 for i, row in enumerate(rows)]  # fmt: skip
    for instance in instances:
        if not dense:
            instance["data"]["features"]["shape"] = [4]
    body = end.join(json.dumps(instance).encode() for instance in instances)

    plain = transformed(model, body, JSONLINES, JSONLINES).splitlines()
    joined = transformed(model, body, JSONLINES, JSONLINES, join=True).splitlines()

    assert [json.loads(line) for line in joined] == [
        {**instance, "SageMakerOutput": json.loads(prediction)}
        for instance, prediction in zip(instances, plain, strict=True)
    ]


@given(ROWS, st.data())
@settings(max_examples=40)
def test_joined_records_are_the_records_with_two_more_labels(model, rows, data):
    records, body = [], b""
    for number, row in enumerate(rows):
        record = Record()
        tensor = record.features["values"].float32_tensor
        tensor.keys.extend(row)
        tensor.values.extend(row.values())
        tensor.shape.append(4)
        record.label["values"].float32_tensor.values.append(number)
        if data.draw(st.booleans()):
            record.uid, record.metadata = b"u" * number, MAGIC_BYTES
        records.append(record)
        body += framed(record.SerializeToString())
    out = transformed(model, body, RECORDIO_PROTOBUF, RECORDIO_PROTOBUF, join=True)
    found = decode_response(transformed(model, body, RECORDIO_PROTOBUF, RECORDIO_PROTOBUF),
                            RECORDIO_PROTOBUF)  # fmt: skip

    joined = [Record.FromString(payload) for payload in payloads(out)]
    for record, score, label in zip(records, found.scores, found.labels, strict=True):
        record.label["score"].float32_tensor.values.append(score)
        record.label["predicted_label"].float32_tensor.values.append(label)
    assert joined == records


def test_records_in_parts_and_in_many_chunks_are_joined(model):
    record = Record()
    record.features["values"].float32_tensor.values.extend([1, 2, 3, 4])
    record.metadata = b"abcdefghij" + MAGIC_BYTES * 3
    payload = record.SerializeToString()
    place = payload.index(MAGIC_BYTES)
    assert place % 4 == 0
    with_gaps = framed(payload[:place], 1) + framed(b"", 2) * 2 + framed(payload[place + 12 :], 3)
    parts = with_gaps + cut(payload, 3, place - 2)

    class Trickle(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 100))

    out = io.BytesIO()
    job = Transform(RECORDIO_PROTOBUF, RECORDIO_PROTOBUF, "nowhere", join=True)
    n_rows = transform(Trickle((framed(payload) + parts) * 20), out, Scorer(model), job)

    joined = [Record.FromString(each) for each in payloads(out.getvalue())]
    assert n_rows == len(joined) == 60
    assert all(each == joined[0] for each in joined)
    assert joined[0].metadata == record.metadata
    assert sorted(joined[0].label) == ["predicted_label", "score"]


def test_joining_refuses_what_scoring_refuses(model):
    for content_type in CONTENT_TYPES:
        for wrong in (b"{", encode_request(np.ones((2, 5)), content_type)):
            with pytest.raises(RequestError):
                transformed(model, wrong, content_type, content_type, join=True)


def test_scores_that_overflow_are_refused_with_their_number(regressor, monkeypatch):
    monkeypatch.setattr(content_types, "CHUNK_BYTES", 200)
    rows = np.zeros((30, 4))
    rows[25] = 3e38
    for content_type in CONTENT_TYPES:
        for join in (False, True):
            with pytest.raises(RequestError, match="Instance 25 has the score"):
                transformed(regressor, encode_request(rows, content_type), content_type,
                            content_type, join=join)  # fmt: skip


def test_a_threshold_of_its_own_decides_on_the_label(model):
    body = encode_request(X, JSONLINES)
    found = decode_response(
        transformed(model.with_threshold(0.0), body, JSONLINES, JSONLINES), JSONLINES
    )

    assert set(found.labels.tolist()) == {1.0}
    assert model.with_threshold(None) is model


def test_labels_next_to_the_threshold_are_those_of_the_server(model):
    body, scores = encode_request(X, JSONLINES), expected_of(model)[0]
    threshold = float(np.nextafter(np.float64(scores[0]), 2))  # of which float32 is the score
    server = ServedModel(model.weights, model.loss, threshold, "digest", "1", "name")

    out = transformed(model.with_threshold(threshold), body, JSONLINES, JSONLINES)

    labels = decode_response(out, JSONLINES).labels
    assert labels[0] == 0
    assert labels.tolist() == server.labels(scores).tolist()


def test_dense_instances_have_the_scores_of_sparse_ones(model):
    dense = transformed(model, encode_request(X.toarray(), JSON), JSON, JSONLINES)

    assert dense == transformed(model, encode_request(X, JSON), JSON, JSONLINES)
    assert dense_instance({}, short=True)


INSTANCE = b'{"id": 7, "features": [1, 0, 2, 0]}'
SPARSE = (
    b'{"data": {"features": {"keys": [0, 2], "shape": [4], "values": [1, 2]}}, "a": {"b": [1.50]}}'
)
DOCUMENT = (
    b'{"instances": [' + INSTANCE + b", " + SPARSE + b'], "batch": 1234567890123456789012345}'
)


@pytest.fixture(scope="module")
def score(regressor):
    """The score of both instances as JSON."""
    return json.dumps(float(expected_of(regressor, [[1, 0, 2, 0]])[0][0])).encode()


def test_a_json_document_a_line_is_answered_by_a_document_a_line(regressor, score):
    body = DOCUMENT + b"\n\n" + INSTANCE + b"\r\n"

    out = transformed(regressor, body, JSON, JSON, split_type="Line")

    one = b'{"score": ' + score + b"}"
    assert out == b'{"predictions": [%s, %s]}\n{"predictions": [%s]}\n' % (one, one, one)
    assert transformed(regressor, body, JSON, JSONLINES, split_type="Line") == (one + b"\n") * 3
    assert transformed(
        regressor, body, JSON, JSON, split_type="Line", assemble_with="None"
    ) == out.replace(b"\n", b"")
    records = transformed(regressor, body, JSON, RECORDIO_PROTOBUF, split_type="Line")
    assert len(list(payloads(records))) == 3


def test_other_members_stay_in_a_join_as_they_came(regressor, score):
    lines = INSTANCE + b"\n" + SPARSE + b"\n"
    output = b', "SageMakerOutput": {"score": ' + score + b"}}\n"

    joined = transformed(regressor, lines, JSONLINES, JSONLINES, join=True)

    assert joined == INSTANCE[:-1] + output + SPARSE[:-1] + output
    predictions = b'{"predictions": [{"score": %s}, {"score": %s}]}' % (score, score)
    for how, end in (({}, b""), ({"split_type": "Line"}, b"\n")):
        document = transformed(regressor, DOCUMENT, JSON, JSON, join=True, **how)
        assert document == DOCUMENT[:-1] + b', "SageMakerOutput": ' + predictions + b"}" + end
    pretty = json.dumps(json.loads(DOCUMENT), indent=2).encode()
    assert transformed(regressor, pretty, JSON, JSON, join=True).startswith(pretty[:-1])


def test_filters_select_what_is_scored_and_what_is_written(regressor, score):
    cases = [
        # Lines with their input filter, output filter and whether they are joined.
        (INSTANCE, "$.features", "$.score", False, score),
        (INSTANCE, "$['features']", "$['id','SageMakerOutput']", True,
         b'{"id":7,"SageMakerOutput":{"score": ' + score + b"}}"),
        (SPARSE, "$.data.features", "$.SageMakerOutput.*", True, b"[" + score + b"]"),
        (SPARSE, "$", "$.a.b[0]", True, b"1.50"),
        (b'["x", 1, 0, 2, 0]', "$[1:]", "$", True,
         b'{"SageMakerInput": ["x", 1, 0, 2, 0], "SageMakerOutput": {"score": ' + score + b"}}"),
        (b'{"n": {"id": "\xc3\xa9", "of": ' + INSTANCE + b"}}", "$.n.of", "$.n.id", True,
         b'"\xc3\xa9"'),
    ]  # fmt: skip
    for line, selected, written, join, expected in cases:
        out = transformed(
            regressor, line + b"\n", JSONLINES, JSONLINES, join=join, input_filter=selected,
            output_filter=written,
        )  # fmt: skip
        assert out == expected + b"\n", (line, selected, written)
    for selected in ("$", "$.instances", "$['instances']", "$.instances[*]", "$.instances[0,1]"):
        out = transformed(
            regressor, DOCUMENT, JSON, JSON, join=True, input_filter=selected,
            output_filter="$.SageMakerOutput.predictions[*].score",
        )  # fmt: skip
        assert out == b"[" + score + b"," + score + b"]", selected


def test_what_a_join_or_a_filter_cannot_use_is_told_with_its_line(model):
    good = INSTANCE + b"\n\n"
    cases = [
        (b'{"id": 1}', {}, "Line 3: Instance 1 cannot be read: Object contains unknown field"),
        (b'{"features": [1, 2], "id": 1}', {}, "Line 3: Instance 1 has 2 dense values"),
        (b'{"features": [1], "id": 2, "features": [1, 0, 2, 0]}', {},
         "Line 3: The name 'features' is twice"),
        (b'{"SageMakerOutput": 1, "features": [1, 0, 2, 0]}', {}, "Line 3: The input has a member"),
        (b'{"features": [1, 0, 2, 0], "id": "\xff"}', {}, "Line 3: Instance 1 is not UTF-8"),
        (b'{"features": [1, 0, 2, 0]', {}, "Line 3: Instance 1 cannot be read: Input data was"),
        (b'{"features": [1, 0, 2, 0]}', {"output_filter": "$.id"}, "finds no 'id' in an object"),
        (b'{"id": 2}', {"input_filter": "$.features"}, "Line 3: The input filter .* finds no"),
        (b'{"features": "a"}', {"input_filter": "$.features"}, "Line 3: .* selects no instance"),
        (b'{"features": [[1, 0, 2, 0], [1, 0, 2, 0]]}', {"input_filter": "$.features"},
         "several instances of one line"),
    ]  # fmt: skip
    for line, how, reason in cases:
        with pytest.raises(RequestError, match=reason):
            transformed(model, good + line, JSONLINES, JSONLINES, join=True, **how)
    for line, reason in (
        (b"{", "Line 3: The body cannot be read"),
        (b'{"instances": []}', 'Line 3: The list "instances" is empty'),
        (b'{"instances": [{"id": 1}]}', "Line 3: Instance 1 cannot be read"),
    ):
        with pytest.raises(RequestError, match=reason):
            transformed(model, good + line, JSON, JSON, join=True, split_type="Line")


def test_words_that_do_not_go_together_are_refused_at_once():
    cases = [
        ((JSONLINES, JSONLINES), {"split_type": "RecordIO"}, "split by Line or None"),
        ((RECORDIO_PROTOBUF, JSON), {"split_type": "Line"}, "split by RecordIO or None"),
        ((JSON, RECORDIO_PROTOBUF), {"assemble_with": "Line"}, "not assembled by Line"),
        ((RECORDIO_PROTOBUF, JSON), {"input_filter": "$.a"}, "not from records"),
        ((JSON, RECORDIO_PROTOBUF), {"output_filter": "$.a"}, "not from records"),
        ((JSON, JSON), {"output_filter": "id"}, "The output filter 'id' cannot be read"),
        ((JSON, JSON), {"input_filter": "$..id"}, r"at '\.\.id'"),
        ((JSON, JSON), {"input_filter": "$[?(@.a)]"}, "cannot be read at"),
        ((JSON, JSON), {"input_filter": "$['a','b'].c"}, "at its end only"),
        ((JSON, JSON), {"input_filter": ""}, "cannot be read"),
    ]
    for types, how, reason in cases:
        with pytest.raises(InvalidParamError, match=reason):
            Transform(*types, "out", **how)
