"""Sums over the threads of a warp, by themselves; with a GPU or under Numba's CUDA simulator."""

from __future__ import annotations

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from spark_fm.learner.cuda.device import WARP, Shape
from spark_fm.learner.cuda.kernels import make_sums


def sums_agree() -> bool:
    """Tell whether they are the same, bit for bit, through registers and shared memory."""
    numbers = np.random.default_rng(0).normal(size=(64, WARP)).astype(np.float32)
    shapes = [Shape(8, "squared", "sgd", False, shuffles) for shuffles in (True, False)]
    return all(
        np.array_equal(*(sums_of_a_warp(numbers, lowest, shape) for shape in shapes))
        for lowest in (1, 2, 4, 8, 16, 32)
    )


def sums_of_a_warp(numbers: NDArray[np.float32], lowest: int, shape: Shape) -> NDArray[np.float32]:
    """Return what ``sum_over`` gives each lane, for rows of a warp's numbers."""
    out = cuda.to_device(np.zeros_like(numbers))
    launch = sums_kernel(shape)[len(numbers), shape.lanes, 0, shape.shared_bytes]
    launch(cuda.to_device(numbers), lowest, out)
    found: NDArray[np.float32] = out.copy_to_host()
    return found


def sums_kernel(shape: Shape):  # type: ignore[no-untyped-def]  # Numba's own
    """Return the kernel."""
    sum_over, _ = make_sums(shape)

    @cuda.jit
    def sums(values, lowest, out):  # type: ignore[no-untyped-def]  # compiled
        lane = cuda.threadIdx.x
        out[cuda.blockIdx.x, lane] = sum_over(values[cuda.blockIdx.x, lane], lane, lowest)

    return sums
