"""Requests that are wrong by construction, and the status that each must be answered with."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spark_fm.formats.recordio.record_pb2 import Record
from spark_fm.formats.requests import CONTENT_TYPES, JSON, JSONLINES, RECORDIO_PROTOBUF
from tests.formats.mutations import framed

WIDTH = 20
LIMIT = 2**20  # of the server that they are for: --max-payload-mb 1

# Names that end like msgspec's messages, which quote unknown names and then tell the path.
IMITATIONS = (
    *(f"x` - at `$.instances[{digits}]" for digits in ("0", "999", "9" * 10, "9" * 5000)),
    *(f"` - at `$.instances[{digits}].data.features.values[{digits}]"
      for digits in ("1", "1" * 4301, "\u0661\u0662", "-1", "1e9", "")),
    " - at `$", " - at `$`", "x` - at `$.features", "x` - at `$.data[...]", "x` - at `$[0]",
    "` - at `$.instances[0]` - at `$.instances[7]", "$.instances[3]", "`", "```", "$", "\xe9`$[1]",
    "\n - at `$.instances[2]", "x` - at `$.\u0438\u043c\u044f[4]", "9" * 5000, "\0", "\U0001f600",
    "x` - at `$" + ".a[1]" * 900,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A request and what it must be answered with; ``raw`` is sent as it is, and no HTTP."""

    kind: str
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})
    method: str = "POST"
    path: str = "/invocations"
    is_chunked: bool = False
    raw: bytes = b""


def number(rng: random.Random) -> float:
    return rng.choice((0, 1, -1, 0.5, 3, round(rng.uniform(-9, 9), 3)))


def good_instance(rng: random.Random) -> dict[str, Any]:
    """Return a sound instance in one of the three forms."""
    form = rng.randrange(3)
    dense = [number(rng) for _ in range(WIDTH)]
    if form == 0:
        return {"features": dense}
    if form == 1:
        return {"data": {"features": {"values": dense}}}
    keys = sorted(rng.sample(range(WIDTH), rng.randrange(1, 6)))
    values = [number(rng) for _ in keys]
    return {"data": {"features": {"keys": keys, "shape": [WIDTH], "values": values}}}


def wrong_value(rng: random.Random) -> Any:
    """Return what is no number that a float32 can hold."""
    return rng.choice(
        ("1", "", None, True, False, [], [1], {}, {"a": 1}, 1e39, -1e300, float("nan"),
         float("inf"), 10**400, "NaN")
    )  # fmt: skip


def bad_instance(rng: random.Random) -> Any:
    """Return an instance that no model of WIDTH features can score."""
    dense = [number(rng) for _ in range(WIDTH)]
    keys = sorted(rng.sample(range(WIDTH), 3))
    tensor: dict[str, Any] = {"keys": keys, "shape": [WIDTH], "values": [1, 2, 3]}
    what = rng.randrange(17)
    if what == 0:
        dense[rng.randrange(WIDTH)] = wrong_value(rng)
        return {"features": dense}
    if what == 1:
        return {"features": dense[: rng.randrange(WIDTH)]}
    if what == 2:
        return {"features": dense + [0] * rng.randrange(1, 9)}
    if what == 3:
        return {"features": rng.choice(("x", None, 1, {}, {"values": dense}, [dense]))}
    if what == 4:
        return rng.choice((None, 1, "x", [], dense, {}, True, {"feature": dense}, {"data": {}}))
    if what == 5:
        return {"features": dense, "data": {"features": tensor}}
    if what == 6:
        tensor["keys"][rng.randrange(3)] = rng.choice(
            (-1, WIDTH, 2**31, 2**63, 10**30, 1.5, "1", None, True, [0], -0.5)
        )
    elif what == 7:
        tensor["keys"][0] = tensor["keys"][1]
    elif what == 8:
        tensor["values"] = [1] * rng.choice((0, 1, 2, 4, 9))
    elif what == 9:
        tensor["values"][rng.randrange(3)] = wrong_value(rng)
    elif what == 10:
        tensor["shape"] = rng.choice(
            ([], [WIDTH - 1], [WIDTH + 1], [WIDTH, 1], [1, WIDTH], ["20"], [None], WIDTH, "20",
             None, {}, [2**40], [-WIDTH], [20.5])
        )  # fmt: skip
    elif what == 11:
        del tensor[rng.choice(("shape", "values"))]
    elif what == 12:
        tensor[rng.choice(("key", "Values", "", "extra"))] = [1]
    elif what == 13:
        return {"data": {"features": rng.choice((None, 1, [], dense, "x", {}))}}
    elif what == 14:
        return {"data": {"features": tensor}, rng.choice(("label", "weights", "x")): 1}
    elif what == 15:
        return {"features": dense, "configuration": rng.choice((None, 1, [], "x", True))}
    else:
        return {"data": {"features": {"values": dense, "keys": list(range(WIDTH - 1))}}}
    return {"data": {"features": tensor}}


def some_good(rng: random.Random) -> list[Any]:
    return [good_instance(rng) for _ in range(rng.choice((0, 1, 1, 2, 5)))]


def bad_json(rng: random.Random) -> Case:
    """A document with one bad instance among good ones."""
    found = some_good(rng)
    found.insert(rng.randrange(len(found) + 1), bad_instance(rng))
    return Case("bad instance", 400, json.dumps({"instances": found}).encode())


def broken_json(rng: random.Random) -> Case:
    """A document that is no JSON, or no document."""
    text = json.dumps({"instances": [good_instance(rng), *some_good(rng)]})
    place = rng.randrange(len(text))
    what = rng.randrange(9)
    if what == 0:
        return Case("cut off", 400, text[:place].encode())
    if what == 1:
        return Case("unbalanced", 400, (text[:place] + rng.choice("]}[{") + text[place:]).encode())
    if what == 2:
        body = text.encode()
        byte = bytes([rng.choice((0x80, 0xC0, 0xFF, 0x00, 0xED))])
        return Case("no UTF-8", 400, body[:place] + byte + body[place:])
    if what == 3:
        return Case("trailing", 400, (text + rng.choice(("x", "{}", "]", ",", text))).encode())
    if what == 4:
        return Case("other encoding", 400, text.encode(rng.choice(("utf-16", "utf-32"))))
    if what == 5:
        depth = rng.choice((100, 2000, 50_000))
        deep = rng.choice(("[", '{"instances":', '{"instances":[{"features":['))
        return Case("deep", 400, (deep * depth).encode()[:LIMIT])
    if what == 6:
        wrong = rng.choice((None, 1, "x", {}, True, [], [[]], [None]))
        return Case("wrong instances", 400, json.dumps({"instances": wrong}).encode())
    if what == 7:
        other = rng.choice(("Instances", "instance", "data", "features", ""))
        return Case("other name", 400, json.dumps({other: [good_instance(rng)]}).encode())
    body = rng.choice((b"", b" ", b"\n", b"[]", b"null", b"0", b'"x"', b"{}", b"nan", b"\x00"))
    return Case("no document", 400, body)


def repeated_name(rng: random.Random) -> Case:
    """A name twice in one object: parsers take one of both silently."""
    dense = json.dumps([number(rng) for _ in range(WIDTH)])
    text = rng.choice(
        ('{"instances": [{"features": %s, "features": %s}]}',
         '{"instances": [{"features": %s}], "instances": [{"features": %s}]}',
         '{"instances": [{"data": {"features": {"values": %s, "values": %s}}}]}')
    )  # fmt: skip
    return Case("repeated name", 400, (text % (dense, dense)).encode())


def imitating_name(rng: random.Random) -> Case:
    """An unknown name that looks like a place of the body, somewhere in it."""
    name = rng.choice(IMITATIONS) + rng.choice(("", "", "", "`", "` ", "`]"))
    instances = [good_instance(rng), *some_good(rng)]
    is_beside, as_lines = rng.random() < 0.4, rng.random() < 0.4
    if not is_beside or as_lines:
        odd = rng.choice(instances)
        if "data" in odd:
            odd = rng.choice((odd, odd["data"], odd["data"]["features"]))
        odd[name] = rng.choice((1, None, [1], {name: 1}, "x"))
    ascii_only = rng.random() < 0.5
    if as_lines:
        texts = [json.dumps(instance, ensure_ascii=ascii_only) for instance in instances]
        body = "\n".join(texts).encode()
        return Case("imitating name", 400, body, {"Content-Type": JSONLINES})
    document = {"instances": instances}
    if is_beside:
        document = {name: instances, **document} if rng.random() < 0.5 else {**document, name: 1}
    body = json.dumps(document, ensure_ascii=ascii_only).encode()
    return Case("imitating name", 400, body)


def bad_lines(rng: random.Random) -> Case:
    """A bad line among good ones."""
    lines = [json.dumps(instance) for instance in some_good(rng)]
    good = json.dumps(good_instance(rng))
    what = rng.randrange(6)
    if what <= 2:
        bad = json.dumps(bad_instance(rng))
    elif what == 3:
        bad = good[: rng.randrange(1, len(good))]
    elif what == 4:
        bad = rng.choice((f"{good} {good}", f"{good},", f"[{good}]", "[" + good))
    else:
        bad = rng.choice(("x", "null", "[]", "{}", "\x00", "1", '"'))
    lines.insert(rng.randrange(len(lines) + 1), bad)
    ending = rng.choice(("\n", "\r\n"))
    body = (ending.join(lines) + rng.choice(("", ending))).encode()
    if rng.random() < 0.05:
        body = rng.choice((b"", b"\n", b"\n\n \n"))
    return Case("bad line", 400, body, {"Content-Type": JSONLINES})


def record(rng: random.Random) -> Record:
    """Return a sound record."""
    made = Record()
    tensor = made.features["values"].float32_tensor
    if rng.random() < 0.5:
        tensor.values.extend(number(rng) for _ in range(WIDTH))
    else:
        tensor.keys.extend(sorted(rng.sample(range(WIDTH), 3)))
        tensor.values.extend(number(rng) for _ in range(3))
        tensor.shape.append(WIDTH)
    return made


def bad_record(rng: random.Random) -> bytes:
    """Return a record that no model of WIDTH features can score."""
    made = Record()
    tensor = made.features["values"].float32_tensor
    what = rng.randrange(7)
    if what == 0:
        tensor.values.extend([1.0] * rng.choice((1, WIDTH - 1, WIDTH + 1, 100)))
    elif what == 1:
        tensor.keys.extend([0, rng.choice((WIDTH, 2**31, 2**63))])
        tensor.values.extend([1, 1])
        tensor.shape.append(WIDTH)
    elif what == 2:
        tensor.keys.extend([0, 1])
        tensor.values.extend([1] * rng.choice((0, 1, 3)))
        tensor.shape.append(WIDTH)
    elif what == 3:
        tensor.keys.append(0)
        tensor.values.append(1)
        tensor.shape.extend(rng.choice(([WIDTH + 1], [WIDTH - 1], [WIDTH, 2], [2**40])))
    elif what == 4:
        tensor.keys.append(3)
        tensor.values.append(rng.choice((float("nan"), float("inf"), float("-inf"))))
        tensor.shape.append(WIDTH)
    elif what == 5:
        del made.features["values"]
        if rng.random() < 0.5:
            made.features["other"].float32_tensor.values.extend([1.0] * WIDTH)
    else:
        # A field of its own number whose length is beyond the end.
        return b"\x0a" + bytes([rng.randrange(20, 128)]) + bytes(rng.randrange(10))
    return made.SerializeToString()


def bad_records(rng: random.Random) -> Case:
    """Records of which one is bad, or frames that are none."""
    frames = [framed(record(rng).SerializeToString()) for _ in range(rng.randrange(4))]
    what = rng.randrange(6)
    good = framed(record(rng).SerializeToString())
    if what <= 2:
        frames.insert(rng.randrange(len(frames) + 1), framed(bad_record(rng)))
    elif what == 3:
        frames.append(good[: rng.randrange(1, len(good) - 3)])
    elif what == 4:
        place = rng.randrange(4)
        frames.append(
            good[:place] + bytes([good[place] ^ (1 << rng.randrange(8))]) + good[place + 1 :]
        )
    else:
        wrong = rng.choice(
            (b"", b"x", bytes(rng.randrange(1, 64)), rng.randbytes(rng.randrange(1, 200)),
             json.dumps({"instances": [good_instance(rng)]}).encode(),
             good[:4] + struct.pack("<I", rng.choice((2**29 - 1, 2**32 - 1, 4096))) + good[8:])
        )  # fmt: skip
        frames = [wrong] if not wrong else [*frames, wrong]
    return Case("bad records", 400, b"".join(frames), {"Content-Type": RECORDIO_PROTOBUF})


def wrong_type(rng: random.Random) -> Case:
    """A Content-Type or encoding that is not served, or one of another format."""
    body = json.dumps({"instances": [good_instance(rng)]}).encode()
    what = rng.randrange(4)
    if what == 0:
        return Case("no type", 415, body, {})
    if what == 1:
        coding = rng.choice(("gzip", "br", "deflate, gzip", "x", "chunked"))
        return Case("encoding", 415, body, {"Content-Type": JSON, "Content-Encoding": coding})
    if what == 2:
        other = rng.choice((JSONLINES, RECORDIO_PROTOBUF))
        return Case("other type", 400, body, {"Content-Type": other})
    named = rng.choice(
        ("text/csv", "text/plain", "application/xml", "json", "application", "/", ";", "*/*",
         "\xe9", "application/json2", "application/json; charset=utf-16",
         "application/json, text/csv", "application//json",
         "x" * rng.randrange(1, 5000), "application/json; charset=\"")
    )  # fmt: skip
    return Case("wrong type", 415, body, {"Content-Type": named})


def wrong_accept(rng: random.Random) -> Case:
    """An Accept that rules out the format of the request, and accepts no other."""
    body = json.dumps({"instances": [good_instance(rng)]}).encode()
    accept = rng.choice(
        ("*/*;q=0", "application/json;q=0", "*;q=.0", "application/*;q=0, text/*",
         "json, application/json;q=0.000", "*/*;q=0, application/jsonlines;q=x")
    )  # fmt: skip
    return Case("wrong accept", 406, body, {"Content-Type": rng.choice((JSON,)), "Accept": accept})


def wrong_target(rng: random.Random) -> Case:
    """A method or path that is not served."""
    body = rng.choice((b"", b"x" * rng.randrange(100)))
    if rng.random() < 0.5:
        path, methods = rng.choice(
            (("/invocations", ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")),
             ("/", ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")),
             ("/ping", ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")),
             ("/metrics", ("POST", "PUT")), ("/health", ("POST", "DELETE")),
             ("/execution-parameters", ("POST", "PATCH")))
        )  # fmt: skip
        return Case("wrong method", 405, body, {}, rng.choice(methods), path)
    path = rng.choice(
        ("/invocations/", "//invocations", "/Invocations", "/invocations/1", "/ping/..",
         "/%00", "/..%2f..%2fetc/passwd", "/%ff", "/invocations%20", "/a" * rng.randrange(1, 500),
         "/ping;x",
         "/" + "".join(rng.choices("abcdefghij-_.~!", k=rng.randrange(1, 40))))
    )  # fmt: skip
    return Case("wrong path", 404, body, {}, rng.choice(("GET", "POST", "PUT")), path)


def too_large(rng: random.Random) -> Case:
    """A body beyond the limit, declared or chunked."""
    kind = rng.choice(CONTENT_TYPES)
    size = LIMIT + rng.choice((1, 1000, 2**18))
    return Case(
        "too large", 413, b" " * size, {"Content-Type": kind}, is_chunked=rng.random() < 0.5
    )


def no_http(rng: random.Random) -> Case:
    """Bytes that are no HTTP request, or one that contradicts itself."""
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    raw = rng.choice(
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"nonsense\r\n\r\n", b"GET\r\n\r\n",
         b"GET /ping HTTP/9.9\r\n\r\n", b"FETCH /ping HTTP/1.1\r\n\r\n",
         head + b"Content-Length: x\r\n\r\n", head + b"Content-Length: -1\r\n\r\n{",
         head + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}  ",
         head + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         head + b"Content-Length: 99999999999999999999999\r\n\r\n",
         head + b"Connection: close\r\nContent-Length: " + b"0" * 5000 + b"2\r\n\r\n{}",
         head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
         head + b"Bad Header: x\r\n\r\n", head + b": x\r\n\r\n",
         rng.randbytes(rng.randrange(1, 100)).lstrip(b"\r\n") + b"\xff\r\n\r\n")
    )  # fmt: skip
    return Case("no HTTP", 400, raw=raw)


KINDS: tuple[tuple[int, Callable[[random.Random], Case]], ...] = (
    (300, bad_json), (200, broken_json), (50, repeated_name), (40, imitating_name),
    (150, bad_lines), (180, bad_records), (50, wrong_type), (40, wrong_accept),
    (60, wrong_target), (2, too_large), (5, no_http),
)  # fmt: skip


def bad_request(rng: random.Random) -> Case:
    """Return any of them."""
    shares, makers = zip(*KINDS, strict=True)
    return rng.choices(makers, shares)[0](rng)
