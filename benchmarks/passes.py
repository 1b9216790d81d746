"""What Spark adds to the kernel: ``python -m benchmarks.passes --rows 8000000``.

Rows of Criteo's shape (39 non-zeros, 1 M features) are made by the tasks that pack them.
``fit`` trains some epochs with the averagings that it chooses; the kernel alone trains
rows of the same shape from memory in as many processes as ``fit`` has cores, at the same
time, before and after it. The ratio is the wall time of an epoch (all but the first, which
compiles) against the kernel's time for the same non-zeros. Bar: 1.35. Also printed: the
seconds of each phase, and the highest memory of driver, JVM and Python workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DoubleType, StructField, StructType

from benchmarks.criteo_shape import N_FIELDS, CriteoShape
from benchmarks.kernel import to_batch
from benchmarks.local import local_session
from benchmarks.timing import compared, header, row, spread
from spark_fm import FactorizationMachine
from spark_fm.formats.vectors import VECTOR_TYPE, vector_column
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.state import initial_state

CHUNK_ROWS = 50_000
SCHEMA = StructType([StructField("label", DoubleType()), StructField("features", VectorUDT())])


@dataclass(frozen=True)
class MakeRows:
    """Make chunks of a Criteo-shaped set; runs on executors."""

    shape: CriteoShape

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the chunks whose numbers come in."""
        fields = [pa.field("label", pa.float64()), pa.field("features", VECTOR_TYPE)]
        for batch in batches:
            for number in batch.column(0).to_pylist():
                rows, _ = self.shape.rows(number, CHUNK_ROWS)
                n, no = len(rows.y), np.zeros(len(rows.y), bool)
                vectors = vector_column(
                    rows.X.indptr.astype(np.int64), rows.X.indices,
                    rows.X.data.astype(np.float64), np.full(n, self.shape.n_features, np.int64),
                    is_dense=no, is_null=no,
                )  # fmt: skip
                columns = [pa.array(rows.y, pa.float64()), vectors]
                yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def criteo_frame(
    spark: SparkSession, n_rows: int, n_partitions: int, shape: CriteoShape | None = None
) -> DataFrame:
    """Return rows that are made when they are read."""
    chunks = spark.range(0, n_rows // CHUNK_ROWS, 1, n_partitions)
    return chunks.mapInArrow(MakeRows(shape or CriteoShape()), SCHEMA)


def _kernel_worker(
    k: int, n_features: int, n_rows: int, number: int, passes: int, barrier: Any, results: Any
) -> None:
    """Train chunks from memory, at the same time as the other processes do."""
    shape = CriteoShape(n_features)
    first, n_chunks = 10_000 * (1 + number), -(-n_rows // CHUNK_ROWS)
    batch = CsrBatch.concat(
        [to_batch(shape.rows(first + i, CHUNK_ROWS)[0]) for i in range(n_chunks)]
    )
    spec = FactorizationMachine(numFactors=k)._spec()
    counts = np.bincount(batch.indices, minlength=shape.n_features)
    state = initial_state(spec, counts, label_mean=0.3)
    train_inplace(state, batch, RowOrder(0).order(spec, batch.n_rows), spec=spec)
    times = []
    for number_of_pass in range(passes):
        order = RowOrder(1 + number_of_pass).order(spec, batch.n_rows)
        barrier.wait()
        started = time.perf_counter()
        train_inplace(state, batch, order, spec=spec)
        times.append((time.perf_counter() - started) / batch.nnz)
    results.put(times)


def kernel_alone(
    k: int, n_cores: int, passes: int, n_features: int = 1_000_000, n_rows: int = 10 * CHUNK_ROWS
) -> list[float]:
    """Return seconds a non-zero and core of each pass, the slower core's.

    ``n_rows`` is each core's: more rows touch more features, which are rarer in the caches.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n_cores), context.Queue()
    workers = [
        context.Process(
            target=_kernel_worker, args=(k, n_features, n_rows, number, passes, barrier, results)
        )
        for number in range(n_cores)
    ]
    for worker in workers:
        worker.start()
    times = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    slowest: list[float] = np.max(times, axis=0).tolist()
    return slowest


@dataclass
class MemoryWatch:
    """Follow the memory of this process, of its JVM and of the Python workers (Linux)."""

    peaks: dict[str, int] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> MemoryWatch:
        """Start."""
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._done.set()

    def _run(self) -> None:
        while not self._done.wait(0.2):
            for name, size in _memory().items():
                self.peaks[name] = max(self.peaks.get(name, 0), size)


def _memory() -> dict[str, int]:
    """Return resident bytes by role: driver, JVM, and all workers together."""
    sizes = {"driver": 0, "JVM": 0, "workers": 0}
    parents, found = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parents[folder.name] = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            found[folder.name] = command, int((folder / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue  # it has ended
    page = os.sysconf("SC_PAGE_SIZE")
    for number, (command, pages) in found.items():
        above = number
        while above in parents and above != str(os.getpid()):
            above = parents[above]
        if above != str(os.getpid()):
            continue  # somebody else's
        role = "workers" if b"pyspark.daemon" in command else "JVM"
        sizes["driver" if number == above else role] += pages * page
    return sizes


def main() -> None:
    """Print the phases and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--factors", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="partitions; 0: chosen")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    args = parser.parse_args()
    rows_at_once = min(args.rows // args.cores, 2_000_000)  # of 8 M: those of a round
    alone = kernel_alone(
        args.factors, args.cores, 5, n_rows=rows_at_once
    )  # and once more afterwards
    spark = local_session(f"local[{args.cores}]")
    frame = criteo_frame(spark, args.rows, 4 * args.cores)
    machine = FactorizationMachine(
        numFactors=args.factors, epochs=args.epochs, validationFraction=0.0, patience=0, seed=1,
        numWorkers=args.workers, factorsLr=args.learning_rate, linearLr=args.learning_rate,
    )  # fmt: skip
    with MemoryWatch() as memory:
        model = machine.fit(frame)
    spark.stop()
    history, facts = model.summary.history.iloc[1:], model.summary.facts
    nnz = facts["numNonZeros"]
    alone += kernel_alone(args.factors, args.cores, 5, n_rows=rows_at_once)
    whole = np.array(alone) * nnz / args.cores
    print(
        f"{args.rows:,} rows x {N_FIELDS}, k={args.factors}, {facts['numWorkers']} partitions, "
        f"{facts['averagingsPerEpoch']} averagings an epoch; "
        f"packing {facts['packSeconds']:.1f} s\n"
    )
    header("an epoch", "seconds")
    for name in ("seconds", "trainSeconds", "broadcastSeconds", "mergeSeconds", "validateSeconds"):
        row(name.removesuffix("Seconds"), spread(history[name]))
    row("kernel alone", spread(whole.tolist()))
    what = f"an epoch of fit() against the kernel alone, {args.rows:,} rows"
    ratios = (history["seconds"] / np.median(whole)).tolist()
    row("ratio", compared(what, ratios, "<= 1.35", moonshot="<= 1.1"))
    for role, size in memory.peaks.items():
        row(f"memory of {role}, GiB", f"{size / 2**30:.2f}")


if __name__ == "__main__":
    main()
