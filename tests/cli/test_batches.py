"""``spark-fm score --content-type``: files to files, without Spark or as a Spark job."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from spark_fm.cli.main import main
from spark_fm.formats.requests import JSONLINES, RECORDIO_PROTOBUF, encode_request
from spark_fm.formats.responses import decode_response
from tests.formats.models import saved_model

ROWS = np.random.default_rng(2).normal(size=(6, 4))


@pytest.fixture
def folder(tmp_path):
    """A model, and inputs of records and of lines, of which one file is wrong."""
    saved_model(tmp_path / "model")
    for name, kind in (("records", RECORDIO_PROTOBUF), ("lines", JSONLINES)):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"part-{number}").write_bytes(encode_request(ROWS[number:], kind))
    (tmp_path / "lines" / "part-1").write_bytes(b'{"features": [1, 2]}\n')
    return tmp_path


def score(folder, *words):
    return main(["score", "--model", f"{folder}/model", *words])


def test_a_folder_is_scored_without_spark_or_java(folder):
    words = ["score", "--model", f"{folder}/model", "--input", f"{folder}/records",
             "--content-type", "recordio-protobuf", "--output", f"{folder}/out"]  # fmt: skip
    code = "import sys; from spark_fm.cli.main import main; sys.exit(main(sys.argv[1:]))"

    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True,
        env={**os.environ, "PATH": "/nowhere", "JAVA_HOME": "/nowhere"}, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"scored 15 rows of 3 files to {folder}/out in ")
    assert sorted(os.listdir(folder / "out")) == [f"part-{n}.out" for n in range(3)]
    lines = (folder / "out" / "part-2.out").read_text().splitlines()
    assert len(lines) == 4
    assert list(json.loads(lines[0])) == ["score", "predicted_label"]


def test_the_output_has_the_type_that_was_asked_for(folder):
    words = ["--input", f"{folder}/records", "--content-type", RECORDIO_PROTOBUF]
    for accept in ("json", "jsonlines", "recordio-protobuf"):
        assert score(folder, *words, "--accept", accept, "--output", f"{folder}/{accept}") == 0
    assert score(folder, *words, "--join", "--output", f"{folder}/joined") == 0

    found = [decode_response((folder / accept / "part-0.out").read_bytes(), kind).scores.tolist()
             for accept, kind in (("json", "application/json"), ("jsonlines", JSONLINES),
                                  ("recordio-protobuf", RECORDIO_PROTOBUF),
                                  ("joined", RECORDIO_PROTOBUF))]  # fmt: skip
    assert len(found[0]) == 6
    assert found.count(found[0]) == 4


def test_a_wrong_file_fails_alone_and_the_exit_code_says_so(folder, capsys):
    words = ["--input", f"{folder}/lines", "--content-type", "jsonlines", "--output"]

    assert score(folder, *words, f"{folder}/out") == 2

    told = capsys.readouterr()
    assert told.out.startswith(f"scored 10 rows of 2 files to {folder}/out")
    assert f"failed: {folder}/lines/part-1: Instance 0 has 2 dense values" in told.err
    assert "error: 1 of 3 files failed and have no output" in told.err
    assert sorted(os.listdir(folder / "out")) == ["part-0.out", "part-2.out"]


def test_a_name_that_looks_like_a_place_fails_its_file_alone(folder, capsys):
    name = "x` - at `$.instances[" + "9" * 5000 + "]"
    (folder / "lines" / "part-1").write_text(json.dumps({name: 1}))
    words = ["--input", f"{folder}/lines", "--content-type", "jsonlines"]

    assert score(folder, *words, "--output", f"{folder}/out") == 2

    assert f"failed: {folder}/lines/part-1: Instance 0 cannot be read" in capsys.readouterr().err
    assert sorted(os.listdir(folder / "out")) == ["part-0.out", "part-2.out"]


def test_the_threshold_can_be_set(folder):
    words = ["--input", f"{folder}/records/part-0", "--content-type", "recordio-protobuf"]

    assert score(folder, *words, "--output", f"{folder}/out", "--set", "threshold=0") == 0

    found = decode_response((folder / "out" / "part-0.out").read_bytes(), JSONLINES)
    assert set(found.labels.tolist()) == {1.0}


def test_mistakes_are_told_before_anything_is_written(folder, capsys):
    one = f"--input {folder}/lines/part-0"
    mistakes = {
        f"{one}": "give --format, or --content-type",
        f"{one} --format libsvm --join": "--join goes with --content-type",
        f"{one} --format libsvm --split-type Line": "--split-type goes with --content-type",
        f"{one} --format libsvm --output-filter $.id": "--output-filter goes with",
        f"{one} --content-type json --split-type TFRecord": "choose from",
        f"{one} --content-type jsonlines --output-filter $..id": "cannot be read at '..id'",
        f"{one} --content-type text/csv": "is none of json",
        f"{one} --content-type json --format libsvm": "--format does not go with",
        f"{one} --content-type json --output-format csv": "--output-format does not go with",
        f"{one} --content-type json --num-features 3": "--num-features does not go with",
        f"{one} --content-type jsonlines --join --accept json": "A join writes instances as",
        f"{one} --content-type jsonlines --set scoreCol=x": "only threshold has",
        f"{one} --content-type jsonlines --set threshold=2": "threshold",
        "--input - --content-type jsonlines": "is no file",
        f"--input {folder}/no --content-type jsonlines": "does not exist",
        f"--input {folder} --content-type jsonlines": "lies in the input",
        f"{one} --content-type jsonlines --model {folder}/lines": "holds no",
    }
    for words, reason in mistakes.items():
        assert score(folder, *words.split(), "--output", f"{folder}/out") == 2, words
        told = capsys.readouterr().err
        assert reason in told, told
        assert told.count("\n") == 1

    assert not (folder / "out").exists()


def test_sagemaker_s_words_split_join_and_filter_json(folder):
    lines = folder / "lines" / "part-0"
    lines.write_text('{"id": "a", "instances": [{"features": [1, 2, 3, 4], "n": 5}]}\n' * 2)
    words = ["--input", str(lines), "--content-type", "application/json", "--split-type", "line"]
    joined = ["--join-source", "Input", "--output-filter", "$['SageMakerOutput','id']"]

    assert score(folder, *words, "--output", f"{folder}/plain") == 0
    assert score(folder, *words, *joined, "--output", f"{folder}/joined") == 0

    plain = (folder / "plain" / "part-0.out").read_text().splitlines()
    found = map(json.loads, (folder / "joined" / "part-0.out").read_text().splitlines())
    assert list(found) == [{"SageMakerOutput": json.loads(line), "id": "a"} for line in plain]
    assert len(plain) == 2


@pytest.mark.spark
@pytest.mark.usefixtures("spark")
def test_each_file_is_a_spark_task_when_a_master_is_named(folder, capsys, monkeypatch):
    words = ["--input", "lines", "--content-type", "jsonlines", "--join"]
    monkeypatch.chdir(folder)

    assert score(folder, *words, "--output", "here") == 2
    here = capsys.readouterr()
    assert score(folder, *words, "--output", "spark", "--master", "local[2]") == 2
    there = capsys.readouterr()

    assert [line for line in here.err.splitlines() if line.startswith("failed")] == [
        line for line in there.err.splitlines() if line.startswith("failed")
    ]
    assert there.out.startswith(f"scored 10 rows of 2 files to {folder}/spark in ")
    names = sorted(os.listdir("here"))
    assert names == sorted(os.listdir("spark")) == ["part-0.out", "part-2.out"]
    for name in names:
        assert (folder / "here" / name).read_bytes() == (folder / "spark" / name).read_bytes()
