"""The house rules: imports go down, files stay small, Classic-only calls stay in their room."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "spark_fm"
FLOORS = ["errors", "learner", "formats", "engine", "ml", "cli"]
BESIDE = {"serving": {"engine", "ml"}}  # on the floor of "ml", which must not know it either
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "common", "helpers", "core", "misc"}
CLASSIC_ONLY = {"sparkContext", "rdd", "_jvm", "_jdf", "_jsparkSession", "_sc"}
CLASSIC_ROOMS = {"spark/session.py", "spark/broadcast.py", "spark/files.py"}


def floor_of(module: str) -> int | None:
    """Return the floor of a dotted module of the package, None for the ground."""
    parts = module.split(".")
    if parts[0] != "spark_fm" or len(parts) == 1:
        return None
    if parts[1] in BESIDE:
        return FLOORS.index("ml")
    return FLOORS.index(parts[1]) if parts[1] in FLOORS else None


def part_of(module: str) -> str:
    """Return the part of the package that a dotted module belongs to, "" for others."""
    parts = module.split(".")
    return parts[1] if parts[0] == "spark_fm" and len(parts) > 1 else ""


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_only(path):
    here = floor_of(module_of(path))
    if here is None:
        return
    upward = {name for name in imports_of(path) if (floor_of(name) or 0) > here}

    assert not upward


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_serving_and_the_spark_floors_do_not_know_each_other(path):
    here, imports = part_of(module_of(path)), imports_of(path)
    for part, others in BESIDE.items():
        if here == part:
            assert not {name for name in imports if part_of(name) in others}
            assert "pyspark" not in {name.split(".")[0] for name in imports}
        elif here in others:
            assert not {name for name in imports if part_of(name) == part}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_the_learner_knows_no_spark(path):
    if "learner" in path.parts:
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"pyspark", "pandas", "pyarrow", "google"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_the_formats_know_no_spark(path):
    if "formats" in path.parts or path.name == "recordio.py":
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"pyspark", "pandas"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_functions_and_names_stay_small_and_clear(path):
    source = path.read_text()
    assert source.count("\n") <= 400
    assert path.stem not in FORBIDDEN_NAMES
    if path.name == "kernels.py":
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name not in ("__init__", "setParams"):
            length = node.end_lineno - node.lineno + 1
            assert length <= 90, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_classic_only_calls_stay_in_their_rooms(path):
    if str(path.relative_to(PACKAGE)) in CLASSIC_ROOMS:
        return
    names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}

    assert not names & CLASSIC_ONLY


def test_tasks_need_no_session_and_no_ml_api():
    imports = imports_of(PACKAGE / "engine" / "tasks.py")

    assert not any(re.match(r"pyspark\.(sql|ml)", name) for name in imports)


def test_importing_the_package_loads_no_pyspark():
    code = "import spark_fm, spark_fm.learner.weights, sys; print('pyspark' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert done.stdout.strip() == "False"
