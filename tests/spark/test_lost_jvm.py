"""When the driver's JVM dies, as one does that runs out of memory, the user is told so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MODE

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, threading, time
from pyspark.sql import SparkSession
from pyspark.ml.linalg import Vectors
from spark_fm import FactorizationMachine
from spark_fm.training.callbacks import Progress

builder = SparkSession.builder.master("local[{cores}]").config("spark.ui.enabled", "false")
spark = builder.getOrCreate()
rows = [(float(i % 2), Vectors.sparse(9, [i % 9], [1.0])) for i in range(300)]
frame = spark.createDataFrame(rows, ["label", "features"])
jvm = spark.sparkContext._gateway.proc.pid
machine = FactorizationMachine(epochs=10**6, patience=0, numWorkers={workers})
tracker, seen, epochs = spark.sparkContext.statusTracker(), set(), []
told = Progress.__call__
Progress.__call__ = lambda *report: (told(*report), epochs.append(report))


def kill_while_it_trains():
    # Three jobs pack the rows, the next ones train.
    while len(seen) < {n_jobs} or len(epochs) < {n_epochs}:
        seen.update(tracker.getActiveJobsIds())
        time.sleep(0.02)
    os.kill(jvm, signal.SIGKILL)


threading.Thread(target=kill_while_it_trains, daemon=True).start()
machine.fit(frame)
"""


@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="there the JVM is the server's")
@pytest.mark.parametrize(
    "facts",
    [
        {"cores": 1, "workers": 1, "n_jobs": 6, "n_epochs": 0},
        {"cores": 1, "workers": 2, "n_jobs": 6, "n_epochs": 0},
        {"cores": 2, "workers": 2, "n_jobs": 0, "n_epochs": 3},
    ],
    ids=["in one task", "a job a round", "one job for all rounds"],
)
def test_a_jvm_that_dies_while_a_model_trains_is_named(facts: dict[str, int]) -> None:
    program = PROGRAM
    for name, value in facts.items():
        program = program.replace(f"{{{name}}}", str(value))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("spark_fm.errors.SparkFMError: The JVM of the Spark driver is gone")
    assert "spark.driver.memory" in last
