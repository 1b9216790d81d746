"""What this machine can do at most, and where the kernel stands: ``python -m benchmarks.machine``.

Measures one core: bytes it copies a second, the wait for a line of main memory when the
next address depends on it and when all are known, and the kernel on rows whose features
stay in the first cache, which is its arithmetic alone. Beside them stands the kernel on
Criteo-shaped rows, AdaGrad, each k in turn with all others, median of the passes.
"""

from __future__ import annotations

import argparse

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks.criteo_shape import N_FIELDS, CriteoShape
from benchmarks.kernel import Runner, to_batch
from benchmarks.timing import header, row, seconds_of, spread
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.state import Layout, aligned_rows

LINE_BYTES = 64
TABLE_BYTES = 2**28  # well beyond the caches
# What comes in for an entry of a row: its index and its value.
ENTRY_BYTES = 8


@njit
def _chase(following: NDArray[np.int64], start: int, n_steps: int) -> int:
    at = start
    for _ in range(n_steps):
        at = following[at]
    return at


@njit
def _visit(rows: NDArray[np.float32], order: NDArray[np.int64]) -> float:
    total = np.float32(0)
    for j in order:
        total += rows[j, 0]
    return total


def copied_bytes_a_second() -> float:
    """Return the bytes of memory that one core copies a second, each read and written."""
    source, target = (np.ones(TABLE_BYTES // 4, np.float32) for _ in range(2))
    return TABLE_BYTES / seconds_of(lambda: np.copyto(target, source))


def wait_for_a_line(n_steps: int = 10**6) -> float:
    """Return the seconds until a line of memory is there whose address was just read."""
    n_lines = TABLE_BYTES // LINE_BYTES
    step = LINE_BYTES // 8
    circle = np.random.default_rng(0).permutation(n_lines)
    following = np.zeros(n_lines * step, np.int64)
    following[circle * step] = np.roll(circle, -1) * step
    _chase(following, 0, 1)
    return seconds_of(lambda: _chase(following, 0, n_steps)) / n_steps


def wait_among_many(n_steps: int = 4 * 10**6) -> float:
    """Return the seconds a line of memory when all the addresses are known."""
    rows = aligned_rows(TABLE_BYTES // LINE_BYTES, LINE_BYTES // 4)
    rows[:] = 0
    order = np.random.default_rng(1).integers(0, len(rows), n_steps)
    _visit(rows, order[:1])
    return seconds_of(lambda: _visit(rows, order)) / n_steps


def in_cache(train: CsrBatch) -> CsrBatch:
    """Return rows of the same number of entries whose features are always the same ones."""
    fields = np.tile(np.arange(N_FIELDS, dtype=np.int32), train.n_rows)
    return CsrBatch(train.indptr, fields, train.values, train.labels, train.weights)


def kernel_times(
    train: CsrBatch, n_features: int, ks: list[int], passes: int
) -> dict[int, NDArray[np.float64]]:
    """Return the seconds a non-zero of each pass but the first, which warms up."""
    runners = {k: Runner.of("adagrad", k, train, n_features) for k in ks}
    for epoch in range(1 + passes):
        for runner in runners.values():
            runner.run(train, epoch)
    return {k: np.array(runner.seconds[1:]) / train.nnz for k, runner in runners.items()}


def main() -> None:
    """Print the limits and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--factors", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    args = parser.parse_args()
    header("one core", "figure")
    copied = [copied_bytes_a_second() for _ in range(args.passes)]
    row("copies, GB/s (as many read as written)", spread([c / 1e9 for c in copied], ".1f"))
    for name, wait in (("address just read", wait_for_a_line), ("all known", wait_among_many)):
        waits = [1e9 * wait() for _ in range(args.passes)]
        row(f"a random line of memory, {name}, ns", spread(waits, ".1f"))
    print()
    shape = CriteoShape()
    train = to_batch(shape.rows(0, args.rows)[0])
    cached = kernel_times(in_cache(train), N_FIELDS, args.factors, args.passes)
    found = kernel_times(train, shape.n_features, args.factors, args.passes)
    header("k", "bytes of a feature", "lines", "ns to copy them", "ns of arithmetic", "kernel, ns")
    for k in args.factors:
        size = Layout(k, "adagrad").bytes_per_feature
        moved = (ENTRY_BYTES + size) / np.median(copied)
        row(k, size, -(-size // LINE_BYTES), f"{1e9 * moved:.1f}",
            spread((1e9 * cached[k]).tolist(), ".1f"),
            spread((1e9 * found[k]).tolist(), ".1f"))  # fmt: skip


if __name__ == "__main__":
    main()
