"""Broken recordIO files, and a slow reader that says what they hold.

``python -m tests.formats.mutations --cases 200000`` runs as many as asked for.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import tracemalloc
from itertools import pairwise

import numpy as np
from google.protobuf.message import DecodeError

from spark_fm.formats.recordio.decode import MalformedMessageError, read_row
from spark_fm.formats.recordio.framing import MAGIC_BYTES
from spark_fm.formats.recordio.reader import RecordReader
from spark_fm.formats.recordio.record_pb2 import Record

MAX_RECORD_BYTES = 2**16


def framed(payload: bytes, flag: int = 0) -> bytes:
    """Return a frame around a payload."""
    header = MAGIC_BYTES + struct.pack("<I", flag << 29 | len(payload))
    return header + payload + b"\0" * (-len(payload) % 4)


def cut(payload: bytes, *places: int) -> bytes:
    """Return the frames of a record cut at places, with nothing left out."""
    bounds = [0, *places, len(payload)]
    flags = [1, *[2] * (len(places) - 1), 3]
    return b"".join(
        framed(payload[start:stop], flag)
        for flag, (start, stop) in zip(flags, pairwise(bounds), strict=True)
    )


def random_record(rng: random.Random) -> bytes:
    """Return a serialized Record: mostly a good row, sometimes an odd one."""
    record = Record()
    value = record.features["values" if rng.random() < 0.97 else "other"]
    kind = rng.choice(("float32_tensor", "float32_tensor", "float64_tensor", "int32_tensor"))
    tensor = getattr(value, kind)
    n = rng.choice((0, 1, 2, 3, 20))
    numbers = [rng.choice((0, 1, -1, 3, 2**31 - 1, -(2**31))) for _ in range(n)]
    tensor.values.extend(numbers)
    width = rng.choice((5, 200, 70_000, 2**31 - 1))
    form = rng.random()
    if form < 0.7:
        keys = [rng.randrange(width) for _ in range(n)]
        tensor.keys.extend(sorted(set(keys)) if rng.random() < 0.7 else keys)
        if rng.random() < 0.9:
            tensor.shape.append(width)
    elif form < 0.8:
        tensor.shape.append(n)
    elif form < 0.85:
        tensor.shape.extend([1, n])
    if rng.random() < 0.8:
        label = record.label["values"]
        getattr(label, rng.choice(("float32_tensor", "float64_tensor"))).values.append(rng.random())
    if rng.random() < 0.2:
        record.uid = bytes(rng.randrange(256) for _ in range(rng.randrange(9)))
    if rng.random() < 0.2:
        record.metadata = MAGIC_BYTES * rng.randrange(4)
    return record.SerializeToString()


def mutated(payload: bytes, rng: random.Random) -> bytes:
    """Return the bytes with a few changed, cut out, repeated or cut off."""
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not data:
            break
        place = rng.randrange(len(data))
        what = rng.randrange(6)
        if what == 0:
            data[place] = rng.randrange(256)
        elif what == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif what == 2:
            del data[place : place + rng.randrange(1, 9)]
        elif what == 3:
            data[place:place] = data[place : place + rng.randrange(1, 17)]
        elif what == 4:
            del data[place:]
        else:
            data[place : place + 4] = struct.pack("<I", rng.choice((0, 2**29 - 1, 2**32 - 1, 77)))
    return bytes(data)


def slowly(payload: bytes) -> object:
    """Return what one payload holds, by the protobuf library: a row, or the reason."""
    try:
        row = read_row(payload)
    except MalformedMessageError as err:
        return str(err)
    order = np.argsort(row.indices, kind="stable")
    sums: dict[int, float] = {}
    for j, x in zip(row.indices[order].tolist(), row.values[order].tolist(), strict=True):
        sums[j] = sums[j] + x if j in sums else x
    return (sums, row.width, row.is_dense, row.label, row.uid, row.metadata)


def quickly(data: bytes, chunk_bytes: int = 2**20) -> tuple[list[object], list[str]]:
    """Return the rows and the reasons of a file, by the reader."""
    rows: list[object] = []
    reasons: list[str] = []
    reader = RecordReader(
        io.BytesIO(data), on_malformed=lambda bad: reasons.append(bad.reason), with_texts=True,
        chunk_bytes=chunk_bytes, max_record_bytes=MAX_RECORD_BYTES,
    )  # fmt: skip
    for batch in reader:
        for r in range(batch.n_rows):
            cut = slice(batch.indptr[r], batch.indptr[r + 1])
            entries = dict(
                zip(batch.indices[cut].tolist(), batch.values[cut].tolist(), strict=True)
            )
            rows.append(
                (entries, int(batch.widths[r]), bool(batch.is_dense[r]), float(batch.labels[r]),
                 batch.uids[r], batch.metadata[r])
            )  # fmt: skip
    return rows, reasons


def same(a: object, b: object) -> bool:
    """Compare rows; NaN equals NaN."""
    return repr(a) == repr(b)


def check_message(rng: random.Random) -> None:
    """A broken message in a sound frame: the library's verdict, and the next row is safe."""
    payload = mutated(random_record(rng), rng)
    sound = random_record(random.Random(1))
    expected = slowly(payload)
    rows, reasons = quickly(framed(payload) + framed(sound))
    if isinstance(expected, str):
        assert reasons == [expected], (payload.hex(), reasons, expected)
        assert len(rows) == 1, payload.hex()
    else:
        assert not reasons, (payload.hex(), reasons)
        assert same(rows[0], expected), (payload.hex(), rows[0], expected)
    assert same(rows[-1], slowly(sound)), payload.hex()


def frame_at(data: bytes, place: int) -> tuple[bytes, int] | None:
    """Return payload and end of the record whose frames start at a place, if any do."""
    parts: list[bytes] = []
    total = 0
    while True:
        header = data[place : place + 8]
        if len(header) < 8 or header[:4] != MAGIC_BYTES:
            return None
        (word,) = struct.unpack("<I", header[4:])
        flag, length = word >> 29, word & 0x1FFFFFFF
        if flag not in ((2, 3) if parts else (0, 1)):
            return None
        total += length + (8 if parts else 0)
        after = place + 8 + length + -length % 4
        if total > MAX_RECORD_BYTES or after > len(data):
            return None
        parts.append(data[place + 8 : place + 8 + length])
        place = after
        if flag in (0, 3):
            is_aligned = all(len(part) % 4 == 0 for part in parts[:-1])
            joints = (MAGIC_BYTES, b"") if is_aligned else (b"", MAGIC_BYTES)
            joined = [joint.join(parts) for joint in joints]
            known = [payload for payload in joined if is_message(payload, unknown=False)]
            messages = [payload for payload in joined if is_message(payload)]
            return [*known, *messages, joined[0]][0], place


def is_followed(data: bytes, place: int) -> bool:
    """Tell whether another frame, or the end, comes next."""
    return data[place : place + 4] == MAGIC_BYTES[: len(data) - place]


def is_message(payload: bytes, *, unknown: bool = True) -> bool:
    """Tell whether the bytes are a Record, with ``unknown`` fields or without."""
    try:
        record = Record.FromString(payload)
    except (DecodeError, UnicodeDecodeError):
        return False
    known = Record()
    known.CopyFrom(record)
    known.DiscardUnknownFields()
    return unknown or known == record


def slow_file(data: bytes) -> tuple[list[object], int]:
    """Return the rows of a file, and how many places in it hold none, one byte at a time."""
    rows: list[object] = []
    n_bad, place = 0, 0
    while place < len(data):
        found = frame_at(data, place)
        row = "no frame" if found is None else slowly(found[0])
        if found is not None and not isinstance(row, str):
            rows.append(row)
            place = found[1]
            continue
        n_bad += 1
        if found is not None and is_message(found[0]) and is_followed(data, found[1]):
            place = found[1]
            continue
        place += 1
        while place < len(data):
            found = frame_at(data, place)
            if (
                found is not None
                and is_followed(data, found[1])
                and not isinstance(slowly(found[0]), str)
            ):
                break
            place += 1
    return rows, n_bad


def check_file(rng: random.Random) -> None:
    """A broken file: the rows of the slow reader, whatever the chunks."""
    payloads = [random_record(rng) for _ in range(rng.randrange(1, 6))]
    flags = [rng.choice((0, 0, 0, 0, 0, 1, 2, 3)) for _ in payloads]
    data = mutated(b"".join(map(framed, payloads, flags)), rng)
    rows, reasons = quickly(data, chunk_bytes=rng.choice((1, 7, 64, 2**20)))
    slow_rows, n_bad = slow_file(data)
    assert same(rows, slow_rows), (data.hex(), rows, slow_rows)
    assert len(reasons) == n_bad, (data.hex(), reasons, n_bad)


def check_damage(rng: random.Random) -> None:
    """One damaged frame among many: all other rows are found, but for the very next."""
    payloads = [random_record(rng) for _ in range(20)]
    frames = [framed(payload) for payload in payloads]
    damaged = rng.randrange(20)
    place = rng.randrange(len(frames[damaged]))
    broken = bytearray(frames[damaged])
    if rng.random() < 0.5:
        broken[place] ^= 1 << rng.randrange(8)
    else:
        del broken[place]
    rows, _ = quickly(b"".join([*frames[:damaged], bytes(broken), *frames[damaged + 1 :]]))
    before, after = (
        [row for row in map(slowly, some) if not isinstance(row, str)]
        for some in (payloads[:damaged], payloads[damaged + 2 :])
    )
    assert same(rows[: len(before)], before), (place, broken.hex())
    assert same(rows[len(rows) - len(after) :], after), (place, broken.hex())
    assert len(rows) - len(before) - len(after) in (0, 1, 2), (place, broken.hex())


CHECKS = (check_message, check_file, check_damage)


def main() -> None:
    """Run many cases and print how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quickly(framed(random_record(random.Random(0))))  # compiles
    tracemalloc.start()
    for case in range(args.cases):
        rng = random.Random(args.seed * 1_000_003 + case)
        CHECKS[case % len(CHECKS)](rng)
        if case % 10_000 == 9_999:
            print(f"{case + 1:,} cases, peak {tracemalloc.get_traced_memory()[1] >> 20} MiB")
    print(f"{args.cases:,} cases: no crash, no hang, no wrong row")


if __name__ == "__main__":
    main()
