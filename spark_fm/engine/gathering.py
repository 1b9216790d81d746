"""Bring rows from tasks to the driver without letting its JVM run out of memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_fm.engine.session import result_limit
from spark_fm.errors import (
    GpuNotFoundError,
    ModelTooLargeError,
    SparkFMError,
    VersionMismatchError,
)

# A partition is in the JVM several times over while it travels: small ones, one at a time.
PART_BYTES = 16 * 2**20
# Most that one job brings of several models; one model alone may be larger.
JOB_BYTES = 2**27


def gather(
    frame: DataFrame,
    session: SparkSession,
    *,
    n_bytes: int,
    spread: list[str],
    columns: list[str] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a DataFrame on the driver, in no particular order.

    Parameters
    ----------
    frame : DataFrame
    session : SparkSession
    n_bytes : int
        Upper bound of the result's size: above ``result_limit`` rows come partition by
        partition, spread over partitions of about 16 MiB.
    spread : list of str
        Columns whose values spread the rows evenly.
    columns : list of str, optional
        Columns to bring, in this order; all without it.
    """
    if columns is not None:
        frame = frame.select(*columns)
    with worker_errors():
        if n_bytes <= result_limit(session):
            table = frame.toArrow()
            for batch in table.to_batches():
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
            return
        n_partitions = max(2, -(-n_bytes // PART_BYTES))
        pieces = frame.repartition(n_partitions, *spread)
        for row in pieces.toLocalIterator():
            yield tuple(row)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Name the faults that only workers can see: of a cluster's set-up, and their loss."""
    try:
        yield
    except SparkFMError:
        raise
    except Exception as err:  # on Classic a lost worker comes as py4j's own error
        text = str(err)
        if "Python worker exited unexpectedly" in text:
            raise SparkFMError(
                "A Python worker was lost: killed, or out of memory. Its task was not run again, "
                "or not often enough: set spark.task.maxFailures, or the master local[*,4] instead "
                "of local[*]; if memory is short, use fewer cores or lower numFactors."
            ) from err
        for kind in (VersionMismatchError, GpuNotFoundError, ModelTooLargeError):
            said = re.search(rf"{kind.__name__}: ([^\n]+)", text)
            if said:
                raise kind(said[1]) from err
        missing = re.search(r"ModuleNotFoundError: No module named '(spark_fm[^']*|numba)'", text)
        if missing:
            raise SparkFMError(
                f"The workers cannot import {missing[1]}. Install spark-fm in the environment "
                "that PYSPARK_PYTHON names on every node, or ship it with the job "
                "(see docs/deploy.md)."
            ) from err
        raise
