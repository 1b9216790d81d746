"""Epochs and trials reach MLflow's runs; models are logged, and loaded in every flavour."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import OneVsRest
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.tuning import CrossValidator, TrainValidationSplit
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import spark_fm
from spark_fm import FactorizationMachineModel, tune
from spark_fm.errors import InvalidParamError
from spark_fm.ml.tracking import _log_params, log_trials
from spark_fm.ml.trials import Trial
from spark_fm.mlflow import autolog, log_model
from tests.conftest import MODE
from tests.ml.builders import column, fast_fm, planted_rows

mlflow = pytest.importorskip("mlflow")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tracking store of the test's own; no run is active after it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")  # it asks the network
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


# Autologging ----------------------------------------------------------------------------


@pytest.fixture
def autologging() -> Iterator[None]:
    """Autologging is on, and off again after the test."""
    autolog()
    yield
    autolog(disable=True)


def only_run() -> Any:
    """Return the run of the store, which holds no other one."""
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return run


def nested_runs(parent: str) -> list[Any]:
    """Return the runs within a run, in the order in which they were made."""
    return mlflow.search_runs(
        filter_string=f"tags.`mlflow.parentRunId` = '{parent}'", output_format="list",
        search_all_experiments=True, order_by=["attributes.start_time ASC"],
    )  # fmt: skip


@pytest.mark.usefixtures("autologging")
def test_autolog_makes_a_run_with_params_the_best_epoch_and_the_plot(train: DataFrame) -> None:
    fm = fast_fm(epochs=12, validationFraction=0.2, factorsLr=2.0, linearLr=2.0, tol=0.0)
    model = fm.fit(train, {fm.seed: 9})

    run, best = only_run(), model.summary.rows[model.summary.bestEpoch]
    assert run.info.status == "FINISHED"
    assert mlflow.active_run() is None
    assert run.data.params == {
        "numFactors": "4", "epochs": "12", "validationFraction": "0.2", "factorsLr": "2.0",
        "linearLr": "2.0", "tol": "0.0", "seed": "9",
    }  # fmt: skip
    assert model.summary.bestEpoch < model.summary.totalIterations - 1
    metrics = run.data.metrics
    assert metrics["validation_roc_auc"] == pytest.approx(best["validation_roc_auc"])
    assert metrics["trainLoss"] == pytest.approx(best["trainLoss"])
    assert metrics["bestEpoch"] == model.summary.bestEpoch
    assert metrics["baseline"] == pytest.approx(model.summary.baseline)
    assert len(logged(run.info.run_id)["validationLoss"]) == model.summary.totalIterations + 1
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)] == [
        "summary.png"
    ]


@pytest.mark.usefixtures("autologging")
def test_autolog_takes_the_active_run_and_leaves_it_active(train: DataFrame) -> None:
    with mlflow.start_run() as run:
        fast_fm().fit(train)
        assert mlflow.active_run().info.run_id == run.info.run_id

    assert only_run().data.params["numFactors"] == "4"


@pytest.mark.usefixtures("autologging")
def test_a_fit_that_fails_leaves_a_failed_run_and_none_active(train: DataFrame) -> None:
    with pytest.raises(InvalidParamError):
        fast_fm(miniBatchSize=0).fit(train)

    assert mlflow.active_run() is None
    assert [run.info.status for run in mlflow.search_runs(output_format="list")] in ([], ["FAILED"])


@pytest.mark.usefixtures("autologging")
def test_a_second_fit_in_a_run_costs_a_warning_for_its_other_params(
    train: DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    with mlflow.start_run(), caplog.at_level(logging.WARNING, "spark_fm"):
        fast_fm().fit(train)
        model = fast_fm(epochs=3).fit(train)

    assert model.summary.totalIterations == 3
    [warning] = [r.getMessage() for r in caplog.records if "MLflow" in r.getMessage()]
    assert warning.startswith("Params were not logged")
    assert only_run().data.metrics["trainLoss"] == model.summary.rows[-1]["trainLoss"]


def test_autolog_registers_models_when_asked_and_stops_when_disabled(train: DataFrame) -> None:
    autolog(registered_model_name="fm", extra_tags={"team": "ads"})
    try:
        model = fast_fm().fit(train)
    finally:
        autolog(disable=True)
    fast_fm().fit(train)

    assert only_run().data.tags["team"] == "ads"
    scores = mlflow.pyfunc.load_model("models:/fm/1").predict(as_lists(np.eye(20)))["score"]
    assert scores.to_numpy(np.float32) == pytest.approx(model.predict(np.eye(20)))


@pytest.mark.parametrize("kind", [CrossValidator, TrainValidationSplit])
def test_of_spark_s_tuning_over_a_pipeline_the_last_fit_alone_is_logged_and_registered(
    kind: Any, train: DataFrame
) -> None:
    fm = fast_fm(epochs=1, solver="sgd")
    maps = [{fm.factorsLr: 0.1}, {fm.factorsLr: 0.2}]
    evaluator = BinaryClassificationEvaluator(rawPredictionCol="score")
    tuning = kind(estimator=Pipeline(stages=[fm]), estimatorParamMaps=maps, evaluator=evaluator)
    if kind is CrossValidator:
        tuning.setNumFolds(2).setParallelism(2)
    autolog(registered_model_name="fm")
    try:
        fitted = tuning.fit(train)
    finally:
        autolog(disable=True)

    best = fitted.bestModel.stages[0].getOrDefault("factorsLr")
    assert only_run().data.params["factorsLr"] == str(best)
    assert [int(v.version) for v in mlflow.MlflowClient().search_model_versions("name='fm'")] == [1]


@pytest.mark.usefixtures("autologging")
def test_of_one_vs_rest_nothing_is_logged_also_as_a_stage_and_in_an_active_run(
    train: DataFrame,
) -> None:
    one_vs_rest = OneVsRest(classifier=fast_fm(epochs=1, solver="sgd"), parallelism=2)

    one_vs_rest.fit(train)
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []

    with mlflow.start_run() as run:
        Pipeline(stages=[one_vs_rest]).fit(train)
    data = mlflow.get_run(run.info.run_id).data
    assert (data.params, data.metrics) == ({}, {})
    assert only_run().info.status == "FINISHED"


@pytest.mark.usefixtures("autologging")
def test_each_machine_of_a_pipeline_has_a_run_or_the_first_the_active_one(
    train: DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    first = fast_fm(epochs=1, numFactors=2, scoreCol="first", predictedLabelCol="label_of_first")
    for param in ("predictionCol", "probabilityCol", "rawPredictionCol"):
        first.set(first.getParam(param), "")
    pipeline = Pipeline(stages=[first, fast_fm(epochs=1, numFactors=3)])

    pipeline.fit(train)
    runs = mlflow.search_runs(output_format="list")
    assert sorted(run.data.params["numFactors"] for run in runs) == ["2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}

    with mlflow.start_run() as run:
        assert len(pipeline.fit(train).stages) == 2
    assert mlflow.get_run(run.info.run_id).data.params["numFactors"] == "2"
    assert "numFactors" in caplog.text


def test_the_page_s_registry_is_asked_by_alias_and_holds_the_model(
    classifier: FactorizationMachineModel, train: DataFrame, store: str
) -> None:
    page = (ROOT / "docs" / "mlflow.md").read_text().split("### A registry\n")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    names: dict[str, Any] = {
        "mlflow": mlflow, "log_model": log_model, "model": classifier,
        "FactorizationMachineModel": FactorizationMachineModel,
    }  # fmt: skip

    exec(code.replace("sqlite:///mlflow.db", store), names)

    rows = train.limit(3).toPandas()
    expected = spark_fm.load(names["folder"]).predict(rows)
    assert names["scorer"].predict(rows)["score"].to_numpy() == pytest.approx(expected)
    assert np.array_equal(names["model"].factors, classifier.factors)


@pytest.mark.usefixtures("autologging")
def test_fits_in_threads_of_the_caller_s_own_are_logged(train: DataFrame) -> None:
    with ThreadPool(1) as pool:
        pool.map(fast_fm().fit, [train])

    assert only_run().info.status == "FINISHED"


@pytest.mark.usefixtures("autologging")
def test_each_model_of_one_fit_is_a_nested_run(train: DataFrame) -> None:
    fm = fast_fm()
    models = fm.fit(train, [{fm.factorsLr: 0.1}, {fm.factorsLr: 0.2}])

    parent = next(
        run for run in mlflow.search_runs(output_format="list")
        if "mlflow.parentRunId" not in run.data.tags
    )  # fmt: skip
    children = nested_runs(parent.info.run_id)
    assert [run.data.params["factorsLr"] for run in children] == ["0.1", "0.2"]
    for run, model in zip(children, models, strict=True):
        losses = logged(run.info.run_id)["trainLoss"]
        assert [losses[0], losses[1]] == pytest.approx(model.summary.objectiveHistory)


@pytest.mark.usefixtures("autologging")
def test_a_store_that_is_gone_costs_warnings_and_no_training(
    train: DataFrame, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(mlflow, "start_run", refuse)
    with caplog.at_level(logging.WARNING, "spark_fm"):
        model = fast_fm().fit(train)

    assert model.summary.totalIterations == 2
    assert "the server is gone" in caplog.text


@pytest.mark.usefixtures("autologging")
@pytest.mark.parametrize("gone", ["log_batch", "create_run"])
def test_a_store_that_goes_during_a_search_costs_one_warning(
    gone: str, train: DataFrame, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        try:
            raise ConnectionError("the server is gone")
        except ConnectionError:
            raise mlflow.MlflowException("API request failed")  # noqa: B904 - as MLflow does

    monkeypatch.setattr(mlflow.MlflowClient, gone, refuse)
    with caplog.at_level(logging.WARNING, "spark_fm"):
        tune(fast_fm(validationFraction=0.2, solver="sgd"), train, trials=3, parallel=1)

    [warning] = [r.getMessage() for r in caplog.records if "MLflow" in r.getMessage()]
    assert "no more is logged" in warning
    assert mlflow.active_run() is None
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert "RUNNING" not in [run.info.status for run in runs]


def test_a_trial_that_is_refused_is_ended_and_drops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def trial(number: int, params: dict[str, Any]) -> Trial:
        return Trial(
            number=number, params=params, places={}, state="complete", larger_is_better=False,
            curve=[0.5], metrics={}, seconds=1.0,
        )  # fmt: skip

    with mlflow.start_run() as parent, caplog.at_level(logging.WARNING, "spark_fm"):
        log_trials([trial(0, {"a?\n": 1}), trial(1, {"factorsLr": 0.1})], "logloss")

    assert "Trials were not logged" in caplog.text
    runs = {run.info.run_name: run for run in nested_runs(parent.info.run_id)}
    assert [runs[f"trial {n}"].info.status for n in (0, 1)] == ["FINISHED"] * 2
    assert runs["trial 1"].data.params == {"factorsLr": "0.1"}


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("s3://KEY:SE/CR+ET@bucket/a", "s3://bucket/a"),
        ("s3a://KEY:SECRET@bucket/a@b", "s3a://bucket/a@b"),
        ("https://host/a?sig=SECRET&x=/@", "https://host/a"),
        ("abfss://box@account.net/a#SECRET", "abfss://account.net/a"),
        ("hdfs://host:9000/a@b", "hdfs://host:9000/a@b"),
        ("/data/what?/a@b", "/data/what?/a@b"),
        (0.5, "0.5"),
    ],
)
def test_no_secret_of_a_uri_is_logged(value: object, public: str) -> None:
    with mlflow.start_run() as run:
        _log_params(run, {"checkpointDir": value})

    assert only_run().data.params == {"checkpointDir": public}


@pytest.mark.parametrize("by_itself", [True, False])
def test_trials_of_tune_are_nested_runs_in_the_active_run_or_in_autolog_s(
    train: DataFrame, by_itself: bool
) -> None:
    fm = fast_fm(epochs=3, validationFraction=0.2)
    space = {"factorsLr": (0.01, 0.5, "log")}
    if by_itself:
        autolog()
        try:
            found = tune(fm, train, trials=3, space=space)
        finally:
            autolog(disable=True)
    else:
        with mlflow.start_run():
            found = tune(fm, train, trials=3, space=space)

    parents = [
        run for run in mlflow.search_runs(output_format="list")
        if "mlflow.parentRunId" not in run.data.tags
    ]  # fmt: skip
    [parent] = parents
    is_set = "factorsLr" in found.bestParams  # unless trial 0 is the best: its rates are raced
    assert ("factorsLr" in parent.data.params) == (by_itself and is_set)
    assert parent.info.status == "FINISHED"
    runs = {run.info.run_name: run for run in nested_runs(parent.info.run_id)}
    assert set(runs) == {"trial 0", "trial 1", "trial 2"}
    for trial in found.trials:
        run = runs[f"trial {trial.number}"]
        assert run.data.params == {name: str(value) for name, value in trial.params.items()}
        assert run.data.metrics[f"validation_{found.metric}"] == pytest.approx(trial.value)
        curve = logged(run.info.run_id)[f"validation_{found.metric}"]
        assert [curve[epoch] for epoch in range(3)] == pytest.approx(trial.curve)
        assert run.data.tags["state"] == trial.state


# Models ---------------------------------------------------------------------------------


def as_lists(matrix: np.ndarray) -> pd.DataFrame:
    """Return rows as a table of lists."""
    return pd.DataFrame({"features": list(matrix)})


def requirements(uri: str) -> list[str]:
    return Path(mlflow.pyfunc.get_model_dependencies(uri)).read_text().split()


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
        scorer.predict(as_lists(dense))["score"].to_numpy(np.float32), model.predict(dense)
    )
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri)) / "data" / "model"
    loaded = FactorizationMachineModel.load(str(folder))
    assert np.array_equal(loaded.factors, model.factors)


def test_a_model_has_a_signature_an_example_and_the_requirements_of_a_slim_install(
    classifier: FactorizationMachineModel, regressor: FactorizationMachineModel
) -> None:
    named = regressor.copy().setFeaturesCol("x").setScoreCol("rating")
    for model, inputs, outputs in (
        (classifier, ["features"], ["score", "predicted_label"]),
        (named, ["x"], ["rating"]),
    ):
        with mlflow.start_run():
            info = log_model(model)

        assert info.signature.inputs.input_names() == inputs
        assert info.signature.outputs.input_names() == outputs
        scorer = mlflow.pyfunc.load_model(info.model_uri)
        assert list(scorer.predict(scorer.input_example)) == outputs
    assert requirements(info.model_uri) == [
        f"spark-fm[mlflow]=={spark_fm.__version__}", f"mlflow-skinny=={mlflow.__version__}"
    ]  # fmt: skip


def test_mlflow_s_keywords_reach_it_and_the_model_is_registered(
    classifier: FactorizationMachineModel, train: DataFrame
) -> None:
    with mlflow.start_run():
        info = log_model(
            classifier, registered_model_name="catalog.schema.fm", metadata={"trained": "today"},
            input_example=train.limit(2), extra_pip_requirements=["boto3"], tags={"team": "ads"},
        )  # fmt: skip

    scorer = mlflow.pyfunc.load_model("models:/catalog.schema.fm/1")
    assert scorer.metadata.metadata == {"trained": "today"}
    assert requirements(info.model_uri)[-1] == "boto3"
    example = scorer.input_example
    assert list(example) == ["features"]
    expected = column(classifier.transform(train.limit(2)), "score")
    assert scorer.predict(example)["score"].to_numpy() == pytest.approx(expected)


def test_an_example_that_is_a_matrix_makes_a_model_that_takes_matrices(
    classifier: FactorizationMachineModel,
) -> None:
    for example in (np.eye(20), sp.csr_matrix(np.eye(20))):
        with mlflow.start_run():
            info = log_model(classifier, input_example=example)

        assert info.signature.outputs is not None
        scores = mlflow.pyfunc.load_model(info.model_uri).predict(example)["score"]
        assert scores.to_numpy(np.float32) == pytest.approx(classifier.predict(example))


def test_an_example_with_params_and_a_signature_of_the_caller_s_reach_mlflow(
    classifier: FactorizationMachineModel, train: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow.start_run():
        info = log_model(classifier, input_example=(train.limit(1), {"verbose": True}))
    assert info.signature.inputs.input_names() == ["features"]
    assert [param.name for param in info.signature.params] == ["verbose"]
    assert list(mlflow.pyfunc.load_model(info.model_uri).input_example) == ["features"]

    monkeypatch.delattr("spark_fm.mlflow._signature")  # not asked for
    with mlflow.start_run():
        given = log_model(classifier, signature=info.signature)
    assert given.signature == info.signature


@pytest.mark.skipif(MODE == "connect", reason="MLflow's workers there do not know the test's store")
def test_a_registered_model_scores_columns_of_spark(
    classifier: FactorizationMachineModel, train: DataFrame, spark: SparkSession
) -> None:
    with mlflow.start_run():
        info = log_model(classifier)

    scored = mlflow.pyfunc.spark_udf(spark, info.model_uri, env_manager="local")
    rows = train.limit(5)
    found = column(rows.select(scored(F.struct("features"))["score"].alias("score")), "score")

    assert found == pytest.approx(column(classifier.transform(rows), "score"))


def test_a_logged_model_scores_in_a_process_that_cannot_import_pyspark(
    classifier: FactorizationMachineModel, store: str
) -> None:
    with mlflow.start_run():
        info = log_model(classifier)
    code = (
        "import sys; sys.modules['pyspark'] = None\n"
        "import mlflow, numpy as np, pandas as pd\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "rows = pd.DataFrame({'features': list(np.eye(20))})\n"
        "scored = mlflow.pyfunc.load_model(sys.argv[2]).predict(rows)\n"
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
