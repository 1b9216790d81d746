"""Writing to files: whole or absent, by path or to file objects of every kind."""

from __future__ import annotations

import gzip
import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.recordio import writer
from spark_fm.recordio import write_records
from tests.formats.test_encode import DENSE_ROW, EMPTY_ROW
from tests.formats.test_writer import TABLE, written


class Failing(io.BytesIO):
    """A file on a disk that is full from the second write on."""

    def write(self, data: Any) -> int:
        if self.tell():
            raise OSError("disk full")
        return super().write(data)


class Sipping(io.RawIOBase):
    """A file without a buffer that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:7])
        return min(7, len(data))


@pytest.mark.parametrize("convert", [str, Path])
def test_path_gets_a_new_file_and_the_number_of_rows_comes_back(
    convert: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rows.pbr"
    path.write_bytes(b"old and longer than the new file" * 99)
    assert write_records(convert(path), TABLE, [1, 0, 1]) == 3
    assert path.read_bytes() == written(TABLE, [1, 0, 1])
    assert os.listdir(tmp_path) == ["rows.pbr"]


def test_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.pbr", TABLE)
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_records(tmp_path / "link", TABLE)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == written(TABLE)


def test_device_is_written_to_and_stays_a_device() -> None:
    assert write_records("/dev/null", TABLE) == 3
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.pbr"
    path.write_bytes(b"old")
    with pytest.raises(InvalidDataError, match="row 1, column 0"):
        write_records(path, [[1.0], [np.nan]])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["rows.pbr"]


def test_failure_without_an_old_file_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHUNK_ROWS", 1)  # the first row is on disk already
    with pytest.raises(InvalidDataError, match="row 1, column 0"):
        write_records(tmp_path / "rows.pbr", [[1.0], [np.nan]])
    assert os.listdir(tmp_path) == []


def test_file_object_is_appended_to_and_left_open() -> None:
    file = io.BytesIO()
    file.write(b"before")
    write_records(file, [[1.5, 16]], [1])
    write_records(file, sp.csr_array((1, 4)), [1])
    assert file.getvalue() == b"before" + DENSE_ROW + EMPTY_ROW


def test_compressed_file_object_is_written(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.gz", "wb") as file:
        write_records(file, TABLE)
    with gzip.open(tmp_path / "rows.gz") as file:
        assert file.read() == written(TABLE)


def test_file_object_that_takes_few_bytes_at_a_time_gets_all() -> None:
    file = Sipping()
    write_records(file, TABLE)
    assert file.taken == written(TABLE)


def test_error_of_the_file_object_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_ROWS", 1)
    with pytest.raises(OSError, match="disk full"):
        write_records(Failing(), TABLE)


@pytest.mark.parametrize("file", [io.StringIO(), 3, None, [], ""])
def test_what_is_no_binary_file_is_refused(file: Any) -> None:
    with pytest.raises(InvalidParamError, match="file must be a path"):
        write_records(file, TABLE)


def test_remote_path_is_refused() -> None:
    with pytest.raises(InvalidParamError, match=r"path of this machine, got 's3://bucket/x.pbr'"):
        write_records("s3://bucket/x.pbr", TABLE)


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        write_records(tmp_path, TABLE)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        write_records(tmp_path / "absent" / "rows.pbr", TABLE)
