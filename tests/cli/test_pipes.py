"""Training from standard input and named pipes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from spark_fm.cli.input_formats import INPUT_FORMATS
from spark_fm.cli.main import main
from spark_fm.cli.pipes import PipeServer, PipeTask
from spark_fm.errors import InvalidDataError
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.recordio import write_records
from tests.conftest import MODE

pytestmark = pytest.mark.spark

FAST = ["--epochs", "2", "--num-factors", "4", "--seed", "7", "--validation-fraction", "0.2"]

LINES = partial(INPUT_FORMATS["libsvm"].read_stream, source="the pipe", num_features=9)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    X = sp.random_array((400, 9), density=0.4, rng=rng, dtype=np.float32).tocsr()
    X[0, 8] = 1.0
    return X, (np.asarray(X.sum(1)).ravel() > 1.5).astype(float)


@pytest.fixture
def files(rows, tmp_path):
    X, y = rows
    write_records(tmp_path / "a.pbr", X, y)
    assert main(
        ["convert", "--input", f"{tmp_path}/a.pbr", "--output", f"{tmp_path}/a.libsvm"]
    ) == 0  # fmt: skip
    return {"recordio-protobuf": tmp_path / "a.pbr", "libsvm": tmp_path / "a.libsvm"}


@pytest.fixture
def pipe(tmp_path):
    """Return a function that makes a pipe and feeds a file into it."""
    threads = []

    def feed(path, name="pipe"):
        made = str(tmp_path / name)
        os.mkfifo(made)
        threads.append(threading.Thread(target=Path(made).write_bytes, args=[path.read_bytes()]))
        threads[-1].start()
        return made

    yield feed
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize("kind", ["recordio-protobuf", "libsvm"])
def test_a_named_pipe_gives_the_model_of_the_file(spark, files, pipe, tmp_path, kind):
    through, direct = str(tmp_path / "through"), str(tmp_path / "direct")
    flags = ["--format", kind, *FAST]

    assert main(["train", "--input", pipe(files[kind]), "--model", through, *flags]) == 0
    assert main(["train", "--input", str(files[kind]), "--model", direct, *flags]) == 0

    models = [FactorizationMachineModel.load(path) for path in (through, direct)]
    assert models[0].bias == models[1].bias
    np.testing.assert_array_equal(models[0].weights.table, models[1].weights.table)


def test_training_and_validation_may_both_be_pipes(spark, files, pipe, tmp_path):
    first, second = (pipe(files["libsvm"], name) for name in ("one", "two"))
    flags = ["--format", "libsvm", "--epochs", "2", "--num-factors", "4"]

    code = main(
        ["train", "--input", first, "--validation", second, "--model", f"{tmp_path}/m", *flags]
    )

    assert code == 0


@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="a program of its own starts a Classic session")
def test_standard_input_trains_in_a_program_of_its_own(files, tmp_path):
    words = ["train", "--input", "-", "--format", "recordio-protobuf", "--master", "local[1]"]

    with files["recordio-protobuf"].open("rb") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "spark_fm.cli.main", *words, "--model", f"{tmp_path}/m", *FAST],
            stdin=stream, capture_output=True, text=True,
        )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "400 (" in done.stdout
    assert "reading standard input" in done.stderr


def test_broken_pipes_and_wrong_uses_are_told(spark, files, pipe, tmp_path, capsys):
    cut = tmp_path / "cut"
    cut.write_bytes(files["recordio-protobuf"].read_bytes()[:-3])
    made = pipe(cut)
    out = ["--model", str(tmp_path / "m")]
    records = ["--format", "recordio-protobuf"]
    cases = [
        (["train", "--input", made, *records, *out, *FAST], "the file ends inside a record"),
        (["train", "--input", "-", str(cut), *records, *out], "a pipe is read alone"),
        (["train", "--input", made, "--format", "parquet", *out], "a pipe is read alone"),
    ]
    for words, reason in cases:
        assert main(words) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_pipe_that_is_needed_again_is_refused_not_read_short(files, pipe):
    server = PipeServer(pipe(files["libsvm"]), "127.0.0.1")
    task = PipeTask(server.address, server.token, "the pipe", LINES, "y", "x")
    try:
        assert sum(batch.num_rows for batch in task(iter([]))) == 400
        with pytest.raises(InvalidDataError, match=r"pipe can be read only once"):
            list(task(iter([])))
    finally:
        server.close()


def test_a_driver_that_goes_away_is_no_end_of_the_data(tmp_path):
    made = str(tmp_path / "pipe")
    os.mkfifo(made)
    server = PipeServer(made, "127.0.0.1")
    task = PipeTask(server.address, b"wrong token here", "the pipe", LINES, "y", "x")

    with pytest.raises(InvalidDataError, match="the pipe broke off"):
        list(task(iter([])))
    server.close()
    with pytest.raises(InvalidDataError, match=r"does not reach the driver.*spark\.driver\.host"):
        list(task(iter([])))
