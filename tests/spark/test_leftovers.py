"""What killed processes leave behind goes with the next training on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_fm.spark.leftovers import OWNER, mark, remove_leftovers
from tests.conftest import MODE

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from spark_fm import FactorizationMachine
from spark_fm.training.callbacks import Progress

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
jvm = spark.sparkContext._gateway.proc.pid
if sys.argv[1] == "killed":
    Progress.__call__ = lambda *_: [os.kill(p, signal.SIGKILL) for p in (jvm, os.getpid())]
rows = [(float(i % 2), Vectors.sparse(9, [i % 9], [1.0])) for i in range(300)]
frame = spark.createDataFrame(rows, ["label", "features"])
FactorizationMachine(solver="sgd", epochs=2, numWorkers=2, validationFraction=0.0).fit(frame)
"""

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc tells who lives")


@linux
def test_folders_of_dead_processes_go_and_all_others_stay(tmp_path):
    dead = subprocess.Popen(["sleep", "60"])
    folders = {
        name: tmp_path / place / f"spark_fm-{name}"
        for name, place in {
            "dead": "", "local": "blockmgr-1", "standalone": "spark-1/executor-2/blockmgr-3",
            "living": "blockmgr-1", "another": "", "unmarked": "", "garbled": "",
        }.items()
    }  # fmt: skip
    for name, folder in folders.items():
        (folder / "inner").mkdir(parents=True)
        if name != "unmarked":
            mark(folder, os.getpid() if name == "living" else dead.pid)
    owner = folders["dead"] / OWNER
    (folders["another"] / OWNER).write_text(f"another-boot {owner.read_text()}")
    (folders["garbled"] / OWNER).write_text("")
    remove_leftovers(tmp_path / "spark-7" / "executor-8" / "blockmgr-9")
    assert all(folder.exists() for folder in folders.values())  # of a living process

    dead.kill()
    dead.wait()
    remove_leftovers(tmp_path / "spark-7" / "executor-8" / "blockmgr-9")

    left = {name for name, folder in folders.items() if folder.exists()}
    assert left == {"living", "another", "unmarked", "garbled"}


@linux
@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="starts processes of its own")
def test_a_training_removes_the_files_of_one_that_was_killed(tmp_path):
    def run(how: str) -> list[Path]:
        folders = {"SPARK_LOCAL_DIRS": str(tmp_path), "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, how]
        subprocess.run(command, env=os.environ | folders, cwd=ROOT, check=how != "killed")
        return [*tmp_path.glob("spark_fm-*"), *tmp_path.glob("**/*.rows")]

    assert run("killed")

    assert not run("to its end")
