"""Models come from SageMaker, libFM and text, and go there, with their scores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachineModel
from spark_fm.errors import InvalidParamError, ModelFormatError
from spark_fm.formats.models.native import SCORING_DEFAULTS, read_model, save_model
from spark_fm.formats.models.sagemaker import read_sagemaker
from spark_fm.learner.weights import FMWeights
from spark_fm.ml.params import DEFAULTS
from tests.builders import planted_weights
from tests.ml.builders import N_FEATURES, K, column

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "sagemaker"


@pytest.fixture
def fitted(
    classifier: FactorizationMachineModel, regressor: FactorizationMachineModel
) -> dict[str, Any]:
    return {"binary_classifier": classifier.copy().setThreshold(0.3), "regressor": regressor}


@pytest.mark.parametrize("kind", ["binary_classifier", "regressor"])
@pytest.mark.parametrize("way", ["sparse", "dense", "text", "libfm"])
def test_a_fitted_model_comes_back_with_bit_equal_scores_and_labels(
    fitted: dict[str, Any], hand_made: DataFrame, tmp_path: Path, way: str, kind: str
) -> None:
    model, path = fitted[kind], tmp_path / "model"
    if way == "text":
        model.to_text(path)
        back = FactorizationMachineModel.from_text(path)
    elif way == "libfm":
        model.to_libfm(path)
        back = FactorizationMachineModel.from_libfm(
            path, predictorType=kind, threshold=model.getThreshold()
        )
    else:
        model.to_sagemaker(path, network=way)
        back = FactorizationMachineModel.from_sagemaker(path)

    assert back.weights.table.tobytes() == model.weights.table.tobytes()
    assert (back.bias, back.getPredictorType()) == (model.bias, kind)
    assert (back.getNumFactors(), back.getFeatureDim(), back.numFeatures) == (K, 20, 20)
    expected, scored = model.transform(hand_made), back.transform(hand_made)
    assert scored.columns == expected.columns
    assert scored.drop("features").collect() == expected.drop("features").collect()


def test_an_artifact_keeps_its_hyperparameters_through_save_load_and_copy(
    spark: SparkSession, tmp_path: Path
) -> None:
    model = FactorizationMachineModel.from_sagemaker(GOLDEN / "sparse.tar.gz", threshold=0.4)
    expected = {
        "format": "sagemaker",
        "network": "sparse",
        "hyperparameters": {
            "feature_dim": "12", "num_factors": "3", "predictor_type": "binary_classifier",
            "epochs": "5", "mini_batch_size": "10",
        },
    }  # fmt: skip

    model.save(str(tmp_path / "model"))
    loaded = FactorizationMachineModel.load(str(tmp_path / "model"))

    for kept in (model, loaded, loaded.copy()):
        assert kept.origin == expected
        assert kept.hyperparameters() == expected["hyperparameters"]
        assert kept.getThreshold() == 0.4
    assert read_model(str(tmp_path / "model")).metadata["origin"] == expected


def test_a_model_that_was_trained_here_has_no_origin(
    classifier: FactorizationMachineModel,
) -> None:
    assert classifier.origin is None


def test_a_model_written_without_spark_is_one_that_spark_loads(
    spark: SparkSession, hand_made: DataFrame, tmp_path: Path
) -> None:
    ids = np.array([0, 3, 19], np.int32)
    seen = FMWeights(0.5, planted_weights(3, K, seed=1).table, N_FEATURES, ids)
    path = tmp_path / "m.tar.gz"
    FactorizationMachineModel(seen)._set(threshold=0.2).to_sagemaker(path)
    saved = read_sagemaker(str(path))
    save_model(str(tmp_path / "model"), saved)

    loaded = FactorizationMachineModel.load(str(tmp_path / "model"))

    assert loaded.features.tolist() == ids.tolist()
    assert (loaded.getThreshold(), loaded.getFeatureDim()) == (0.2, N_FEATURES)
    assert loaded.origin == saved.metadata["origin"]
    direct = FactorizationMachineModel.from_sagemaker(path)
    expected = direct.transform(hand_made).drop("features").collect()
    assert loaded.transform(hand_made).drop("features").collect() == expected
    assert loaded.extractParamMap() == {
        loaded.getParam(p.name): v for p, v in direct.extractParamMap().items()
    }


def test_defaults_written_without_spark_are_those_of_the_params() -> None:
    for name, value in SCORING_DEFAULTS.items():
        assert DEFAULTS[name] == value


def test_errors_are_the_same_as_without_spark(tmp_path: Path) -> None:
    with pytest.raises(InvalidParamError, match="is a regressor"):
        FactorizationMachineModel.from_sagemaker(
            GOLDEN / "dense.tar.gz", predictorType="binary_classifier"
        )
    with pytest.raises(ModelFormatError, match=r"unpacks to more than 1,000 bytes.*maxBytes"):
        FactorizationMachineModel.from_sagemaker(GOLDEN / "dense.tar.gz", maxBytes=1000)


def test_no_session_is_needed_or_started(tmp_path: Path) -> None:
    code = (
        "import sys; from spark_fm import FactorizationMachineModel as M;"
        "from pyspark.sql import SparkSession;"
        "m = M.from_sagemaker(sys.argv[1]); m.to_sagemaker(sys.argv[2]); m.to_text(sys.argv[3]);"
        "print(SparkSession.getActiveSession(), m.predict([[0.0] * 12]).shape)"
    )
    paths = [str(GOLDEN / "dense.tar.gz"), str(tmp_path / "m.tar.gz"), str(tmp_path / "m.txt")]

    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["None", "(1,)"]
    back = FactorizationMachineModel.from_text(paths[2])
    assert np.array_equal(back.factors, FactorizationMachineModel.from_sagemaker(paths[1]).factors)


def test_an_onnx_file_scores_as_the_model(
    fitted: dict[str, Any], hand_made: DataFrame, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = fitted["binary_classifier"]
    X = np.stack([row.features.toArray() for row in hand_made.collect()]).astype(np.float32)

    model.to_onnx(tmp_path / "m.onnx")
    score, label = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"features": X})

    scored = model.transform(hand_made)
    assert score == pytest.approx(column(scored, "score"), abs=1e-6)  # float32 sums
    assert label.tolist() == column(scored, "predicted_label").tolist()
