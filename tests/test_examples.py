"""The demo does what the README says, and each example what it says itself.

The demo is a process of its own, as a user starts it; the others run in the tests' session.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from examples import session
from spark_fm import datasets

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.processes
def test_the_demo_prints_metrics_and_leaves_model_scores_and_plot(tmp_path: Path) -> None:
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


@pytest.fixture
def output_of(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs an example in the tests' session and returns what it prints."""

    def run(example: str, *arguments: str) -> str:
        monkeypatch.setattr(session, "local_session", lambda *_, **__: spark)
        monkeypatch.setattr(spark, "stop", lambda: None)
        monkeypatch.setattr(sys, "argv", [example, *arguments])
        runpy.run_module(f"examples.{example}", run_name="__main__")
        return capsys.readouterr().out

    return run


def some_rows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let an example have 6,000 of its rows to train on."""
    whole = getattr(datasets, name)

    def some(spark: SparkSession) -> tuple[DataFrame, DataFrame]:
        train, test = whole(spark)
        return train.limit(6000).repartition(2), test

    monkeypatch.setattr(datasets, name, some)


def test_early_stopping_ends_before_the_last_epoch_with_the_best_area(
    output_of: Callable[..., str], tmp_path: Path
) -> None:
    text = output_of("early_stopping", "--plot", str(tmp_path / "summary.png"))

    areas = [float(area) for area in re.findall(r"^ +\d+ .* (\d\.\d+)$", text, re.M)]
    run, best = map(int, re.search(r"after (\d+) of 100 .* epoch (\d+)", text).groups())
    assert run == len(areas) < 100
    assert areas[best] == max(areas)
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_that_goes_on_with_new_rows_beats_old_and_new_alone(
    output_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some_rows(monkeypatch, "a9a")
    text = output_of("warm_start")

    old, new, updated = map(float, re.findall(r" (0\.\d{4})  \(", text))
    assert updated < min(old, new)
    assert "bit for bit: True" in text


def test_a_pipeline_of_raw_columns_scores_raw_rows_after_it_was_saved(
    output_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_rows(monkeypatch, "adult")
    text = output_of("pipeline", "--out", str(tmp_path))

    areas = [float(area) for area in re.findall(r"[\d,]+  (0\.\d{4})$", text, re.M)]
    assert len(areas) == 2
    assert min(areas) > 0.89
    assert len(re.findall(r"P\(income over 50,000\) = 0\.\d{3}", text)) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"one-hot-encoding", "hashing"}


def test_cross_validation_prints_the_grid_and_its_best(
    output_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some_rows(monkeypatch, "a9a")
    text = output_of("cross_validation")

    rows = re.findall(r"^ +(?:4|16) +0\.\d+  (0\.\d{4})(  <- best)?$", text, re.M)
    assert len(rows) == 6
    best = [float(value) for value, mark in rows if mark]
    assert best == [min(float(value) for value, _ in rows)]
    assert float(re.search(r"^log loss (\S+)", text, re.M)[1]) < 0.3310


def test_a_prediction_is_explained_by_parts_that_add_up(
    output_of: Callable[..., str], tmp_path: Path
) -> None:
    text = output_of("explain_prediction", "--plot", str(tmp_path / "strengths.png"))

    score = float(re.search(r"= (\d\.\d+), the label", text)[1])
    assert 0.49 < score < 0.51
    numbers = [float(number) for number in re.findall(r"^  ([+-]\d\.\d+)  ", text, re.M)]
    assert len(numbers) == 1 + 6 + 1 + 5 + 1 + 1
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.0005 * len(numbers))
    assert (tmp_path / "strengths.png").read_bytes().startswith(b"\x89PNG")


def test_movies_are_recommended_that_the_user_has_not_rated(
    output_of: Callable[..., str], data_folder: Path
) -> None:
    text = output_of("recommendation", "--user", "7", "--count", "5")

    assert "4,715 recommendations for 943 users" in text
    liked, recommended = text.split("and may like")
    stars = [float(word) for word in re.findall(r"(\d\.\d\d) stars", recommended)]
    assert len(stars) == 5
    assert stars == sorted(stars, reverse=True)
    titles = re.findall(r"^ +\d  (.+?)  ", recommended, re.M)
    assert len(titles) == 5
    assert not any(title in liked for title in titles)


def test_without_the_movies_the_example_names_what_to_set(
    output_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_FM_DATA", "/no/such/folder")

    with pytest.raises(SystemExit, match="SPARK_FM_DATA='/no/such/folder' is not a folder"):
        output_of("recommendation")
