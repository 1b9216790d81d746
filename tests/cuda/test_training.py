"""Passes of a GPU against their float64 twin: on a GPU, or under Numba's simulator.

``tests/test_cuda.py`` runs them under the simulator, ``python -m benchmarks.gpu`` on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.blocks import CHUNK
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import GroupHyperparameters, LossName, OptimizerName
from tests.builders import random_batch, train_spec, worn_state
from tests.cuda.twin import BlockTwin

cuda = pytest.importorskip("numba.cuda", reason="no numba.cuda here")
if not cuda.is_available():
    pytest.skip("neither a GPU nor the simulator", allow_module_level=True)

from benchmarks.warp_sums import sums_of_a_warp
from spark_fm.learner.cuda import trainer
from spark_fm.learner.cuda.device import Shape, simulated
from spark_fm.learner.cuda.memory import DeviceMemory
from spark_fm.learner.cuda.trainer import CudaBackend
from tests.cuda.passes import N_FEATURES, assert_state_is, blocks_of, shuffled_pass

DECAY: dict[str, object] = {
    "bias": GroupHyperparameters(0.1, 0.3),
    "linear": GroupHyperparameters(0.1, 0.2, "normal", init_sigma=0.1),
    "factors": GroupHyperparameters(0.1, 0.1, "normal", init_sigma=0.3),
}
EVERYTHING = DECAY | {"clip_gradient": 0.25, "rescale_grad": 0.7}


@pytest.mark.parametrize("extra", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_a_pass_over_blocks_equals_its_float64_twin(
    loss: LossName,
    optimizer: OptimizerName,
    size: int,
    extra: dict[str, object],
    memory: DeviceMemory,
) -> None:
    spec = train_spec(loss=loss, optimizer=optimizer, eps=1e-3, shuffle=False, **extra)
    batch = random_batch(10, N_FEATURES, seed=5, loss=loss, weighted=True)
    state = worn_state(spec, N_FEATURES, seed=6)
    twin = BlockTwin(state.rows, state.bias, spec)

    stats = CudaBackend("rows", size, memory=memory).run_epoch(
        state, batch, RowOrder(0), spec=spec, step_scale=0.5
    )

    loss_sum, weight_sum, _ = twin.visit(batch, blocks_of(np.arange(10), size), 0.5)
    assert_state_is(state, twin.rows, twin.bias)
    assert stats.loss_sum == pytest.approx(loss_sum, rel=1e-5)
    assert stats.weight_sum == weight_sum


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("mini_batch", [1, 5])
def test_one_row_at_a_time_and_mini_batches_equal_the_processors(
    loss: LossName, optimizer: OptimizerName, mini_batch: int, memory: DeviceMemory
) -> None:
    spec = train_spec(
        loss=loss, optimizer=optimizer, eps=1e-3, shuffle=False, mini_batch_size=mini_batch,
        **EVERYTHING,
    )  # fmt: skip
    batch = random_batch(10, N_FEATURES, seed=5, loss=loss, weighted=True)
    state = worn_state(spec, N_FEATURES, seed=6)
    expected = state.copy()
    scores = np.zeros(10, np.float32)

    stats = CudaBackend("rows", 1, memory=memory).run_epoch(
        state, batch, RowOrder(0), spec=spec, scores=scores
    )

    live = np.flatnonzero(batch.weights)
    same = train_inplace(expected, batch, np.arange(10), spec=spec)
    assert_state_is(state, expected.rows, expected.bias)
    assert stats.loss_sum == pytest.approx(same.loss_sum, rel=1e-5)
    np.testing.assert_array_equal(stats.order, live)


@pytest.mark.parametrize("k", [1, 2, 5, 32, 33, 70])
def test_any_number_of_factors(k: int, memory: DeviceMemory) -> None:
    spec = train_spec(
        k=k, shuffle=False, factors=GroupHyperparameters(0.1, 0.01, "normal", init_sigma=0.1)
    )
    batch = random_batch(6, N_FEATURES, seed=5, loss="logistic", lengths=(2, 6))
    state = worn_state(spec, N_FEATURES, seed=6)
    twin = BlockTwin(state.rows, state.bias, spec)

    CudaBackend("rows", 3, memory=memory).run_epoch(state, batch, RowOrder(0), spec=spec)

    twin.visit(batch, blocks_of(np.arange(6), 3))
    assert_state_is(state, twin.rows, twin.bias)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@pytest.mark.parametrize("mini_batch", [1, 2 * CHUNK + 3])
def test_a_feature_of_every_row_beside_rows_of_very_unequal_lengths(
    optimizer: OptimizerName, mini_batch: int, memory: DeviceMemory
) -> None:
    n_rows = 2 * CHUNK + 3
    spec = train_spec(k=2, optimizer=optimizer, eps=1e-3, shuffle=False, mini_batch_size=mini_batch)
    X = np.zeros((n_rows, 40), np.float32)
    X[:, 3] = 1.0
    X[1, :] = 0.3  # a row of all features, rows of one, and one of none
    X[5, :] = 0.0
    batch = CsrBatch.from_matrix(X, labels=np.arange(n_rows) % 2)
    state = worn_state(spec, 40, seed=6)
    twin = BlockTwin(state.rows, state.bias, spec)

    CudaBackend("rows", n_rows, memory=memory).run_epoch(state, batch, RowOrder(0), spec=spec)

    twin.visit(batch, [np.arange(n_rows)])
    assert_state_is(state, twin.rows, twin.bias)


def test_blocks_stay_and_are_visited_in_another_order_each_epoch(memory: DeviceMemory) -> None:
    spec = train_spec()

    orders = [shuffled_pass(spec, epoch, memory)[1] for epoch in (0, 1)]

    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]
    blocks = [{tuple(order[i : i + 4]) for i in range(0, 20, 4)} for order in orders]
    assert blocks[0] == blocks[1]
    assert memory.uploads == 1


def test_equal_passes_give_equal_bits(memory: DeviceMemory) -> None:
    one, other = (shuffled_pass(train_spec(), 1, memory)[0] for _ in range(2))

    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.bias, other.bias)


def test_a_pass_in_several_launches_has_the_same_bits(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(optimizer="adam")
    whole, order = shuffled_pass(spec, 1, memory)
    monkeypatch.setattr(trainer, "LAUNCH_BLOCKS", 2)

    parts, again = shuffled_pass(spec, 1, memory)

    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_array_equal(parts.bias, whole.bias)
    assert again == order


@pytest.mark.parametrize("shuffles", [False] if simulated() else [False, True])
def test_sums_over_a_warp_are_those_of_all_lanes_that_differ_in_the_high_bits(
    shuffles: bool,
) -> None:
    shape = Shape(8, "squared", "sgd", False, shuffles)
    numbers = np.random.default_rng(0).normal(size=(3, shape.lanes)).astype(np.float32)
    lane = np.arange(shape.lanes)

    for lowest in (n for n in (1, 2, 4, 8, 16) if n < shape.lanes):
        found = sums_of_a_warp(numbers, lowest, shape)

        alike = lane[:, None] % lowest == lane % lowest
        np.testing.assert_allclose(found, numbers.astype(np.float64) @ alike, rtol=1e-5, atol=1e-6)


def test_a_pass_over_nothing_changes_nothing(memory: DeviceMemory) -> None:
    spec = train_spec()
    batch = random_batch(4, N_FEATURES, seed=5, loss="logistic")
    state = worn_state(spec, N_FEATURES, seed=6)
    before = state.copy()
    weightless = replace(batch, weights=np.zeros(4, np.float32))

    stats = CudaBackend("rows", 2, memory=memory).run_epoch(
        state, weightless, RowOrder(0), spec=spec
    )

    assert (stats.loss_sum, stats.weight_sum, len(stats.order)) == (0.0, 0.0, 0)
    np.testing.assert_array_equal(state.rows, before.rows)


if not simulated():  # which has no registers to shuffle

    @pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
    def test_a_pass_is_the_same_through_registers_and_through_shared_memory(
        optimizer: OptimizerName, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = train_spec(k=33, optimizer=optimizer)
        one, _ = shuffled_pass(spec, 1, memory)
        usual = trainer.passes
        monkeypatch.setattr(trainer, "passes", lambda *args: usual(*args, False))
        trainer._compiled.cache_clear()
        other, _ = shuffled_pass(spec, 1, memory)
        trainer._compiled.cache_clear()

        assert_state_is(one, other.rows, other.bias)
