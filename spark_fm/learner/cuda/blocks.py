"""Rows cut into blocks whose rows train side by side, the entries of each sorted by feature.

What a device with thousands of threads reads instead of row after row: one thread group a
row finds the scores of a block, then one a feature adds up what the block's rows say of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch, frozen
from spark_fm.learner.jit import njit

# Entries of a frequent feature that one thread group adds up; more are shared by several.
CHUNK = 64
ALONE = -1
# Rows of a block: with many, steps that do not know of each other hold each other back, the more
# so the more entries a row has. Few rows do not fill a GPU anyway; many have to.
BLOCK_ENTRIES = 512
LEAST_BLOCKS, MOST_BLOCKS = 4096, 16384
MANY_ROWS, BLOCK_ROWS_OF_MANY = 2**20, 1024


def block_rows(n_rows: int, nnz: int) -> int:
    """Return how many rows train side by side, of so many that a partition has in an epoch.

    Chosen by the test loss of the same arithmetic on a CPU, compared with that of one row
    after the other (``docs/gpu.md``).
    """
    if n_rows >= MANY_ROWS:
        return BLOCK_ROWS_OF_MANY
    return max(n_rows // min(max(nnz // BLOCK_ENTRIES, LEAST_BLOCKS), MOST_BLOCKS), 1)


@dataclass(frozen=True, slots=True)
class BlockedRows:
    """Rows of positive weight, block after block, entries by row and by feature.

    A place is a row's number in this order.
    """

    rows: NDArray[np.int64]  # (n_places,), row of the batch at each place
    places: NDArray[np.int64]  # (n_blocks + 1,), where the places of each block start
    # Entries by row.
    indptr: NDArray[np.int64]  # (n_places + 1,), where the entries of each place start
    indices: NDArray[np.int32]  # (nnz,)
    values: NDArray[np.float32]  # (nnz,)
    repeats: NDArray[np.int32]  # (nnz,), entries of the block with this feature, itself included
    # Entries by feature, in chunks of at most CHUNK.
    chunks: NDArray[np.int64]  # (n_blocks + 1,), where the chunks of each block start
    chunk_features: NDArray[np.int32]  # (n_chunks,)
    chunk_starts: NDArray[np.int64]  # (n_chunks + 1,)
    # (n_chunks,), number among the block's chunks that share their feature with others; ALONE
    # for the only one of its feature
    chunk_slots: NDArray[np.int32]
    entry_places: NDArray[np.int32]  # (nnz,), place within the block
    entry_values: NDArray[np.float32]  # (nnz,)
    # Features of several chunks: ids, entries in the block, slot of the first chunk, chunks.
    shared: NDArray[np.int64]  # (n_blocks + 1,), where those of each block start
    shared_features: NDArray[np.int32]
    shared_repeats: NDArray[np.int32]
    shared_slots: NDArray[np.int32]
    shared_counts: NDArray[np.int32]

    @property
    def n_blocks(self) -> int:
        """Number of blocks; none is empty."""
        return len(self.places) - 1

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays."""
        return int(sum(getattr(self, field.name).nbytes for field in fields(self)))

    @property
    def most_rows(self) -> int:
        """Rows of the largest block."""
        return int(np.diff(self.places).max(initial=0))

    @property
    def most_slots(self) -> int:
        """Most chunks of one block that share their features."""
        return int(self.chunk_slots.max(initial=ALONE)) + 1

    @property
    def most_items(self) -> int:
        """Most rows of one block, or chunks of features and of the bias, which every row has."""
        rows = np.diff(self.places)
        return int(np.maximum(rows, np.diff(self.chunks) - (-rows // CHUNK)).max(initial=0))

    @classmethod
    def of(
        cls, batch: CsrBatch, order: NDArray[np.int64], block_rows: int, n_features: int
    ) -> BlockedRows:
        """Cut the rows ``order`` into blocks; O(nnz + n_features).

        Rows of weight 0 count towards the size of their block and are left out.
        """
        has_weight = batch.weights[order] > 0
        rows = order[has_weight]
        numbers = (np.arange(len(order)) // max(1, block_rows))[has_weight]
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        places = np.append(starts, len(rows)).astype(np.int64)
        lengths = np.diff(batch.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        sorted_rows = batch.take(rows)
        arrays = _sorted_by_feature(
            frozen(places), frozen(indptr), frozen(sorted_rows.indices), frozen(sorted_rows.values),
            n_features, CHUNK,
        )  # fmt: skip
        return cls(rows, places, indptr, sorted_rows.indices, sorted_rows.values, *arrays)

    def between(self, first: int, last: int) -> BlockedRows:
        """Return the blocks ``first:last`` by themselves; no array is copied but offsets."""
        place = slice(self.places[first], self.places[last])
        entry = slice(self.indptr[place.start], self.indptr[place.stop])
        chunk = slice(self.chunks[first], self.chunks[last])
        shared = slice(self.shared[first], self.shared[last])

        def offsets(array: NDArray[np.int64], part: slice) -> NDArray[np.int64]:
            moved: NDArray[np.int64] = array[part.start : part.stop + 1] - array[part.start]
            return moved

        blocks = slice(first, last)
        return BlockedRows(
            rows=self.rows[place], places=offsets(self.places, blocks),
            indptr=offsets(self.indptr, place), indices=self.indices[entry],
            values=self.values[entry], repeats=self.repeats[entry],
            chunks=offsets(self.chunks, blocks), chunk_features=self.chunk_features[chunk],
            chunk_starts=offsets(self.chunk_starts, chunk), chunk_slots=self.chunk_slots[chunk],
            entry_places=self.entry_places[entry], entry_values=self.entry_values[entry],
            shared=offsets(self.shared, blocks), shared_features=self.shared_features[shared],
            shared_repeats=self.shared_repeats[shared], shared_slots=self.shared_slots[shared],
            shared_counts=self.shared_counts[shared],
        )  # fmt: skip


def _sort(places, indptr, indices, values, n_features, chunk):  # type: ignore[no-untyped-def]
    n_blocks, nnz = len(places) - 1, len(indices)
    repeats = np.empty(nnz, np.int32)
    entry_places = np.empty(nnz, np.int32)
    entry_values = np.empty(nnz, np.float32)
    chunks = np.zeros(n_blocks + 1, np.int64)
    chunk_features = np.empty(nnz, np.int32)
    chunk_starts = np.zeros(nnz + 1, np.int64)
    chunk_slots = np.empty(nnz, np.int32)
    shared = np.zeros(n_blocks + 1, np.int64)
    shared_features = np.empty(nnz // chunk + 1, np.int32)
    shared_repeats = np.empty(nnz // chunk + 1, np.int32)
    shared_slots = np.empty(nnz // chunk + 1, np.int32)
    shared_counts = np.empty(nnz // chunk + 1, np.int32)
    numbers = np.full(n_features, -1, np.int32)  # of a feature among those of the block
    block_features = np.empty(0, np.int32)
    counts = np.empty(0, np.int32)
    nexts = np.empty(0, np.int64)
    n_chunks, n_shared = 0, 0
    for b in range(n_blocks):
        start, stop = indptr[places[b]], indptr[places[b + 1]]
        if stop - start > len(block_features):
            block_features = np.empty(stop - start, np.int32)
            counts = np.empty(stop - start, np.int32)
            nexts = np.empty(stop - start, np.int64)
        n_block_features, slot = 0, 0
        for p in range(start, stop):
            j = indices[p]
            if numbers[j] < 0:
                numbers[j] = n_block_features
                block_features[n_block_features] = j
                counts[n_block_features] = 0
                n_block_features += 1
            counts[numbers[j]] += 1
        at = start
        for n in range(n_block_features):
            nexts[n] = at
            n_parts = -(-counts[n] // chunk)
            if n_parts > 1:
                shared_features[n_shared] = block_features[n]
                shared_repeats[n_shared] = counts[n]
                shared_slots[n_shared] = slot
                shared_counts[n_shared] = n_parts
                n_shared += 1
            for part in range(n_parts):
                chunk_features[n_chunks] = block_features[n]
                chunk_slots[n_chunks] = slot + part if n_parts > 1 else -1
                n_chunks += 1
                chunk_starts[n_chunks] = at + min(counts[n], (part + 1) * chunk)
            at += counts[n]
            if n_parts > 1:
                slot += n_parts
        for place in range(places[b], places[b + 1]):
            for p in range(indptr[place], indptr[place + 1]):
                n = numbers[indices[p]]
                repeats[p] = counts[n]
                entry_places[nexts[n]] = place - places[b]
                entry_values[nexts[n]] = values[p]
                nexts[n] += 1
        for n in range(n_block_features):
            numbers[block_features[n]] = -1
        chunks[b + 1] = n_chunks
        shared[b + 1] = n_shared
    return (
        repeats, chunks, chunk_features[:n_chunks].copy(), chunk_starts[: n_chunks + 1].copy(),
        chunk_slots[:n_chunks].copy(), entry_places, entry_values, shared,
        shared_features[:n_shared].copy(), shared_repeats[:n_shared].copy(),
        shared_slots[:n_shared].copy(), shared_counts[:n_shared].copy(),
    )  # fmt: skip


_sorted_by_feature: Any = njit(_sort, tag="sort-by-feature")
