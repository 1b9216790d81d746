"""Streams of bytes: told apart, opened, and decompressed as far as they are sound."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from spark_fm.formats.files import GZIP_ERRORS, is_stream, name_of, open_stream, unzipped

# Noise hardly compresses, so that damage to its middle leaves a half that is sound.
DATA = np.random.default_rng(3).bytes(100_000)
PACKED = gzip.compress(DATA, mtime=0)


class Sipping:
    """A stream that gives some bytes at a time and can do nothing but read."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, 7))


def drain(stream: BinaryIO, found: bytearray) -> None:
    """Put all that a stream holds behind what was found before."""
    while taken := stream.read(1000):
        found += taken


@pytest.mark.parametrize("kind", [io.BytesIO, Sipping])
@pytest.mark.parametrize(
    "held", [DATA, PACKED, gzip.compress(DATA[:9], mtime=0) + gzip.compress(DATA[9:], mtime=0)]
)
def test_bytes_are_the_same_compressed_or_not(held: bytes, kind: type) -> None:
    found = bytearray()

    drain(unzipped(kind(held)), found)

    assert found == DATA


@pytest.mark.parametrize("data", [b"", b"\x1f", b"\x1f\x8a"])
def test_what_is_too_short_for_gzip_stays_as_it_is(data: bytes) -> None:
    assert unzipped(io.BytesIO(data)).read(9) == data


@pytest.mark.parametrize(
    "held",
    [
        PACKED[: len(PACKED) // 2],
        PACKED[: len(PACKED) // 2] + bytes(1000),
        PACKED[:-8] + bytes(8),
        PACKED + b"no gzip",
    ],
    ids=["cut", "overwritten", "wrong checksum", "rubbish at the end"],
)
def test_all_that_comes_before_damage_is_given_out_before_the_error(held: bytes) -> None:
    found = bytearray()

    with pytest.raises(GZIP_ERRORS):
        drain(unzipped(io.BytesIO(held)), found)

    assert len(found) > 45_000
    assert found[:45_000] == DATA[:45_000]


def test_streams_are_standard_input_and_named_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()

    assert is_stream("-")
    assert is_stream(str(tmp_path / "pipe"))
    for other in ("file", "absent", "", "a\0b"):
        assert not is_stream(str(tmp_path / other))


def test_streams_are_called_by_their_names(tmp_path: Path) -> None:
    assert name_of("-") == "standard input"
    assert name_of(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_file_is_opened_for_its_bytes(tmp_path: Path, buffering: int) -> None:
    (tmp_path / "file").write_bytes(DATA)

    with open_stream(str(tmp_path / "file"), buffering=buffering) as stream:
        assert stream.read(9) == DATA[:9]


def test_standard_input_stays_open_when_its_stream_is_closed() -> None:
    code = (
        "import sys\n"
        "from spark_fm.formats.files import open_stream\n"
        "with open_stream('-', buffering=0) as stream:\n"
        "    first = stream.read(3)\n"
        "print(first, sys.stdin.read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="abcdef", capture_output=True, text=True, check=True
    )

    assert done.stdout == "b'abc' def\n"
