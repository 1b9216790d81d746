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

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
rows = [(float(i % 2), Vectors.sparse(9, [i % 9], [1.0])) for i in range(300)]
frame = spark.createDataFrame(rows, ["label", "features"])
jvm = spark.sparkContext._gateway.proc.pid
workers = {numWorkers}
machine = FactorizationMachine(epochs=10**6, patience=0, numWorkers=workers)
tracker, seen = spark.sparkContext.statusTracker(), set()


def kill_while_it_trains():
    while len(seen) < 6:  # three jobs pack the rows, the next ones train
        seen.update(tracker.getActiveJobsIds())
        time.sleep(0.02)
    os.kill(jvm, signal.SIGKILL)


threading.Thread(target=kill_while_it_trains, daemon=True).start()
machine.fit(frame)
"""


@pytest.mark.skipif(MODE == "connect", reason="there the JVM is the server's")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_jvm_that_dies_while_a_model_trains_is_named(workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{numWorkers}", str(workers))],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("spark_fm.errors.SparkFMError: The JVM of the Spark driver is gone")
    assert "spark.driver.memory" in last
