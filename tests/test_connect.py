"""The same tests on Spark Connect: fit, transform, save, load, determinism, retries.

In a process of its own, because one process holds one kind of session.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MODE

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(MODE == "connect", reason="this run is on Spark Connect already")
@pytest.mark.parametrize(
    "chosen",
    [
        ["tests/ml/test_transform.py", "tests/ml/test_persistence.py"],
        ["tests/engine/test_training.py", "-k", "same_seed or retried or workers_train or lost"],
        ["tests/engine/test_recordio_source.py", "tests/engine/test_recordio_stream.py"],
        ["tests/ml/test_pipelines.py", "tests/ml/test_cross_validation.py"],
        [
            "tests/ml/test_warm_start.py",
            "tests/ml/test_checkpoints.py",
            "tests/ml/test_fit_multiple.py",
            "-k",
            "bit_for_bit or of_a_grid or fit_gives",
        ],
        [
            "tests/ml/test_evaluator.py",
            "tests/ml/test_functions.py",
            "tests/ml/test_explain.py",
            "tests/ml/test_recommend.py",
            "-k",
            "not real",
        ],
    ],
    ids=[
        "transform-save-load",
        "training",
        "recordio",
        "pipelines",
        "going-on",
        "scoring",
    ],
)
def test_the_core_passes_on_spark_connect(chosen):
    pytest.importorskip("grpc", reason="Spark Connect needs spark-fm[connect]")
    environment = {**os.environ, "SPARK_FM_TEST_MODE": "connect"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
