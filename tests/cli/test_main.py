"""The commands end to end, in one session, which they must leave running."""

from __future__ import annotations

import gzip
import itertools
import json
import os

import numpy as np
import pytest

from spark_fm.cli.main import main

pytestmark = pytest.mark.spark

FAST = ["--epochs", "3", "--num-factors", "4", "--seed", "7", "--validation-fraction", "0"]


@pytest.fixture(autouse=True)
def _session(spark):
    """Every command finds this session and leaves it alone."""
    yield
    assert spark.range(3).count() == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


def lines(n_rows, *, first, positive, negative, seed=0):
    """Text rows of 6 features; the label is whether features 0 and 1 are both set."""
    rng = np.random.default_rng(seed)
    for _ in range(n_rows):
        chosen = [j for j in range(5) if rng.random() < 0.6]
        label = positive if {0, 1} <= set(chosen) else negative
        yield " ".join([label, *(f"{j + first}:1" for j in [*chosen, 5])])


@pytest.fixture(scope="module")
def libsvm(folder):
    path = folder / "train.libsvm"
    path.write_text("\r\n".join(lines(300, first=1, positive="+1", negative="-1")) + "\r\n")
    return str(path)


@pytest.fixture(scope="module")
def libfm(folder):
    path = folder / "train.libfm.gz"
    path.write_bytes(
        gzip.compress("\n".join(lines(300, first=0, positive="1", negative="0")).encode())
    )
    return str(path)


@pytest.fixture(scope="module")
def model(spark, folder, libsvm):
    """A classifier of 7 features, one more than the file has."""
    path = str(folder / "model")
    words = ["--input", libsvm, "--format", "libsvm", "--model", path, "--num-features", "7"]
    assert main(["train", *words, *FAST]) == 0
    return path


def test_train_tells_labels_and_epochs_and_writes_all_it_is_asked_for(folder, libsvm, capfd):
    out, summary, plot = (folder / name for name in ("told", "told.json", "told.png"))
    words = ["train", "--input", libsvm, "--format", "libsvm", "--model", str(out), *FAST]
    words += ["--validation", libsvm, "--summary", str(summary), "--plot", str(plot)]
    code = main(words)
    printed = capfd.readouterr()
    assert code == 0
    assert "labels -1/1 mapped to 0/1" in printed.err
    assert sum("validation logloss" in line for line in printed.err.splitlines()) == 3
    assert f"model      {out}" in printed.out
    facts = json.loads(summary.read_text())["facts"]
    assert (facts["numTrainRows"], facts["numValidationRows"], facts["numFeatures"]) == (
        300,
        300,
        6,
    )
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_libfm_and_libsvm_forms_of_the_same_rows_train_the_same_model(folder, libfm, libsvm):
    from spark_fm import FactorizationMachineModel

    out = []
    for path, form in ((libfm, "libfm"), (libsvm, "libsvm")):
        out.append(str(folder / f"same-{form}"))
        assert main(["train", "--input", path, "--format", form, "--model", out[-1], *FAST]) == 0
    first, second = (FactorizationMachineModel.load(path) for path in out)
    assert first.weights.table.tobytes() == second.weights.table.tobytes()
    assert first.bias == second.bias


def test_evaluate_takes_the_number_of_features_from_the_model(folder, model, capfd):
    small = folder / "small.libsvm"  # largest index 2 of 7
    small.write_text("1 1:1 2:1\n-1 1:1\n-1 2:1\n1 1:1 2:1\n-1\n")
    code = main(
        ["evaluate", "--model", model, "--input", str(small), "--format", "libsvm", "--json"]
    )
    printed = capfd.readouterr()
    metrics = json.loads(printed.out)
    assert code == 0
    assert metrics["rows"] == 5
    assert sum(metrics["confusion"].values()) == 5
    assert "labels -1/1 mapped to 0/1" in printed.err


def test_evaluate_agrees_with_metrics_from_the_scores_themselves(
    spark, folder, model, libsvm, capfd
):
    out = str(folder / "scores")
    words = ["--model", model, "--input", libsvm, "--format", "libsvm"]
    assert main(["score", *words, "--output", out]) == 0
    assert main(["evaluate", *words, "--json"]) == 0
    metrics = json.loads(capfd.readouterr().out.splitlines()[-1])
    rows = spark.read.parquet(out)
    assert rows.columns == ["label", "score", "predicted_label"]
    found = np.array([tuple(row) for row in rows.collect()])
    label, score, predicted = found.T
    assert set(label) == {0.0, 1.0}
    loss = -np.mean(np.where(label == 1, np.log(score), np.log1p(-score)))
    pairs = [np.sign(a - b) for a, b in itertools.product(score[label == 1], score[label == 0])]
    assert metrics["logloss"] == pytest.approx(loss, rel=1e-9)
    assert metrics["accuracy"] == pytest.approx(np.mean(label == predicted))
    assert metrics["confusion"]["tp"] == np.sum((label == 1) & (predicted == 1))
    # Ties to 1e-4 in log-odds count half.
    assert metrics["roc_auc"] == pytest.approx((np.mean(pairs) + 1) / 2, abs=1e-3)


def test_evaluate_prints_a_table(model, libsvm, capfd):
    assert main(["evaluate", "--model", model, "--input", libsvm, "--format", "libsvm"]) == 0
    out = capfd.readouterr().out
    for title in ("log loss", "precision", "ROC AUC", "PR AUC", "predicted 1", "label 0"):
        assert title in out


def test_a_regressor_on_parquet_with_parameters_from_json(spark, folder, capfd):
    from pyspark.ml.linalg import Vectors

    rng = np.random.default_rng(3)
    rows = [(f"r{i}", float(i % 7), Vectors.dense(rng.random(4))) for i in range(80)]
    data, params, out = (
        str(folder / name) for name in ("data.parquet", "params.json", "regressor")
    )
    spark.createDataFrame(rows, ["name", "rating", "x"]).write.parquet(data)
    with open(params, "w") as file:
        json.dump({"predictorType": "regressor", "labelCol": "rating", "featuresCol": "x",
                   "numFactors": 4, "epochs": 2}, file)  # fmt: skip
    words = ["--input", data, "--format", "parquet"]
    assert main(["train", *words, "--model", out, "--params", params]) == 0
    capfd.readouterr()
    assert main(["evaluate", "--model", out, *words, "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)) == {"rows", "rmse", "mae", "r2"}
    scores = str(folder / "regressor.csv")
    words += ["--output", scores, "--output-format", "csv"]
    assert main(["score", "--model", out, *words, "--set", "scoreCol=stars"]) == 0
    written = spark.read.csv(scores, header=True)
    assert written.columns == ["name", "rating", "stars"]
    assert written.count() == 80


def test_records_give_the_metrics_that_the_same_rows_as_text_give(folder, model, libsvm, capfd):
    from pathlib import Path

    from benchmarks.datasets import _libsvm
    from spark_fm.recordio import write_records

    zipped = folder / "rows.libsvm.gz"
    zipped.write_bytes(gzip.compress(Path(libsvm).read_bytes()))
    rows = _libsvm(zipped, 6, first=1)
    records = str(folder / "rows.pbr")
    write_records(records, rows.X, (rows.y > 0).astype(float))
    told = []
    for path, file_format in ((libsvm, "libsvm"), (records, "recordio-protobuf")):
        words = ["--model", model, "--input", path, "--format", file_format, "--json"]
        assert main(["evaluate", *words]) == 0
        told.append(json.loads(capfd.readouterr().out))
    assert told[0].pop("confusion") == told[1].pop("confusion")
    assert told[0] == pytest.approx(told[1], rel=1e-6)
    out = str(folder / "from-records")
    words = ["--input", records, "--format", "recordio-protobuf"]
    assert main(["train", *words, "--model", out, *FAST]) == 0


def test_score_takes_lines_without_labels_and_names_the_files_when_there_are_several(
    spark, folder, model
):
    many = folder / "many"
    many.mkdir()
    (many / "a.libsvm").write_text("1:1 2:1\n3:1\n")
    (many / "b.libsvm").write_text("2:1\n")
    out = str(folder / "many.json")
    words = ["--model", model, "--format", "libsvm", "--output", out, "--output-format", "json"]
    assert main(["score", *words, "--input", str(many / "*.libsvm")]) == 0
    rows = spark.read.json(out)
    assert sorted(rows.columns) == ["input_file", "predicted_label", "score"]
    names = sorted(row["input_file"].rsplit("/", 1)[1] for row in rows.collect())
    assert names == ["a.libsvm", "a.libsvm", "b.libsvm"]


@pytest.mark.parametrize("command", ["train", "evaluate", "score"])
def test_a_bad_line_is_told_with_its_file_and_leaves_nothing_behind(folder, model, command, capfd):
    bad = folder / "bad lines.libsvm"
    bad.write_text("1 1:1\n-1 2:1 3:x\n")
    out = str(folder / f"never-{command}")
    words = {
        "train": ["--model", out, *FAST],
        "evaluate": ["--model", model],
        "score": ["--model", model, "--output", out],
    }[command]
    code = main([command, "--input", str(bad), "--format", "libsvm", *words])
    told = [line for line in capfd.readouterr().err.splitlines() if "spark-fm: error" in line]
    assert code == 2
    reason = "the line '-1 2:1 3:x' cannot be read: the value of 3:x is x, not a number."
    assert told == [f"spark-fm: error: {bad}: {reason}"]
    assert not os.path.exists(out)


def test_bad_lines_are_skipped_and_counted_when_that_is_asked_for(folder, capfd):
    bad = folder / "skipped.libfm"
    bad.write_text("\n".join([*lines(50, first=0, positive="1", negative="0"), "1 nonsense"]))
    words = ["--input", str(bad), "--format", "libfm", "--model", str(folder / "skipping")]
    assert main(["train", *words, *FAST, "--handle-invalid", "skip"]) == 0
    assert "skipped 1 row(s): 1 null features" in capfd.readouterr().err


def test_an_existing_model_is_refused_before_training_and_replaced_on_request(
    folder, model, libsvm, capfd
):
    words = ["train", "--input", libsvm, "--format", "libsvm", *FAST, "--model"]
    assert main([*words, model]) == 2
    err = capfd.readouterr().err
    assert f"--model {model} exists already" in err
    assert "epoch" not in err
    copy = str(folder / "replaced")
    assert main([*words, copy]) == 0
    assert main([*words, copy, "--overwrite"]) == 0
    assert main([*words, str(folder), "--overwrite"]) == 2
    assert "is not a saved model" in capfd.readouterr().err


def test_score_never_replaces_what_it_was_not_told_to(folder, model, libsvm, capfd):
    words = ["score", "--model", model, "--input", libsvm, "--format", "libsvm", "--output"]
    assert main([*words, str(folder)]) == 2
    assert "exists" in capfd.readouterr().err
    assert main([*words, str(folder), "--overwrite"]) == 2
    assert "would remove" in capfd.readouterr().err
    assert os.path.exists(libsvm)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--input", "nowhere.libsvm", "--format", "libsvm"], "nowhere.libsvm does not exist"),
        (["--input", "nowhere.parquet", "--format", "parquet"], "nowhere.parquet does not exist"),
        (["--input", "TRAIN", "--format", "parquet"], "cannot be read as parquet"),
        (["--input", "nowhere", "--format", "recordio-protobuf"], "not exist: nowhere"),
        (["--input", "TRAIN", "--format", "recordio-protobuf"], "expected the magic"),
        (["--input", "TRAIN", "--format", "libsvm", "--set", "numFactor=3"], "mean numFactors?"),
        (["--input", "TRAIN", "--format", "libsvm", "--num-factors", "0"], "--num-factors 0"),
        (["--input", "TRAIN", "--format", "libsvm", "--num-features", "2"], "the last of 2 featu"),
        (["--input", "TRAIN", "--format", "libsvm", "--plot", "x.doc"], "must end in .png"),
        (["--input", "TRAIN", "--format", "libsvm", "--summary", "no/x"], "not a folder"),
    ],
)
def test_mistakes_of_the_caller_are_one_line_and_exit_code_2(folder, libsvm, words, reason, capfd):
    words = [libsvm if word == "TRAIN" else word for word in words]
    assert main(["train", *words, "--model", str(folder / "never"), "--log-level", "error"]) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if "spark-fm: error" in line]
    assert len(told) == 1
    assert reason in told[0]
    assert not (folder / "never").exists()


def test_labels_of_three_kinds_are_refused(folder, model, capfd):
    mixed = folder / "mixed.libsvm"
    mixed.write_text("1 1:1\n0 2:1\n-1 3:1\n")
    words = ["--input", str(mixed), "--format", "libsvm"]
    assert main(["train", *words, "--model", str(folder / "never"), *FAST]) == 2
    assert "label other than 0 or 1, for example -1" in capfd.readouterr().err
    assert main(["evaluate", *words, "--model", model]) == 2
    assert "labels 0 and -1" in capfd.readouterr().err


def test_a_folder_that_is_no_model_is_told(folder, libsvm, capfd):
    words = ["--input", libsvm, "--format", "libsvm", "--model", str(folder / "no-model")]
    assert main(["evaluate", *words]) == 2
    assert "holds no FactorizationMachineModel" in capfd.readouterr().err


def test_ctrl_c_ends_with_130_and_frees_what_was_kept(spark, folder, libsvm, monkeypatch, capfd):
    from spark_fm.training import trainer

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "make_plan", interrupted)
    words = ["--input", libsvm, "--format", "libsvm", "--model", str(folder / "never"), *FAST]
    assert main(["train", *words]) == 130
    assert "spark-fm: error: interrupted" in capfd.readouterr().err
    assert not (folder / "never").exists()


def test_the_traceback_is_shown_on_request_only(folder, capfd):
    words = ["train", "--input", "gone", "--format", "libfm", "--model", str(folder / "never")]
    assert main(words) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert main([*words, "--verbose"]) == 2
    assert "Traceback" in capfd.readouterr().err
