"""The contract on Spark Connect, in a process of its own: one process holds one kind of session.

``make test-connect`` runs the rest of what runs there, the tests marked ``connect``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MODE

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = [
    "tests/promises",
    *(
        f"tests/training/test_trainer.py::{name}"
        for name in (
            "test_same_seed_gives_bit_equal_models",
            "test_retried_tasks_change_nothing",
            "test_that_many_workers_train_as_were_asked_for",
            "test_a_lost_worker_is_called_so",
            "test_training_works_where_persist_is_missing",
            "test_a_single_partition_trains_where_persist_is_missing",
        )
    ),
]


@pytest.mark.skipif(MODE == "connect", reason="this run is on Spark Connect already")
@pytest.mark.timeout(1800)
def test_the_contract_holds_on_connect() -> None:
    pytest.importorskip("grpc", reason="Spark Connect needs spark-fm[connect]")
    # Without what tells a process that it is a worker of a parallel run.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider", *CONTRACT],
        cwd=ROOT, env=environment | {"SPARK_FM_TEST_MODE": "connect"},
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
