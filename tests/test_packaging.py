"""The package works from a zip, as --py-files ships it, and caches kernels elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from spark_fm.cli.main import build_parser

PACKAGE = Path(__file__).resolve().parent.parent / "spark_fm"
PROGRAM = """
import numpy as np, spark_fm
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
weights = FMWeights(0.5, np.ones((3, 3), np.float32), 3)
score = weights.predict(CsrBatch.from_matrix(np.array([[1.0, 0.0, 2.0]])), "squared")
print(spark_fm.__file__, float(score[0]))
"""


def test_the_databricks_bundle_runs_a_command_that_there_is():
    bundle = yaml.safe_load((PACKAGE.parent / "conf" / "databricks.yml").read_text())
    [task] = bundle["resources"]["jobs"]["train"]["tasks"]
    wheel = task["python_wheel_task"]
    [entry] = metadata.distribution(wheel["package_name"]).entry_points.select(
        name=wheel["entry_point"]
    )
    args = build_parser(wheel["parameters"]).parse_args(wheel["parameters"])

    assert callable(entry.load())
    assert (args.input, args.format) == (["main.ads.clicks"], "table")


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "spark_fm.zip"
    with zipfile.ZipFile(path, "w") as target:
        for file in PACKAGE.rglob("*.py"):
            target.write(file, file.relative_to(PACKAGE.parent))
    return path


def run(archive, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SPARK_FM_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | {"PYTHONPATH": str(archive)} | environment,
        cwd=archive.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    where, score = done.stdout.split()
    assert where.startswith(str(archive))
    # 0.5 + (1 + 2) + pairs of two factors: 2 * (1 * 2)
    assert float(score) == 7.5


def test_a_zipped_package_scores_and_caches_in_the_users_folder(archive, tmp_path):
    home = tmp_path / "home"
    home.mkdir()

    run(archive, HOME=str(home), XDG_CACHE_HOME="")

    cached = list((home / ".cache" / "spark_fm").rglob("*.nbi"))
    assert any(path.name.startswith("score-k2") for path in cached)
    assert (home / ".cache" / "spark_fm").stat().st_mode & 0o077 == 0


def test_a_zipped_package_scores_where_nothing_can_be_written(archive):
    nowhere = "/proc/nothing"

    run(archive, HOME=nowhere, XDG_CACHE_HOME=nowhere, TMPDIR=nowhere)
