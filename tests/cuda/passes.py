"""Passes over a few rows, and how their states are compared; with a GPU or its simulator."""

from __future__ import annotations

import numpy as np

from spark_fm.learner.cuda.memory import DeviceMemory
from spark_fm.learner.cuda.trainer import CudaBackend
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.state import TrainState
from tests.builders import random_batch, worn_state

N_FEATURES = 9
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def assert_state_is(state: TrainState, rows: np.ndarray, bias: np.ndarray) -> None:
    np.testing.assert_allclose(state.rows[:, : rows.shape[1]], rows, **CLOSE)
    np.testing.assert_allclose(state.bias, bias, **CLOSE)


def blocks_of(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def shuffled_pass(
    spec: Hyperparameters, epoch: int, memory: DeviceMemory
) -> tuple[TrainState, list]:
    batch = random_batch(20, N_FEATURES, seed=5, loss="logistic")
    state = worn_state(spec, N_FEATURES, seed=6)
    stats = CudaBackend("rows", 4, memory=memory).run_epoch(
        state, batch, RowOrder(epoch), spec=spec
    )
    return state, stats.order.tolist()
