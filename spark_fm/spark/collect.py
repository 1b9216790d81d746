"""Bring arrays from tasks to the driver in checked chunks, within its JVM's memory."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_fm.errors import (
    GpuNotFoundError,
    ModelTooLargeError,
    SparkFMError,
    VersionMismatchError,
)
from spark_fm.spark.session import SparkCluster

# A partition is in the JVM several times over while it travels: small ones, one at a time.
PART_BYTES = 16 * 2**20
# Most that one job brings of several models; one model alone may be larger.
JOB_BYTES = 2**27


def collect_rows(
    frame: DataFrame,
    cluster: SparkCluster,
    *,
    n_bytes: int,
    spread: list[str],
    columns: list[str] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a DataFrame on the driver, in no particular order.

    ``n_bytes`` bounds the result's size: above the cluster's limit rows come partition by
    partition, about 16 MiB each, into which the values of the columns ``spread`` divide them.
    """
    if columns is not None:
        frame = frame.select(*columns)
    with worker_errors():
        if n_bytes <= cluster.result_limit:
            yield from rows_of(frame.toArrow())
            return
        n_partitions = max(2, -(-n_bytes // PART_BYTES))
        chunks = frame.repartition(n_partitions, *spread)
        for row in chunks.toLocalIterator():
            yield tuple(row)


def rows_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of an Arrow table."""
    for batch in table.to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


# What Java says of a disk that takes no files, from the file's name on where it has one.
_FULL_DISK = re.compile(
    r"(\S+ \()?(No space left on device|Disk quota exceeded|Read-only file system)\)?"
    r"|\S*blockmgr-\S* \(Permission denied\)|Failed to create local dir in \S+"
)


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
        for kind in (VersionMismatchError, GpuNotFoundError, ModelTooLargeError, SparkFMError):
            said = re.search(rf"{kind.__name__}: ([^\n]+)", text)
            if said:
                raise kind(said[1]) from err
        full = _FULL_DISK.search(text)
        if full:
            at = re.search(r"\((\S+) executor ([^)\s]+)\)", text)
            whose = f"executor {at[2]} on {at[1]}" if at else "an executor"
            raise SparkFMError(
                f"The local disk of {whose} takes no more of Spark's files: {full[0]!r}. Make room "
                "there, or let spark.local.dir (SPARK_LOCAL_DIRS of a standalone worker, "
                "yarn.nodemanager.local-dirs) name a folder on a larger disk."
            ) from err
        missing = re.search(r"ModuleNotFoundError: No module named '(spark_fm[^']*|numba)'", text)
        if missing:
            raise SparkFMError(
                f"The workers cannot import {missing[1]}. Install spark-fm in the environment "
                "that PYSPARK_PYTHON names on every node, or ship it with the job "
                "(see docs/deploy.md)."
            ) from err
        raise


CHUNK_BYTES = 4 * 2**20
META = "facts"

CHUNK_SCHEMA = pa.schema(
    [
        pa.field("model", pa.int32()),
        pa.field("partition", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("part", pa.int32()),
        pa.field("payload", pa.binary()),
    ]
)
MODEL_CHUNK = ["model", "name", "part", "payload"]
CHUNK_DDL = "model int, partition int, name string, part int, payload binary"


def chunk(
    partition: int, name: str, part: int, payload: bytes, *, model: int = 0
) -> pa.RecordBatch:
    """Return the record batch of one chunk."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array([model], pa.int32()),
            pa.array([partition], pa.int32()),
            pa.array([name], pa.string()),
            pa.array([part], pa.int32()),
            pa.array([payload], pa.binary()),
        ],
        schema=CHUNK_SCHEMA,
    )


def to_chunks(
    partition: int, metadata: dict[str, Any], arrays: dict[str, NDArray[Any]], *, model: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield the chunks of metadata and arrays; the metadata also keep shapes and dtypes."""
    flats = {n: np.ascontiguousarray(a).reshape(-1).view(np.uint8) for n, a in arrays.items()}
    forms = {n: [a.dtype.str, list(a.shape), zlib.crc32(flats[n].data)] for n, a in arrays.items()}
    content = json.dumps({**metadata, "arrays": forms}).encode()
    yield chunk(partition, META, 0, content, model=model)
    for name, flat in flats.items():
        for part, start in enumerate(range(0, len(flat), CHUNK_BYTES)):
            payload = flat[start : start + CHUNK_BYTES].tobytes()
            yield chunk(partition, name, part, payload, model=model)


def collect_models(
    frame: DataFrame, cluster: SparkCluster, n_bytes: int
) -> dict[int, tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
    """Return metadata and arrays by number of the model, from chunks; ``n_bytes`` of all."""
    rows = collect_rows(
        frame, cluster, columns=MODEL_CHUNK, n_bytes=n_bytes, spread=["model", "name", "part"]
    )
    return models_of(rows)


def models_of(
    rows: Iterable[tuple[Any, ...]],
) -> dict[int, tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
    """Return metadata and arrays by number of the model, from rows of MODEL_CHUNK."""
    chunks: dict[int, list[tuple[str, int, Any]]] = {}
    for model, name, part, payload in rows:
        chunks.setdefault(model, []).append((name, part, payload))
    return {model: from_chunks(parts) for model, parts in chunks.items()}


def from_chunks(
    rows: Iterable[tuple[str, int, Any]],
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return metadata and arrays from their chunks (name, part, payload), in any order."""
    parts: dict[str, list[tuple[int, Any]]] = {}
    for name, part, payload in rows:
        parts.setdefault(name, []).append((part, payload))
    metadata = json.loads(bytes(parts[META][0][1]))
    arrays = {}
    for name, (dtype, shape, checksum) in metadata.pop("arrays").items():
        array = np.empty(shape, dtype)
        flat = array.reshape(-1).view(np.uint8)
        offset = 0
        for _, payload in sorted(parts.get(name, []), key=lambda item: item[0]):
            flat[offset : offset + len(payload)] = np.frombuffer(payload, np.uint8)
            offset += len(payload)
        if offset != len(flat):
            raise RuntimeError(f"{name}: {offset} of {len(flat)} bytes arrived")
        if zlib.crc32(flat.data) != checksum:
            raise RuntimeError(f"{name}: its chunks are of two attempts of a task, or damaged")
        arrays[name] = array
    return metadata, arrays
