"""Models of other classes, as objects and as paths, get the same words before any work begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import FMClassifier
from pyspark.ml.feature import VectorSlicer
from pyspark.ml.tuning import CrossValidatorModel
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachineModel, register_udf
from spark_fm.cli.main import main
from spark_fm.errors import InvalidParamError, ModelFormatError, SparkFMError
from spark_fm.formats.models.native import read_model
from spark_fm.mlflow import log_model
from tests.ml.builders import fast_fm

mlflow = pytest.importorskip("mlflow")

WORDS = {  # by the class's name, after "model is a" or "PATH holds a"
    "PipelineModel": "take the fitted stage out of a pipeline: pipelineModel.stages[-1].",
    "CrossValidatorModel": "Take the best of its models: model.bestModel.",
    "FMClassificationModel": "Convert it: FactorizationMachineModel.from_mllib(model).",
    "FactorizationMachine": "Fit the estimator",
}
SAVED = [name for name in WORDS if name != "CrossValidatorModel"]


@pytest.fixture(scope="module")
def others(train: DataFrame, classifier: FactorizationMachineModel) -> dict[str, Any]:
    pipeline = PipelineModel([VectorSlicer(inputCol="v", outputCol="features"), classifier])
    return {
        "PipelineModel": pipeline,
        "CrossValidatorModel": CrossValidatorModel(pipeline),
        "FMClassificationModel": FMClassifier(maxIter=1, factorSize=2).fit(train),
        "FactorizationMachine": fast_fm(),
    }


@pytest.fixture(scope="module")
def folders(others: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("others")
    for name in SAVED:
        others[name].save(str(base / name))
    return base


def words_of(name: str, what: str) -> str:
    advice = re.escape(WORDS[name])
    return rf"{re.escape(what)} a [\w.]*{name}; expected a FactorizationMachineModel\. .*{advice}"


@pytest.mark.parametrize("name", WORDS)
def test_an_object_of_another_class_gets_the_same_words_everywhere(
    spark: SparkSession,
    train: DataFrame,
    others: dict[str, Any],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())

    with pytest.raises(InvalidParamError, match=words_of(name, "model is")):
        register_udf(spark, "f", others[name])
    with pytest.raises(InvalidParamError, match=words_of(name, "model is")):
        log_model(others[name])
    with pytest.raises(InvalidParamError, match=words_of(name, " is")):
        fast_fm().fit(train, warmStart=others[name])
    assert mlflow.active_run() is None
    assert not list((tmp_path / "mlruns").rglob("meta.yaml"))


def test_a_model_without_parameters_is_not_logged() -> None:
    with pytest.raises(SparkFMError, match="fit or load one"):
        log_model(FactorizationMachineModel())
    assert mlflow.active_run() is None


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("name", SAVED)
def test_a_path_of_another_class_gets_the_same_words_everywhere(folders: Path, name: str) -> None:
    path = str(folders / name)
    for read in (FactorizationMachineModel.load, read_model):
        with pytest.raises(ModelFormatError, match=words_of(name, f"{path} holds")):
            read(path)


@pytest.mark.parametrize("name", SAVED)
def test_the_server_says_them_before_it_listens(
    folders: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folders / name), "--port", "0"]) == 2

    err = capfd.readouterr().err
    assert re.search(words_of(name, f"{folders / name} holds"), " ".join(err.split()))
    assert "listening" not in err


def test_the_stage_that_the_words_name_is_a_model(
    folders: Path, classifier: FactorizationMachineModel
) -> None:
    with pytest.raises(ModelFormatError) as caught:
        read_model(str(folders / "PipelineModel"))

    stage = re.search(r"That stage is saved at (\S+)\.$", str(caught.value))
    assert stage is not None
    assert (read_model(stage[1]).weights.table == classifier.weights.table).all()
