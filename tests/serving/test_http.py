"""Clients that offer another protocol are answered in HTTP/1.1."""

from __future__ import annotations

import json
import re
import socket
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.serving.conftest import WIDTH
from tests.serving.servers import instances

BODIES = [instances(np.eye(WIDTH)[row : row + 1]) for row in range(3)]
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def post(body: bytes, more: bytes = b"", *, is_chunked: bool = False) -> tuple[bytes, bytes]:
    """Return a request's head and body."""
    head = b"POST /invocations HTTP/1.1\r\nHost: here\r\nX-Empty:\r\n" + more
    head += b"Content-Type: application/json\r\n"
    if is_chunked:
        half = len(body) // 2
        parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:], b"")]
        return head + CHUNKED + b"\r\n", b"".join(parts)
    return head + b"Content-Length: %d\r\n\r\n" % len(body), body


class Opened:
    """A connection whose answers are read one by one."""

    def __init__(self, server) -> None:
        parts = urlsplit(server.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self.socket.makefile("rb")

    def send(self, *segments: bytes) -> None:
        for segment in segments:
            self.socket.sendall(segment)

    def answer(self) -> tuple[int, bytes]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self._answers.readline()
            assert line, head
            head += line
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        return int(head.split()[1]), self._answers.read(length)

    def rest(self) -> bytes:
        return self._answers.read()


@pytest.fixture
def opened(server):
    made = Opened(server)
    yield made
    made.socket.close()


@pytest.fixture(scope="module")
def expected(server) -> list[bytes]:
    return [server.invoke(body).data for body in BODIES]


def segmented(server, opened: Opened, segments: list[bytes]) -> None:
    """Send segments so that the server receives each by itself."""
    for segment in segments:
        opened.send(segment)
        assert server.get("/ping").status == 200  # of the same loop: it has read by now


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("cut", ["nowhere", "before the body", "in the body", "in the head"])
def test_an_offer_of_http_2_loses_no_body_however_it_is_cut(
    server, opened, expected, cut, is_chunked
):
    head, body = post(BODIES[0], OFFER, is_chunked=is_chunked)
    segments = {
        "nowhere": [head + body], "before the body": [head, body],
        "in the body": [head + body[:9], body[9:30], body[30:]],
        "in the head": [head[:50], head[50 : head.index(b"h2c") + 1],
                        head[head.index(b"h2c") + 1 : -1], head[-1:] + body],
    }[cut]  # fmt: skip
    for _ in range(2):  # the connection is good for more
        segmented(server, opened, segments)
        assert opened.answer() == (200, expected[0])


def test_pipelined_requests_with_and_without_offers_are_answered_in_order(opened, expected):
    offers = (OFFER, b"", OFFER, OFFER, b"")
    requests = [b"".join(post(BODIES[i % 3], offer)) for i, offer in enumerate(offers)]
    opened.send(b"".join(requests))
    assert [opened.answer() for _ in requests] == [(200, expected[i % 3]) for i in range(5)]


def test_a_whole_head_and_body_byte_by_byte(server, opened, expected):
    opened.send(*(bytes([byte]) for byte in b"".join(post(BODIES[1], OFFER))))
    assert opened.answer() == (200, expected[1])


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_an_offer_on_a_connection_that_ends_is_answered_once(opened, expected, version, is_cut):
    closing = b"" if version == b"1.0" else b"close, "
    head, body = post(BODIES[2], b"Connection: " + closing + b"Upgrade\r\nUpgrade: h2c\r\n")
    head = head.replace(b"HTTP/1.1", b"HTTP/" + version)
    opened.send(*((head, body) if is_cut else (head + body + head + body,)))
    assert opened.answer() == (200, expected[2])
    assert opened.rest() == b""


@pytest.mark.parametrize("protocol", [b"websocket", b"TLS/1.0, HTTP/1.1", b""])
def test_any_other_offer_is_passed_over_too(opened, protocol):
    opened.send(b"GET /ping HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n")
    assert opened.answer() == (200, b"")


def test_what_is_malformed_stays_so_with_an_offer(opened, expected):
    head, body = post(b"{", OFFER)
    opened.send(head, body)
    status, content = opened.answer()
    assert status == json.loads(content)["status"] == 400
    opened.send(*post(BODIES[0], OFFER + b"Content-Length: 1\r\n"))  # a second length
    assert opened.answer()[0] == 400
    assert opened.rest() == b""


def test_connect_is_refused_as_ever(opened):
    opened.send(b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n" + OFFER + b"\r\n")
    assert opened.answer()[0] == 400


def test_a_continue_is_given_before_the_body(opened, expected):
    head, body = post(BODIES[0], OFFER + b"Expect: 100-continue\r\n")
    opened.send(head)
    assert opened._answers.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert opened._answers.readline() == b"\r\n"
    opened.send(body)
    assert opened.answer() == (200, expected[0])


def test_a_head_that_offers_and_has_no_end_is_still_bounded(server, opened):
    filler = b"X-More: " + b"x" * 1000 + b"\r\n"
    try:
        opened.send(b"GET /ping HTTP/1.1\r\n" + OFFER, *[filler] * 1000)
        assert opened.answer()[0] == 400
    except OSError:
        pass  # cut while it was sending
    assert server.get("/ping").status == 200
