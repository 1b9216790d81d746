"""Saved models come back bit for bit; anything else gives an error that says what it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.models.native import FORMAT_VERSION
from spark_fm.learner.predict import sigmoid
from tests.conftest import MODE
from tests.ml.builders import column, fast_fm, frame_of

pytestmark = pytest.mark.connect

HUGE_ID = 2**31 - 2  # the last index a Spark vector can have


def saved(model: FactorizationMachineModel, path: Path) -> str:
    model.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def saved_once(
    classifier: FactorizationMachineModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved classifier; copy the folder before changing it."""
    path = tmp_path_factory.mktemp("models") / "model"
    classifier.save(str(path))
    return path


@pytest.fixture
def folder(saved_once: Path, tmp_path: Path) -> Path:
    """A saved classifier that a test may damage."""
    path = tmp_path / "damaged"
    shutil.copytree(saved_once, path)
    return path


def metadata_file(folder: Path) -> Path:
    (path,) = (folder / "metadata").glob("part-*")
    return path


def edit_metadata(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = metadata_file(folder)
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata) + "\n")
    path.with_name(f".{path.name}.crc").unlink()


def data_file(folder: Path) -> Path:
    (path,) = (folder / "data").glob("part-*.parquet")
    return path


# Round trips ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_a_saved_model_comes_back_as_it_was(
    kind: str, train: DataFrame, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind).copy()
    model.setThreshold(0.3).setPredictionCol("found").setHandleInvalid("keep")

    loaded = FactorizationMachineModel.load(saved(model, tmp_path / "model"))

    assert loaded.uid == model.uid
    for param in model.params:
        other = loaded.getParam(param.name)
        assert loaded.isSet(other) == model.isSet(param), param.name
        assert loaded.isDefined(other) == model.isDefined(param), param.name
        if model.isDefined(param):
            assert loaded.getOrDefault(other) == model.getOrDefault(param), param.name
    assert_same_weights(loaded, model)
    assert loaded.summary == model.summary
    assert loaded.summary.history.equals(model.summary.history)
    expected = model.transform(train)
    scored = loaded.transform(train)
    assert scored.columns == expected.columns
    assert np.array_equal(column(scored, "score"), column(expected, "score"))


def assert_same_weights(
    loaded: FactorizationMachineModel, model: FactorizationMachineModel
) -> None:
    assert loaded.bias == model.bias
    assert loaded.numFeatures == model.numFeatures
    for array, expected in ((loaded.linear, model.linear), (loaded.factors, model.factors)):
        assert array.dtype == expected.dtype == np.float32
        assert np.array_equal(array, expected)
        assert not array.flags.writeable
    assert (loaded.features is None) == (model.features is None)
    if model.features is not None:
        assert np.array_equal(loaded.features, model.features)


def test_a_model_with_huge_feature_ids_keeps_its_table_of_ids(
    spark: SparkSession, tmp_path: Path
) -> None:
    ids = [5, 1_000_000_007, HUGE_ID]
    rows = [(float(i % 3 == 0), Vectors.sparse(2**31 - 1, [ids[i % 3]], [1.0])) for i in range(30)]
    frame = frame_of(spark, rows)

    model = fast_fm().fit(frame)
    loaded = FactorizationMachineModel.load(saved(model, tmp_path / "model"))

    assert model.features.tolist() == ids
    assert model.numFeatures == 2**31 - 1
    assert_same_weights(loaded, model)
    scores = column(model.transform(frame), "score")
    assert len(set(scores)) == 3
    assert np.array_equal(column(loaded.transform(frame), "score"), scores)


def test_a_model_without_any_feature_survives(spark: SparkSession, tmp_path: Path) -> None:
    frame = frame_of(spark, [(float(i % 2), Vectors.sparse(9, [], [])) for i in range(8)])

    model = fast_fm().fit(frame)
    loaded = FactorizationMachineModel.load(saved(model, tmp_path / "model"))

    assert_same_weights(loaded, model)
    expected = sigmoid(np.array([model.bias]))[0]
    assert column(loaded.transform(frame), "score") == pytest.approx(expected, abs=1e-6)


def test_a_saved_model_is_saved_again_as_it_was(
    classifier: FactorizationMachineModel, saved_once: Path, tmp_path: Path
) -> None:
    loaded = FactorizationMachineModel.load(str(saved_once))

    again = FactorizationMachineModel.load(saved(loaded, tmp_path / "again"))

    assert_same_weights(again, classifier)
    assert again.summary == classifier.summary


def test_a_pipeline_model_saves_and_loads(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.createDataFrame(
        [(float(i % 2), float(i % 2), float(i % 3)) for i in range(30)], ["label", "a", "b"]
    ).coalesce(1)
    assembler = VectorAssembler(inputCols=["a", "b"], outputCol="features")
    model = fast_fm().fit(assembler.transform(frame))
    pipeline = PipelineModel([assembler, model])
    path = str(tmp_path / "pipeline")

    pipeline.save(path)
    pipeline.write().overwrite().save(path)
    loaded = PipelineModel.load(path)

    assert_same_weights(loaded.stages[1], model)
    scores = column(pipeline.transform(frame), "score")
    assert np.array_equal(column(loaded.transform(frame), "score"), scores)


def test_overwrite_replaces_another_model(
    classifier: FactorizationMachineModel, regressor: FactorizationMachineModel, tmp_path: Path
) -> None:
    path = saved(classifier, tmp_path / "model")

    regressor.write().overwrite().save(path)

    assert_same_weights(FactorizationMachineModel.load(path), regressor)


def test_overwrite_works_where_nothing_is(
    classifier: FactorizationMachineModel, tmp_path: Path
) -> None:
    path = str(tmp_path / "new")

    classifier.write().overwrite().save(path)

    assert FactorizationMachineModel.load(path).uid == classifier.uid


def test_without_overwrite_an_existing_model_is_left_alone(
    classifier: FactorizationMachineModel, regressor: FactorizationMachineModel, folder: Path
) -> None:
    with pytest.raises(InvalidParamError, match="already exists"):
        regressor.save(str(folder))

    assert_same_weights(FactorizationMachineModel.load(str(folder)), classifier)


@pytest.mark.parametrize("there", ["model", "folder", "file"])
def test_what_is_at_the_path_is_named_and_left_alone(
    classifier: FactorizationMachineModel, tmp_path: Path, there: str
) -> None:
    path = tmp_path / "m"
    if there == "model":
        classifier.save(str(path))
    elif there == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    else:
        path.write_text("mine")
    if MODE == "connect" and there != "model":
        pytest.skip("the server's file system is not looked at")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(InvalidParamError, match=r"already exists.*overwrite\(\)\.save\(path\)"):
        classifier.save(str(path))

    assert sorted(tmp_path.rglob("*")) == before


def test_a_saved_model_holds_json_and_parquet_and_no_pickle(saved_once: Path) -> None:
    files = [path for path in saved_once.rglob("*") if path.is_file()]
    names = [path.name for path in files if not path.name.startswith(".")]

    assert sorted(name.split("-")[0] for name in names) == ["_SUCCESS", "_SUCCESS", "part", "part"]
    assert data_file(saved_once).read_bytes()[:4] == b"PAR1"
    metadata = json.loads(metadata_file(saved_once).read_text())
    assert metadata["class"] == "spark_fm.ml.model.FactorizationMachineModel"
    assert metadata["spark_fm"]["format_version"] == FORMAT_VERSION
    for path in files:
        assert b"cloudpickle" not in path.read_bytes()


# Folders that are no model --------------------------------------------------------------


def fails_to_load(path: Path | str, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message) as caught:
        FactorizationMachineModel.load(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("spark")
def test_a_missing_path_is_named(tmp_path: Path) -> None:
    fails_to_load(tmp_path / "nothing", "holds no FactorizationMachineModel")


@pytest.mark.usefixtures("spark")
def test_a_missing_estimator_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="nothing holds no FactorizationMachine:"):
        FactorizationMachine.load(str(tmp_path / "nothing"))


def test_a_folder_of_parquet_is_no_model(train: DataFrame, tmp_path: Path) -> None:
    train.write.parquet(str(tmp_path / "rows"))

    fails_to_load(tmp_path / "rows", "metadata cannot be read .*It may be another folder")


@pytest.mark.usefixtures("spark")
def test_another_stage_is_named(tmp_path: Path) -> None:
    VectorAssembler(inputCols=["a"], outputCol="b").save(str(tmp_path / "assembler"))

    fails_to_load(tmp_path / "assembler", re.escape("holds a org.apache.spark.ml.feature."))


def test_model_and_estimator_are_distinguished(saved_once: Path, tmp_path: Path) -> None:
    FactorizationMachine().save(str(tmp_path / "fm"))

    fails_to_load(tmp_path / "fm", re.escape("holds a spark_fm.ml.estimator.Factorization"))
    with pytest.raises(ModelFormatError, match=re.escape("holds a spark_fm.ml.model.Factor")):
        FactorizationMachine.load(str(saved_once))


def test_metadata_that_is_not_json_is_refused(folder: Path) -> None:
    path = metadata_file(folder)
    path.write_text("not JSON\n")
    path.with_name(f".{path.name}.crc").unlink()

    fails_to_load(folder, "is not the metadata of a Spark ML stage")


# Damaged models -------------------------------------------------------------------------


def test_a_save_without_metadata_was_interrupted(folder: Path) -> None:
    shutil.rmtree(folder / "metadata")

    fails_to_load(folder, "a save that was interrupted")


def test_a_missing_data_folder_is_damage(folder: Path) -> None:
    shutil.rmtree(folder / "data")

    fails_to_load(folder, "is a damaged model")


def test_a_deleted_part_file_is_damage(folder: Path) -> None:
    data_file(folder).unlink()

    fails_to_load(folder, "damaged")


def test_a_truncated_part_file_is_damage(folder: Path) -> None:
    path = data_file(folder)
    path.write_bytes(path.read_bytes()[:-40])
    path.with_name(f".{path.name}.crc").unlink()

    fails_to_load(folder, "damaged")


def test_data_of_another_model_is_damage(
    regressor: FactorizationMachineModel, folder: Path, tmp_path: Path
) -> None:
    other = Path(saved(regressor, tmp_path / "other"))
    shutil.rmtree(folder / "data")
    shutil.copytree(other / "data", folder / "data")

    fails_to_load(folder, "bytes that were changed")


def test_data_given_twice_is_damage(folder: Path) -> None:
    path = data_file(folder)
    shutil.copy(path, path.with_name("part-copy.parquet"))

    fails_to_load(folder, "damaged")


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    edit_metadata(folder, lambda m: m["spark_fm"].update(format_version=99, version="9.9"))

    fails_to_load(folder, r"format 99, written by spark_fm 9\.9.*Upgrade spark_fm")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("spark_fm"),
        lambda m: m["spark_fm"].pop("format_version"),
        lambda m: m["spark_fm"].update(format_version="one"),
        lambda m: m["spark_fm"].pop("arrays"),
        lambda m: m["spark_fm"]["arrays"].pop("table"),
        lambda m: m["spark_fm"]["arrays"]["table"].update(shape=[20, 4]),
        lambda m: m["spark_fm"]["arrays"]["table"].update(dtype="no such type"),
        lambda m: m["spark_fm"].update(bias="much"),
        lambda m: m["spark_fm"].update(bias=(0.25).hex()),
        lambda m: m["spark_fm"].pop("feature_dim"),
        lambda m: m["spark_fm"].update(summary={"rows": []}),
        lambda m: m.pop("uid"),
        lambda m: m.pop("paramMap"),
        lambda m: m["paramMap"].update(noSuchParam=1),
        lambda m: m["paramMap"].update(threshold="high"),
    ],
    ids=[
        "no facts", "no version", "odd version", "no arrays", "no table", "smaller shape",
        "odd type", "odd bias", "another bias", "no size", "odd summary", "no uid", "no params",
        "unknown param", "param of another type",
    ],
)  # fmt: skip
def test_damaged_metadata_is_an_error_that_names_the_folder(
    folder: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    edit_metadata(folder, change)

    fails_to_load(folder, "damaged|lacks")


@pytest.mark.parametrize("file", [metadata_file, data_file])
def test_bytes_that_do_not_match_hadoops_checksum_are_damage(
    folder: Path, file: Callable[[Path], Path]
) -> None:
    path = file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF

    path.write_bytes(bytes(content))

    fails_to_load(folder, "cannot be read|damaged")
