"""What import-linter cannot see: calls that only Classic has, and what an import loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from benchmarks import structure

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "spark_fm"
CLASSIC_ONLY = {"sparkContext", "rdd", "_jvm", "_jdf", "_jsparkSession", "_sc"}
CLASSIC_ROOMS = {
    f"spark/{name}.py" for name in ("session", "broadcast", "files", "scans", "local_tasks")
}


def test_classic_only_calls_stay_in_their_rooms():
    elsewhere = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.attr}"
        for path in PACKAGE.rglob("*.py")
        if str(path.relative_to(PACKAGE)) not in CLASSIC_ROOMS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in CLASSIC_ONLY
    }

    assert not elsewhere


def test_no_two_modules_import_each_other_not_even_for_types():
    assert structure.circles(structure.imports(structure.sources(ROOT))) == []


def test_importing_the_package_loads_no_pyspark():
    code = "import spark_fm, spark_fm.learner.weights, sys; print('pyspark' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert done.stdout.strip() == "False"


def test_examples_and_notebooks_stand_alone():
    files = [*ROOT.glob("examples/*.py"), *ROOT.glob("notebooks/*.ipynb")]

    assert not [path.name for path in files if "benchmarks" in path.read_text()]


def test_a_worker_that_packs_and_trains_loads_neither_sparse_matrices_nor_pandas():
    code = (
        "import pyspark.sql, sys; before = {*sys.modules}; import spark_fm.training.tasks, "
        "spark_fm.training.scans; "
        "print(*sorted({'scipy.sparse', 'pandas', 'pyspark.ml'} & ({*sys.modules} - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert done.stdout.strip() == ""
