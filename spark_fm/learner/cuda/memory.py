"""Rows that stay on a GPU between passes, as far as its memory goes.

A process keeps them for each GPU that it uses: a Spark worker that is used again finds those
of its partition. Least recently used ones make room for new ones; rows that do not fit are
uploaded chunk by chunk in every pass, with the same result.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from spark_fm.errors import ModelTooLargeError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.blocks import BlockedRows

T = TypeVar("T")
CHUNK_BYTES = 512 * 2**20
SAMPLED_ROWS = 2**10
ON_DEVICE = (
    "places", "chunks", "shared", "indptr", "indices", "values", "repeats", "chunk_features",
    "chunk_starts", "chunk_slots", "entry_places", "entry_values", "shared_features",
    "shared_repeats", "shared_slots", "shared_counts",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceChunk:
    """Blocks on the device."""

    arrays: dict[str, Any]  # those of BlockedRows that kernels read, labels and weights
    # On the host, as in BlockedRows.
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    # Of the largest block; items are what warps work on side by side.
    most_rows: int
    most_slots: int
    most_items: int
    weight: float  # of all rows

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.places) - 1


@dataclass(frozen=True, slots=True)
class _DeviceTable:
    """A table as the last pass left it."""

    array: weakref.ref[NDArray[np.float32]]  # of the host
    table: Any  # on the device
    sample: NDArray[np.float32]  # some rows


class DeviceMemory:
    """Chunks of rows on one device, and a table, and how room is made for more."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[tuple[Hashable, int], DeviceChunk] = OrderedDict()
        self._counts: dict[Hashable, int] = {}  # chunks of each set of rows
        self._cut: tuple[Hashable, BlockedRows] | None = None
        self._table: _DeviceTable | None = None
        self.uploads = 0

    def chunks(
        self, key: Hashable, batch: CsrBatch, make: Callable[[], BlockedRows]
    ) -> tuple[int, Callable[[int], DeviceChunk]]:
        """Return how many chunks the rows of ``key`` have, and a function that returns one.

        ``make`` cuts the rows again when a chunk is not on the device any more. That takes a
        CPU longer than to train on them: from then on they are kept cut here, too.
        """
        known = key in self._counts
        cut: list[BlockedRows] = []

        def blocked() -> BlockedRows:
            if known and self._cut is not None and self._cut[0] == key:
                return self._cut[1]
            if not cut:
                cut.append(make())
            if known:
                self._cut = (key, cut[0])
            return cut[0]

        if not known:
            self._counts[key] = len(_bounds(blocked())) - 1

        def chunk(number: int) -> DeviceChunk:
            on_device = self._chunks.get((key, number))
            if on_device is None:
                bounds = _bounds(blocked())
                part = blocked().between(bounds[number], bounds[number + 1])
                on_device = self.with_room(
                    lambda: _uploaded(part, batch), f"{part.n_bytes:,} bytes of rows"
                )
                self.uploads += 1
                self._chunks[(key, number)] = on_device
            self._chunks.move_to_end((key, number))
            return on_device

        return self._counts[key], chunk

    def keep_table(self, array: NDArray[np.float32], table: Any) -> None:
        """Keep a table, which is now as ``array`` is, until room is needed or a task ends."""
        self._table = _DeviceTable(weakref.ref(array), table, _sample(array))

    def taken_table(self, array: NDArray[np.float32]) -> Any:
        """Return the device's copy of this very array and forget it; None without one.

        Who changes a table must pass another array; a sample is compared to catch mistakes.
        """
        last, self._table = self._table, None
        if last is None or last.array() is not array:
            return None
        return last.table if np.array_equal(last.sample, _sample(array), equal_nan=True) else None

    def with_room(self, allocate: Callable[[], T], what: str) -> T:
        """Return the result of ``allocate``, after making room where it is short.

        Raises
        ------
        ModelTooLargeError
            When it does not fit the device alone.
        """
        while True:
            try:
                return allocate()
            except Exception as err:
                if not is_out_of_memory(err):
                    raise
                if not self._make_room():
                    raise ModelTooLargeError(
                        f"The GPU's memory has no room for {what}. Use a GPU with more memory, let "
                        'fewer tasks share it, use fewer features or factors, or device="cpu".'
                    ) from err

    def _make_room(self) -> bool:
        """Free the table, or one chunk; False when there is none.

        The table first; then chunks of other rows, longest unused first. Of the rows that are
        being trained on the one used last: the next pass will find the others.
        """
        if self._table is not None:
            self._table = None
            _free()
            return True
        if not self._chunks:
            return False
        newest = next(reversed(self._chunks))
        others = [name for name in self._chunks if name[0] != newest[0]]
        del self._chunks[others[0] if others else newest]
        _free()
        return True

    def leave_room(self) -> None:
        """Leave half of the GPU to other processes, as far as these rows fill it.

        Spark gives a task to any of its idle Python workers, and none of them can free what
        another one holds.
        """
        self._table = None
        _free()
        while _more_than_half_is_taken() and self._make_room():
            pass

    def clear(self) -> None:
        """Free everything."""
        self._chunks.clear()
        self._counts.clear()
        self._cut = self._table = None
        _free()


def is_out_of_memory(err: Exception) -> bool:
    """Return whether an error of the CUDA driver is a lack of memory.

    By its name: the class has moved between versions of Numba.
    """
    return "OUT_OF_MEMORY" in str(err).upper()


def _sample(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table[:: max(1, len(table) // SAMPLED_ROWS)].copy()


def _free() -> None:
    # Numba frees late: arrays wait in the queue of the context's memory manager, kernels in the
    # context's own. The simulator has neither.
    context = cuda.current_context()
    for owner in (getattr(context, "memory_manager", None), context):
        pending = getattr(owner, "deallocations", None)
        if pending is not None:
            pending.clear()


def _more_than_half_is_taken() -> bool:
    try:
        free, total = cuda.current_context().get_memory_info()
    except NotImplementedError:  # another memory manager than Numba's
        return False
    return bool(2 * free < total)


def _bounds(blocked: BlockedRows) -> list[int]:
    """Return where chunks of at most CHUNK_BYTES begin, and the end."""
    if blocked.n_blocks == 0:
        return [0]
    entry_bytes = blocked.n_bytes / max(1, len(blocked.indices))
    sizes = np.diff(blocked.indptr[blocked.places]) * entry_bytes
    numbers = np.floor((np.cumsum(sizes) - sizes) / CHUNK_BYTES)
    return [*np.flatnonzero(np.diff(numbers, prepend=-1)).tolist(), blocked.n_blocks]


def _uploaded(part: BlockedRows, batch: CsrBatch) -> DeviceChunk:
    arrays = {name: cuda.to_device(np.ascontiguousarray(getattr(part, name))) for name in ON_DEVICE}
    weights = batch.weights[part.rows]
    arrays |= {
        "labels": cuda.to_device(batch.labels[part.rows]),
        "weights": cuda.to_device(weights),
    }
    return DeviceChunk(
        arrays, part.rows.copy(), part.places, part.most_rows, part.most_slots, part.most_items,
        float(weights.sum(dtype=np.float64)),
    )  # fmt: skip


_MEMORIES: dict[int, DeviceMemory] = {}


def device_memory() -> DeviceMemory:
    """Return the memory of this process on the current GPU."""
    cuda.current_context()  # the first GPU's, where none has been chosen
    return _MEMORIES.setdefault(int(cuda.gpus.current.id), DeviceMemory())
