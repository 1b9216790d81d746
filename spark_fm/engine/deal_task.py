"""The task that deals packed blocks out to training partitions: for ``mapInArrow``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from spark_fm.engine.blocks import BLOCK_SCHEMA, block_row, read_blocks, renumbered
from spark_fm.engine.handles import Handle
from spark_fm.engine.version import check_version
from spark_fm.learner.predict import TablePositions

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class DealTask:
    """Give every block a partition, and cut it into the exchanges that train it.

    Parameters
    ----------
    keys : tuple of int
        Value of column ``key`` that hashes to each partition.
    n_exchanges : int
    ids : Handle or None
        Sorted feature ids of the table's rows.
    """

    version: str
    keys: tuple[int, ...]
    n_exchanges: int
    ids: Handle | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield pieces of the blocks with columns ``key`` and ``exchange`` added."""
        check_version(self.version)
        positions = None if self.ids is None else TablePositions(self.ids.load())
        n_partitions, n_exchanges = len(self.keys), self.n_exchanges
        for kind, source, seq, rows in read_blocks(batches):
            partition = (seq + source) % n_partitions
            exchanges = exchanges_of(seq // n_partitions + source, rows.n_rows, n_exchanges)
            cuts = np.linspace(0, rows.n_rows, len(exchanges) + 1).astype(np.int64)
            rows = renumbered(rows, positions)
            for exchange, (start, stop) in zip(exchanges, pairwise(cuts), strict=True):
                dealt = block_row(kind, source, seq, rows.between(start, stop))
                yield pa.RecordBatch.from_arrays(
                    [
                        *dealt.columns,
                        pa.array([self.keys[partition]], pa.int32()),
                        pa.array([exchange], pa.int32()),
                    ],
                    schema=DEALT_SCHEMA,
                )


def exchanges_of(turn: int, n_rows: int, n_exchanges: int) -> list[int]:
    """Return the exchanges that the pieces of a block go to: all, rows permitting.

    Pieces of small blocks are spread evenly, and start at multiples of the golden ratio,
    which leave no exchange out for long (Knuth, The Art of Computer Programming, 6.4).
    """
    n_pieces = min(n_rows, n_exchanges)
    first = int(turn * GOLDEN % 1 * n_exchanges)
    return [(first + i * n_exchanges // n_pieces) % n_exchanges for i in range(n_pieces)]


DEALT_SCHEMA = BLOCK_SCHEMA.append(pa.field("key", pa.int32())).append(
    pa.field("exchange", pa.int32())
)
