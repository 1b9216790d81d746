"""Ctrl-C in the middle of a training: exit code 130, one line, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MODE

ROOT = Path(__file__).resolve().parents[2]


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
    assert "Traceback" not in rest
    assert not (tmp_path / "model").exists()
