"""Sharded sets: files that hold all rows, and the manifest that lists them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.recordio import write_record_set
from tests.formats.test_writer import TABLE, rows_in, written


@pytest.mark.parametrize("slash", ["", "/"])
def test_record_set_is_files_and_a_manifest(tmp_path: Path, slash: str) -> None:
    folder = f"{tmp_path}/deep/set"
    manifest = write_record_set(folder + slash, TABLE, [1, 0, 1], num_files=2)
    assert manifest == f"{folder}/.amazon.manifest"
    listed = json.loads(Path(manifest).read_text("utf-8"))
    assert listed == [{"prefix": folder + "/"}, "matrix_0.pbr", "matrix_1.pbr"]
    assert sorted(os.listdir(folder)) == [".amazon.manifest", "matrix_0.pbr", "matrix_1.pbr"]
    files = [Path(folder, name).read_bytes() for name in listed[1:]]
    assert b"".join(files) == written(TABLE, [1, 0, 1])


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array, sp.coo_matrix])
def test_rows_are_shared_out_evenly_and_in_order(tmp_path: Path, convert: Any) -> None:
    X = np.arange(1.0, 24).reshape(23, 1)
    listed = json.loads(
        Path(write_record_set(tmp_path, convert(X), num_files=10, prefix="part")).read_text()
    )
    assert listed[1:] == [f"part_{i:02d}.pbr" for i in range(10)]
    files = [rows_in((tmp_path / name).read_bytes()) for name in listed[1:]]
    assert [features[0] for file in files for features, _, _ in file] == list(range(1, 24))
    assert {len(file) for file in files} == {2, 3}


def test_one_file_is_the_default(tmp_path: Path) -> None:
    write_record_set(tmp_path, TABLE)
    assert (tmp_path / "matrix_0.pbr").read_bytes() == written(TABLE)


def test_more_files_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match=r"3 rows do not fill 4 files.*num_files to 3"):
        write_record_set(tmp_path / "set", TABLE, num_files=4)
    assert not (tmp_path / "set").exists()


def test_failure_in_a_later_file_leaves_the_old_set(tmp_path: Path) -> None:
    write_record_set(tmp_path, TABLE, num_files=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = TABLE.astype(float)
    bad[2, 1] = np.nan
    with pytest.raises(InvalidDataError, match="row 2, column 1"):
        write_record_set(tmp_path, bad, num_files=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("num_files", [0, -1, 1.5, True, "2", None])
def test_bad_number_of_files_is_refused(tmp_path: Path, num_files: Any) -> None:
    with pytest.raises(InvalidParamError, match=f"num_files .*{num_files!r}"):
        write_record_set(tmp_path, TABLE, num_files=num_files)


@pytest.mark.parametrize("prefix", ["", "a/b", None])
def test_bad_prefix_is_refused(tmp_path: Path, prefix: Any) -> None:
    with pytest.raises(InvalidParamError, match="prefix must be"):
        write_record_set(tmp_path, TABLE, prefix=prefix)


@pytest.mark.parametrize("folder", ["", "s3://bucket/set", 3, None])
def test_bad_folder_is_refused(folder: Any) -> None:
    with pytest.raises(InvalidParamError, match="folder must be a path of this machine"):
        write_record_set(folder, TABLE)
