"""The notebooks run from top to bottom, and what they keep is what they show."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from notebooks.run import FOLDER, executed
from tests.conftest import MODE

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ON_CONNECT = ("adult", "films")  # what they call: raw columns to a model, and recommend


def losses(notebook: dict) -> list[str]:
    """Return the log losses and root mean squared errors that a notebook shows."""
    return re.findall(r"(?:[Ll]og loss|RMSE) (\d\.\d+)", json.dumps(notebook))


@pytest.mark.processes
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.connect] if path.stem in ON_CONNECT else [])
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_and_shows_the_losses_that_it_keeps(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On Connect its ``getOrCreate`` finds the address in the environment."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    if MODE == "connect":
        monkeypatch.setenv("SPARK_REMOTE", "local[2]")

    found = executed(path)

    kept = losses(json.loads(path.read_text()))
    assert kept
    assert [float(loss) for loss in losses(found)] == pytest.approx(
        [float(loss) for loss in kept], abs=0.003
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_outputs_and_nothing_of_the_machine(path: Path) -> None:
    text = path.read_text()
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]

    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert str(Path.home()) not in text
    assert len(text) < 500_000
