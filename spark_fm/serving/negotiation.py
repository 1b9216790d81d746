"""Which format a request is in and which one its answer takes; workers.

References
----------
RFC 9110, sections 8.3 (media types) and 12.5.1 (Accept, quality values).
"""

from __future__ import annotations

import re

from spark_fm.formats.requests import CONTENT_TYPES, RECORDIO_PROTOBUF

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
    if parsed is None or parsed[0] not in CONTENT_TYPES:
        raise UnsupportedTypeError(f"Content-Type {shown(content_type)} is not served. {allowed}")
    media, parameters = parsed
    charset = parameters.get("charset", "utf-8").lower()
    if media != RECORDIO_PROTOBUF and charset not in ("utf-8", "utf8", "us-ascii"):
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
