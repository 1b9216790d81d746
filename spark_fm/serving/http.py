"""Timeouts and limits of connections, protocol upgrades, content negotiation."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spark_fm.formats.content_types import CONTENT_TYPES, REGISTRY

MAX_HEAD_BYTES = 2**16


class UpgradeIgnoringParser(httptools.HttpRequestParser):
    """Ignores a request's offer of another protocol, as RFC 9110, section 7.8, allows."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        # As uvicorn sets it: the first of pipelined requests is answered even with ``close``.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    @property
    def is_upgrade(self) -> bool:
        """Whether the head that is being read will be read again, without its offer."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: Any) -> None:
        """Read a segment; raises what httptools raises."""
        parser = self
        while True:
            try:
                super(UpgradeIgnoringParser, parser).feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if not parser.is_upgrade:
                    raise
                head, data = parser._head_without_offer(), memoryview(data)[offer.args[0] :]
            # A new one: after a head with ``Connection: close`` this one reads no more.
            self._protocol.parser = parser = UpgradeIgnoringParser(self._protocol)
            super(UpgradeIgnoringParser, parser).feed_data(head)

    def _head_without_offer(self) -> bytes:
        """Return the head that was read last; its values contain no line breaks."""
        protocol = self._protocol
        version = self.get_http_version().encode()
        lines = [self.get_method() + b" " + protocol.url + b" HTTP/" + version]
        lines += [
            name + b": " + value for name, value in protocol.headers if name != b"upgrade"
        ]  # fmt: skip
        return b"\r\n".join([*lines, b"", b""])


def timeout_protocol(head_seconds: float, write_seconds: float) -> type[HttpToolsProtocol]:  # noqa: C901 - one class in a closure
    """Return a protocol class with time limits, for uvicorn's ``http`` setting.

    ``head_seconds`` run from a connection's start, or a head's first byte, to the head's end,
    and for the rest of a body after its answer; ``write_seconds`` while a full buffer waits
    for the client to read.
    """

    class TimeoutProtocol(HttpToolsProtocol):
        """A connection that is cut when the client keeps it waiting."""

        parser: UpgradeIgnoringParser

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.parser = UpgradeIgnoringParser(self)
            self._read_deadline: asyncio.TimerHandle | None = None
            self._write_deadline: asyncio.TimerHandle | None = None
            self._head_bytes = 0
            self._in_body = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._read_deadline = self.loop.call_later(head_seconds, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._clear_read_deadline()
            self._clear_write_deadline()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            was_in_body = self._in_body
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._clear_read_deadline()
                return
            # Nothing is being answered: the client owes a head, or the rest of a body.
            if self._read_deadline is None and not self.transport.is_closing():
                self._read_deadline = self.loop.call_later(head_seconds, self.transport.abort)
            if not was_in_body and not self._in_body:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                    self.send_400_response("The request's head is too long.")

        def on_headers_complete(self) -> None:
            if self.parser.is_upgrade:
                return
            self._head_bytes = 0
            self._in_body = True
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            if self.parser.is_upgrade:
                return
            self._in_body = False
            super().on_message_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_deadline is None:
                self._write_deadline = self.loop.call_later(write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._clear_write_deadline()
            super().resume_writing()

        def _clear_read_deadline(self) -> None:
            if self._read_deadline is not None:
                self._read_deadline.cancel()
                self._read_deadline = None

        def _clear_write_deadline(self) -> None:
            if self._write_deadline is not None:
                self._write_deadline.cancel()
                self._write_deadline = None

    return TimeoutProtocol


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"\s*(\*(?!/)|{_TOKEN}/{_TOKEN})\s*")  # Java writes */* as a lone *, too
_PARAMETER = re.compile(rf'\s*;\s*(?:({_TOKEN})=("(?:[^"\\]|\\.)*"|{_TOKEN})?)?\s*')
_QUALITY = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")  # as .8 and 0.1234 are sent


class UnsupportedTypeError(ValueError):
    """The request's body is in a format that is not served: 415."""


class NotAcceptableError(ValueError):
    """The request's Accept rules out every format that is served: 406."""


def request_format(content_type: str | None) -> str:
    """Return the format that a Content-Type names: any case, parameters are allowed."""
    allowed = f"Send one of {', '.join(CONTENT_TYPES)}."
    if content_type is None or not content_type.strip():
        raise UnsupportedTypeError(f"The request has no Content-Type. {allowed}")
    parsed = _parse_media_type(content_type)
    if parsed is None or parsed[0] not in REGISTRY:
        raise UnsupportedTypeError(f"Content-Type {shown(content_type)} is not served. {allowed}")
    media, parameters = parsed
    charset = parameters.get("charset", "utf-8").lower()
    if REGISTRY[media].is_text and charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedTypeError(f"Charset {shown(charset)} is not read. Encode JSON as UTF-8.")
    return media


def response_format(accept: str | None, default: str) -> str:
    """Return the format that an Accept prefers, ``default`` without one and among equals.

    The most specific range that matches a format gives its quality; the highest quality
    wins, then the default, then the order in which the ranges were named. RFC 9110, section
    12.5.1, allows to disregard what cannot be satisfied: an element that cannot be read is
    passed over, and where no format is accepted the answer is the default, unless the
    quality 0 rules it out.
    """
    ranges: list[tuple[str, float]] = []
    # Commas within quotes do not separate.
    for part in re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', accept or ""):
        parsed = _parse_media_type(part)
        quality = "" if parsed is None else parsed[1].get("q", "1")
        if parsed is not None and _QUALITY.fullmatch(quality):
            ranges.append((parsed[0], min(1.0, float(quality))))
    found = {media: _quality_of(media, ranges) for media in CONTENT_TYPES}
    accepted = {media: each for media, each in found.items() if each is not None and each[0] > 0}
    if accepted:
        return max(
            accepted, key=lambda media: (accepted[media][0], media == default, -accepted[media][1])
        )
    if found[default] is None:
        return default
    raise NotAcceptableError(
        f"Accept {shown(accept or '')} rules out {default} with q=0, and accepts no other format "
        f"that is served. Accept one of {', '.join(CONTENT_TYPES)}."
    )


def shown(text: str) -> str:
    """Return a caller's text as an error may show it: quoted, and cut."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _quality_of(media: str, ranges: list[tuple[str, float]]) -> tuple[float, int] | None:
    """Return quality and index of the most specific range for a format, None without one."""
    for pattern in (media, media.split("/")[0] + "/*", "*/*", "*"):
        for index, (name, quality) in enumerate(ranges):
            if name == pattern:
                return quality, index
    return None


def _parse_media_type(text: str) -> tuple[str, dict[str, str]] | None:
    """Return type and parameters, all but the values in lower case; None: malformed."""
    head = _TYPE.match(text)
    if head is None:
        return None
    offset = head.end()
    parameters: dict[str, str] = {}
    while offset < len(text):
        parameter = _PARAMETER.match(text, offset)
        if parameter is None:
            return None
        if parameter[1]:
            parameters.setdefault(parameter[1].lower(), (parameter[2] or "").strip('"'))
        offset = parameter.end()
    return head[1].lower(), parameters
