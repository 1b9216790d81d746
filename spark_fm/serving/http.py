"""What HTTP leaves to servers: timeouts, limits, upgrades, content negotiation."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spark_fm.formats.content_types import CONTENT_TYPES, REGISTRY

MAX_HEAD_BYTES = 2**16


class UpgradeIgnoringParser(httptools.HttpRequestParser):
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
                super(UpgradeIgnoringParser, parser).feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if not parser.is_offered:
                    raise
                head, data = parser._head_without_offer(), memoryview(data)[offer.args[0] :]
            # A new one: this one reads no more when the head says ``Connection: close``.
            self._protocol.parser = parser = UpgradeIgnoringParser(self._protocol)
            super(UpgradeIgnoringParser, parser).feed_data(head)

    def _head_without_offer(self) -> bytes:
        """Return the head that was read last; what stands in it has no line breaks."""
        protocol = self._protocol
        version = self.get_http_version().encode()
        lines = [self.get_method() + b" " + protocol.url + b" HTTP/" + version]
        lines += [
            name + b": " + value for name, value in protocol.headers if name != b"upgrade"
        ]  # fmt: skip
        return b"\r\n".join([*lines, b"", b""])


def timeout_protocol(head_seconds: float, write_seconds: float) -> type[HttpToolsProtocol]:  # noqa: C901 - one class in a closure
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
            if self._read_deadline is None and not self.transport.is_closing():
                self._read_deadline = self.loop.call_later(head_seconds, self.transport.abort)
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
            if self._write_deadline is None:
                self._write_deadline = self.loop.call_later(write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._client_read()
            super().resume_writing()

        def _client_delivered(self) -> None:
            if self._read_deadline is not None:
                self._read_deadline.cancel()
                self._read_deadline = None

        def _client_read(self) -> None:
            if self._write_deadline is not None:
                self._write_deadline.cancel()
                self._write_deadline = None

    return GuardedProtocol


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"\s*({_TOKEN})/({_TOKEN})\s*")
_PARAMETER = re.compile(rf'\s*;\s*(?:({_TOKEN})=("(?:[^"\\]|\\.)*"|{_TOKEN})?)?\s*')
_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


class UnsupportedTypeError(ValueError):
    """The request's body is in a format that is not served: 415."""


class NotAcceptableError(ValueError):
    """No format that is served satisfies the request's Accept: 406."""


def request_format(content_type: str | None) -> str:
    """Return the format that a Content-Type names.

    Parameters
    ----------
    content_type : str or None
        The header's value: any case, parameters are allowed.

    Raises
    ------
    UnsupportedTypeError
        When it is missing, malformed, of another type, or of a charset that is not UTF-8.
    """
    allowed = f"Send one of {', '.join(CONTENT_TYPES)}."
    if content_type is None or not content_type.strip():
        raise UnsupportedTypeError(f"The request has no Content-Type. {allowed}")
    parsed = _parse(content_type)
    if parsed is None or parsed[0] not in REGISTRY:
        raise UnsupportedTypeError(f"Content-Type {shown(content_type)} is not served. {allowed}")
    media, parameters = parsed
    charset = parameters.get("charset", "utf-8").lower()
    if REGISTRY[media].is_text and charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedTypeError(f"Charset {shown(charset)} is not read. Encode JSON as UTF-8.")
    return media


def response_format(accept: str | None, default: str) -> str:
    """Return the format that an Accept prefers among those that are served.

    Parameters
    ----------
    accept : str or None
        The header's value, quality values and wildcards included.
    default : str
        Taken when there is no Accept, and among equals.

    Raises
    ------
    NotAcceptableError
        When it is malformed or excludes all that is served.

    Notes
    -----
    The most specific range that matches a format gives its quality; the highest quality
    wins, then the default, then the order in which the ranges were named.
    """
    if accept is None or not accept.strip():
        return default
    ranges: list[tuple[str, float]] = []
    for part in _parts(accept):
        parsed = _parse(part)
        quality = "1" if parsed is None else parsed[1].get("q", "1")
        if parsed is None or not _QUALITY.fullmatch(quality):
            raise NotAcceptableError(
                f"Accept {shown(accept)} cannot be read: {shown(part)} is not a media range."
            )
        ranges.append((parsed[0], float(quality)))
    best: tuple[float, bool, int] | None = None
    chosen = ""
    for media in CONTENT_TYPES:
        found = _quality_of(media, ranges)
        if found is None or found[0] == 0:
            continue
        rank = (found[0], media == default, -found[1])
        if best is None or rank > best:
            best, chosen = rank, media
    if best is None:
        raise NotAcceptableError(
            f"Accept {shown(accept)} names no format that is served. "
            f"Accept one of {', '.join(CONTENT_TYPES)}."
        )
    return chosen


def shown(text: str) -> str:
    """Return a caller's text as an error may show it: quoted, and cut."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _quality_of(media: str, ranges: list[tuple[str, float]]) -> tuple[float, int] | None:
    """Return quality and place of the most specific range for a format, None without one."""
    family = media.split("/")[0] + "/*"
    for wanted in (media, family, "*/*"):
        for place, (name, quality) in enumerate(ranges):
            if name == wanted:
                return quality, place
    return None


def _parse(text: str) -> tuple[str, dict[str, str]] | None:
    """Return media type and parameters, all but the values in lower case; None: malformed."""
    head = _TYPE.match(text)
    if head is None:
        return None
    place = head.end()
    parameters: dict[str, str] = {}
    while place < len(text):
        found = _PARAMETER.match(text, place)
        if found is None:
            return None
        if found[1]:
            parameters.setdefault(found[1].lower(), (found[2] or "").strip('"'))
        place = found.end()
    return f"{head[1]}/{head[2]}".lower(), parameters


def _parts(text: str) -> list[str]:
    """Split at the commas outside quotes; empty parts are allowed and left out."""
    parts = re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', text)
    return [part for part in parts if part.strip()] or [text]
