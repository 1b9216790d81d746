"""The stretches of rows that a task of an exchange works on; executors only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from spark_fm.engine.blocks import TRAIN, VALIDATION, checked, read_blocks
from spark_fm.engine.task_context import partition_number
from spark_fm.engine.window_store import WindowStore
from spark_fm.learner.csr import CsrBatch

WINDOW_BYTES = 512 * 2**20
VALIDATE_ONLY = -1  # the exchange that trains nothing


@dataclass(frozen=True)
class WantedRows:
    """What an exchange reads, and what of it the executors should have in files.

    Parameters
    ----------
    exchange : int
        Whose rows train; VALIDATE_ONLY for none.
    train_on_all : bool
        Validation rows of the exchange train too.
    validates : bool
        All validation rows are read.
    store : str
        Key of the window stores.
    stored : frozenset of str
        Sets whose blocks come without their payload.
    """

    exchange: int
    train_on_all: bool
    validates: bool
    store: str
    stored: frozenset[str] = frozenset()

    @property
    def sets(self) -> dict[int, str]:
        """Names of the sets that are read, by what is done with their rows."""
        found = {}
        if self.validates:
            found[VALIDATION] = "validation"
        if self.exchange != VALIDATE_ONLY:
            found[TRAIN] = f"{'all' if self.train_on_all else 'train'}-{self.exchange}"
        return found


class RowsMissingError(Exception):
    """The machine of a task lacks the files of a set whose blocks came without their payload."""


class RowReader:
    """Reads the rows of a task: from blocks that come in, or from files of before.

    Parameters
    ----------
    wanted : WantedRows
    n_features : int
        Rows of the table; indices are checked to be less.
    """

    def __init__(self, wanted: WantedRows, n_features: int) -> None:
        self._wanted = wanted
        self._n_features = n_features
        self._store = WindowStore(wanted.store, partition_number())
        self.kept: list[str] = []  # sets that this machine has in files now

    def windows(self, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, CsrBatch]]:
        """Yield the rows of TRAIN and VALIDATION in stretches that fit memory.

        Raises
        ------
        RowsMissingError
            Where a set is not in files as its blocks were listed.
        """
        listed = {TRAIN: np.zeros(2, np.int64), VALIDATION: np.zeros(2, np.int64)}
        yield from self._from_blocks(batches, listed)
        for target, name in self._wanted.sets.items():
            if name not in self._wanted.stored:
                continue
            windows = self._store.windows(name)
            if windows is None:
                raise RowsMissingError(name)
            total = np.array([(w.n_rows, w.nnz) for w in windows], np.int64).reshape(-1, 2).sum(0)
            fits = all(window.n_features <= self._n_features for window in windows)
            if not fits or (total != listed[target]).any():
                raise RowsMissingError(name)
            self.kept.append(name)
            for window in windows:
                yield target, self._store.read(window)

    def _from_blocks(
        self, batches: Iterator[pa.RecordBatch], listed: dict[int, np.ndarray]
    ) -> Iterator[tuple[int, CsrBatch]]:
        """Yield the rows of the blocks that have them; add up the sizes of the others."""
        sets, stored = self._wanted.sets, self._wanted.stored
        waiting: dict[int, list[CsrBatch]] = {TRAIN: [], VALIDATION: []}
        n_bytes = dict.fromkeys(waiting, 0)
        with ExitStack() as stack:
            writers = {
                target: stack.enter_context(self._store.writer(name))
                for target, name in sets.items()
                if name not in stored and self._store.windows(name) is None
            }

            def window(target: int) -> CsrBatch:
                rows = CsrBatch.concat(waiting[target])
                waiting[target], n_bytes[target] = [], 0
                if target in writers:
                    writers[target].add(rows)
                return rows

            for batch in batches:
                self._add_listed_inplace(listed, batch)
                for kind, _, _, rows in read_blocks([batch]):
                    target = TRAIN if self._wanted.train_on_all else kind
                    waiting[target].append(checked(rows, self._n_features))
                    n_bytes[target] += rows.n_bytes
                    if n_bytes[target] >= WINDOW_BYTES:
                        yield target, window(target)
            for target, parts in waiting.items():
                if parts:
                    yield target, window(target)
            for target, name in sets.items():
                if name not in stored and (target not in writers or writers[target].finish()):
                    self.kept.append(name)

    def _add_listed_inplace(self, listed: dict[int, np.ndarray], batch: pa.RecordBatch) -> None:
        if not self._wanted.stored or not batch.num_rows:
            return
        kinds, n_rows, nnz, bare = (
            np.asarray(column)
            for column in (
                batch.column("kind"), batch.column("n_rows"), batch.column("nnz"),
                batch.column("payload").is_null(),
            )
        )  # fmt: skip
        for kind in (TRAIN, VALIDATION):
            chosen = bare & (kinds == kind)
            target = TRAIN if self._wanted.train_on_all else kind
            listed[target] += [n_rows[chosen].sum(), nnz[chosen].sum()]
