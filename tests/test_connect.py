"""The same tests on Spark Connect, in processes of their own: one holds one kind of session.

A class each, which the parallel run (``make test``) may give to different processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MODE

ROOT = Path(__file__).resolve().parent.parent
TRAINING = [
    f"tests/training/test_trainer.py::{name}"
    for name in (
        "test_same_seed_gives_bit_equal_models",
        "test_retried_tasks_change_nothing",
        "test_that_many_workers_train_as_were_asked_for",
        "test_a_lost_worker_is_called_so",
        "test_training_works_where_persist_is_missing",
        "test_a_single_partition_trains_where_persist_is_missing",
    )
]

pytestmark = [
    pytest.mark.skipif(MODE == "connect", reason="this run is on Spark Connect already"),
    pytest.mark.timeout(1800),
]


def assert_passing_on_connect(*chosen: str) -> None:
    pytest.importorskip("grpc", reason="Spark Connect needs spark-fm[connect]")
    # Without what tells a process that it is a worker of a parallel run.
    kept = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, env={**kept, "SPARK_FM_TEST_MODE": "connect"},
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


class TestTrainingOnConnect:
    def test_models_are_those_of_the_seed_whatever_tasks_are_lost(self) -> None:
        assert_passing_on_connect(*TRAINING)


class TestScoringAndSavingOnConnect:
    def test_scoring_saving_and_loading(self) -> None:
        assert_passing_on_connect("tests/ml/test_transform.py", "tests/ml/test_persistence.py")


class TestFormatsOnConnect:
    def test_recordio_and_requests(self) -> None:
        assert_passing_on_connect(
            "tests/datasource/test_recordio.py", "tests/datasource/test_streaming.py",
            "tests/ml/test_requests.py",
        )  # fmt: skip


class TestPromisesOfTrainingOnConnect:
    def test_every_promise_of_training_to_users_of_pyspark_ml(self) -> None:
        assert_passing_on_connect("tests/promises/test_training.py")


class TestPromisesOfModelsOnConnect:
    def test_every_promise_of_models_to_users_of_pyspark_ml(self) -> None:
        assert_passing_on_connect("tests/promises/test_models.py")
