"""A file that is replaced stays as it was when the disk is full."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from spark_fm.formats.convert import Conversion, convert
from spark_fm.formats.models.libfm import write_libfm
from spark_fm.formats.models.native import SavedModel, read_model, save_model
from spark_fm.formats.models.onnx import write_onnx
from spark_fm.formats.models.sagemaker import DENSE, SPARSE, write_sagemaker
from spark_fm.formats.models.text import write_text
from spark_fm.formats.recordio.writer import write_record_set, write_records
from spark_fm.ml.plots import finish, new_figure
from tests.formats.models import saved_model

X = np.random.default_rng(0).normal(size=(2000, 20))
EXPORTS: dict[str, Callable[[str, SavedModel], object]] = {
    "m.libfm": write_libfm,
    "m.txt": write_text,
    "m[1].onnx": write_onnx,
    "m.tar.gz": lambda path, model: write_sagemaker(path, model, network=SPARSE),
    "m?.tar.gz": lambda path, model: write_sagemaker(path, model, network=DENSE),
    "rows.pbr": lambda path, model: write_records(path, X),
    "rows.pbr.gz": lambda path, model: convert(Conversion((rows_beside(path),), path)),
    "rows*.libsvm": lambda path, model: convert(Conversion((rows_beside(path),), path)),
    "rows.parquet": lambda path, model: convert(Conversion((rows_beside(path),), path)),
    "rows.npz": lambda path, model: convert(Conversion((rows_beside(path),), path)),
    "plot.png": lambda path, model: finish(new_figure()[0], path),
    "plot.svg": lambda path, model: finish(new_figure()[0], path),
}


def rows_beside(path: str) -> str:
    return str(Path(path).parent / "in" / "rows.pbr")


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond 1000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def model(tmp_path: Path) -> SavedModel:
    return read_model(saved_model(tmp_path / "in", n_features=20_000))


@pytest.mark.parametrize("name", EXPORTS)
def test_a_file_stays_as_it_was_and_nothing_lies_beside_it(
    tmp_path: Path, model: SavedModel, name: str
) -> None:
    write_records(tmp_path / "in" / "rows.pbr", X, np.zeros(len(X)))
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "out" / "in").symlink_to(tmp_path / "in")
    path = folder / name
    path.write_text("what was there")

    with full_disk(), pytest.raises(OSError, match="too large"):
        EXPORTS[name](str(path), model)

    assert path.read_text() == "what was there"
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(["in", name])


def test_the_files_of_a_record_set_stay_together(tmp_path: Path) -> None:
    write_record_set(tmp_path, X[:4], num_files=2)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with full_disk(), pytest.raises(OSError, match="too large"):
        write_record_set(tmp_path, X, num_files=2)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_a_model_folder_stays_and_nothing_lies_beside_it(tmp_path: Path, model: SavedModel) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    small = read_model(saved_model(folder / "m"))

    with full_disk(), pytest.raises(OSError, match="too large"):
        save_model(str(folder / "m"), model, overwrite=True)

    assert np.array_equal(read_model(str(folder / "m")).weights.table, small.weights.table)
    assert [entry.name for entry in folder.iterdir()] == ["m"]
