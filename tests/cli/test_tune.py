"""``spark-fm tune`` end to end: on a9a, interrupted, killed, and misused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from spark_fm import FactorizationMachineModel
from spark_fm.cli.errors import UsageError
from spark_fm.cli.main import main
from spark_fm.cli.tune import search_space
from spark_fm.ml.estimator import FactorizationMachine
from tests.cli.test_interrupts import OWN_FRAME
from tests.conftest import MODE

pytestmark = pytest.mark.spark

ROOT = Path(__file__).resolve().parents[2]
A9A = [str(ROOT / "examples" / "data" / name) for name in ("a9a.gz", "a9a.t.gz")]
ONE_KERNEL = ["--num-factors", "4", "--optimizer", "adagrad", "--seed", "7"]


@pytest.fixture(autouse=True)
def _session(spark):
    """Every command finds this session and leaves it alone."""
    yield
    assert spark.range(3).count() == 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "train.libsvm"
    path.write_text("".join(f"{i % 2} {i % 7 + 1}:1 {i % 5 + 8}:1\n" for i in range(3000)))
    return str(path)


def command(data, out, *more, trials=4):
    return ["tune", "--input", data, "--format", "libsvm", "--out", str(out), "--model",
            f"{out}.model", "--trials", str(trials), *ONE_KERNEL, *more]  # fmt: skip


def lines(out):
    """Return what the file of trials holds, without seconds."""
    found = [json.loads(line) for line in (Path(out) / "trials.jsonl").read_text().splitlines()]
    return [{**line, "seconds": 0} for line in found]


def test_a_search_on_a9a_ends_with_the_model_that_its_best_params_train(tmp_path, capfd):
    out, again = tmp_path / "found", tmp_path / "again"
    shared = ["--validation", A9A[1], "--epochs", "3", "--num-features", "123"]
    words = command(A9A[0], out, *shared, "--range", "miniBatchSize=1:4", trials=6)
    assert main([*words, "--parallel", "3"]) == 0
    printed = capfd.readouterr()

    trials = pd.read_csv(out / "trials.csv")
    best = json.loads((out / "best.json").read_text())
    assert trials["number"].tolist() == list(range(6))
    assert set(trials["miniBatchSize"]) <= {1, 2, 3, 4}
    assert trials["miniBatchSize"][0] == 1
    assert trials["logloss"].min() <= trials["logloss"][0]
    assert trials["logloss"][0] < 0.34
    assert (out / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert printed.err.count("so far") == 6
    assert "labels -1/1 mapped to 0/1" in printed.err
    assert ", epoch 0," not in printed.err
    assert printed.out.splitlines()[-1].endswith(json.dumps(best))

    words = ["train", "--input", A9A[0], "--format", "libsvm", "--validation", A9A[1],
             "--params", str(out / "best.json"), "--model", str(again)]  # fmt: skip
    assert main(words) == 0
    found, trained = (FactorizationMachineModel.load(str(p)) for p in (f"{out}.model", again))
    assert found.weights.table.tobytes() == trained.weights.table.tobytes()


@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="the command starts a Classic session of its own")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_a_search_cut_off_in_the_middle_goes_on_to_the_same_trials(rows, tmp_path, how, capfd):
    out, straight = tmp_path / "cut", tmp_path / "straight"
    settings = ["--epochs", "30", "--patience", "0", "--parallel", "2"]
    words = command(rows, out, *settings, "--master", "local[2]", trials=1000)
    process = subprocess.Popen(
        [sys.executable, "-m", "spark_fm.cli.main", *words], cwd=ROOT, env={**os.environ},
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "trial 3 " in line:
            break
    os.killpg(process.pid, how)
    told, warned = process.communicate(timeout=100)
    kept = len(lines(out)) - 1
    assert kept >= 4
    assert not Path(f"{out}.model").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"{kept} trial(s) in {out}" in told
        assert "spark-fm: error: interrupted" in warned
        assert not OWN_FRAME.findall(warned)
        assert len(pd.read_csv(out / "trials.csv")) == kept

    assert main(command(rows, out, *settings, trials=kept + 3)) == 0
    assert main(command(rows, straight, *settings, trials=kept + 3)) == 0
    assert lines(out) == lines(straight)
    assert f"resuming from {kept} trial(s)" in capfd.readouterr().err


def test_another_search_in_the_folder_is_a_mistake_of_the_command(rows, tmp_path, capfd):
    out = tmp_path / "found"
    assert main(command(rows, out, "--epochs", "1", trials=1)) == 0
    words = command(rows, out, "--epochs", "2", "--overwrite", trials=1)

    assert main(words) == 2
    assert "params epochs is 1 there and 2 here" in capfd.readouterr().err


def test_a_model_that_is_there_is_not_replaced_unasked(rows, tmp_path, capfd):
    out = tmp_path / "found"
    Path(f"{out}.model").mkdir()

    assert main(command(rows, out)) == 2
    assert "exists already" in capfd.readouterr().err
    assert not (out / "trials.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--range", "seed=1:2"], "seed cannot be searched"),
        (["--range", "factorsLr=1:0.5"], "the smaller one first"),
        (["--range", "factorsLr=-1:0.5"], "--factors-lr -1.0 is not allowed"),
        (["--trials", "0"], "trials=0 is not allowed"),
        (["--validation-fraction", "0"], "leaves no rows to judge trials by"),
        (["--sampler", "grid"], "invalid choice: 'grid'"),
    ],
)
def test_a_mistake_in_the_command_is_told_in_one_line(rows, tmp_path, capfd, more, says):
    assert main([*command(rows, tmp_path / "found"), *more]) == 2

    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("spark-fm: error:")
    assert says in error


def test_a_folder_that_cannot_be_made_is_told_before_the_work(rows, tmp_path, capfd):
    assert main(command(rows, tmp_path / "no" / "folder")) == 2
    assert "is not a folder that can be written to" in capfd.readouterr().err


def test_tpe_without_optuna_names_the_extra(rows, tmp_path, capfd, monkeypatch):
    from spark_fm.cli import outputs

    find = outputs.find_spec
    monkeypatch.setattr(outputs, "find_spec", lambda m: None if m == "optuna" else find(m))

    assert main(command(rows, tmp_path / "found", "--sampler", "tpe")) == 1
    assert "tune needs optuna: pip install 'spark-fm[tune]'." in capfd.readouterr().err


def test_a_search_without_matplotlib_says_that_there_is_no_plot(rows, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    assert main(command(rows, tmp_path / "found", "--trials", "1", "--epochs", "1")) == 0
    said = capfd.readouterr()
    assert "no trials.png: Plots need matplotlib: pip install" in said.err
    assert "plotted in" not in said.out
    assert not (tmp_path / "found" / "trials.png").exists()


def test_ranges_and_choices_become_the_space():
    space = search_space(
        ["factorsLr=0.05:0.8:log", "miniBatchSize=1:64", "clipGradient"],
        ["numFactors=4,8", "optimizer=adam", "useLinear=true,false"],
        FactorizationMachine(),
    )

    assert space == {
        "factorsLr": (0.05, 0.8, "log"), "miniBatchSize": (1.0, 64.0), "clipGradient": None,
        "numFactors": [4, 8], "optimizer": ["adam"], "useLinear": [True, False],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ranges", "choices", "says"),
    [
        (["factorLr=1:2"], [], "did you mean factorsLr"),
        (["factorsLr=1"], [], "is not NAME=LOW:HIGH"),
        (["factorsLr=a:b"], [], "is not NAME=LOW:HIGH"),
        (["factorsLr=1:2:lin"], [], "is not NAME=LOW:HIGH"),
        (["factorsLr"], ["factorsLr=1,2"], "has a range or choices already"),
        ([], ["numFactors=4,x"], "numFactors='x' is not allowed"),
    ],
)
def test_a_space_that_cannot_be_read_is_refused(ranges, choices, says):
    with pytest.raises(UsageError, match=says):
        search_space(ranges, choices, FactorizationMachine())
