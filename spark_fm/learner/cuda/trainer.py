"""Experimental: training passes on a GPU, as an ``epoch.Backend``.

Imported with a GPU or under Numba's CUDA simulator.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.blocks import CHUNK, BlockedRows
from spark_fm.learner.cuda.device import Shape, pays
from spark_fm.learner.cuda.kernels import Passes, passes
from spark_fm.learner.cuda.memory import DeviceChunk, DeviceMemory, device_memory
from spark_fm.learner.cuda.scorer import CudaScorer
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.kernels import PassStats
from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.learner.predict import margins
from spark_fm.learner.spec import Hyperparameters, LossName, OptimizerName
from spark_fm.learner.state import Layout, TrainState

SAMPLED_ENTRIES = 2**16
LAUNCH_BLOCKS = 2**16  # some launches where there are many: GPUs with a screen end long ones
# What ``Passes.visit`` reads, in its order, between the model and what it writes.
VISIT_ARRAYS = {
    "order": "i8", "steps": "f4", "places": "i8", "chunks": "i8", "shared": "i8", "indptr": "i8",
    "indices": "i4", "values": "f4", "repeats": "i4", "labels": "f4", "weights": "f4",
    "chunk_features": "i4", "chunk_starts": "i8", "chunk_slots": "i4", "entry_places": "i4",
    "entry_values": "f4", "shared_features": "i4", "shared_repeats": "i4", "shared_slots": "i4",
    "shared_counts": "i4",
}  # fmt: skip


class CudaBackend:
    """Trains the rows of a block side by side on the current GPU.

    ``rows_key`` names the rows: what has the same name, row order and shape is uploaded once.
    ``block_rows`` rows train side by side; with mini-batches it is their size instead.

    Blocks are those of the order of epoch 0, and their order changes with each epoch: which
    rows go together stays, so that their entries are sorted and uploaded once. A pass is a pure
    function of state, rows and row order, whatever is in the device's memory: rows that come in
    another order than before, from an unordered source, are other rows (recognised by labels,
    weights, lengths and a sample of the entries). The table comes back after every pass and
    stays on the device for the next one of the same array: who changes a table between passes
    must pass another array (a sample is compared to catch mistakes).
    """

    def __init__(
        self, rows_key: Hashable, block_rows: int, *, memory: DeviceMemory | None = None
    ) -> None:
        self._rows_key = rows_key
        self._block_rows = block_rows
        self._memory = memory or device_memory()
        self._scratch = _Scratch(self._memory)
        self._known: tuple[CsrBatch, tuple[int, int, int]] | None = None

    def run_epoch(
        self,
        state: TrainState,
        batch: CsrBatch,
        row_order: RowOrder,
        *,
        spec: Hyperparameters,
        step_scale: float = 1.0,
        scores: NDArray[np.float32] | None = None,
    ) -> PassStats:
        """Change ``state`` in place by one pass over all rows; O(nnz k)."""
        per_row = spec.mini_batch_size == 1
        clock = time.perf_counter()
        compiled, most_thread_blocks = self._memory.with_room(
            lambda: _compiled(
                int(cuda.gpus.current.id), spec.k, spec.loss, spec.optimizer, per_row
            ),
            "the kernels",
        )
        compile_seconds = time.perf_counter() - clock
        size = self._block_rows if per_row else spec.mini_batch_size
        first_order = RowOrder(0, row_order.round_index, row_order.partition, row_order.shard)
        mixed_by = spec.init_key if spec.shuffle else None
        key = (self._rows_key, first_order, self._fingerprint_of(batch), size, mixed_by)
        n_chunks, chunk_of = self._memory.chunks(
            key, batch,
            lambda: BlockedRows.of(
                batch, first_order.order(spec, batch.n_rows), size, state.n_features
            ),
        )  # fmt: skip
        table = self._memory.taken_table(state.rows)
        table = self._on_device(state.rows) if table is None else table
        bias = self._on_device(state.bias)
        hyper = self._on_device(spec.kernel_vector(step_scale).astype(np.float32))
        sums = _PassSums(self._memory, batch.n_rows)
        rng, updates, shape = row_order.rng(spec), int(state.bias[3]), compiled.shape
        for number in _permutation(rng, n_chunks, spec):
            chunk = chunk_of(int(number))
            order = _permutation(rng, chunk.n_blocks, spec)
            steps = _bias_corrections(spec, updates, np.diff(chunk.places)[order], per_row)
            updates += len(chunk.rows) if per_row else chunk.n_blocks
            n_thread_blocks = min(most_thread_blocks, -(-chunk.most_items // shape.warps))
            left = (*self._scratch.arrays(chunk, shape), *sums.arrays(chunk, order))
            for first in range(0, len(order), LAUNCH_BLOCKS):
                part = slice(first, first + LAUNCH_BLOCKS)
                given: dict[str, NDArray[Any]] = {"order": order[part], "steps": steps[part]}
                on = chunk.arrays | {name: self._on_device(given[name]) for name in given}
                compiled.visit[shape.launch(n_thread_blocks)](
                    table, bias, hyper, *(on[name] for name in VISIT_ARRAYS), *left
                )
                del on
            del chunk  # so that making room for the next one can free it
        visited = sums.order()  # while the GPU works
        table.copy_to_host(state.rows)
        bias.copy_to_host(state.bias)
        self._memory.keep_table(state.rows, table)
        loss, weight = sums.loss_and_weight(scores)
        return PassStats(loss, weight, compile_seconds, visited)

    def let_go(self) -> None:
        """Free the arrays that the threads of a block share."""
        self._scratch = _Scratch(self._memory)

    def margins(
        self, batch: CsrBatch, table: NDArray[np.float32], bias: float
    ) -> NDArray[np.float32]:
        """Return the raw score of each row; on the CPU where there are few of them."""
        if not pays(batch.nnz, table.shape[1] - 1):
            return margins(batch, table, bias)
        return CudaScorer(table, memory=self._memory).margins(batch, bias)

    def _fingerprint_of(self, batch: CsrBatch) -> tuple[int, int, int]:
        """Return the fingerprint, of the last batch from memory."""
        if self._known is None or self._known[0] is not batch:
            self._known = batch, _fingerprint(batch)
        return self._known[1]

    def _on_device(self, array: NDArray[Any]) -> Any:
        return self._memory.with_room(
            lambda: cuda.to_device(array), f"an array of {array.nbytes:,} bytes"
        )


class _Scratch:
    """Arrays on the device that the threads of a block share; they grow as needed."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._shapes: list[tuple[int, ...]] = []
        self._arrays: list[Any] = []

    def arrays(self, chunk: DeviceChunk, shape: Shape) -> list[Any]:
        """Return sums, slopes, pulls, and the parts of shared features and of the bias."""
        rows = chunk.most_rows
        shapes = [
            (rows, shape.k), (rows,), (rows,), (max(1, chunk.most_slots), shape.partial),
            (-(-rows // CHUNK), 3),
        ]  # fmt: skip
        if len(shapes) != len(self._shapes) or any(
            one[0] > has[0] or one[1:] != has[1:]
            for one, has in zip(shapes, self._shapes, strict=True)
        ):
            self._arrays, self._shapes = [], []  # before there is room for larger ones
            n_bytes = 4 * sum(int(np.prod(one)) for one in shapes)
            self._arrays = self._memory.with_room(
                lambda: [cuda.device_array(one, np.float32) for one in shapes],
                f"{n_bytes:,} bytes of sums",
            )
            self._shapes = shapes
        return self._arrays


class _PassSums:
    """Scores and losses of the rows of a pass, on the device until its end."""

    def __init__(self, memory: DeviceMemory, n_rows: int) -> None:
        self._scores, self._losses = (
            memory.with_room(
                lambda: cuda.device_array(n_rows, np.float32), f"{4 * n_rows:,} bytes of scores"
            )
            for _ in range(2)
        )
        self._orders: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._places: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._n_rows = 0
        self._weight = 0.0

    def arrays(self, chunk: DeviceChunk, order: NDArray[np.int64]) -> tuple[Any, Any]:
        """Return the arrays for the results of a chunk whose blocks train in this order."""
        rows, starts = chunk.rows, chunk.places
        self._orders += [rows[starts[b] : starts[b + 1]] for b in order]
        self._places += [np.arange(starts[b], starts[b + 1]) + self._n_rows for b in order]
        part = slice(self._n_rows, self._n_rows + len(rows))
        self._n_rows = part.stop
        self._weight += chunk.weight
        return self._scores[part], self._losses[part]

    def order(self) -> NDArray[np.int64]:
        """Return the rows in the order of training."""
        return np.concatenate(self._orders)

    def loss_and_weight(self, scores: NDArray[np.float32] | None) -> tuple[float, float]:
        """Return the sums, and copy the scores in place if asked to."""
        if scores is not None:
            scores[: self._n_rows] = self._scores.copy_to_host()[np.concatenate(self._places)]
        losses = self._losses.copy_to_host()[: self._n_rows]
        return float(losses.sum(dtype=np.float64)), self._weight


def _permutation(rng: np.random.Generator, n: int, spec: Hyperparameters) -> NDArray[np.int64]:
    return rng.permutation(n) if spec.shuffle else np.arange(n)


def _bias_corrections(
    spec: Hyperparameters, done: float, updates: NDArray[np.int64], per_row: bool
) -> NDArray[np.float32]:
    """Return for each block the mean bias correction of its updates; 1 without one."""
    correction = OPTIMIZERS[spec.optimizer].bias_correction
    if correction is None:
        return np.ones(len(updates), np.float32)
    counts = updates if per_row else np.ones(len(updates), np.int64)
    t = done + 1 + np.arange(int(counts.sum()))
    corrections = correction(t)
    starts = np.cumsum(counts) - counts
    return (np.add.reduceat(corrections, starts) / counts).astype(np.float32)


def _fingerprint(batch: CsrBatch) -> tuple[int, int, int]:
    """Return a checksum that differs for other rows, and for another order of the same rows.

    All rows' labels, weights and places count, and a sample of the entries: O(n_rows).
    """
    step = max(1, batch.nnz // SAMPLED_ENTRIES)
    parts = (
        batch.labels, batch.weights, batch.indptr, batch.indices[::step], batch.values[::step]
    )  # fmt: skip
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(np.ascontiguousarray(part).data, checksum)
    return batch.n_rows, batch.nnz, checksum


@lru_cache(maxsize=32)
def _compiled(
    gpu: int, k: int, loss: LossName, optimizer: OptimizerName, per_row: bool
) -> tuple[Passes, int]:
    """Return the passes, compiled by one over nothing, and the largest grid they take.

    ``gpu`` is the number of the current one: each loads its kernels, and has a grid of its own.
    """
    compiled = passes(k, loss, optimizer, per_row)
    no_rows = {name: cuda.to_device(np.zeros(0, kind)) for name, kind in VISIT_ARRAYS.items()}
    table = cuda.to_device(np.zeros((1, Layout(k, optimizer).stride), np.float32))
    hyper = cuda.to_device(np.zeros(9, np.float32))
    flat, square = cuda.to_device(np.zeros(1, np.float32)), cuda.to_device(np.zeros((1, 1), "f4"))
    compiled.visit[compiled.shape.launch(1)](
        table, cuda.to_device(np.zeros(4)), hyper, *no_rows.values(), square, flat, flat, square,
        square, flat, flat,
    )  # fmt: skip
    cuda.synchronize()
    return compiled, compiled.most_thread_blocks()
