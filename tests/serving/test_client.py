"""The client: against the server, and against servers that misbehave."""

from __future__ import annotations

import doctest
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.errors import InvalidDataError, InvalidParamError, ServerError, SparkFMError
from spark_fm.formats.requests import CONTENT_TYPES, JSON
from spark_fm.learner.csr import CsrBatch
from spark_fm.serving import Predictor
from spark_fm.serving import client as predictor
from tests.serving.conftest import WIDTH

GOOD = (200, {"Content-Type": JSON}, b'{"predictions": [{"score": 0.5}]}')
ROW = np.zeros((1, 3))


@pytest.fixture
def scripted():
    """A server that gives the answers it is told, in order; the last one again and again."""
    running = []

    def start(*answers):
        seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                seen.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                status, headers, body = answers[min(len(seen), len(answers)) - 1]
                if status == 0:
                    return  # closes the connection without an answer
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}", seen

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("accept", [*CONTENT_TYPES, None])
def test_scores_are_the_models_whatever_the_formats_and_however_many_requests(
    server, weights, content_type, accept
):
    X = sp.random(700, WIDTH, 0.2, random_state=3, format="csr", dtype=np.float32)
    expected = weights.predict(CsrBatch.from_matrix(X), "logistic")
    limit = 10_000
    with Predictor(
        server.url, content_type=content_type, accept=accept, max_payload_bytes=limit
    ) as predictor:
        found = predictor.predictions(X)
        dense = predictor.predict(X[:50].toarray())
    np.testing.assert_array_equal(found.scores, expected)
    np.testing.assert_array_equal(found.labels, (expected >= 0.4).astype(np.float32))
    np.testing.assert_allclose(dense, expected[:50], rtol=0, atol=1e-6)
    assert found.scores.dtype == np.float32


@pytest.mark.parametrize(
    "kind", [sp.csr_matrix, sp.csc_array, sp.coo_matrix, list, np.asarray, np.float64]
)
def test_all_forms_of_rows_are_taken(server, weights, kind):
    X = np.eye(WIDTH)[:4]
    rows = X.tolist() if kind is list else X.astype(kind) if kind is np.float64 else kind(X)
    scores = Predictor(server.url).predict(rows)
    expected = weights.predict(CsrBatch.from_matrix(X), "logistic")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert Predictor(server.url).predict(X[0]).shape == (1,)


@pytest.mark.parametrize("name", ["coo_array", "csr_array", "dok_array"])
def test_one_dimension_is_one_row_of_sparse_arrays_too(server, weights, name):
    row = np.zeros(WIDTH, np.float32)
    row[[2, 5]] = 1.5, -2
    try:
        flat = getattr(sp, name)(row)
    except ValueError:
        pytest.skip("this SciPy has no such arrays of one dimension")
    if flat.ndim != 1:
        pytest.skip("this SciPy has no such arrays of one dimension")
    scores = Predictor(server.url).predict(flat)
    expected = weights.predict(CsrBatch.from_matrix(row[None]), "logistic")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "told"),
    [(np.ma.masked_equal([[1.0, 2.0]], 2.0), "masked"), (np.zeros((1, 1, 3)), "3 dimensions"),
     ([["a", "b"]], "dtype"), ([[1.0], [1.0, 2.0]], "same length")],
)  # fmt: skip
def test_what_is_no_table_of_numbers_is_told_before_it_is_sent(scripted, rows, told):
    url, seen = scripted(GOOD)
    with pytest.raises(InvalidDataError, match=told):
        Predictor(url).predict(rows)
    assert not seen


def test_no_rows_need_no_request():
    found = Predictor("http://127.0.0.1:9").predictions(sp.csr_array((0, 5)))
    assert found.scores.shape == (0,)


def test_a_refusal_carries_the_servers_message_and_the_row(server):
    X = np.zeros((40, WIDTH))
    X[31, :2] = 3e38  # the score overflows
    with pytest.raises(
        ServerError, match=r"answered 400 \(row 31 of X\): Instance \d+ has"
    ) as caught:
        Predictor(server.url, max_payload_bytes=2000).predict(X)
    assert (caught.value.status, caught.value.row) == (400, 31)
    assert isinstance(caught.value, SparkFMError)
    with pytest.raises(ServerError, match="the model has 20 features") as caught:
        Predictor(server.url).predict(np.zeros((1, 7)))
    assert caught.value.status == 400


def test_rows_that_no_request_can_carry_are_told_before_any_is_sent(scripted):
    url, seen = scripted(GOOD)
    with pytest.raises(InvalidDataError, match="Row 0 takes"):
        Predictor(url, max_payload_bytes=100).predict(np.ones((1, 500)))
    with pytest.raises(InvalidDataError, match="row 0"):
        Predictor(url).predict([[1.0, float("nan")]])
    assert not seen


def test_an_overloaded_server_is_asked_again(scripted):
    busy = (503, {"Retry-After": "0"}, b"")
    url, seen = scripted(busy, busy, GOOD)
    assert Predictor(url, backoff=0.01).predict(ROW).tolist() == [0.5]
    assert [path for path, _ in seen] == ["/invocations"] * 3
    assert len({body for _, body in seen}) == 1


def test_a_connection_that_breaks_is_opened_again(scripted):
    url, seen = scripted((0, {}, b""), GOOD)
    assert Predictor(url, backoff=0.01).predict(ROW).tolist() == [0.5]
    assert len(seen) == 2


def test_it_gives_up_within_its_bounds(scripted, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    body = json.dumps({"error": "too busy today"}).encode()
    url, seen = scripted((503, {"Retry-After": "86400"}, body))
    with pytest.raises(ServerError, match="answered 503: too busy today"):
        Predictor(url, retries=3).predict(ROW)
    assert len(seen) == 4
    assert max(waits) <= 10


def test_a_server_that_is_not_there_or_does_not_answer_is_told():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ServerError, match=r"does not answer: .*refused"):
            Predictor(url, retries=1, backoff=0.0).predict(ROW)
        listener.listen()
        with pytest.raises(ServerError, match=r"does not answer: .*timed out"):
            Predictor(url, retries=0, timeout=0.1).predict(ROW)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((404, {}, b"<html>nothing</html>"), "answered 404: <html>nothing"),
        ((500, {}, b'{"message": "oh"}'), "answered 500: oh"),
        ((302, {"Location": "/x"}, b""), "answered 302"),
        ((400, {}, b"[1]"), r"answered 400: \[1\]"),
        ((200, {"Content-Type": JSON}, b"{}"), "cannot be read"),
        ((200, {"Content-Type": "text/csv"}, b"0.5"), "cannot be read"),
        ((200, {"Content-Type": JSON}, b'{"predictions": []}'), "0 scores for 1 rows"),
    ],
)
def test_any_other_answer_is_an_error_that_shows_it(scripted, answer, told):
    url, _ = scripted(answer)
    with pytest.raises(ServerError, match=told):
        Predictor(url, retries=0).predict(ROW)


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://host:8080", "http://host:8080/invocations"),
        ("https://host/", "https://host/invocations"),
        ("http://host/invocations", "http://host/invocations"),
        ("https://host/endpoints/fm/invocations?x=1", "https://host/endpoints/fm/invocations?x=1"),
    ],
)
def test_invocations_is_appended_unless_a_path_is_given(url, full):
    assert Predictor(url).url == full


@pytest.mark.parametrize(
    ("values", "named"),
    [({"url": "host:8080"}, "url"), ({"url": "ftp://host"}, "url"), ({"url": "http://"}, "url"),
     ({"content_type": "text/csv"}, "content_type"), ({"accept": "text/csv"}, "accept"),
     ({"timeout": 0}, "timeout"), ({"retries": -1}, "retries"),
     ({"max_payload_bytes": 0}, "max_payload_bytes"), ({"backoff": float("nan")}, "backoff")],
)  # fmt: skip
def test_what_cannot_be_used_is_named(values, named):
    with pytest.raises(InvalidParamError, match=named):
        Predictor(**{"url": "http://host", **values})


def test_the_example_in_the_docstring_runs():
    failures, tried = doctest.testmod(predictor)
    assert tried > 0
    assert failures == 0
