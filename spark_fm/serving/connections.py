"""Uvicorn's connections with the time limits that it lacks; workers.

Uvicorn bounds the time between two requests of a connection. It waits without end for a
request's head, for the rest of a body that was answered early, and for a client that does
not read its answer; and httptools takes heads of any length. It takes what follows the head of a
request that offers another protocol (``Upgrade: h2c``, as Java's client and ``curl --http2``
do) for that protocol, and the request's body would be lost.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 2**16


class PlainParser(httptools.HttpRequestParser):
    """Reads requests that offer another protocol as if they did not.

    RFC 9110, section 7.8: a server may ignore the offer.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        # As uvicorn sets it: the first of several requests is answered though it says close.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    @property
    def is_offered(self) -> bool:
        """Whether the head that is being read will be read again, without its offer."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: Any) -> None:
        """Read a segment; raises what httptools raises."""
        parser = self
        while True:
            try:
                super(PlainParser, parser).feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if not parser.is_offered:
                    raise
                head, data = parser._head_without_offer(), memoryview(data)[offer.args[0] :]
            # A new one: this one reads no more when the head says ``Connection: close``.
            self._protocol.parser = parser = PlainParser(self._protocol)
            super(PlainParser, parser).feed_data(head)

    def _head_without_offer(self) -> bytes:
        """Return the head that was read last; what stands in it has no line breaks."""
        protocol = self._protocol
        version = self.get_http_version().encode()
        lines = [self.get_method() + b" " + protocol.url + b" HTTP/" + version]
        lines += [
            name + b": " + value for name, value in protocol.headers if name != b"upgrade"
        ]  # fmt: skip
        return b"\r\n".join([*lines, b"", b""])


def guarded_protocol(head_seconds: float, write_seconds: float) -> type[HttpToolsProtocol]:
    """Return a protocol class with time limits, for uvicorn's ``http`` setting.

    Parameters
    ----------
    head_seconds : float
        From a connection's start, or a head's first byte, to the head's end; also for
        the rest of a body after its answer.
    write_seconds : float
        For a client to take up what fills the connection's buffer.
    """

    class GuardedProtocol(HttpToolsProtocol):
        """A connection that is cut when the client keeps it waiting."""

        parser: PlainParser

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.parser = PlainParser(self)
            self._owed: asyncio.TimerHandle | None = None
            self._unread: asyncio.TimerHandle | None = None
            self._head_bytes = 0
            self._in_body = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._owed = self.loop.call_later(head_seconds, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._client_delivered()
            self._client_read()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            was_in_body = self._in_body
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._client_delivered()
                return
            # Nothing is being answered: the client owes a head, or the rest of a body.
            if self._owed is None and not self.transport.is_closing():
                self._owed = self.loop.call_later(head_seconds, self.transport.abort)
            if not was_in_body and not self._in_body:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                    self.send_400_response("The request's head is too long.")

        def on_headers_complete(self) -> None:
            if self.parser.is_offered:
                return
            self._head_bytes = 0
            self._in_body = True
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            if self.parser.is_offered:
                return
            self._in_body = False
            super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._unread is None:
                self._unread = self.loop.call_later(write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._client_read()
            super().resume_writing()

        def _client_delivered(self) -> None:
            if self._owed is not None:
                self._owed.cancel()
                self._owed = None

        def _client_read(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

    return GuardedProtocol
