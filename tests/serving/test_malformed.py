"""Some thousand malformed requests; ``python -m tests.serving.malformed`` sends more."""

from __future__ import annotations

import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.serving.bad_requests import KINDS, bad_request
from tests.serving.malformed import Client, check_good, check_many


def test_malformed_requests_are_answered_with_4xx_and_nothing_else(server):
    kinds = check_many(server.url, range(2000))
    check_good(Client(server.url))
    assert kinds.total() == 2000
    assert len(kinds) > 15
    check_no_failure(server)


def check_no_failure(server):
    """As `check_after`; other tests of this server have asked for 503."""
    page = server.get("/metrics").data.decode()
    assert 'status="500"' not in page
    assert "spark_fm_worker_deaths_total 0.0" in page


@pytest.mark.parametrize("maker", [maker for _, maker in KINDS], ids=lambda maker: maker.__name__)
def test_each_kind_makes_many_different_requests(maker):
    made = {repr(maker(random.Random(seed))) for seed in range(60)}
    assert len(made) > 5


def test_a_server_that_takes_malformed_requests_is_noticed():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    lenient = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lenient.serve_forever, daemon=True).start()
    case = next(n for n in range(99) if bad_request(random.Random(n)).kind == "bad instance")
    try:
        with pytest.raises(AssertionError, match="bad instance: 200"):
            check_many(f"http://127.0.0.1:{lenient.server_port}", [case])
    finally:
        lenient.shutdown()
        lenient.server_close()
