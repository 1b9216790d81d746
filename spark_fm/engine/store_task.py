"""The task that writes a partition's dealt blocks into files: for ``mapInArrow``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from spark_fm.engine.blocks import TRAIN, VALIDATION, decode, payload_bytes
from spark_fm.engine.row_windows import cut_into_windows, set_name
from spark_fm.engine.task_context import partition_number
from spark_fm.engine.version import check_version
from spark_fm.engine.window_store import WindowStore, remove_store
from spark_fm.learner.csr import CsrBatch

LISTING_DDL = "kind int, exchange int, source int, seq int, n_rows int, nnz bigint"
LISTED = ("kind", "exchange", "source", "seq", "n_rows", "nnz")


@dataclass(frozen=True)
class StoreTask:
    """Write the sets of a partition into files of its machine, and list their blocks.

    Blocks come in any order and are put down as they come; sorting them in the JVM would
    hold them there.

    Parameters
    ----------
    version : str
    store : str
        Key of the window stores.
    n_exchanges : int
    """

    version: str
    store: str
    n_exchanges: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the blocks without their payload."""
        check_version(self.version)
        store = WindowStore(self.store, partition_number())
        places: dict[str, list[tuple[int, ...]]] = {
            set_name(kind, exchange): []
            for kind in (TRAIN, VALIDATION)
            for exchange in range(self.n_exchanges)
        }
        with store.spool() as spool:
            for batch in batches:
                numbers = [np.asarray(batch.column(name)).tolist() for name in LISTED]
                payloads = batch.column("payload")
                for i, facts in enumerate(zip(*numbers, strict=True)):
                    kind, exchange, *rest = facts
                    start = spool.add(payloads[i].as_buffer())
                    places[set_name(kind, exchange)].append((*rest, start))
                yield batch.select(list(LISTED))
            blocks = spool.contents()
            if blocks is None:
                return
            for name, found in places.items():
                with store.writer(name) as writer:
                    for window in cut_into_windows(_blocks(blocks, sorted(found))):
                        writer.add(window)
                    writer.finish()


def _blocks(contents: memoryview, places: list[tuple[int, ...]]) -> Iterator[CsrBatch]:
    """Yield the blocks at these places: source, seq, n_rows, nnz, start."""
    for _, _, n_rows, nnz, start in places:
        yield decode(contents[start : start + payload_bytes(n_rows, nnz)], n_rows, nnz)


@dataclass(frozen=True)
class RemoveFiles:
    """Remove a training set's files from the machine of a task: for ``mapInArrow``."""

    store: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing."""
        for _ in batches:
            pass
        remove_store(self.store)
        yield from ()
