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
