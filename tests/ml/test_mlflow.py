"""Epochs reach the active MLflow run; models are logged, and loaded in every flavour."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession

from spark_fm import FactorizationMachineModel
from spark_fm.mlflow import log_model
from tests.conftest import MODE
from tests.ml.builders import column, fast_fm, planted_rows

mlflow = pytest.importorskip("mlflow")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tracking store of the test's own; no run is active after it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    while mlflow.active_run() is not None:
        mlflow.end_run()


def logged(run_id: str) -> dict[str, dict[int, float]]:
    """Return the values by step of every metric of a run."""
    client = mlflow.MlflowClient()
    return {
        name: {m.step: m.value for m in client.get_metric_history(run_id, name)}
        for name in client.get_run(run_id).data.metrics
    }


# Epochs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_every_column_of_the_history_is_a_metric_by_epoch(train: DataFrame, workers: int) -> None:
    with mlflow.start_run() as run:
        model = fast_fm(epochs=3, validationFraction=0.2, numWorkers=workers).fit(train)

    history = model.summary.history.set_index("epoch")
    metrics = logged(run.info.run_id)
    assert {"trainLoss", "validationLoss", "validation_roc_auc", "seconds"} <= set(metrics)
    assert set(metrics) == set(history.columns)
    for name, values in metrics.items():
        assert values == pytest.approx(history[name].to_dict(), nan_ok=True)


def test_nothing_is_logged_and_no_run_starts_without_an_active_run(train: DataFrame) -> None:
    fast_fm().fit(train)

    assert mlflow.active_run() is None
    assert len(mlflow.search_runs(search_all_experiments=True)) == 0


def test_several_models_of_one_fit_are_not_logged_under_one_name(train: DataFrame) -> None:
    fm = fast_fm()
    with mlflow.start_run() as run:
        fm.fit(train, [{fm.factorsLr: 0.1}, {fm.factorsLr: 0.2}])

    assert logged(run.info.run_id) == {}


def test_a_store_that_fails_costs_one_warning_and_no_training(
    train: DataFrame, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone")

    with mlflow.start_run(), caplog.at_level(logging.WARNING, "spark_fm"):
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", refuse)
        model = fast_fm(epochs=3).fit(train)

    assert model.summary.totalIterations == 3
    warnings = [r.getMessage() for r in caplog.records if "MLflow" in r.getMessage()]
    assert len(warnings) == 1
    assert "ConnectionError: the server is gone" in warnings[0]


# Models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_a_logged_model_scores_as_pyfunc_and_loads_into_spark(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    with mlflow.start_run():
        info = log_model(model, "fm")

    scorer = mlflow.pyfunc.load_model(info.model_uri)
    rows = planted_rows(50, seed=3)
    table = pd.DataFrame({
        "features": [
            {"indices": rows.indices[a:b], "values": rows.values[a:b]}
            for a, b in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
        ]
    })  # fmt: skip
    expected = model.weights.predict(rows, model._loss)
    assert np.array_equal(scorer.predict(table)["score"].to_numpy(np.float32), expected)
    dense = np.eye(20)
    assert np.array_equal(
        scorer.predict(pd.DataFrame(dense))["score"].to_numpy(np.float32), model.predict(dense)
    )
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri)) / "data" / "model"
    loaded = FactorizationMachineModel.load(str(folder))
    assert np.array_equal(loaded.factors, model.factors)


def test_a_logged_model_scores_in_a_process_that_cannot_import_pyspark(
    classifier: FactorizationMachineModel, store: str
) -> None:
    with mlflow.start_run():
        info = log_model(classifier)
    code = (
        "import sys; sys.modules['pyspark'] = None\n"
        "import mlflow, scipy.sparse as sp\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "scored = mlflow.pyfunc.load_model(sys.argv[2]).predict(sp.csr_matrix(sp.eye(20)))\n"
        "print(repr(float(scored['score'].sum())))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, store, info.model_uri],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) == pytest.approx(classifier.predict(np.eye(20)).sum(), rel=1e-6)


def test_mlflow_s_own_spark_flavour_takes_the_model_and_a_pipeline_of_it(
    spark: SparkSession, classifier: FactorizationMachineModel, train: DataFrame, tmp_path: Path
) -> None:
    rows = [(float(i % 2), float(i % 2), float(i % 3)) for i in range(30)]
    frame = spark.createDataFrame(rows, ["label", "a", "b"]).coalesce(1)
    assembler = VectorAssembler(inputCols=["a", "b"], outputCol="features")
    pipeline = PipelineModel([assembler, fast_fm().fit(assembler.transform(frame))])
    for model, data in ((classifier, train), (pipeline, frame)):
        with mlflow.start_run():
            info = mlflow.spark.log_model(
                model, "model", dfs_tmpdir=str(tmp_path / "dfs"), pip_requirements=["spark-fm"]
            )

        loaded = mlflow.spark.load_model(info.model_uri, dfs_tmpdir=str(tmp_path / "dfs"))

        expected = column(model.transform(data), "score")
        assert np.array_equal(column(loaded.transform(data), "score"), expected)


@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="the example starts a Classic session")
def test_the_example_logs_epochs_and_a_model_that_scores(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.mlflow_tracking", "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(x) for x in re.findall(r"epoch \d+ +validation loss (\S+)", done.stdout)]
    assert len(losses) > 1
    assert min(losses) < 0.4
    assert float(re.search(r"largest difference (\S+)", done.stdout)[1]) < 1e-6
