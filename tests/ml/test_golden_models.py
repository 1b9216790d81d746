"""What earlier versions saved still loads and scores as it did.

``tests/golden/models/0.1.0.dev`` was written at commit 2050452, ``checkpoint-3`` beside it when
rows were first held out by their features alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from benchmarks.digests import digest
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import CheckpointError
from spark_fm.formats.models.native import read_model
from tests.ml.builders import column

GOLDEN = Path(__file__).parent.parent / "golden" / "models" / "0.1.0.dev"
SCORES = json.loads((GOLDEN / "scores.json").read_text())
PARAMS = {"numFactors": 3, "seed": 3}
TOLERANCE = 1e-6  # another CPU adds floats in another order


@pytest.fixture
def rows(spark: SparkSession) -> DataFrame:
    vectors = [Vectors.sparse(12, [i % 5, 5 + i % 7], [1.0, 0.5 + i % 3]) for i in range(60)]
    labelled = [(float(i * 7 % 3 == 0), vector) for i, vector in enumerate(vectors)]
    return spark.createDataFrame(labelled, ["label", "features"]).coalesce(1)


def test_a_model_loads_and_scores_as_it_did(rows: DataFrame) -> None:
    model = FactorizationMachineModel.load(str(GOLDEN / "model"))

    assert digest(model) == SCORES["digest"]
    assert model.transform(rows).columns[2:] == ["score", "predicted_label"]  # its own defaults
    assert np.allclose(column(model.transform(rows), "score"), SCORES["model"], atol=TOLERANCE)
    assert np.array_equal(read_model(str(GOLDEN / "model")).weights.table, model.weights.table)
    assert model.trainingState is not None
    assert len(model.summary.history) == 3


def test_an_estimator_loads_with_its_params() -> None:
    fm = FactorizationMachine.load(str(GOLDEN / "estimator"))

    assert (fm.getNumFactors(), fm.getEpochs(), fm.getSeed()) == (3, 3, 3)
    assert fm.getKeepTrainingState()


def test_pipelines_load_and_score_as_they_did(rows: DataFrame) -> None:
    assert Pipeline.load(str(GOLDEN / "pipeline")).getStages()[1].getEpochs() == 2
    scored = PipelineModel.load(str(GOLDEN / "pipeline-model")).transform(rows)

    assert np.allclose(column(scored, "score"), SCORES["pipeline-model"], atol=TOLERANCE)


def resuming(name: str, tmp_path: Path) -> FactorizationMachine:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / name, folder)
    return FactorizationMachine(**PARAMS, epochs=6, refit="never", checkpointDir=str(folder))


def test_a_training_is_resumed_from_a_checkpoint(rows: DataFrame, tmp_path: Path) -> None:
    model = resuming("checkpoint-3", tmp_path).fit(rows)

    assert not list((tmp_path / "checkpoint").iterdir())
    expected = SCORES["checkpoint-3"]
    assert np.allclose(column(model.transform(rows), "score"), expected, atol=TOLERANCE)


def test_a_checkpoint_in_another_form_is_refused_by_name(rows: DataFrame, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another spark_fm wrote it .* remove .* to start"):
        resuming("checkpoint", tmp_path).fit(rows)
