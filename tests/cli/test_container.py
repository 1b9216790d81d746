"""``spark-fm train`` in the layout of a training job, end to end."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.cli import sagemaker_job
from spark_fm.cli.main import main
from spark_fm.errors import SparkFMError
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.recordio import write_records
from spark_fm.training import single_task
from spark_fm.training.checkpoints import Checkpoint
from tests.cli.test_sagemaker_log import definition

pytestmark = pytest.mark.spark

FIXED = {
    f"{group}_{name}": value
    for group in ("bias", "linear", "factors")
    for name, value in (("init_method", "constant"), ("init_value", "0.01"))
}
HYPER = {"feature_dim": "9", "num_factors": "4", "predictor_type": "binary_classifier",
         "mini_batch_size": "100", "epochs": "2", **FIXED}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)
    X = sp.random_array((700, 9), density=0.4, rng=rng, dtype=np.float32).tocsr()
    return X, np.asarray(X.sum(1)).ravel()


def job(root: Path, rows, *, hyper=None, sparse=True, mode="File", channels=("train", "test")):
    """Lay out a job: 500 rows to train on, in two files, and 200 to test on."""
    X, score = rows
    hyper = {**HYPER, **(hyper or {})}
    y = (score > 1.8).astype(float) if hyper["predictor_type"] == "binary_classifier" else score
    X = X if sparse else X.toarray()
    config, data = root / "input" / "config", root / "input" / "data"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(hyper))
    about = {"TrainingInputMode": mode, "ContentType": "application/x-recordio-protobuf"}
    (config / "inputdataconfig.json").write_text(json.dumps(dict.fromkeys(channels, about)))
    hosts = {"current_host": "algo-1", "hosts": ["algo-1"]}
    (config / "resourceconfig.json").write_text(json.dumps(hosts))
    for name, first, stop in (("train/a", 0, 200), ("train/b/c", 200, 500), ("test/d", 500, 700)):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_records(path, X[first:stop], y[first:stop])
    return root


def piped(root: Path) -> list[threading.Thread]:
    """Turn the files of a job's channels into pipes, fed in the background."""
    data, threads = root / "input" / "data", []
    for name, files in (("train", ["train/a", "train/b/c"]), ("test", ["test/d"])):
        os.mkfifo(data / f"{name}_0")
        content = b"".join((data / file).read_bytes() for file in files)
        threads.append(
            threading.Thread(target=(data / f"{name}_0").write_bytes, args=[content], daemon=True)
        )
        threads[-1].start()
    return threads


def run(root: Path) -> int:
    return main(["train", "--root", str(root), "--log-level", "error"])


def metrics(text: str, kind: str, name: str) -> list[str]:
    return re.findall(definition(kind, name), text)


@pytest.mark.parametrize(
    ("predictor", "mode"), [("binary_classifier", "File"), ("regressor", "Pipe")]
)
def test_a_job_makes_the_model_that_its_hyperparameters_make_of_the_rows_in_file_order(
    spark, rows, tmp_path, capfd, predictor, mode
):
    root = job(tmp_path / "ml", rows, hyper={"predictor_type": predictor}, mode=mode)
    threads = piped(root) if mode == "Pipe" else []

    assert run(root) == 0

    told = capfd.readouterr().out
    for thread in threads:
        thread.join(10)
    hyper = {**HYPER, "predictor_type": predictor}
    frame = spark.read.format("recordio-protobuf").option("featureDim", 9)
    data = root / "input" / "data" / "train"
    expected = FactorizationMachine.from_hyperparameters(hyper).fit(
        frame.load([str(data / "a"), str(data / "b" / "c")])
    )
    model = FactorizationMachineModel.load(str(root / "model"))
    assert model.bias == expected.bias
    np.testing.assert_array_equal(model.weights.table, expected.weights.table)
    assert model.hyperparameters() == hyper
    assert sorted(os.listdir(root / "model")) == ["data", "metadata"]
    assert not (root / "output" / "failure").exists()
    name = {"regressor": "rmse"}.get(predictor, "binary_classification_cross_entropy")
    assert len(metrics(told, "train:{m}:epoch", name)) == 2
    test = json.loads((root / "output" / "data" / "test.json").read_text())
    assert [float(x) for x in metrics(told, "test:{m}", name)] == [test[name]]
    assert test["rows"] == 200
    summary = json.loads((root / "output" / "data" / "summary.json").read_text())
    assert len(summary["rows"]) == 2


def test_dense_records_train_without_a_test_channel(spark, rows, tmp_path, capfd):
    root = job(tmp_path, rows, sparse=False, channels=("train",))
    assert run(root) == 0
    assert "test" not in capfd.readouterr().out.replace(str(tmp_path), "")
    assert sorted(os.listdir(root / "output" / "data")) == ["summary.json"]


@pytest.mark.parametrize(
    ("X", "label", "reason"),
    [
        ([[1.0] * 10], 1.0, "feature 9 is outside feature_dim=9"),
        ([[1.0] * 9], -1.0, "1 row(s) with label other than 0 or 1, for example -1.0"),
    ],
)
def test_data_that_cannot_be_used_are_the_client_s_error_and_leave_no_model(
    spark, rows, tmp_path, X, label, reason, capfd
):
    root = job(tmp_path, rows, channels=("train",))
    write_records(root / "input" / "data" / "train" / "z", X, [label])

    assert run(root) == 1

    failure = (root / "output" / "failure").read_text()
    assert failure.startswith("ClientError: ")
    assert reason in failure[:1024]
    assert not re.search("handleInvalid|labelCol|mode=", failure)
    assert os.listdir(root / "model") == []
    assert re.search(r"^\[.* ERROR \d+\] ClientError: ", capfd.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("hyper", "reason"),
    [
        ({"feature_dim": "ten"}, "feature_dim='ten'"),
        ({"epochs": "0"}, "epochs='0'"),
        ({"num_factor": "3"}, "'num_factor' (additional properties are not allowed)"),
        ({"feature_dim": None}, "'feature_dim' is required"),
    ],
)
def test_wrong_hyperparameters_are_the_client_s_error_and_named(rows, tmp_path, hyper, reason):
    root = job(tmp_path, rows, hyper=hyper)
    assert run(root) == 1
    failure = (root / "output" / "failure").read_text()
    assert failure.startswith("ClientError: ")
    assert reason in failure[:1024]


def test_a_test_channel_that_cannot_be_scored_fails_the_job_and_takes_the_model_back(
    spark, rows, tmp_path
):
    root = job(tmp_path, rows)
    write_records(root / "input" / "data" / "test" / "z", [[1.0] * 9], [3.0])
    assert run(root) == 1
    failure = (root / "output" / "failure").read_text()
    assert failure.startswith("ClientError: the channel has 1 row(s) with a label other than")
    assert os.listdir(root / "model") == []


def test_a_damaged_file_of_a_job_is_told_without_options_of_spark(spark, rows, tmp_path):
    root = job(tmp_path, rows, channels=("train",))
    with open(root / "input" / "data" / "train" / "a", "r+b") as file:
        file.truncate(os.path.getsize(file.name) - 3)

    assert run(root) == 1

    failure = (root / "output" / "failure").read_text()
    assert failure.startswith("ClientError: ")
    assert failure.endswith("Repair the file.")


def test_a_failure_of_ours_is_an_algorithm_error(spark, rows, tmp_path, monkeypatch):
    def fails(*_):
        raise SparkFMError("no luck")

    monkeypatch.setattr(sagemaker_job, "write_local", fails)
    root = job(tmp_path, rows)
    assert run(root) == 1
    assert (root / "output" / "failure").read_text() == "AlgorithmError: no luck"
    assert os.listdir(root / "model") == []


def test_a_missing_configuration_is_the_client_s_error(tmp_path):
    assert run(tmp_path / "empty") == 1
    failure = (tmp_path / "empty" / "output" / "failure").read_text()
    assert failure.startswith("ClientError: ")
    assert "hyperparameters.json is missing" in failure


def test_no_arguments_mean_the_container_where_its_folder_is(rows, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sagemaker_job, "ROOT", tmp_path / "ml")
    assert main(["train"]) == 2
    assert "--input (or --train), --format, --model" in capfd.readouterr().err
    job(tmp_path / "ml", rows, hyper={"epochs": "none"})
    assert main(["train"]) == 1
    assert "epochs='none'" in (tmp_path / "ml" / "output" / "failure").read_text()


def test_a_model_folder_with_something_in_it_is_replaced_on_request_only(spark, rows, tmp_path):
    root = job(tmp_path, rows, channels=("train",))
    assert run(root) == 0
    before = (root / "model" / "metadata" / "part-00000").read_bytes()
    assert run(root) == 1
    assert "--overwrite" in (root / "output" / "failure").read_text()
    assert (root / "model" / "metadata" / "part-00000").read_bytes() == before
    assert main(["train", "--root", str(root), "--overwrite", "--log-level", "error"]) == 0
    FactorizationMachineModel.load(str(root / "model"))
    assert not (root / "output" / "failure").exists()


def test_a_job_that_was_stopped_goes_on_from_its_checkpoint_bit_for_bit(
    spark, rows, tmp_path, monkeypatch, capfd
):
    whole, root = job(tmp_path / "whole", rows), job(tmp_path / "stopped", rows)
    (root / "checkpoints").mkdir()
    monkeypatch.setattr(single_task, "FIRST_SECONDS", 0.0)  # a job an epoch
    keep = Checkpoint.write

    def stops(*args, **kwargs):
        keep(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", stops)
        assert run(root) == 1
    failure = (root / "output" / "failure").read_text()
    assert f"with the checkpoints in {root}/checkpoints another one goes on" in failure
    assert os.listdir(root / "model") == []
    capfd.readouterr()

    assert run(root) == 0
    assert re.findall(r"completed (\S+) %", capfd.readouterr().out) == ["100.0"]
    assert run(whole) == 0
    models = [FactorizationMachineModel.load(str(path / "model")) for path in (root, whole)]
    np.testing.assert_array_equal(models[0].weights.table, models[1].weights.table)
    assert not (root / "output" / "failure").exists()


@pytest.mark.parametrize("name", ["write_local", "evaluate_channel"])
def test_a_job_that_is_stopped_once_it_has_a_model_ends_well_with_it(
    spark, rows, tmp_path, monkeypatch, capfd, name
):
    root = job(tmp_path, rows)
    step = getattr(sagemaker_job, name)

    def stops(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    monkeypatch.setattr(sagemaker_job, name, stops)

    assert run(root) == 0

    assert "Stopped. The model is in" in capfd.readouterr().out
    FactorizationMachineModel.load(str(root / "model"))
    assert not (root / "output" / "failure").exists()
    assert not (root / "output" / "data" / "test.json").exists()


def test_the_memory_of_the_machine_is_known():
    assert 2**28 < sagemaker_job.memory_bytes() < 2**50
