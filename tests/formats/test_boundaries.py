"""Splits start at records, also where payloads hold the magic or whole frames."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from spark_fm.formats.recordio.decode import find_boundary
from spark_fm.formats.recordio.framing import MAGIC_BYTES
from spark_fm.formats.recordio.record_pb2 import Record
from tests.formats.mutations import framed


def nasty_record(rng: random.Random, width: int = 0) -> bytes:
    """Return a record whose metadata holds magics, headers, or whole valid frames."""
    record = Record()
    values = [rng.random()] * (width or rng.randrange(1, 9))
    record.features["values"].float32_tensor.values.extend(values)
    inner = Record()
    inner.features["values"].float32_tensor.values.extend([1.0])
    frame = framed(inner.SerializeToString())
    record.metadata = rng.choice(
        (
            b"",
            MAGIC_BYTES * rng.randrange(1, 5),
            b"x" * rng.randrange(4) + frame * rng.randrange(1, 6),
            MAGIC_BYTES + rng.randrange(200).to_bytes(4, "little") + b"y" * rng.randrange(99),
        )
    )
    # The metadata comes last: inner frames often end exactly where the record does.
    return record.SerializeToString()


@pytest.mark.parametrize("window", [512, 4096, 2**20])
@pytest.mark.parametrize("seed", range(4))
def test_every_offset_leads_to_the_next_true_record(seed, window):
    rng = random.Random(seed)
    starts, data = [], b""
    for _ in range(40):
        starts.append(len(data))
        data += framed(nasty_record(rng))

    for start in range(0, len(data) + 4, 3):
        found = find_boundary(lambda a, n: data[a : a + n], len(data), start, window=window)
        assert found in (*starts, len(data))
        assert found >= min(start, len(data))


def test_a_boundary_is_the_nearest_one_in_plain_files():
    frame = framed(b"0123456789")
    data = frame * 1000

    for start in range(1, len(data), 111):
        found = find_boundary(lambda a, n: data[a : a + n], len(data), start)
        assert found == -(-start // len(frame)) * len(frame)


def test_splits_cover_every_record_once():
    rng = random.Random(9)
    frames = [framed(nasty_record(rng)) for _ in range(300)]
    data = b"".join(frames)
    cuts = [
        find_boundary(lambda a, n: data[a : a + n], len(data), start, window=512)
        for start in range(0, len(data), 1000)
    ] + [len(data)]

    assert cuts == sorted(cuts)
    assert b"".join(data[a:b] for a, b in pairwise(cuts)) == data


def test_a_record_longer_than_the_window_is_stepped_over():
    long = framed(MAGIC_BYTES * 5000)
    data = framed(b"a") + long + framed(b"b") * 3

    found = find_boundary(lambda a, n: data[a : a + n], len(data), 5000, window=64)

    assert found == 12 + len(long)


def test_around_broken_bytes_the_search_is_bounded_and_all_splits_agree():
    rng = random.Random(4)
    frames = [framed(nasty_record(rng)) for _ in range(2000)]
    data = b"".join(frames[:1000]) + b"\0" * 50_000 + b"".join(frames[1000:])
    largest = 0

    def read_at(offset: int, length: int) -> bytes:
        nonlocal largest
        largest = max(largest, length)
        return data[offset : offset + length]

    cuts = [
        find_boundary(read_at, len(data), start, window=512, max_record_bytes=2048, reach=4096)
        for start in range(0, len(data), 4096)
    ]

    assert cuts == sorted(cuts)
    assert largest <= 2 * 2048 + 4096
    sound = {sum(map(len, frames[:i])) for i in range(1001)}
    sound |= {sum(map(len, frames[:i])) + 50_000 for i in range(1000, 2001)}
    inside = range(sum(map(len, frames[:1000])) - 4096, sum(map(len, frames[:1000])) + 54_096)
    assert all(cut in sound or cut in inside for cut in cuts)
