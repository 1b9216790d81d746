"""Rows of a partition as files on the executor's disk, mapped by every later pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.state import ALIGNMENT
from spark_fm.spark.broadcast import read_bytes
from spark_fm.spark.worker import partition_number
from spark_fm.training.local_files import check_room, make_store_folder, store_folder
from spark_fm.training.packing import TRAIN, VALIDATION, checked, read_blocks

SHARD_BYTES = 512 * 2**20
VALIDATE_ONLY = -1  # the round that trains nothing
_FIELDS = (("indptr", "<i8"), ("indices", "<i4"), ("values", "<f4"),
           ("labels", "<f8"), ("weights", "<f8"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of rows."""

    file: str
    n_rows: int
    nnz: int
    n_features: int  # one more than the largest index, 0 without entries

    def extents(self) -> list[tuple[int, int]]:
        """Return start and length of the arrays of ``_FIELDS``, the length in items."""
        lengths = (self.n_rows + 1, self.nnz, self.nnz, self.n_rows, self.n_rows)
        extents, start = [], 0
        for (_, dtype), length in zip(_FIELDS, lengths, strict=True):
            extents.append((start, length))
            start += -(-length * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
        return extents

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        start, length = self.extents()[-1]
        return start + np.dtype(_FIELDS[-1][1]).itemsize * length


class ShardStore:
    """The row sets of one partition on this machine, each a list of shards.

    ``key`` names the training set and how its blocks were assigned to partitions.
    """

    def __init__(self, key: str, partition: int) -> None:
        self._folder = store_folder(key, partition)
        self._partition = partition

    def shards(self, name: str) -> list[Shard] | None:
        """Return the shards of a set, or None unless it is here and complete."""
        try:
            shards = [Shard(*fields) for fields in json.loads(self._list_of(name).read_text())]
            sizes = [(self._folder / shard.file).stat().st_size for shard in shards]
        except OSError:
            return None
        return shards if sizes == [shard.n_bytes for shard in shards] else None

    def read(self, shard: Shard) -> CsrBatch:
        """Return the rows of a shard, read-only views of its file."""
        mapped = read_bytes(self._folder / shard.file)
        arrays = {
            name: np.frombuffer(mapped, dtype, length, start)
            for (name, dtype), (start, length) in zip(_FIELDS, shard.extents(), strict=True)
        }
        return CsrBatch(**arrays)

    def writer(self, name: str) -> ShardWriter:
        """Return a writer of a set, shard by shard."""
        return ShardWriter(self._folder, self._list_of(name))

    def _list_of(self, name: str) -> Path:
        return self._folder / f"{self._partition}-{name}.json"


class ShardWriter:
    """Writes a set, or gives up where the disk has no room for it.

    Two attempts of a task may write the same set at once: each has its own files, and the
    list that names them appears in one step.
    """

    def __init__(self, folder: Path, list_file: Path) -> None:
        self._folder = folder
        self._list_file = list_file
        self._attempt = uuid4().hex
        self._shards: list[Shard] = []
        self._writes = True

    def __enter__(self) -> ShardWriter:
        """Start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        """Leave nothing of a set that was not finished."""
        if kind is not None:
            self._give_up()

    def add(self, rows: CsrBatch) -> None:
        """Write the next shard."""
        top = int(rows.indices.max()) + 1 if rows.nnz else 0
        name = f"{self._list_file.stem}-{len(self._shards)}-{self._attempt}.rows"
        shard = Shard(name, rows.n_rows, rows.nnz, top)
        if not self._writes:
            return
        try:
            make_store_folder(self._folder)
            check_room(self._folder, shard.n_bytes)
            self._shards.append(shard)
            with open(self._folder / name, "wb") as file:
                for (field, dtype), (start, _) in zip(_FIELDS, shard.extents(), strict=True):
                    file.seek(start)
                    file.write(np.ascontiguousarray(getattr(rows, field), dtype).data)
                file.truncate(shard.n_bytes)
        except OSError:
            self._give_up()

    def finish(self) -> bool:
        """Publish the set, and return whether it is there now."""
        if not self._writes:
            return False
        shards = [[s.file, s.n_rows, s.nnz, s.n_features] for s in self._shards]
        draft = self._list_file.with_name(f"{self._attempt}.draft")
        try:
            make_store_folder(self._folder)
            draft.write_text(json.dumps(shards))
            draft.replace(self._list_file)
        except OSError:
            self._give_up()
        return self._writes

    def _give_up(self) -> None:
        self._writes = False
        for shard in self._shards:
            (self._folder / shard.file).unlink(missing_ok=True)
        self._shards = []


def set_name(kind: int, round_index: int) -> str:
    """Return the name of a set."""
    return f"{'validation' if kind == VALIDATION else 'train'}-{round_index}"


@dataclass(frozen=True)
class RowSelection:
    """Which rows a round reads, and from where."""

    round_index: int  # whose rows train; VALIDATE_ONLY for none
    n_rounds: int
    train_on_all: bool  # validation rows of the round train too
    validates: bool  # all validation rows are read
    store: str | None = None  # key of the shard stores; None to read from blocks

    def sets(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the names of the sets that are read, by what is done with their rows."""
        if self.validates:
            yield VALIDATION, [set_name(VALIDATION, e) for e in range(self.n_rounds)]
        if self.round_index != VALIDATE_ONLY:
            kinds = (TRAIN, VALIDATION) if self.train_on_all else (TRAIN,)
            yield TRAIN, [set_name(kind, self.round_index) for kind in kinds]

    def selects(self, is_validation: Any, round_index: Any) -> Any:
        """Return which blocks are read: of arrays or of Spark columns, one value a block."""
        selected = round_index == self.round_index
        if not self.train_on_all:
            selected = selected & ~is_validation
        return selected | is_validation if self.validates else selected

    def role(self, kind: int) -> int:
        """Return what the rows of a kind are read for, TRAIN or VALIDATION."""
        return TRAIN if self.train_on_all else kind


class RowsMissingError(Exception):
    """The machine of a task lacks the files of a set."""


def read_rows(
    selection: RowSelection, batches: Iterator[pa.RecordBatch], n_features: int
) -> Iterator[tuple[int, CsrBatch]]:
    """Yield the selected rows with their role, TRAIN or VALIDATION, in parts that fit memory.

    ``batches`` are the blocks, in the order of round, kind, source and seq; where the rows are in
    files, the sizes of all blocks of the partition in any order. Raises RowsMissingError where a
    set is not in files as its blocks were listed, and InvalidDataError for a feature that the
    table, of ``n_features`` rows, does not have.
    """
    if selection.store is None:
        yield from _from_blocks(selection, batches, n_features)
    else:
        yield from _from_files(selection, batches, n_features)


def _from_blocks(
    selection: RowSelection, batches: Iterator[pa.RecordBatch], n_features: int
) -> Iterator[tuple[int, CsrBatch]]:
    blocks = (
        (int(round_index), block)
        for batch in batches
        for round_index, block in zip(
            np.asarray(batch.column("round")), read_blocks([batch]), strict=True
        )
    )

    def parts() -> Iterator[tuple[int, CsrBatch]]:
        for (_, kind), group in groupby(blocks, key=lambda item: (item[0], item[1][0])):
            for rows in cut_into_shards(checked(block[3], n_features) for _, block in group):
                yield selection.role(kind), rows

    yield from _joined(parts())


def _from_files(
    selection: RowSelection, batches: Iterator[pa.RecordBatch], n_features: int
) -> Iterator[tuple[int, CsrBatch]]:
    store = ShardStore(str(selection.store), partition_number())
    listed = _listed_sizes(selection, batches)
    for target, names in selection.sets():
        sets = [store.shards(name) for name in names]
        shards = [shard for shards in sets if shards is not None for shard in shards]
        sizes = [sum(s.n_rows for s in shards), sum(s.nnz for s in shards)]
        fits = all(shard.n_features <= n_features for shard in shards)
        if None in sets or not fits or sizes != listed[target].tolist():
            raise RowsMissingError(", ".join(names))
        yield from _joined((target, store.read(shard)) for shard in shards)


def cut_into_shards(blocks: Iterable[CsrBatch]) -> Iterator[CsrBatch]:
    """Yield the rows of blocks in parts of SHARD_BYTES, or a block more."""
    waiting: list[CsrBatch] = []
    n_bytes = 0
    for rows in blocks:
        waiting.append(rows)
        n_bytes += rows.n_bytes
        if n_bytes >= SHARD_BYTES:
            yield CsrBatch.concat(waiting)
            waiting, n_bytes = [], 0
    if waiting:
        yield CsrBatch.concat(waiting)


def _joined(shards: Iterable[tuple[int, CsrBatch]]) -> Iterator[tuple[int, CsrBatch]]:
    """Yield neighbours that are small together as one: they are mixed in training."""
    small: dict[int, list[CsrBatch]] = {TRAIN: [], VALIDATION: []}
    for target, rows in shards:
        waiting = small[target]
        if waiting and sum(part.n_bytes for part in waiting) + rows.n_bytes > SHARD_BYTES:
            yield target, CsrBatch.concat(waiting)
            waiting.clear()
        if rows.n_bytes >= SHARD_BYTES:
            yield target, rows
        else:
            waiting.append(rows)
    for target, waiting in small.items():
        if waiting:
            yield target, CsrBatch.concat(waiting)


def _listed_sizes(
    selection: RowSelection, batches: Iterator[pa.RecordBatch]
) -> dict[int, NDArray[np.int64]]:
    """Return rows and entries of the selected blocks of a listing, by role."""
    listed = {TRAIN: np.zeros(2, np.int64), VALIDATION: np.zeros(2, np.int64)}
    for batch in batches:
        kinds, round_indices, n_rows, nnz = (
            np.asarray(batch.column(n)) for n in ("kind", "round", "n_rows", "nnz")
        )
        selected = selection.selects(kinds == VALIDATION, round_indices)
        for kind in (TRAIN, VALIDATION):
            mask = selected & (kinds == kind)
            listed[selection.role(kind)] += [n_rows[mask].sum(), nnz[mask].sum()]
    return listed
