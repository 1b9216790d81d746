"""Deal packed blocks out to an exact number of training partitions; driver only."""

from __future__ import annotations

from pyspark.sql import DataFrame

from spark_fm._version import __version__
from spark_fm.engine.deal_task import DealTask
from spark_fm.engine.handles import Handle

HASH_SEED = 42  # of Spark's hash partitioning
_WORD = 0xFFFFFFFF

DEALT_DDL = (
    "kind int, source int, seq int, n_rows int, nnz bigint, name string, payload binary, "
    "report binary, key int, exchange int"
)


def dealt_blocks(
    blocks: DataFrame, n_partitions: int, n_exchanges: int, ids: Handle | None
) -> DataFrame:
    """Return blocks in exactly ``n_partitions`` partitions, in no order.

    Blocks are dealt in turn within each source, so that partitions and exchanges get
    equally many, whatever the source's own partitions were.
    """
    task = DealTask(
        version=__version__, keys=partition_keys(n_partitions), n_exchanges=n_exchanges, ids=ids
    )
    return (
        blocks.mapInArrow(task, DEALT_DDL)
        .select("key", "exchange", "kind", "source", "seq", "n_rows", "nnz", "payload")
        .repartition(n_partitions, "key")
    )


def partition_keys(n_partitions: int) -> tuple[int, ...]:
    """Return for each partition an int that Spark's hash partitioning sends there.

    ``repartition(n)`` without a column places rows by a random start, and a plain
    column of partition numbers collides; these keys give each partition its own.
    """
    keys: dict[int, int] = {}
    candidate = 0
    while len(keys) < n_partitions:
        keys.setdefault(spark_hash(candidate) % n_partitions, candidate)
        candidate += 1
    return tuple(keys[p] for p in range(n_partitions))


def spark_hash(value: int) -> int:
    """Return Spark's 32-bit hash of an int column: MurmurHash3 x86 of one word, signed."""
    word = (value & _WORD) * 0xCC9E2D51 & _WORD
    word = _rotated(word, 15) * 0x1B873593 & _WORD
    mixed = _rotated(HASH_SEED ^ word, 13) * 5 + 0xE6546B64 & _WORD
    mixed ^= 4
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & _WORD
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & _WORD
    mixed ^= mixed >> 16
    return mixed - 2**32 if mixed >= 2**31 else mixed


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> 32 - by) & _WORD
