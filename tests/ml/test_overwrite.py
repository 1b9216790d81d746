"""What is replaced stays until the new is whole, and paths are what they say, never globs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.models.native import SavedModel, read_model, save_model
from spark_fm.ml import persistence
from tests.conftest import MODE
from tests.ml.builders import fast_fm

pytestmark = pytest.mark.connect

BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
SPECIAL = ["k[8]", "k{8,9}", "k*", "k?", "k 8", "k%20", "k[!8]", "k]8[", "k#8+", "k\\8", "ключ"]


class FullDiskError(OSError):
    """What a write raises in these tests."""


@cache
def other(model: FactorizationMachineModel, train: DataFrame) -> FactorizationMachineModel:
    return fast_fm(seed=99, numFactors=model.factors.shape[1]).fit(train)


def assert_loads(path: Path, model: FactorizationMachineModel) -> None:
    for loaded in (FactorizationMachineModel.load(str(path)), read_model(str(path))):
        assert np.array_equal(loaded.weights.table, model.weights.table)


def fails_after_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise FullDiskError("No space left on device")

    monkeypatch.setattr(persistence.DefaultParamsWriter, "saveMetadata", full)


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_model_is_fitted_and_replaced_where_arrow_batches_have_no_limit(
    spark: SparkSession,
    classifier: FactorizationMachineModel,
    train: DataFrame,
    tmp_path: Path,
    limit: str,
) -> None:
    classifier.save(str(tmp_path / "m"))
    before = spark.conf.get(BATCH)
    spark.conf.set(BATCH, limit)
    try:
        new = fast_fm(seed=99).fit(train)
        new.write().overwrite().save(str(tmp_path / "m"))
        assert_loads(tmp_path / "m", new)
    finally:
        spark.conf.set(BATCH, before)


def test_a_failed_write_leaves_the_old_model_and_nothing_else(
    classifier: FactorizationMachineModel,
    train: DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier.save(str(tmp_path / "m"))
    new = other(classifier, train)
    fails_after_the_data(monkeypatch)

    with pytest.raises(FullDiskError):
        new.write().overwrite().save(str(tmp_path / "m"))

    assert_loads(tmp_path / "m", classifier)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_failed_write_leaves_the_old_estimator(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "fm")
    fast_fm(epochs=7).save(path)
    fails_after_the_data(monkeypatch)

    with pytest.raises(FullDiskError):
        fast_fm(epochs=8).write().overwrite().save(path)

    assert FactorizationMachine.load(path).getEpochs() == 7


@pytest.mark.skipif(MODE == "connect", reason="a Connect client cannot rename")
def test_a_failed_swap_puts_the_old_model_back(
    classifier: FactorizationMachineModel,
    train: DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from spark_fm.spark import files

    classifier.save(str(tmp_path / "m"))
    new = other(classifier, train)
    rename, calls = files._rename, []

    def fails_once(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:  # the old model is aside, the new one not yet in place
            raise FullDiskError("No space left on device")
        rename(*args)

    monkeypatch.setattr(files, "_rename", fails_once)
    with pytest.raises(FullDiskError):
        new.write().overwrite().save(str(tmp_path / "m"))

    assert_loads(tmp_path / "m", classifier)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(MODE != "connect", reason="Classic swaps by renaming")
def test_on_connect_what_fails_last_names_the_whole_new_model(
    classifier: FactorizationMachineModel,
    train: DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from spark_fm.errors import SparkFMError

    path = tmp_path / "m"
    classifier.save(str(path))
    new = other(classifier, train)
    write = persistence.FMModelWriter.saveImpl

    def fails_in_place(self: Any, where: str) -> None:
        if where == str(path):
            raise FullDiskError("No space left on device")
        write(self, where)

    monkeypatch.setattr(persistence.FMModelWriter, "saveImpl", fails_in_place)
    with pytest.raises(SparkFMError, match="is complete at"):
        new.write().overwrite().save(str(path))

    (beside,) = tmp_path.glob(".m.*.tmp")
    assert_loads(beside, new)


def test_pipelines_replace_their_stages(
    classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path
) -> None:
    path = str(tmp_path / "p")
    for epochs in (1, 2):
        Pipeline(stages=[fast_fm(epochs=epochs)]).write().overwrite().save(path)
        assert Pipeline.load(path).getStages()[0].getEpochs() == epochs
    fitted = Pipeline(stages=[fast_fm()]).fit(train)
    fitted.write().overwrite().save(path)
    assert isinstance(PipelineModel.load(path).stages[0], FactorizationMachineModel)


def test_the_root_of_a_file_system_is_not_replaced(classifier: FactorizationMachineModel) -> None:
    for path in ("/", "file:///", "s3a://bucket"):
        with pytest.raises(InvalidParamError, match="root of a file system"):
            classifier.write().overwrite().save(path)


@pytest.mark.parametrize(
    ("scheme", "advice"),
    [("s3", "hadoop-aws, and write s3a://"), ("s3a", "hadoop-aws"), ("gs", "gcs-connector"),
     ("abfss", "hadoop-azure"), ("shelf", r"spark\.jars\.packages, or use")],
)  # fmt: skip
def test_a_store_that_spark_does_not_know_is_named_with_what_it_needs(
    classifier: FactorizationMachineModel, scheme: str, advice: str
) -> None:
    path = f"{scheme}://bucket/folder"
    for use in (
        classifier.save, classifier.write().overwrite().save, FactorizationMachineModel.load,
        fast_fm().save, FactorizationMachine.load,
    ):  # fmt: skip
        with pytest.raises(InvalidParamError, match=rf"no file system for {scheme}://.*{advice}"):
            use(path)


@pytest.fixture(scope="module")
def saved(
    regressor: FactorizationMachineModel, tmp_path_factory: pytest.TempPathFactory
) -> SavedModel:
    """The regressor as it is read without Spark."""
    path = str(tmp_path_factory.mktemp("saved") / "model")
    regressor.save(path)
    return read_model(path)


@pytest.mark.parametrize("name", SPECIAL)
def test_a_path_is_literal_when_saved_replaced_and_loaded(
    classifier: FactorizationMachineModel, regressor: FactorizationMachineModel,
    saved: SavedModel, tmp_path: Path, name: str,
) -> None:  # fmt: skip
    """Beside it lies what it would match as a glob."""
    path = tmp_path / name
    for beside in ("k8", "k9", "kx"):
        save_model(str(tmp_path / beside), saved)

    classifier.save(str(path))
    assert_loads(path, classifier)
    regressor.write().overwrite().save(str(path))
    assert_loads(path, regressor)


@pytest.mark.parametrize("name", SPECIAL)
def test_an_estimator_s_path_is_literal(spark: SparkSession, tmp_path: Path, name: str) -> None:
    fast_fm(epochs=9).save(str(tmp_path / "k8"))
    fast_fm(epochs=7).save(str(tmp_path / name))

    assert FactorizationMachine.load(str(tmp_path / name)).getEpochs() == 7


@pytest.mark.parametrize("name", ["k[8]", "k?", "k*"])
def test_a_glob_that_matches_a_model_is_no_path_of_one(
    classifier: FactorizationMachineModel, tmp_path: Path, name: str
) -> None:
    classifier.save(str(tmp_path / "k8"))

    for load in (FactorizationMachineModel.load, read_model, FactorizationMachine.load):
        with pytest.raises(ModelFormatError, match="its metadata cannot be read"):
            load(str(tmp_path / name))
