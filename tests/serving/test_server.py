"""The endpoints of a real server: answers, errors, limits."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.formats.requests import (
    CONTENT_TYPES,
    JSON,
    JSONLINES,
    RECORDIO_PROTOBUF,
    encode_request,
)
from spark_fm.formats.responses import decode_response
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from tests.builders import planted_weights
from tests.serving.conftest import BODY_SECONDS, WIDTH
from tests.serving.servers import (
    eventually,
    instances,
    save_model,
    serving,
    sparse_instance,
)

ONE = instances(np.eye(WIDTH)[:1])


def rows(n, seed=0, density=0.3):
    return sp.random(n, WIDTH, density, random_state=seed, format="csr", dtype=np.float32)


def connection(server):
    """Return an open connection, for requests sent in pieces."""
    parts = urlsplit(server.url)
    client = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    client.connect()
    return client


def begin(server, length, part=b"{"):
    """Send the head of a request and a part of its body."""
    client = connection(server)
    client.putrequest("POST", "/invocations")
    client.putheader("Content-Type", JSON)
    client.putheader("Content-Length", str(length))
    client.endheaders(part)
    return client


def n_sockets(pid):
    """Return how many sockets a process has open."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return sum(link.startswith("socket:") for link in links)


def held(server):
    return json.loads(server.get("/health").data)["requests"]


def test_ping_says_200_with_an_empty_body(server):
    answer = server.get("/ping")
    assert (answer.status, answer.data) == (200, b"")


def test_the_root_shows_a_request_that_works(server):
    page = server.get("/").data.decode()

    assert f"binary classifier of {WIDTH} features" in page
    [line] = [line for line in page.splitlines() if line.startswith("curl ")]
    _, address, _, header, _, body = shlex.split(line)
    assert address == f"{server.url}/invocations"
    assert header == "Content-Type: application/json"
    assert len(json.loads(server.invoke(body.encode()).data)["predictions"]) == 1


def test_execution_parameters_are_those_of_a_batch_transform(server):
    told = server.get("/execution-parameters").json()
    assert told == {
        "MaxConcurrentTransforms": 2, "BatchStrategy": "MultiRecord", "MaxPayloadInMB": 1,
    }  # fmt: skip


def test_health_tells_what_is_served(server):
    told = server.get("/health").json()
    assert told["status"] == "ok"
    assert told["model"]["predictor_type"] == "binary_classifier"
    assert (told["model"]["feature_dim"], told["model"]["num_factors"]) == (WIDTH, 4)
    assert told["model"]["threshold"] == 0.4
    assert re.fullmatch("[0-9a-f]{64}", told["model"]["digest"])


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("accept", [*CONTENT_TYPES, None])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_scores_and_labels_are_the_models_in_every_format(
    server, weights, content_type, accept, form
):
    X = rows(30)
    body = encode_request(X if form == "sparse" else X.toarray(), content_type)
    answer = server.invoke(body, content_type, **({"Accept": accept} if accept else {}))
    found = decode_response(answer.data, answer.headers["Content-Type"])
    expected = weights.predict(CsrBatch.from_matrix(X), "logistic")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == (accept or content_type)
    # Dense rows have more entries to sum in float32.
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-6)
    assert np.array_equal(found.labels, (found.scores >= np.float64(0.4)).astype(np.float32))


def test_the_body_of_an_answer_is_sagemakers(server):
    answer = server.invoke(ONE, "application/json; charset=utf-8", Accept="*/*")
    pattern = rb'\{"predictions": \[\{"score": 0\.\d+, "predicted_label": [01]\.0\}\]\}'
    assert re.fullmatch(pattern, answer.data)


@pytest.mark.parametrize(
    ("body", "content_type", "headers", "status", "words", "instance"),
    [
        (b"{", JSON, {}, 400, "cannot be read", None),
        (b"", JSON, {}, 400, "empty", None),
        (b'{"instances": []}', JSON, {}, 400, "empty", None),
        (instances(np.ones((3, 4))), JSON, {}, 400, "has 4 dense values", 0),
        (ONE[:-2] + b', {"features": ["x"]}]}', JSON, {}, 400, "str", 1),
        (b'{"features": [1]}\n', JSONLINES, {}, 400, "has 1 dense values", 0),
        (b"nonsense", RECORDIO_PROTOBUF, {}, 400, "no record", 0),
        (ONE, "text/csv", {}, 415, "'text/csv' is not served", None),
        (ONE, None, {}, 415, "no Content-Type", None),
        (ONE, JSON, {"Content_Encoding": "gzip"}, 415, "'gzip' is not read", None),
        (ONE, JSON, {"Accept": "*/*;q=0"}, 406, "'*/*;q=0' rules out application/json", None),
        (b" " * (2**20 + 1), JSON, {}, 413, "larger than 1048576 bytes", None),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_is_told_why(
    server, body, content_type, headers, status, words, instance
):
    answer = server.invoke(body, content_type, **headers)
    told = answer.json()
    assert answer.status == told["status"] == status
    assert answer.headers["Content-Type"] == "application/json"
    assert words in told["error"]
    assert told.get("instance") == instance


def test_an_instance_whose_score_is_not_finite_is_named(server):
    big = [sparse_instance([0, 1], [3e38, 3e38], WIDTH)]
    answer = server.invoke(json.dumps({"instances": [*json.loads(ONE)["instances"], *big]}))
    assert answer.status == 400
    assert answer.json()["instance"] == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [("GET", "/invocations", 405, "POST"), ("PUT", "/invocations", 405, "POST"),
     ("POST", "/ping", 405, "GET"), ("DELETE", "/metrics", 405, "GET"),
     ("GET", "/nothing", 404, None), ("POST", "/", 405, "GET"),
     ("POST", "/invocations/", 404, None)],
)  # fmt: skip
def test_another_path_or_method_is_told_what_there_is(server, method, path, status, allow):
    answer = server.request(method, path, body=b"x" * 1000, redirect=False)
    assert answer.status == answer.json()["status"] == status
    assert allow is None or allow in answer.headers["Allow"]


def test_a_chunked_body_is_counted_while_it_arrives(server):
    def endless():
        for _ in range(64):
            yield b" " * 2**16

    answer = server.request(
        "POST", "/invocations", body=endless(), headers={"Content-Type": JSON}, chunked=True
    )
    assert answer.status == 413
    answer = server.request(
        "POST", "/invocations", body=iter([ONE[:9], ONE[9:]]), headers={"Content-Type": JSON}
    )
    assert answer.status == 200


def test_a_connection_is_good_for_more_after_a_body_that_was_too_large(server):
    client = connection(server)
    for _ in range(5):
        client.request("POST", "/invocations", b" " * 1_300_000, {"Content-Type": JSON})
        large = client.getresponse()
        large.read()
        client.request("POST", "/invocations", ONE, {"Content-Type": JSON})
        good = client.getresponse()
        good.read()
        assert (large.status, good.status) == (413, 200)


def test_a_body_that_does_not_come_is_given_up(server):
    client = begin(server, 100)
    answer = client.getresponse()
    assert answer.status == 408
    assert f"{BODY_SECONDS:g} seconds" in json.loads(answer.read())["error"]
    assert held(server) == 0


@pytest.mark.parametrize("sent", [b"", b"POST /invoc"])
def test_a_head_that_does_not_come_ends_the_connection(server, sent):
    client = connection(server)
    client.sock.sendall(sent)
    with suppress(ConnectionResetError):
        assert client.sock.recv(1) == b""


def test_a_head_without_end_is_refused(server):
    client = connection(server)
    client.sock.sendall(b"GET /ping HTTP/1.1\r\n")
    answer = b""
    with suppress(OSError):
        for _ in range(1000):
            client.sock.sendall(b"X-More: " + b"x" * 1000 + b"\r\n")
    with suppress(OSError):
        answer = client.sock.recv(100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert server.get("/ping").status == 200


def test_a_client_that_does_not_read_is_cut_off(model, tmp_path):
    # The answer, of 14 MB, is larger than the buffers of both sockets together.
    path = save_model(tmp_path / "narrow", planted_weights(1, 1, seed=1))
    body = instances(np.zeros((250_000, 1))).replace(b" ", b"")
    with serving(path, "--body-seconds", "1.5") as server:
        pid = server.worker()
        before = n_sockets(pid)
        client = connection(server)
        client.request("POST", "/invocations", body, {"Content-Type": JSON})
        eventually(lambda: b'invocations",status="200"' in server.get("/metrics").data)
        eventually(lambda: n_sockets(pid) <= before)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            client.getresponse().read()


def test_requests_beyond_the_limit_are_told_to_come_again(server):
    slow = [begin(server, len(ONE), ONE[:10]) for _ in range(4)]
    eventually(lambda: held(server) == 4)
    answer = server.invoke(ONE)
    for client in slow:
        client.send(ONE[10:])
    after = [client.getresponse().status for client in slow]
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert after == [200] * 4
    assert server.invoke(ONE).status == 200


def test_bodies_beyond_the_limit_are_told_to_come_again(server):
    part = b" " * 900_000
    slow = [begin(server, 1_000_000, part) for _ in range(2)]
    eventually(lambda: held(server) == 2)
    answers = [begin(server, 1_000_000, part) for _ in range(1)]
    assert answers[0].getresponse().status == 503
    for client in slow:
        client.close()
    eventually(lambda: held(server) == 0)


def test_an_instance_of_the_widest_model_costs_its_non_zeros(tmp_path):
    width = 2**31 - 1
    ids = np.sort(np.random.default_rng(0).choice(width, 1000, replace=False)).astype(np.int32)
    weights = FMWeights(0.1, planted_weights(1000, 8, seed=1).table, width, ids)
    path = save_model(tmp_path / "wide", weights, kind="regressor")
    X = sp.csr_array((np.ones(6, np.float32), ids[[1, 5, 9, 2, 3, 999]], [0, 3, 6]), (2, width))
    expected = weights.predict(CsrBatch.from_matrix(sp.csr_matrix(X)), "squared")
    with serving(path) as server:
        for content_type in CONTENT_TYPES:
            server.invoke(encode_request(X, content_type), content_type)
            started = time.perf_counter()
            answer = server.invoke(encode_request(X, content_type), content_type)
            seconds = time.perf_counter() - started
            found = decode_response(answer.data, content_type)
            assert np.array_equal(found.scores, expected)
            assert found.labels is None
            assert seconds < 1  # a pass over 2^31 features would take longer
        pid = server.worker()
        status = Path(f"/proc/{pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 1_000_000  # of 8 GB for one row


def test_many_clients_at_once_get_their_own_scores(server, weights):
    def ask(seed):
        X = rows(1 + seed % 3, seed=seed)
        answer = server.invoke(encode_request(X, RECORDIO_PROTOBUF), RECORDIO_PROTOBUF)
        found = decode_response(answer.data, RECORDIO_PROTOBUF).scores
        return np.array_equal(found, weights.predict(CsrBatch.from_matrix(X), "logistic"))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(200)))


def test_an_answer_does_not_wait_for_the_clients_acknowledgement(server):
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        assert server.invoke(ONE).status == 200
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.03  # Linux delays an acknowledgement by 40 ms


def test_metrics_count_what_was_answered(server):
    def count(pattern):
        page = server.get("/metrics").data.decode()
        return sum(map(float, re.findall(f"^{pattern} (.+)$", page, re.MULTILINE)))

    good, bad, scored = (
        r'spark_fm_requests_total\{path="/invocations",status="200"\}',
        r'spark_fm_requests_total\{path="/invocations",status="400"\}',
        r"spark_fm_instances_total",
    )
    before = [count(pattern) for pattern in (good, bad, scored)]
    server.invoke(instances(np.eye(WIDTH)[:5]))
    server.invoke(b"{")
    after = [count(pattern) for pattern in (good, bad, scored)]
    assert np.subtract(after, before).tolist() == [1, 1, 5]
    assert count(r'spark_fm_model_workers\{digest="[0-9a-f]{64}",version="[^"]+"\}') == 1
