"""The GPU's tests where there is no GPU: under Numba's simulator, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.cluster import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent

EVERY_TEST = "tests/cuda"
ONE_PASS = (
    f"{EVERY_TEST}/test_training.py::test_a_pass_over_blocks_equals_its_float64_twin"
    "[logistic-adagrad-1-plain]"
)
SCORES = f"{EVERY_TEST}/test_scoring.py::test_scores_equal_the_twins"
unsimulated = pytest.mark.skipif(
    "NUMBA_ENABLE_CUDASIM" in os.environ, reason="this run is simulated already"
)


@unsimulated
@pytest.mark.parametrize(
    "tests",
    [
        pytest.param([ONE_PASS, SCORES], id="a few"),
        pytest.param(
            [EVERY_TEST], id="all", marks=[pytest.mark.simulator, pytest.mark.timeout(1800)]
        ),
    ],
)
def test_kernels_equal_their_twins_under_the_simulator(tests: list[str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [*command, *tests], cwd=ROOT, env={**kept, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@unsimulated
@pytest.mark.simulator
def test_the_benchmark_runs_to_its_end_under_the_simulator() -> None:
    words = "--no-tests --rows 40 --test-rows 20 --features 300 --epochs 1 --factors 3 --copied 64"

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *words.split()], cwd=ROOT,
        env=os.environ | ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    table = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| 3 |")]
    training, *scoring = table
    assert abs(float(training[-4]) - float(training[-3])) < 0.05  # the losses
    assert len(scoring) == 3


def test_the_benchmark_says_when_there_is_no_gpu() -> None:
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--rows", "10"], cwd=ROOT, capture_output=True,
        text=True, env=kept | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip

    assert done.returncode == 1
    assert "No figure without a GPU" in done.stderr
