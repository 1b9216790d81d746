"""Every check and figure of a GPU, without a Spark session or Java: ``python -m benchmarks.gpu``.

Runs ``tests/cuda`` on the GPU, compares the sums of a warp through registers with those
through shared memory, and prints a table: passes over Criteo-shaped rows on the GPU and on
one core of the same machine, with the best test log loss of equal epochs, and the bandwidth
that the passes come to, beside that of a plain copy; then the time that batches of rows take
to score. Needs ``spark-fm[gpu]`` and, for the tests, ``spark-fm[dev]``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.criteo_shape import CriteoShape
from benchmarks.kernel import Runner, to_batch
from benchmarks.timing import compared, header, row, seconds_of, spread
from spark_fm.errors import GpuNotFoundError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.blocks import BlockedRows, block_rows
from spark_fm.learner.cuda.device import check_gpu, gpu_name, pays, simulated, use_gpu
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.predict import margins
from spark_fm.learner.state import Layout

COPIED_BYTES = 2**29
COPIES = 10
RATE = 0.05  # the default, 0.2, learns these rows by heart; smaller ones need more epochs


def run_tests() -> bool:
    """Run the tests of the kernels, and tell whether they passed."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/cuda"]
    return subprocess.run(words, check=False).returncode == 0


def copied_bytes_a_second(n_bytes: int) -> float:
    """Return the bytes that the GPU moves a second in a copy, each read and written."""
    from numba import cuda

    source = cuda.to_device(np.zeros(n_bytes // 4, np.float32))
    target = cuda.device_array_like(source)
    target.copy_to_device(source)
    cuda.synchronize()
    started = time.perf_counter()
    for _ in range(COPIES):
        target.copy_to_device(source)
    cuda.synchronize()
    return COPIES * 2 * n_bytes / (time.perf_counter() - started)


def pass_bytes(blocked: BlockedRows, k: int) -> float:
    """Return the bytes that a pass of AdaGrad has to move at least.

    A non-zero: its entry and its feature's parameters for the score, its entry and its row's
    sums for the step. A feature of a block: its parameters and statistics, read and written.
    """
    per_entry = 8 + 4 * (k + 1) + 8 + 4 * k
    n_features = len(blocked.chunk_features)  # a frequent one counts for each of its chunks
    return len(blocked.indices) * per_entry + n_features * 8 * Layout(k, "adagrad").n_synced


def compare(k: int, epochs: int, sets: tuple[CsrBatch, CsrBatch], n_features: int,
            copy_speed: float) -> bool:  # fmt: skip
    """Print the row of one number of factors; tell whether the best losses are alike."""
    from spark_fm.learner.cuda.trainer import CudaBackend

    train, test = sets
    size = block_rows(train.n_rows, train.nnz)
    core, gpu = (Runner.of("adagrad", k, train, n_features, RATE) for _ in range(2))
    trainer = CudaBackend(f"benchmark {k}", size)
    losses: list[list[float]] = [[], []]
    for epoch in range(epochs):
        core.run(train, epoch)
        gpu.seconds.append(
            seconds_of(
                lambda e=epoch: trainer.run_epoch(gpu.state, train, RowOrder(e), spec=gpu.spec)
            )
        )
        for found, runner in zip(losses, (gpu, core), strict=True):
            found.append(runner.test_loss(test))
    order = RowOrder(0).order(gpu.spec, train.n_rows)
    n_bytes = pass_bytes(BlockedRows.of(train, order, size, n_features), k)
    first, *rest = gpu.seconds  # the first cuts the rows into blocks and uploads them
    seconds = rest or [first]
    median = float(np.median(seconds))
    ratios = [float(np.median(core.seconds)) / s for s in seconds]
    bar = ">= 40" if k == 64 else ">= 1"
    best, best_of_core = (min(found) for found in losses)
    row(
        k, f"{train.n_rows / median:,.0f}", spread([1e9 * s / train.nnz for s in seconds]),
        f"{first:.2f}", f"{1e3 * seconds_to_the_host(gpu.state.rows):.0f}",
        f"{n_bytes / median / 1e9:.0f}", f"{n_bytes / median / copy_speed:.2f}",
        f"{1e9 * float(np.median(core.seconds)) / train.nnz:.1f}",
        compared(f"passes of a GPU against one core, k={k}", ratios, bar),
        f"{best:.4f}", f"{best_of_core:.4f}", f"{best / best_of_core:.4f}",
    )  # fmt: skip
    return best <= 1.005 * best_of_core


def seconds_to_the_host(table: NDArray[np.float32]) -> float:
    """Return how long a pass takes to bring the table back."""
    from numba import cuda

    there = cuda.to_device(table)
    cuda.synchronize()
    return seconds_of(lambda: there.copy_to_host(table))


def compare_scoring(k: int, rows: CsrBatch, n_features: int) -> None:
    """Print how long batches of rows take a GPU and one core to score."""
    from spark_fm.learner.cuda.scorer import CudaScorer

    table = np.random.default_rng(0).normal(size=(n_features, k + 1)).astype(np.float32)
    scorer = CudaScorer(table)
    for n_rows in (1_000, 10_000, 100_000):
        batch = rows.take(np.arange(min(n_rows, rows.n_rows)))
        found = [
            [seconds_of(partial(work, batch)) for _ in range(5)][1:]
            for work in (partial(scorer.margins, bias=0.0), partial(margins, table=table, bias=0.0))
        ]
        gpu, core = (1e3 * float(np.median(seconds)) for seconds in found)
        row(k, f"{batch.n_rows:,}", f"{gpu:.2f}", f"{core:.2f}", f"{core / gpu:.1f}",
            pays(batch.nnz, k))  # fmt: skip


def main() -> None:
    """Check and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--test-rows", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--factors", type=int, nargs="*", default=[16, 64, 128])
    parser.add_argument("--copied", type=int, default=COPIED_BYTES, help="bytes of the copy")
    parser.add_argument("--no-tests", action="store_true", help="print the table alone")
    args = parser.parse_args()
    try:
        use_gpu("0")
        check_gpu()
    except GpuNotFoundError as err:
        raise SystemExit(f"No figure without a GPU: {err}.") from err
    sound = args.no_tests or run_tests()
    if simulated():
        print("The simulator has no registers to shuffle: sums were not compared.")
    else:
        from benchmarks.warp_sums import sums_agree

        agree = sums_agree()
        print(f"sums through registers and through shared memory agree: {agree}")
        sound = sound and agree
    copy_speed = copied_bytes_a_second(args.copied)
    print(f"\n{gpu_name()}: a copy moves {copy_speed / 1e9:.0f} GB/s\n", flush=True)
    shape = CriteoShape(args.features)
    train, test = (
        to_batch(shape.rows(number, n)[0])
        for number, n in ((0, args.rows), (10**6, args.test_rows))
    )
    header("k", "rows/s", "ns a non-zero", "first pass, s", "table to the host, ms", "GB/s",
           "of the copy", "a core: ns a non-zero", "times a core", "best test log loss",
           "a core's", "ratio")  # fmt: skip
    for k in args.factors:
        alike = compare(k, args.epochs, (train, test), args.features, copy_speed)
        sound = sound and (alike or simulated())
    print("\nScoring, the model on the GPU already:\n", flush=True)
    header("k", "rows a batch", "GPU, ms", "a core, ms", "times a core", "taken to pay")
    for k in args.factors:
        compare_scoring(k, test, args.features)
    if not sound:
        raise SystemExit("A check failed.")


if __name__ == "__main__":
    main()
