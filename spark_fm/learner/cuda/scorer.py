"""Experimental: raw scores of many rows on a GPU.

Imported with a GPU or under Numba's CUDA simulator.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.device import Shape, simulated
from spark_fm.learner.cuda.kernels import margin_function
from spark_fm.learner.cuda.memory import CHUNK_BYTES, DeviceMemory, device_memory

ENTRY_BYTES = 8


class CudaScorer:
    """Scores rows by a model that stays on the current GPU.

    Raises ModelTooLargeError when the GPU has no room for the table, even alone.
    """

    def __init__(self, table: NDArray[np.float32], *, memory: DeviceMemory | None = None) -> None:
        self._memory = memory = memory or device_memory()
        self._kernel, self._shape = margins_kernel(table.shape[1] - 1)
        plain = np.ascontiguousarray(table, np.float32)
        plain = plain if len(plain) else np.zeros((1, table.shape[1]), np.float32)
        self._table = memory.with_room(
            lambda: cuda.to_device(plain), f"a table of {plain.nbytes:,} bytes"
        )

    def margins(self, batch: CsrBatch, bias: float) -> NDArray[np.float32]:
        """Return the raw score of each row; O(nnz k).

        Rows go to the GPU in chunks of at most 512 MiB. Negative indices add nothing.
        """
        scores = np.empty(batch.n_rows, np.float32)
        first = 0
        while first < batch.n_rows:
            most = batch.indptr[first] + CHUNK_BYTES // ENTRY_BYTES
            last = max(first + 1, int(np.searchsorted(batch.indptr, most, "right")) - 1)
            scores[first:last] = self._scored(batch, first, last, bias)
            first = last
        return scores

    def _scored(self, batch: CsrBatch, first: int, last: int, bias: float) -> NDArray[np.float32]:
        start, stop = int(batch.indptr[first]), int(batch.indptr[last])
        if start == stop:
            return np.full(last - first, bias, np.float32)
        inputs = (
            batch.indptr[first : last + 1] - start,
            batch.indices[start:stop],
            (batch.values[start:stop]),
        )
        arrays = self._memory.with_room(
            lambda: [cuda.to_device(np.ascontiguousarray(part)) for part in inputs],
            f"{ENTRY_BYTES * (stop - start):,} bytes of rows",
        )
        scores = self._memory.with_room(
            lambda: cuda.device_array(last - first, np.float32), f"{4 * (last - first):,} bytes"
        )
        n_blocks = -(-(last - first) // self._shape.warps)
        launch = self._kernel[self._shape.launch(n_blocks)]
        self._memory.with_room(  # the first launch loads the kernel
            lambda: launch(self._table, np.float32(bias), last - first, *arrays, scores),
            "the kernel",
        )
        on_host: NDArray[np.float32] = scores.copy_to_host()
        return on_host


@lru_cache(maxsize=32)
def margins_kernel(k: int, shuffles: bool | None = None) -> tuple[Any, Shape]:
    """Return the kernel of raw scores, compiled at its first use, and its shape.

    Rows come one after the other from entry 0 on; negative indices are skipped.
    """
    # Scoring uses neither loss nor optimizer.
    shape = Shape(k, "squared", "sgd", False, not simulated() if shuffles is None else shuffles)
    lanes, warps, n_held = shape.lanes, shape.warps, shape.n_held
    margin = margin_function(shape)

    @cuda.jit
    def margins(table, bias, n_rows, indptr, indices, values, scores):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * warps + cuda.threadIdx.x // lanes
        if row >= n_rows:
            return
        lane = cuda.threadIdx.x % lanes
        held = cuda.local.array(n_held, np.float32)
        score = margin(table, indptr[row], indptr[row + 1], indices, values, lane, held)
        if lane == 0:
            scores[row] = bias + score

    return margins, shape
