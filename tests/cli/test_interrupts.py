"""Ctrl-C and SIGTERM in the middle of a training: exit code, one line, nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spark_fm.cli import convert
from spark_fm.cli.errors import SIGNALS, exit_code, held_back, interruptible, was_interrupted
from spark_fm.cli.main import main
from spark_fm.recordio import write_records
from tests.conftest import MODE

ROOT = Path(__file__).resolve().parents[2]
# A frame of this package, of py4j or of the command: what a user would have to wonder about.
# Workers of PySpark print a BrokenPipeError of their own when the JVM hangs up before their last
# word; several at once mix their lines, so its end and its order can not be relied on.
OWN_FRAME = re.compile(r'File "(?:[^"\n]*/(?:spark_fm|py4j)/[^"\n]*|<frozen runpy>)"')


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_takes_effect_once_and_waits_where_it_is_held_back(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    done = []

    def work():
        with interruptible(), held_back():
            os.kill(os.getpid(), number)
            done.append("held back")

    with pytest.raises(KeyboardInterrupt):
        work()
    with interruptible():
        assert not was_interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # while the command cleans up
        assert was_interrupted()

    assert done == ["held back"]
    assert exit_code() == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with interruptible():
        pass  # later tests find no interruption


def test_a_command_after_an_interrupted_one_ends_with_its_own_code(monkeypatch, capsys):
    def stopped(_):
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(convert, "run", stopped)
    words = ["convert", "--input", "a.libsvm", "--output", "b.pbr"]

    codes = [main(words), main(["convert"])]

    assert codes == [143, 2]
    assert "are required: --input, --output" in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="the command starts a Classic session of its own")
def test_an_interrupted_training_exits_130_with_one_line_and_no_model(tmp_path: Path) -> None:
    data = tmp_path / "train.libsvm"
    data.write_text("".join(f"{i % 2} {i % 7 + 1}:1 {i % 5 + 8}:1\n" for i in range(3000)))
    command = [
        sys.executable, "-m", "spark_fm.cli.main", "train", "--input", str(data),
        "--format", "libsvm", "--model", str(tmp_path / "model"), "--master", "local[2]",
        "--epochs", "1000000", "--patience", "0", "--num-factors", "4",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 3," in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stderr.read()

    assert process.wait(timeout=60) == 130
    assert "spark-fm: error: interrupted; running jobs were cancelled" in rest
    assert not OWN_FRAME.findall(rest)
    assert not (tmp_path / "model").exists()


@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="the command starts a Classic session of its own")
def test_a_training_job_that_is_stopped_says_so_and_exits_with_1(tmp_path: Path) -> None:
    config, train = tmp_path / "input" / "config", tmp_path / "input" / "data" / "train"
    config.mkdir(parents=True)
    train.mkdir(parents=True)
    hyper = {"feature_dim": "3", "num_factors": "4", "predictor_type": "regressor"}
    hyper |= {"epochs": "1000000", "mini_batch_size": "2"}
    (config / "hyperparameters.json").write_text(json.dumps(hyper))
    write_records(train / "a.pbr", [[1.0, 0.0, 2.0]] * 3000, [1.0] * 3000)
    process = subprocess.Popen(
        [sys.executable, "-m", "spark_fm.cli.main", "train", "--root", str(tmp_path)],
        cwd=ROOT, env={**os.environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "#progress_metric" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    failure = (tmp_path / "output" / "failure").read_text()
    assert failure == "AlgorithmError: the job was stopped before it had a model"
    assert failure in err
    assert not OWN_FRAME.findall(err)
    assert os.listdir(tmp_path / "model") == []
