"""The examples that stop early and go on do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def output_of(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{example}", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_early_stopping_ends_before_the_last_epoch_with_the_best_area(tmp_path: Path) -> None:
    text = output_of("early_stopping", "--plot", str(tmp_path / "summary.png"))

    areas = [float(found) for found in re.findall(r"^ +\d+ .* (\d\.\d+)$", text, re.M)]
    run, best = map(int, re.search(r"after (\d+) of 100 .* epoch (\d+)", text).groups())
    assert run == len(areas) < 100
    assert areas[best] == max(areas)
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_goes_on_with_new_rows_beats_old_and_new_alone() -> None:
    text = output_of("warm_start")

    old, new, updated = map(float, re.findall(r" (0\.\d{4})  \(", text))
    assert updated < min(old, new)
    assert "bit for bit: True" in text


def test_a_pipeline_of_raw_columns_scores_raw_rows_after_it_was_saved(tmp_path: Path) -> None:
    text = output_of("pipeline", "--out", str(tmp_path))

    areas = [float(area) for area in re.findall(r"[\d,]+  (0\.\d{4})$", text, re.M)]
    assert len(areas) == 2
    assert min(areas) > 0.895
    assert len(re.findall(r"P\(income over 50,000\) = 0\.\d{3}", text)) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"one-hot-encoding", "hashing"}


def test_cross_validation_prints_the_grid_and_its_best() -> None:
    text = output_of("cross_validation")

    rows = re.findall(r"^ +(?:4|16) +0\.\d+  (0\.\d{4})(  <- best)?$", text, re.M)
    assert len(rows) == 6
    best = [float(value) for value, mark in rows if mark]
    assert best == [min(float(value) for value, _ in rows)]
    assert float(re.search(r"^log loss (\S+)", text, re.M)[1]) < 0.3260
