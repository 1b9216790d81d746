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
        ["tests/ml/test_transform.py", "tests/ml/test_persistence.py", "tests/ml/test_requests.py"],
        ["tests/engine/test_training.py", "-k", "same_seed or retried or workers_train or lost"],
        ["tests/engine/test_recordio_source.py", "tests/engine/test_recordio_stream.py"],
    ],
    ids=["transform-save-load", "training", "recordio"],
)
def test_the_core_passes_on_spark_connect(chosen):
    pytest.importorskip("grpc", reason="Spark Connect needs spark-fm[connect]")
    environment = {**os.environ, "SPARK_FM_TEST_MODE": "connect"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
