"""Rows that train side by side on a GPU reach the test loss of one row after the other.

The same arithmetic, compiled for the processor (``tests/cuda/twin.py``): the promise is the
algorithm's, and whether a device keeps to it is what ``tests/cuda`` shows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.averaging import spec_of
from benchmarks.datasets import SPLITS, Split
from benchmarks.quality import WORKER_EPOCHS
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.blocks import block_rows
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import TrainState, initial_state
from spark_fm.learner.training import SEQUENTIAL_ETA, Parameters, evaluate
from tests.cuda.twin import BlockTwin

RATES = {"adagrad": 0.2, "sgd": 0.02, "adam": 0.002}


@cache
def split_of(name: str) -> Split:
    return SPLITS[name]()


def best_losses(name: str, optimizer: str, seed: int) -> tuple[float, float]:
    """Return the best test loss of any epoch: row after row, and block after block."""
    split = split_of(name)
    spec = spec_of(split, seed, WORKER_EPOCHS[name])
    if optimizer != "adagrad":
        groups = {
            group: replace(getattr(spec, group), lr=RATES[optimizer])
            for group in ("bias", "linear", "factors")
        }
        spec = replace(spec, optimizer=optimizer, **groups)
    scale = float(split.train.y.std()) if spec.loss == "squared" else 1.0
    train, test = (
        CsrBatch.from_matrix(rows.X, labels=rows.y / scale) for rows in (split.train, split.test)
    )
    counts = np.bincount(train.indices, minlength=split.train.X.shape[1])
    state = initial_state(spec, counts, label_mean=float(train.labels.mean()))
    return one_by_one(state.copy(), train, test, spec), in_blocks(state, train, test, spec)


def one_by_one(state: TrainState, train: CsrBatch, test: CsrBatch, spec: Hyperparameters) -> float:
    judge = _Judge(spec, test)
    for epoch in range(spec.epochs):
        train_inplace(state, train, RowOrder(epoch).order(spec, train.n_rows), spec=spec)
        judge(state)
    return min(judge.losses)


def in_blocks(state: TrainState, train: CsrBatch, test: CsrBatch, spec: Hyperparameters) -> float:
    judge, twin = _Judge(spec, test), BlockTwin(state.rows, state.bias, spec, compiled=True)
    size = block_rows(train.n_rows, train.nnz)
    order = RowOrder(0).order(spec, train.n_rows)
    blocks = [order[start : start + size] for start in range(0, train.n_rows, size)]
    for epoch in range(spec.epochs):
        mixed = RowOrder(epoch).rng(spec).permutation(len(blocks))
        twin.visit(train, [blocks[b] for b in mixed])
        state.rows[:, : twin.rows.shape[1]] = twin.rows
        state.bias[:] = twin.bias
        judge(state)
    return min(judge.losses)


class _Judge:
    """Takes states into the average of epochs, and scores it."""

    def __init__(self, spec: Hyperparameters, test: CsrBatch) -> None:
        self._spec, self._test = spec, test
        self._average: Parameters | None = None
        self.losses: list[float] = []

    def __call__(self, state: TrainState) -> None:
        if self._average is None:
            self._average = Parameters.of(state)
        else:
            self._average.move_towards_inplace(state, len(self.losses), SEQUENTIAL_ETA)
        loss = evaluate(self._average, self._test, self._spec, 1.0).mean_loss()
        self.losses.append(loss**0.5 if self._spec.loss == "squared" else loss)


# The default optimizer on every set; the others once with each loss.
@pytest.mark.quality
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [(name, "adagrad") for name in ("a9a", "ml100k-binary", "ml100k-regression", "frappe")]
    + [(name, other) for name in ("a9a", "ml100k-regression") for other in ("sgd", "adam")],
)
def test_blocks_reach_the_loss_of_single_rows(
    name: str, optimizer: str, data_folder: object
) -> None:
    losses = np.array([best_losses(name, optimizer, seed) for seed in (1, 2, 3)])

    single, blocks = losses.mean(axis=0)
    assert blocks <= 1.005 * single
