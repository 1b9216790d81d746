"""Model folders are read without Spark, and refused when they are not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from spark_fm.errors import InvalidDataError, ModelFormatError
from spark_fm.formats.models.native import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    MODEL_CLASS,
    model_arrays,
    model_metadata,
    read_model,
    write_model,
)
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.training import TrainingState
from spark_fm.learner.weights import FMWeights
from tests import oracle
from tests.builders import planted_batch, planted_weights

DEFAULTS = {"predictorType": "binary_classifier", "threshold": 0.5}


def write(
    path: Path, weights: FMWeights, state: TrainingState | None = None, **params: Any
) -> dict[str, Any]:
    """Write a folder as a model's writer does, and return its metadata."""
    arrays = model_arrays(weights, state)
    metadata = {
        "class": MODEL_CLASS,
        "uid": "fm_1",
        "paramMap": params,
        "defaultParamMap": DEFAULTS,
        "spark_fm": model_metadata(weights, arrays, {"rows": [], "facts": {"numRows": 3}}),
    }
    write_model(str(path), json.dumps(metadata), arrays)
    return metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model that a test may damage."""
    write(tmp_path / "model", planted_weights(30, 4, seed=1))
    return tmp_path / "model"


def metadata_file(folder: Path) -> Path:
    return folder / "metadata" / "part-00000"


def data_file(folder: Path) -> Path:
    return folder / "data" / "part-00000.parquet"


def fails_to_read(path: Path, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_model(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("uri", ["{}", "{}/", "file://{}"])
def test_a_model_comes_back_bit_for_bit(uri: str, tmp_path: Path) -> None:
    weights = planted_weights(30, 4, seed=2)
    write(tmp_path / "model", weights, threshold=0.25)

    model = read_model(uri.format(tmp_path / "model"))

    assert np.array_equal(model.weights.table, weights.table)
    assert not model.weights.table.flags.writeable
    assert model.weights.bias == weights.bias
    assert model.weights.feature_dim == 30
    assert model.weights.features is None
    assert model.state is None
    assert model.params == {"predictorType": "binary_classifier", "threshold": 0.25}
    assert model.metadata["summary"]["facts"] == {"numRows": 3}


@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
def test_scores_are_those_of_the_formula(kind: str, tmp_path: Path) -> None:
    weights = planted_weights(30, 4, seed=3)
    write(tmp_path / "model", weights, predictorType=kind)
    batch = planted_batch(weights, 20, seed=4, loss="logistic")

    scores = read_model(str(tmp_path / "model")).predict(batch)

    margins = oracle.scores(oracle.Model.of_table(weights.table, weights.bias), batch)
    expected = margins if kind == "regressor" else 1 / (1 + np.exp(-margins))
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-5)  # float32 sums


def test_a_table_of_ids_and_a_training_state_come_back(tmp_path: Path) -> None:
    ids = np.array([5, 1_000_000_007, 2**31 - 2], np.int32)
    table = planted_weights(3, 4, seed=5).table.copy()
    weights = FMWeights(0.5, table, feature_dim=2**31 - 1, features=ids)
    state = TrainingState({"run": {"epoch": 3}}, {"state": np.arange(6, dtype=np.float32)})
    write(tmp_path / "model", weights, state)

    model = read_model(str(tmp_path / "model"), whole=True)
    rows = CsrBatch.from_arrays(
        np.array([0, 1, 2]), np.array([2**31 - 2, 6]), np.array([2.0, 9.0], np.float32)
    )

    assert np.array_equal(model.weights.features, ids)
    assert model.state.metadata == state.metadata
    assert np.array_equal(model.state.arrays["state"], state.arrays["state"])
    unseen = 1 / (1 + np.exp(-0.5))  # an id without a row adds nothing
    assert model.predict(rows)[1] == pytest.approx(unseen, abs=1e-6)
    assert model.predict(rows)[0] != pytest.approx(unseen, abs=1e-6)


def test_arrays_of_many_pieces_and_of_none_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    large = rng.normal(size=(2 * CHUNK_BYTES // 20 + 7, 5)).astype(np.float32)
    nothing = FMWeights(0.0, np.zeros((0, 5), np.float32), 9, np.zeros(0, np.int32))
    write(tmp_path / "large", FMWeights(1.0, large, len(large)))
    write(tmp_path / "nothing", nothing)

    assert pq.ParquetFile(data_file(tmp_path / "large")).metadata.num_rows == 3
    assert np.array_equal(read_model(str(tmp_path / "large")).weights.table, large)
    assert read_model(str(tmp_path / "nothing")).weights.table.shape == (0, 5)


def test_an_index_outside_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidDataError, match="Feature index 30 is outside"):
        read_model(str(folder)).predict(CsrBatch.from_matrix(np.ones((1, 31))))


def test_a_missing_folder_and_a_file_are_no_models(folder: Path, tmp_path: Path) -> None:
    fails_to_read(tmp_path / "nothing", "holds no FactorizationMachineModel: .*does not exist")
    fails_to_read(data_file(folder), "holds no FactorizationMachineModel")


def test_a_save_without_metadata_was_interrupted(folder: Path) -> None:
    shutil.rmtree(folder / "metadata")

    fails_to_read(folder, "a save that was interrupted")


@pytest.mark.parametrize("content", [b"not JSON\n", b"", b"[]\n", b"\xff\xfe\n"])
def test_metadata_that_is_not_json_is_refused(folder: Path, content: bytes) -> None:
    metadata_file(folder).write_bytes(content)

    fails_to_read(folder, "is not the metadata of a Spark ML stage|cannot be read")


def test_another_stage_is_named(folder: Path) -> None:
    metadata_file(folder).write_text('{"class": "spark_fm.ml.estimator.FactorizationMachine"}')

    fails_to_read(folder, r"holds a spark_fm\.ml\.estimator\.FactorizationMachine; expected a ")


def test_missing_cut_and_doubled_data_are_damage(folder: Path, tmp_path: Path) -> None:
    for name in ("missing", "cut", "doubled"):
        shutil.copytree(folder, tmp_path / name)
    shutil.rmtree(tmp_path / "missing" / "data")
    cut = data_file(tmp_path / "cut")
    cut.write_bytes(cut.read_bytes()[:-40])
    doubled = data_file(tmp_path / "doubled")
    shutil.copy(doubled, doubled.with_name("part-00001.parquet"))

    fails_to_read(tmp_path / "missing", "is a damaged model: Path does not exist")
    fails_to_read(tmp_path / "cut", "is a damaged model")
    fails_to_read(tmp_path / "doubled", "has 1200 of 600 bytes")


def test_data_of_another_model_is_damage(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", planted_weights(30, 4, seed=9))
    shutil.copy(data_file(tmp_path / "other"), data_file(folder))

    fails_to_read(folder, "bytes that were changed")


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    metadata = json.loads(metadata_file(folder).read_text())
    metadata["spark_fm"].update(format_version=FORMAT_VERSION + 1, version="9.9")
    metadata_file(folder).write_text(json.dumps(metadata))

    fails_to_read(folder, r"written by spark_fm 9\.9.*Upgrade spark_fm")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("spark_fm"),
        lambda m: m["spark_fm"].update(format_version="one"),
        lambda m: m["spark_fm"].update(format_version=float("inf")),
        lambda m: m["spark_fm"].update(format_version="9" * 5000),
        lambda m: m["spark_fm"].update(bias=(0.25).hex()),
        lambda m: m["spark_fm"]["arrays"]["table"].update(shape=[15, 5]),
        lambda m: m["spark_fm"].pop("feature_dim"),
        lambda m: m.pop("paramMap"),
        lambda m: m["defaultParamMap"].pop("predictorType"),
        lambda m: m["paramMap"].update(predictorType="ranker"),
        lambda m: m["paramMap"].update(threshold=7),
        lambda m: m["paramMap"].update(threshold="high"),
    ],
    ids=[
        "no facts", "odd version", "endless version", "long version", "another bias",
        "smaller shape", "no size", "no params", "no kind", "odd kind", "odd threshold",
        "threshold of another type",
    ],
)  # fmt: skip
def test_damaged_metadata_is_an_error_that_names_the_folder(
    folder: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    metadata = json.loads(metadata_file(folder).read_text())
    change(metadata)
    metadata_file(folder).write_text(json.dumps(metadata))

    fails_to_read(folder, "damaged|lacks")
