"""What Spark saves, Python alone reads, and the other way round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

import spark_fm
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import ModelFormatError
from spark_fm.formats.models.native import read_model
from spark_fm.ml.persistence import write_local
from spark_fm.serving.models import open_model, publish
from tests.ml.builders import column, fast_fm, frame_of, planted_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_a_saved_model_scores_without_spark_as_with_it(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind).copy().setThreshold(0.3)
    model.save(str(tmp_path / "model"))
    rows = planted_rows(300, seed=3)

    saved = read_model(str(tmp_path / "model"))

    assert np.array_equal(saved.predict(rows), model.weights.predict(rows, model._loss))
    assert saved.weights.bias == model.bias
    assert saved.params["threshold"] == 0.3
    assert saved.params["predictorType"] == model.getPredictorType()
    assert saved.metadata["summary"]["facts"]["numRows"] == model.summary.facts["numRows"]


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_a_model_that_spark_trained_is_served_as_it_transforms(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    model.save(str(tmp_path / "model"))
    rows = planted_rows(300, seed=3)

    publish(str(tmp_path / "model"), tmp_path, "version-1")
    served = open_model(tmp_path, "version-1")

    scores = served.predict(rows)
    assert np.array_equal(scores, model.weights.predict(rows, model._loss))
    assert (served.labels(scores) is None) == (kind == "regressor")
    assert served.threshold == model.getThreshold()


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_what_spark_collects_is_scored_as_it_transforms(
    kind: str, train: DataFrame, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind).copy().setThreshold(0.3)
    model.save(str(tmp_path / "model"))
    scored = model.transform(train).toPandas()

    loaded = spark_fm.load(tmp_path / "model")

    expected = scored["score"].to_numpy().astype(np.float32)
    rows = train.select("features")
    for collected in (rows.toPandas(), rows.toArrow(), scored["features"], rows.collect()):
        assert np.array_equal(loaded.predict(collected), expected), type(collected)
    if kind == "classifier":
        assert np.array_equal(loaded.labels(expected), scored["predicted_label"])


def test_a_model_of_huge_ids_keeps_its_table_of_ids_and_its_state(
    spark: SparkSession, tmp_path: Path
) -> None:
    ids = [5, 1_000_000_007, 2**31 - 2]
    rows = [(float(i % 3 == 0), Vectors.sparse(2**31 - 1, [ids[i % 3]], [1.0])) for i in range(30)]
    model = fast_fm(keepTrainingState=True).fit(frame_of(spark, rows))
    model.save(str(tmp_path / "model"))

    saved = read_model(str(tmp_path / "model"), whole=True)

    assert saved.weights.features.tolist() == ids
    assert np.array_equal(saved.weights.table, model.weights.table)
    assert saved.state.metadata == model.trainingState.metadata
    assert np.array_equal(saved.state.arrays["state"], model.trainingState.arrays["state"])
    assert read_model(str(tmp_path / "model")).state is None  # not needed for scores


def test_an_estimator_is_named_as_what_it_is(spark: SparkSession, tmp_path: Path) -> None:
    FactorizationMachine().save(str(tmp_path / "fm"))

    with pytest.raises(ModelFormatError, match=r"holds a spark_fm\.ml\.estimator\.Factorization"):
        read_model(str(tmp_path / "fm"))


def test_a_model_written_without_a_job_is_one_that_spark_loads(
    classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path
) -> None:
    write_local(classifier, str(tmp_path / "model"))

    loaded = FactorizationMachineModel.load(str(tmp_path / "model"))

    assert loaded.uid == classifier.uid
    assert loaded.summary == classifier.summary
    expected = column(classifier.transform(train), "score")
    assert np.array_equal(column(loaded.transform(train), "score"), expected)


def test_reading_and_scoring_load_no_pyspark(
    classifier: FactorizationMachineModel, tmp_path: Path
) -> None:
    classifier.save(str(tmp_path / "model"))
    code = (
        "import sys, numpy as np, pandas as pd; from spark_fm.mlflow import _load_pyfunc;"
        "scored = _load_pyfunc(sys.argv[1]).predict(pd.DataFrame(np.eye(20)));"
        "print(scored['score'].sum(), {'pyspark', 'mlflow'} & set(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    total, modules = done.stdout.split(maxsplit=1)
    assert modules.strip() == "set()"
    assert float(total) == pytest.approx(classifier.predict(np.eye(20)).sum(), rel=1e-5)
