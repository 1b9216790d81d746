"""The number of averagings follows a stated formula."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spark_fm.training.plan import SINGLE_TASK_BYTES, choose_partitions, choose_rounds


@pytest.mark.parametrize(
    ("n_partitions", "entries", "n_bytes", "expected"),
    [
        (1, 1e6, 1, 1),
        (2, 1e6, 1, 2),
        (3, 10.0, 1, 8),  # sparse
        (8, 150 * 20.9, 1, 20),  # one for 150 entries of a feature
        (32, 1e6, 1, 64),  # dense
        (32, 1e6, 2**26 + 1, 8),  # dense, but too large to send that often
    ],
)
def test_averagings_by_entries_of_a_feature(n_partitions, entries, n_bytes, expected):
    chosen = choose_rounds(n_partitions, entries_per_feature=entries, synced_bytes=n_bytes)

    assert chosen == expected


@pytest.mark.parametrize(
    ("n_bytes", "nnz", "slots", "expected"),
    [
        (SINGLE_TASK_BYTES, 33e6, 4, 1),
        (SINGLE_TASK_BYTES + 1, 34e6, 4, 2),
        (SINGLE_TASK_BYTES + 1, 34e6, 1, 1),
        (2e9, 250e6, 4, 4),  # 3.9 s of arithmetic
        (2e9, 250e6, 2, 2),
    ],
)
def test_rows_for_more_than_one_task_train_on_at_least_two_cores(n_bytes, nnz, slots, expected):
    assert choose_partitions(n_bytes, nnz, 8, slots=slots) == expected


def test_a_gpu_counts_for_many_cores():
    assert choose_partitions(8e9, 1e9, 16, slots=3, on_gpu=True) == 1
    assert choose_partitions(8e12, 1e12, 16, slots=3, on_gpu=True) == 3


def test_a_finished_task_leaves_little_to_collect():
    script = """
import gc, numba
from spark_fm.spark import worker
from spark_fm.training import tasks
loaded = len(gc.get_objects())
worker.freeze_loaded_modules()
assert loaded > 50_000 and len(gc.get_objects()) < 1000, (loaded, len(gc.get_objects()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
