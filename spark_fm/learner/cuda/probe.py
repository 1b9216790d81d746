"""A kernel that shows whether a GPU, its driver and CUDA's libraries work together.

Imported with a GPU or under Numba's CUDA simulator.
"""

from __future__ import annotations

from typing import Any

from numba import cuda


@cuda.jit
def add_one(numbers):  # type: ignore[no-untyped-def]  # compiled for arrays of the GPU
    """Add one to the first number, after the grid has met as it does in passes."""
    grid: Any = cuda.cg.this_grid()
    grid.sync()
    numbers[0] += 1
