"""An interrupt ends a training as an interrupt, whatever fails on the way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from spark_fm.spark.session import tagged

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import logging, sys
from pyspark.sql import SparkSession
from spark_fm import FactorizationMachine

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
rows = spark.range(1000).selectExpr("double(id % 2) label", "array(double(id % 7), 1d) features")
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("spark_fm").setLevel(logging.INFO)
try:
    FactorizationMachine(epochs=10**6, patience=0, refit="never").fit(rows)
except KeyboardInterrupt:
    print("interrupted,", rows.count(), "rows can be counted", flush=True)
"""


@pytest.mark.processes
def test_a_training_that_is_interrupted_raises_an_interrupt_and_leaves_the_session() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(line.startswith("epoch 3,") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)

    assert printed.endswith("interrupted, 1000 rows can be counted\n"), errors[-2000:]


def interrupted_and_cleaned_up() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise RuntimeError("a job was cancelled")  # noqa: B904 - as in a finally clause


def fail() -> None:
    raise ValueError("rows")


def test_what_cleaning_up_raises_does_not_hide_an_interrupt(spark: SparkSession) -> None:
    with pytest.raises(KeyboardInterrupt), tagged(spark, "test"):
        interrupted_and_cleaned_up()


def test_an_error_after_an_interrupt_that_was_dealt_with_stays_an_error(
    spark: SparkSession,
) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="rows"), tagged(spark, "test"):
            fail()
