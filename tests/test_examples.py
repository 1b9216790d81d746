"""The demo does what the README says: metrics, model, scored rows and a picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_demo_prints_metrics_and_leaves_model_scores_and_plot(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    assert float(re.search(r"log loss +(\S+)", done.stdout)[1]) <= 0.3240
    assert "label 1" in done.stdout
    out = tmp_path / "out"
    assert str(out) in done.stdout
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "records" / "train").glob("part-*.pbr"))
    assert (out / "model" / "metadata").is_dir()
    assert list((out / "scored").glob("*.parquet"))
    assert "epoch 0, loss" in done.stderr
