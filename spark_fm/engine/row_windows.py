"""The stretches of rows that a task of an exchange works on; executors only.

A set is the rows of one kind that a partition has for one exchange. It is cut into
windows that fit memory, the same ones whether they come from blocks or from files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.engine.blocks import TRAIN, VALIDATION, checked, read_blocks
from spark_fm.engine.task_context import partition_number
from spark_fm.engine.window_store import WindowStore
from spark_fm.learner.csr import CsrBatch

WINDOW_BYTES = 512 * 2**20
VALIDATE_ONLY = -1  # the exchange that trains nothing


def set_name(kind: int, exchange: int) -> str:
    """Return the name of a set."""
    return f"{'validation' if kind == VALIDATION else 'train'}-{exchange}"


@dataclass(frozen=True)
class WantedRows:
    """What an exchange reads.

    Parameters
    ----------
    exchange : int
        Whose rows train; VALIDATE_ONLY for none.
    n_exchanges : int
    train_on_all : bool
        Validation rows of the exchange train too.
    validates : bool
        All validation rows are read.
    store : str or None
        Key of the window stores; None to read from blocks.
    """

    exchange: int
    n_exchanges: int
    train_on_all: bool
    validates: bool
    store: str | None = None

    def sets(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the names of the sets that are read, by what is done with their rows."""
        if self.validates:
            yield VALIDATION, [set_name(VALIDATION, e) for e in range(self.n_exchanges)]
        if self.exchange != VALIDATE_ONLY:
            kinds = (TRAIN, VALIDATION) if self.train_on_all else (TRAIN,)
            yield TRAIN, [set_name(kind, self.exchange) for kind in kinds]

    def covers(self, is_validation: Any, exchange: Any) -> Any:
        """Return which blocks are read: of arrays or of Spark columns, one value a block."""
        chosen = exchange == self.exchange
        if not self.train_on_all:
            chosen = chosen & ~is_validation
        return chosen | is_validation if self.validates else chosen

    def target(self, kind: int) -> int:
        """Return what is done with the rows of a kind."""
        return TRAIN if self.train_on_all else kind


class RowsMissingError(Exception):
    """The machine of a task lacks the files of a set."""


def read_rows(
    wanted: WantedRows, batches: Iterator[pa.RecordBatch], n_features: int
) -> Iterator[tuple[int, CsrBatch]]:
    """Yield the rows of TRAIN and VALIDATION in stretches that fit memory.

    Parameters
    ----------
    wanted : WantedRows
    batches : iterator of RecordBatch
        Blocks, in the order of exchange, kind, source and seq; where they are to be in
        files, the sizes of all blocks of the partition, in any order.
    n_features : int
        Rows of the table: indices are checked to be less.

    Raises
    ------
    RowsMissingError
        Where a set is not in files as its blocks were listed.
    InvalidDataError
        For a feature that the table does not have.
    """
    if wanted.store is None:
        yield from _from_blocks(wanted, batches, n_features)
    else:
        yield from _from_files(wanted, batches, n_features)


def _from_blocks(
    wanted: WantedRows, batches: Iterator[pa.RecordBatch], n_features: int
) -> Iterator[tuple[int, CsrBatch]]:
    blocks = (
        (int(exchange), block)
        for batch in batches
        for exchange, block in zip(
            np.asarray(batch.column("exchange")), read_blocks([batch]), strict=True
        )
    )

    def windows() -> Iterator[tuple[int, CsrBatch]]:
        for (_, kind), group in groupby(blocks, key=lambda item: (item[0], item[1][0])):
            for rows in cut_into_windows(checked(block[3], n_features) for _, block in group):
                yield wanted.target(kind), rows

    yield from _joined(windows())


def _from_files(
    wanted: WantedRows, batches: Iterator[pa.RecordBatch], n_features: int
) -> Iterator[tuple[int, CsrBatch]]:
    store = WindowStore(str(wanted.store), partition_number())
    listed = _listed_sizes(wanted, batches)
    for target, names in wanted.sets():
        found = [store.windows(name) for name in names]
        windows = [window for part in found if part is not None for window in part]
        sizes = [sum(w.n_rows for w in windows), sum(w.nnz for w in windows)]
        fits = all(window.n_features <= n_features for window in windows)
        if None in found or not fits or sizes != listed[target].tolist():
            raise RowsMissingError(", ".join(names))
        yield from _joined((target, store.read(window)) for window in windows)


def cut_into_windows(blocks: Iterable[CsrBatch]) -> Iterator[CsrBatch]:
    """Yield the rows of blocks in pieces of WINDOW_BYTES, or a block more."""
    waiting: list[CsrBatch] = []
    n_bytes = 0
    for rows in blocks:
        waiting.append(rows)
        n_bytes += rows.n_bytes
        if n_bytes >= WINDOW_BYTES:
            yield CsrBatch.concat(waiting)
            waiting, n_bytes = [], 0
    if waiting:
        yield CsrBatch.concat(waiting)


def _joined(windows: Iterable[tuple[int, CsrBatch]]) -> Iterator[tuple[int, CsrBatch]]:
    """Yield neighbours that are small together in one piece: they are mixed in training."""
    small: dict[int, list[CsrBatch]] = {TRAIN: [], VALIDATION: []}
    for target, rows in windows:
        waiting = small[target]
        if waiting and sum(part.n_bytes for part in waiting) + rows.n_bytes > WINDOW_BYTES:
            yield target, CsrBatch.concat(waiting)
            waiting.clear()
        if rows.n_bytes >= WINDOW_BYTES:
            yield target, rows
        else:
            waiting.append(rows)
    for target, waiting in small.items():
        if waiting:
            yield target, CsrBatch.concat(waiting)


def _listed_sizes(
    wanted: WantedRows, batches: Iterator[pa.RecordBatch]
) -> dict[int, NDArray[np.int64]]:
    """Return rows and entries of those listed blocks that are wanted, by what is done there."""
    listed = {TRAIN: np.zeros(2, np.int64), VALIDATION: np.zeros(2, np.int64)}
    for batch in batches:
        kinds, exchanges, n_rows, nnz = (
            np.asarray(batch.column(n)) for n in ("kind", "exchange", "n_rows", "nnz")
        )
        covered = wanted.covers(kinds == VALIDATION, exchanges)
        for kind in (TRAIN, VALIDATION):
            chosen = covered & (kinds == kind)
            listed[wanted.target(kind)] += [n_rows[chosen].sum(), nnz[chosen].sum()]
    return listed
