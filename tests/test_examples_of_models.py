"""The examples that recommend and explain do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(example: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"examples.{example}", *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **settings},
    )  # fmt: skip


def test_a_prediction_is_explained_by_parts_that_add_up(tmp_path: Path) -> None:
    done = run("explain_prediction", "--plot", str(tmp_path / "strengths.png"))

    assert done.returncode == 0, done.stderr[-3000:]
    score = float(re.search(r"= (\d\.\d+), the label", done.stdout)[1])
    assert 0.49 < score < 0.51
    numbers = [float(number) for number in re.findall(r"^  ([+-]\d\.\d+)  ", done.stdout, re.M)]
    assert len(numbers) == 1 + 6 + 1 + 5 + 1 + 1
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.0005 * len(numbers))
    assert (tmp_path / "strengths.png").read_bytes().startswith(b"\x89PNG")


def test_movies_are_recommended_that_the_user_has_not_rated(data_folder: Path) -> None:
    done = run("recommendation", "--user", "7", "--count", "5")

    assert done.returncode == 0, done.stderr[-3000:]
    assert "4,715 recommendations for 943 users" in done.stdout
    liked, recommended = done.stdout.split("and may like")
    stars = [float(word) for word in re.findall(r"(\d\.\d\d) stars", recommended)]
    assert len(stars) == 5
    assert stars == sorted(stars, reverse=True)
    titles = re.findall(r"^ +\d  (.+?)  ", recommended, re.M)
    assert len(titles) == 5
    assert not any(title in liked for title in titles)


def test_without_the_movies_the_example_says_what_to_set() -> None:
    done = run("recommendation", SPARK_FM_DATA="/no/such/folder")

    assert done.returncode == 1
    assert "SPARK_FM_DATA='/no/such/folder' is not a folder" in done.stderr
