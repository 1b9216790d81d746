"""``spark-fm import``, ``export`` and ``inspect``: programs without Spark and Java."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spark_fm.cli.main import main
from spark_fm.formats.models.native import imported_model, read_model, save_model
from spark_fm.formats.models.sagemaker import read_sagemaker
from spark_fm.learner.weights import FMWeights
from tests.builders import planted_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ARTIFACT = str(GOLDEN / "sagemaker" / "sparse.tar.gz")
LIBFM = str(GOLDEN / "libfm" / "regressor.model")


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model, imported."""
    assert run("import", "--from", "sagemaker", ARTIFACT, "--model", tmp_path / "m") == 0
    return tmp_path / "m"


def inspected(path: object, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert run("inspect", path, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_an_artifact_becomes_a_saved_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = read_sagemaker(ARTIFACT)

    assert run("import", "--from", "sagemaker", ARTIFACT, "--model", tmp_path / "m") == 0

    found = read_model(str(tmp_path / "m"))

    assert found.weights.table.tobytes() == expected.weights.table.tobytes()
    assert found.params == expected.params
    said = "imported a binary_classifier of 12 features and 3 factors to"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("way", [["sagemaker"], ["sagemaker", "--network", "dense"], ["text"]])
def test_what_is_exported_is_imported_again_bit_for_bit(
    folder: Path, tmp_path: Path, way: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, back = tmp_path / "out", tmp_path / "back"

    assert run("export", "--to", *way, "--model", folder, "--output", out) == 0
    assert run("import", "--from", way[0], out, "--model", back, "--threshold", 0.3) == 0

    first, second = read_model(str(folder)), read_model(str(back))
    assert second.weights.table.tobytes() == first.weights.table.tobytes()
    assert (second.weights.bias, second.loss) == (first.weights.bias, first.loss)
    assert second.params["threshold"] == 0.3
    assert f"{os.path.getsize(out):,} bytes" in capsys.readouterr().out


def test_libfm_goes_both_ways(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["import", "--from", "libfm", "--predictor-type", "regressor", "--model"]
    assert run(*words, tmp_path / "m", LIBFM) == 0
    assert run("export", "--to", "libfm", "--model", tmp_path / "m", "--output", out) == 0

    assert run(*words, tmp_path / "m", out, "--overwrite") == 0

    theirs = [float(line) for line in Path(LIBFM).read_text().splitlines()[3:15]]
    assert read_model(str(tmp_path / "m")).weights.linear == pytest.approx(theirs, rel=1e-7)


@pytest.mark.parametrize("inputs", ["dense", "sparse"])
def test_onnx_is_written(folder: Path, tmp_path: Path, inputs: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "m.onnx"

    words = ["--to", "onnx", "--inputs", inputs, "--model", folder, "--output", out]
    assert run("export", *words) == 0

    names = [i.name for i in onnxruntime.InferenceSession(str(out)).get_inputs()]
    assert names == {"dense": ["features"], "sparse": ["indices", "values"]}[inputs]


def test_a_saved_model_is_inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(folder, capsys)

    assert found["kind"] == "model of spark_fm"
    assert (found["feature_dim"], found["num_factors"], found["parameters"]) == (12, 3, 49)
    assert found["digests"]["verified"] is True
    assert set(found["digests"]) == {"verified", "metadata", "table"}
    assert found["hyperparameters"]["epochs"] == "5"
    assert found["origin"] == {"format": "sagemaker", "network": "sparse"}
    assert run("inspect", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "predictor_type            binary_classifier" in lines
    assert "  verified  yes" in lines


def test_metrics_of_the_best_epoch_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = imported_model(planted_weights(5, 2, seed=1), "regressor", threshold=0.5, origin={})
    rows = [{"epoch": 0, "validation_rmse": 2.0}, {"epoch": 1, "validation_rmse": float("nan")}]
    model.metadata["summary"] = {"rows": rows, "facts": {"bestEpoch": 0, "numRows": 1234}}
    save_model(str(tmp_path / "m"), model)

    found = inspected(tmp_path / "m", capsys)

    assert found["summary"]["atBestEpoch"] == {"epoch": 0, "validation_rmse": 2.0}
    assert run("inspect", tmp_path / "m") == 0
    assert "numRows      1,234" in capsys.readouterr().out


def test_artifacts_and_texts_are_inspected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "m.txt"
    assert run("export", "--to", "text", "--model", folder, "--output", text) == 0

    theirs = inspected(ARTIFACT, capsys)
    assert (theirs["kind"], theirs["network"]) == ("artifact of SageMaker", "sparse")
    assert theirs["written_by"] is None
    assert theirs["arrays"]["v"] == {
        "storage": "row_sparse", "type": "float32", "shape": [12, 3]
    }  # fmt: skip
    assert len(theirs["sha256"]) == 64
    assert inspected(text, capsys)["predictor_type"] == "binary_classifier"
    assert inspected(LIBFM, capsys)["predictor_type"] is None


def test_an_artifact_of_another_algorithm_is_inspected_and_not_imported(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data_folder / "sagemaker" / "linear-learner-artifact" / "model.tar.gz"

    found = inspected(path, capsys)

    assert found["what"].startswith("a model of SageMaker's linear learner")
    assert found["arrays"]["fc0_weight"]["shape"] == [5000, 1]
    assert run("import", "--from", "sagemaker", path, "--model", tmp_path / "m") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "it is a model of SageMaker's linear learner" in told
    assert os.listdir(tmp_path) == []


def test_a_damaged_model_is_an_error_of_inspect(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "data" / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-30])

    assert run("inspect", folder) == 2
    assert "is a damaged model" in capsys.readouterr().err


def test_orders_to_a_terminal_are_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = read_sagemaker(ARTIFACT)
    model.metadata["origin"]["hyperparameters"]["\x1b[2Jname"] = "\x1b]0;title\x07"
    save_model(str(tmp_path / "m"), model)

    assert run("inspect", tmp_path / "m") == 0

    assert "\x1b" not in capsys.readouterr().out


def test_mistakes_are_one_line_exit_with_2_and_leave_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"me")
    huge = FMWeights(0.5, np.ones((1, 3), np.float32), 2**31 - 1, np.array([7], np.int32))
    save_model(str(tmp_path / "huge"), imported_model(huge, "regressor", threshold=0.5, origin={}))
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../model_algo-1"))
    new = f"--model {tmp_path}/new"
    out = f"--output {tmp_path}/new"
    mistakes = {
        f"import --from sagemaker {ARTIFACT} --model {folder}": "exists; give another path",
        f"import --from sagemaker {ARTIFACT} --model {tmp_path}/photos --overwrite": "no model",
        f"import --from sagemaker {ARTIFACT} --model {tmp_path}/there --overwrite": "no model",
        f"import --from sagemaker {tmp_path}/none {new}": "cannot be opened",
        f"import --from sagemaker {tmp_path}/there {new}": "neither a tar, tar.gz or zip",
        f"import --from sagemaker {tmp_path}/bad.tar.gz {new}": "leads out of the archive",
        f"import --from sagemaker {ARTIFACT} {new} --max-bytes 100": "--max-bytes on the command",
        f"import --from sagemaker {ARTIFACT} {new} --max-bytes 0": "expected 1 or more",
        f"import --from sagemaker {ARTIFACT} {new} --threshold 2": "threshold=2.0 is not allowed",
        f"import --from sagemaker {ARTIFACT} {new} --predictor-type regressor": "is a binary_class",
        f"import --from libfm {LIBFM} {new}": "--predictor-type is needed",
        f"import --from text {LIBFM} {new}": "is no model text of spark_fm",
        f"import {ARTIFACT} {new}": "--from",
        f"export --to sagemaker --model {folder} --output {tmp_path}/there": "exists; give another",
        f"export --to text --model {folder} --output {tmp_path}/photos --overwrite": "is a folder",
        f"export --to text --model {folder} --output {tmp_path}/no/x": "there is no such folder",
        f"export --to text --model {folder} {out} --network dense": "--network belongs to",
        f"export --to text --model {folder} {out} --inputs dense": "--inputs belongs to",
        f"export --to text --model {tmp_path}/photos {out}": "holds no FactorizationMachineModel",
        f"export --to libfm --model {tmp_path}/huge {out}": "lists all 2,147,483,647 features",
        f"export --to sagemaker --network dense --model {tmp_path}/huge {out}": "needs no more",
        f"inspect {tmp_path}/none": "does not exist",
        f"inspect {tmp_path}/there": "neither a tar",
        f"inspect {tmp_path}/photos": "is no artifact of SageMaker",
    }  # fmt: skip
    before = sorted(map(str, tmp_path.rglob("*")))
    capsys.readouterr()
    for words, reason in mistakes.items():
        assert main(words.split()) == 2, words
        told = capsys.readouterr().err
        assert told.count("\n") == 1, told
        assert reason in told, told

    assert sorted(map(str, tmp_path.rglob("*"))) == before
    assert (tmp_path / "there").read_bytes() == b"old"


def test_overwriting_replaces_a_model_and_a_file(folder: Path, tmp_path: Path) -> None:
    words = ["import", "--from", "libfm", LIBFM, "--predictor-type", "regressor"]
    assert run(*words, "--model", folder, "--overwrite") == 0
    (tmp_path / "out").write_bytes(b"old")

    words = ["export", "--to", "text", "--model", folder, "--output", tmp_path / "out"]
    assert run(*words, "--overwrite") == 0

    assert read_model(str(folder)).loss == "squared"
    assert "predictor_type regressor" in (tmp_path / "out").read_text()
    assert sorted(os.listdir(tmp_path)) == ["m", "out"]


def test_a_model_that_cannot_be_put_in_place_leaves_the_old_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def refuse(source: str, target: str) -> None:
        if source.endswith(".tmp"):
            raise PermissionError("not here")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    model = imported_model(planted_weights(5, 2, seed=1), "regressor", threshold=0.5, origin={})
    with pytest.raises(PermissionError):
        save_model(str(folder), model, overwrite=True)

    assert read_model(str(folder)).loss == "logistic"
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("command", ["import", "export", "inspect"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0

    assert f"  spark-fm {command} " in capsys.readouterr().out


def test_neither_spark_nor_java_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from spark_fm.cli.main import main\n"
        "m, t = sys.argv[2] + '/m', sys.argv[2] + '/t'\n"
        "assert main(['import', '--from', 'sagemaker', sys.argv[1], '--model', m]) == 0\n"
        "assert main(['export', '--to', 'sagemaker', '--model', m, '--output', t]) == 0\n"
        "assert main(['inspect', t]) == 0\n"
        "assert 'pyspark' not in sys.modules\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, ARTIFACT, str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "PATH": "/nowhere", "JAVA_HOME": "/nowhere"}, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
