"""Without a GPU the tests run under Numba's simulator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from spark_fm.learner.cuda.memory import DeviceMemory

if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    import tests.cuda.simulator.sitecustomize  # noqa: F401 - its import prepares this process


@pytest.fixture
def memory() -> Iterator[DeviceMemory]:
    """Memory of the GPU that nothing is kept in yet."""
    from spark_fm.learner.cuda.memory import DeviceMemory

    held = DeviceMemory()
    yield held
    held.clear()
