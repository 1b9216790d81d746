"""``spark-fm train --train --test`` and ``--log-format sagemaker`` end to end."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.cli.main import main
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.recordio import write_records
from tests.cli.test_sagemaker_log import PREFIX, PROGRESS, TEST_SCORE, THROUGHPUT, definition

pytestmark = pytest.mark.spark

FAST = ["--epochs", "3", "--num-factors", "4", "--seed", "7", "--log-level", "error"]
HYPER = {"feature_dim": "9", "num_factors": "4", "predictor_type": "binary_classifier",
         "mini_batch_size": "100", "epochs": "3"}  # fmt: skip


@pytest.fixture(scope="module")
def channels(tmp_path_factory):
    """Train and test files of both kinds of labels."""
    folder = tmp_path_factory.mktemp("channels")
    rng = np.random.default_rng(5)
    X = sp.random_array((700, 9), density=0.4, rng=rng, dtype=np.float32).tocsr()
    X[0, 8] = 1.0
    score = np.asarray(X.sum(1)).ravel()
    for name, rows in (("train", slice(0, 500)), ("test", slice(500, 700))):
        write_records(folder / f"{name}-binary.pbr", X[rows], (score[rows] > 1.8).astype(float))
        write_records(folder / f"{name}-regressor.pbr", X[rows], score[rows])
    return folder


def words(channels, kind, out, *more):
    files = {name: str(channels / f"{name}-{kind}.pbr") for name in ("train", "test")}
    return ["train", "--train", files["train"], "--test", files["test"], "--model", str(out),
            *FAST, *more]  # fmt: skip


def sagemaker_flags(folder, **values):
    """Flags of a training as SageMaker's, told as SageMaker tells it."""
    path = folder / "hyperparameters.json"
    path.write_text(json.dumps(HYPER | values))
    return ["--hyperparameters", str(path), "--log-format", "sagemaker"]


def evaluated(channels, kind, model, capfd):
    path = str(channels / f"test-{kind}.pbr")
    flags = ["--input", path, "--format", "recordio-protobuf", "--json"]
    assert main(["evaluate", "--model", str(model), *flags]) == 0
    return json.loads(capfd.readouterr().out)


def test_the_test_channel_of_a_classifier_is_told_at_threshold_one_half(
    spark, channels, tmp_path, capfd
):
    assert main(words(channels, "binary", tmp_path / "m", "--threshold", "0.9")) == 0
    [line] = [row for row in capfd.readouterr().out.splitlines() if row.startswith("test ")]
    flags = ["--set", "threshold=0.5"]
    path = str(channels / "test-binary.pbr")
    evaluate = ["evaluate", "--model", str(tmp_path / "m"), "--input", path, "--json", *flags]
    assert main([*evaluate, "--format", "recordio-protobuf"]) == 0
    metrics = json.loads(capfd.readouterr().out)
    expected = "test       log loss {logloss:.6g}, accuracy {accuracy:.6g}, F1 {f1:.6g}"
    assert line == expected.format(**metrics) + " (threshold 0.5) on 200 rows"


def test_the_test_channel_of_a_regressor_is_told_by_its_rmse(spark, channels, tmp_path, capfd):
    flags = ["--predictor-type", "regressor"]
    assert main(words(channels, "regressor", tmp_path / "m", *flags)) == 0
    [line] = [row for row in capfd.readouterr().out.splitlines() if row.startswith("test ")]
    rmse = evaluated(channels, "regressor", tmp_path / "m", capfd)["rmse"]
    assert line == f"test       RMSE {rmse:.6g} on 200 rows"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("binary", ["binary_classification_accuracy", "binary_classification_cross_entropy",
                    "binary_f_1.000"]),
        ("regressor", ["rmse", "mse", "absolute_loss"]),
    ],
)  # fmt: skip
def test_expressions_of_tuning_jobs_read_a_training_in_sagemaker_s_mode(
    spark, channels, tmp_path, capfd, kind, names
):
    predictor = {"binary": "binary_classifier", "regressor": "regressor"}[kind]
    flags = sagemaker_flags(tmp_path, predictor_type=predictor)
    summary = tmp_path / "summary.json"

    assert main(words(channels, kind, tmp_path / "m", *flags, "--summary", str(summary))) == 0

    told = capfd.readouterr().out
    running = json.loads(summary.read_text())["facts"]["running"]
    assert len(running) == 3
    for name in names:
        by_epoch = [float(x) for x in re.findall(definition("train:{m}:epoch", name), told)]
        by_batch = [float(x) for x in re.findall(definition("train:{m}:batch", name), told)]
        final = [float(x) for x in re.findall(definition("train:{m}", name), told)]
        assert by_epoch == [epoch["metrics"][name] for epoch in running]
        assert by_batch == [epoch["batches"][0]["metrics"][name] for epoch in running]
        assert final == by_epoch[-1:]
    tests = {name: re.findall(definition("test:{m}", name), told) for name in names}
    assert dict(re.findall(TEST_SCORE, told)) == {name: one for name, [one] in tests.items()}
    metrics = evaluated(channels, kind, tmp_path / "m", capfd)
    ours = {"binary": ["accuracy", "logloss", "f1"], "regressor": ["rmse", "rmse", "mae"]}[kind]
    for name, own in zip(names, ours, strict=True):
        value = metrics[own] ** 2 if name == "mse" else metrics[own]
        assert float(tests[name][0]) == pytest.approx(value, rel=1e-12)
    assert re.findall(PROGRESS, told) == [repr(100 / 3), repr(200 / 3), "100.0"]
    assert len(re.findall(THROUGHPUT, told)) == 3


def test_every_line_is_of_the_grammar_and_the_structured_ones_add_up(
    spark, channels, tmp_path, capfd
):
    flags = [*sagemaker_flags(tmp_path), "--log-level", "info"]
    assert main(words(channels, "binary", tmp_path / "m", *flags)) == 0

    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert not [line for line in lines if not re.match(PREFIX + r"|^#metrics \{", line)]
    assert "epoch" not in printed.err
    found = [json.loads(line[9:]) for line in lines if line.startswith("#metrics ")]
    assert {name for item in found for name in item["Metrics"]} >= {
        "initialize.time", "epochs", "update.time", "finalize.time", "setuptime", "totaltime",
    }  # fmt: skip
    assert all(item["StartTime"] <= item["EndTime"] for item in found)
    passes = [item for item in found if item["Dimensions"].get("Meta") == "training_data_iter"]
    assert [item["Dimensions"]["epoch"] for item in passes] == [0, 1, 2]
    seen = [item["Metrics"] for item in passes]
    assert [item["Total Records Seen"]["sum"] for item in seen] == [500, 1000, 1500]
    assert [item["Total Batches Seen"]["sum"] for item in seen] == [5, 10, 15]


def test_our_own_training_tells_loss_and_validation_in_the_grammar_and_a_refit_once(
    spark, channels, tmp_path, capfd
):
    flags = ["--log-format", "sagemaker", "--validation-fraction", "0.3"]
    assert main(words(channels, "binary", tmp_path / "m", *flags)) == 0

    told = capfd.readouterr().out
    loss = definition("train:{m}:epoch", "binary_classification_cross_entropy")
    assert len(re.findall(loss, told)) == 3
    validation = r"#quality_metric: host=\S+, epoch=\S+, validation (\S+) <\S+>=(\S+)"
    assert {name for name, _ in re.findall(validation, told)} == {
        "binary_classification_accuracy", "binary_classification_cross_entropy", "binary_f_1.000",
    }  # fmt: skip


def test_the_log_is_as_it_was_after_the_command(spark, channels, tmp_path):
    logger = logging.getLogger("spark_fm")
    before = logger.level, list(logger.handlers), logger.propagate
    flags = ["--log-format", "sagemaker", "--num-factors", "0"]
    assert main(words(channels, "binary", tmp_path / "m", *flags)) == 2
    assert (logger.level, logger.handlers, logger.propagate) == before


def test_a_job_s_hyperparameters_train_what_the_estimator_made_of_them_trains(
    spark, channels, tmp_path
):
    path = str(channels / "train-binary.pbr")
    out = str(tmp_path / "m")
    flags = [*sagemaker_flags(tmp_path), "--seed", "7", "--log-level", "error"]
    assert main(["train", "--train", path, "--model", out, *flags]) == 0

    frame = spark.read.format("recordio-protobuf").option("featureDim", 9).load(path)
    expected = FactorizationMachine.from_hyperparameters(HYPER).setSeed(7).fit(frame)
    model = FactorizationMachineModel.load(out)
    np.testing.assert_array_equal(model.weights.table, expected.weights.table)
    assert model.hyperparameters() == HYPER


def test_the_test_channel_may_be_a_pipe(spark, channels, tmp_path, capfd):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = (channels / "test-binary.pbr").read_bytes()
    thread = threading.Thread(target=Path(pipe).write_bytes, args=[content])
    thread.start()
    flags = ["--train", str(channels / "train-binary.pbr"), "--test", str(pipe)]
    assert main(["train", *flags, "--model", str(tmp_path / "m"), *FAST]) == 0
    thread.join(10)
    assert "on 200 rows" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--train", "TRAIN", "--input", "TRAIN"], "not allowed with argument --train"),
        (["--input", "TRAIN"], "are required: --format"),
        (["--format", "libsvm"], "are required: --input (or --train)"),
        (["--train", "TRAIN", "--test", "gone.pbr"], "not exist: gone.pbr"),
        (["--train", "TRAIN", "--test", "gone", "--format", "libsvm"], "test path gone does not"),
        (["--train", "TRAIN", "--root", "."], "--train and --root exclude each other"),
        (["--train", "TRAIN", "--hyperparameters", "gone"], "--hyperparameters gone cannot be r"),
        (["--root", ".", "--patience", "0"], "--patience and --root exclude each other"),
    ],
)
def test_mistakes_are_told_before_the_training(spark, channels, tmp_path, flags, reason, capfd):
    flags = [str(channels / "train-binary.pbr") if flag == "TRAIN" else flag for flag in flags]
    model = [] if "--patience" in flags else ["--model", str(tmp_path / "m")]
    assert main(["train", *flags, *model]) == 2
    told = capfd.readouterr().err
    assert reason in told
    assert "epoch" not in told
