"""JSON of batch transform as bytes: filters, instances among other members, joins. No Spark.

Only the objects and arrays on the way are taken apart: every value stays the bytes it came as.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from spark_fm.errors import InvalidParamError, RequestError

INPUT, OUTPUT = "SageMakerInput", "SageMakerOutput"  # members of a joined record
UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
OPERATORS = "$, .name, ['name','name'], [0,-1], [1:5] and * in place of a name or a number"

_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_ITEMS = msgspec.json.Decoder(list[Raw])
_OF_INSTANCE = ("features", "data", "configuration")

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_PLACE = r"-?\d+(?::(?:-?\d+)?)?|:(?:-?\d+)?"
_STEP = re.compile(
    rf"\.?\[\s*(?P<names>(?:{_QUOTED})(?:\s*,\s*(?:{_QUOTED}))*)\s*\]"
    rf"|\.?\[\s*(?P<places>(?:{_PLACE})(?:\s*,\s*(?:{_PLACE}))*)\s*\]"
    r"|(?P<all>\.\*|\.?\[\s*\*\s*\])"
    r"|\.(?P<name>[^\s.\[\]()'\"*,:?@]+)"
)


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A JSONPath expression, of the operators that SageMaker's documentation lists."""

    text: str
    name: str  # as errors call it
    # Of each step the names or places in brackets; None: all.
    steps: tuple[tuple[str | int | slice, ...] | None, ...]

    @classmethod
    def parse(cls, text: str, name: str) -> JsonPath:
        """Read an expression; raise InvalidParamError for one with other operators."""
        steps: list[tuple[str | int | slice, ...] | None] = []
        at = 1
        while text.startswith("$") and at < len(text):
            step = _STEP.match(text, at)
            if step is None:
                break
            if step["all"]:
                steps.append(None)
            elif step["name"]:
                steps.append((step["name"],))
            elif step["names"]:
                quoted = re.findall(_QUOTED, step["names"])
                steps.append(tuple(re.sub(r"\\(.)", r"\1", each[1:-1]) for each in quoted))
            else:
                steps.append(tuple(map(_place, step["places"].split(","))))
            at = step.end()
        names_end = all(not _are_names(step) for step in steps[:-1])
        if not text.startswith("$") or at < len(text) or not names_end:
            where = "" if not text.startswith("$") or at == len(text) else f" at {text[at:]!r}"
            raise InvalidParamError(
                f"The {name} {text!r} cannot be read{where}. It is a JSONPath with {OPERATORS}; "
                "several names stand at its end only, as in $['id','SageMakerOutput']."
            )
        return cls(text, name, tuple(steps))

    def select(self, text: bytes) -> bytes:
        """Return what the path leads to in a JSON value; a list where it may be several.

        Raises RequestError where it leads nowhere, and an error of UNREADABLE for no JSON.
        """
        if not self.steps:
            return text
        found, is_one = [Raw(text)], True
        for step in self.steps:
            found = [child for value in found for child in self._children(value, step)]
            is_one &= step is not None and (
                _are_names(step) or (len(step) == 1 and not isinstance(step[0], slice))
            )
        return bytes(found[0]) if is_one else msgspec.json.encode(found)

    def _children(self, value: Raw, step: tuple[str | int | slice, ...] | None) -> Sequence[Raw]:
        start = bytes(value).lstrip()[:1]
        if start == b"{":
            members = _MEMBERS.decode(value)
            if step is None:
                return list(members.values())
            missing = [name for name in step if name not in members]
            if missing:
                raise self._lost(missing[0], f"an object with {_listed(members)}")
            chosen = {str(name): members[str(name)] for name in step}
            return [Raw(msgspec.json.encode(chosen))] if len(step) > 1 else list(chosen.values())
        if start == b"[":
            items = _ITEMS.decode(value)
            found: list[Raw] = []
            for place in (slice(None),) if step is None else step:
                if isinstance(place, slice):
                    found += items[place]
                elif isinstance(place, str) or not -len(items) <= place < len(items):
                    raise self._lost(place, f"a list of {len(items)}")
                else:
                    found.append(items[place])
            return found
        seen = bytes(value)[:40].decode("utf-8", "replace")
        raise self._lost("*" if step is None else step[0], seen)

    def _lost(self, key: str | int | slice, what: str) -> RequestError:
        return RequestError(
            f"The {self.name} {self.text!r} finds no {key!r} in {what}. Name what is there."
        )


def _place(text: str) -> int | slice:
    start, colon, end = text.strip().partition(":")
    return slice(*(int(each) if each else None for each in (start, end))) if colon else int(start)


def _are_names(step: tuple[str | int | slice, ...] | None) -> bool:
    """Return whether a step names several members, which stay one object."""
    return step is not None and len(step) > 1 and isinstance(step[0], str)


def _listed(members: dict[str, Any]) -> str:
    shown = [repr(name) for name in members][:8]
    return ", ".join(shown) + (", ..." if len(members) > len(shown) else "") or "no member"


ALL = JsonPath("$", "filter", ())


def document_instances(text: bytes) -> list[bytes]:
    """Return the instances of ``{"instances": [...]}`` without other members, [] in other JSON."""
    try:
        instances = _checked_members(text).get("instances")
        items = [] if instances is None else map(bytes, _ITEMS.decode(instances))
    except UNREADABLE:
        return []
    return [bare_instance(each) or _on_one_line(each) for each in items]


def selected_instances(value: bytes) -> list[bytes]:
    """Return the instances in what an input filter selected, [] where there is none.

    It may be all that a request may be, and the inner parts of that: a list of instances or
    of numbers, a tensor, and lists of these.
    """
    start = value.lstrip()[:1]
    if start == b"[":
        items = _ITEMS.decode(value)
        if items and bytes(items[0]).lstrip()[:1] in (b"[", b"{"):
            return [one for each in items for one in selected_instances(bytes(each))]
        return [b'{"features": ' + _on_one_line(value) + b"}"]
    if start != b"{":
        return []
    members = _checked_members(value)
    if "instances" in members:
        return document_instances(value)
    if "values" in members and not members.keys() & set(_OF_INSTANCE):
        return [b'{"data": {"features": ' + _on_one_line(value) + b"}}"]
    instance = bare_instance(value)
    return [] if instance is None else [instance]


def bare_instance(text: bytes) -> bytes | None:
    """Return an instance on one line without members of other names; None for no instance."""
    try:
        members = _checked_members(text)
    except UNREADABLE:
        return None
    kept = [
        b'"%s": %s' % (name.encode(), bytes(members[name]))
        for name in _OF_INSTANCE if name in members
    ]  # fmt: skip
    return _on_one_line(b"{" + b", ".join(kept) + b"}") if kept else None


def _on_one_line(text: bytes) -> bytes:
    """Return JSON, whose strings hold no line ends, without them."""
    return text.replace(b"\n", b" ")


def _checked_members(text: bytes) -> dict[str, Raw]:
    """Return the members of an object; raise RequestError for a name that occurs twice."""
    if not text.isascii():
        text.decode()  # which Raw does not check
    members = _MEMBERS.decode(text)
    # A parser silently takes the last of two: each name and value has so many quotes.
    if text.count(b'"') != 2 * len(members) + sum(
        bytes(value).count(b'"') for value in members.values()
    ):
        objects: list[list[tuple[str, Any]]] = []  # the outermost is the last
        json.loads(text, object_pairs_hook=objects.append, parse_int=float)
        names = [name for name, _ in objects[-1]]
        if len(names) != len(members):
            twice = next(name for name in names if names.count(name) > 1)
            raise RequestError(
                f"The name {twice!r} is twice in one object; names must differ. Leave one out."
            )
    return members


def joined(text: bytes, output: bytes) -> bytes:
    """Return a record with its output, as SageMaker joins them."""
    text = text.strip()
    if text[:1] != b"{":
        return b'{"%s": %s, "%s": %s}' % (INPUT.encode(), text, OUTPUT.encode(), output)
    if OUTPUT.encode() in text and OUTPUT in _MEMBERS.decode(text):
        raise RequestError(
            f"The input has a member {OUTPUT!r} already, where a join puts the prediction. "
            "Rename it, or leave it out."
        )
    return b'%s, "%s": %s}' % (text[:-1], OUTPUT.encode(), output)
