"""The GPU's tests where there is no GPU: under Numba's simulator, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif("NUMBA_ENABLE_CUDASIM" in os.environ, reason="this run is simulated already")
def test_kernels_equal_their_twins_under_the_simulator() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "--no-header", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [*command, "tests/cuda"], cwd=ROOT, env={**kept, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
