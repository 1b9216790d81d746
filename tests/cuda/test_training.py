"""Passes of a GPU against their float64 twin: on a GPU, or under Numba's simulator.

``tests/test_cuda.py`` runs them under the simulator, ``python -m benchmarks.gpu`` on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from spark_fm.engine.gpu_tasks import GpuPasses, TaskGpu, task_trainer
from spark_fm.errors import ModelTooLargeError
from spark_fm.learner.blocked import CHUNK, BlockedRows
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import GroupSpec, Loss, Optimizer, TrainSpec
from spark_fm.learner.state import TrainState
from spark_fm.learner.visit import Visit
from tests.builders import random_batch, train_spec, worn_state
from tests.cuda.twin import BlockTwin

cuda = pytest.importorskip("numba.cuda", reason="no numba.cuda here")
if not cuda.is_available():
    pytest.skip("neither a GPU nor the simulator", allow_module_level=True)

from benchmarks.warp_sums import sums_of_a_warp  # noqa: E402
from spark_fm.learner import cuda_memory, cuda_training  # noqa: E402
from spark_fm.learner.cuda_memory import DeviceMemory, device_memory  # noqa: E402
from spark_fm.learner.cuda_shape import Shape, simulated  # noqa: E402
from spark_fm.learner.cuda_training import CudaTrainer  # noqa: E402

N_FEATURES = 9
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
DECAY: dict[str, object] = {
    "bias": GroupSpec(0.1, 0.3),
    "linear": GroupSpec(0.1, 0.2, "normal", init_sigma=0.1),
    "factors": GroupSpec(0.1, 0.1, "normal", init_sigma=0.3),
}
EVERYTHING = DECAY | {"clip_gradient": 0.25, "rescale_grad": 0.7}


@pytest.fixture
def memory() -> Iterator[DeviceMemory]:
    held = DeviceMemory()
    yield held
    held.clear()


def assert_state_is(state: TrainState, rows: np.ndarray, bias: np.ndarray) -> None:
    np.testing.assert_allclose(state.rows[:, : rows.shape[1]], rows, **CLOSE)
    np.testing.assert_allclose(state.bias, bias, **CLOSE)


def blocks_of(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("extra", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_a_pass_over_blocks_equals_its_float64_twin(
    loss: Loss, optimizer: Optimizer, size: int, extra: dict[str, object], memory: DeviceMemory
) -> None:
    spec = train_spec(loss=loss, optimizer=optimizer, eps=1e-3, shuffle=False, **extra)
    batch = random_batch(10, N_FEATURES, seed=5, loss=loss, weighted=True)
    state = worn_state(spec, N_FEATURES, seed=6)
    twin = BlockTwin(state.rows, state.bias, spec)

    stats = CudaTrainer("rows", size, memory=memory).train_inplace(
        state, batch, Visit(0), spec=spec, step_scale=0.5
    )

    loss_sum, weight_sum, _ = twin.visit(batch, blocks_of(np.arange(10), size), 0.5)
    assert_state_is(state, twin.rows, twin.bias)
    assert stats.loss_sum == pytest.approx(loss_sum, rel=1e-5)
    assert stats.weight_sum == weight_sum


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("mini_batch", [1, 5])
def test_one_row_at_a_time_and_mini_batches_equal_the_processors(
    loss: Loss, optimizer: Optimizer, mini_batch: int, memory: DeviceMemory
) -> None:
    spec = train_spec(
        loss=loss, optimizer=optimizer, eps=1e-3, shuffle=False, mini_batch_size=mini_batch,
        **EVERYTHING,
    )  # fmt: skip
    batch = random_batch(10, N_FEATURES, seed=5, loss=loss, weighted=True)
    state = worn_state(spec, N_FEATURES, seed=6)
    expected = state.copy()
    scores = np.zeros(10, np.float32)

    stats = CudaTrainer("rows", 1, memory=memory).train_inplace(
        state, batch, Visit(0), spec=spec, scores=scores
    )

    live = np.flatnonzero(batch.weights)
    same = train_inplace(expected, batch, np.arange(10), spec=spec)
    assert_state_is(state, expected.rows, expected.bias)
    assert stats.loss_sum == pytest.approx(same.loss_sum, rel=1e-5)
    np.testing.assert_array_equal(stats.order, live)


@pytest.mark.parametrize("k", [1, 2, 5, 32, 33, 70])
def test_any_number_of_factors(k: int, memory: DeviceMemory) -> None:
    spec = train_spec(k=k, shuffle=False, factors=GroupSpec(0.1, 0.01, "normal", init_sigma=0.1))
    batch = random_batch(6, N_FEATURES, seed=5, loss="logistic", lengths=(2, 6))
    state = worn_state(spec, N_FEATURES, seed=6)
    twin = BlockTwin(state.rows, state.bias, spec)

    CudaTrainer("rows", 3, memory=memory).train_inplace(state, batch, Visit(0), spec=spec)

    twin.visit(batch, blocks_of(np.arange(6), 3))
    assert_state_is(state, twin.rows, twin.bias)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@pytest.mark.parametrize("mini_batch", [1, 2 * CHUNK + 3])
def test_a_feature_of_every_row_beside_rows_of_very_unequal_lengths(
    optimizer: Optimizer, mini_batch: int, memory: DeviceMemory
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

    CudaTrainer("rows", n_rows, memory=memory).train_inplace(state, batch, Visit(0), spec=spec)

    twin.visit(batch, [np.arange(n_rows)])
    assert_state_is(state, twin.rows, twin.bias)


def shuffled_pass(spec: TrainSpec, epoch: int, memory: DeviceMemory) -> tuple[TrainState, list]:
    batch = random_batch(20, N_FEATURES, seed=5, loss="logistic")
    state = worn_state(spec, N_FEATURES, seed=6)
    stats = CudaTrainer("rows", 4, memory=memory).train_inplace(
        state, batch, Visit(epoch), spec=spec
    )
    return state, stats.order.tolist()


def test_blocks_stay_and_are_visited_in_another_order_each_epoch(memory: DeviceMemory) -> None:
    spec = train_spec()

    orders = [shuffled_pass(spec, epoch, memory)[1] for epoch in (0, 1)]

    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]
    blocks = [{tuple(order[i : i + 4]) for i in range(0, 20, 4)} for order in orders]
    assert blocks[0] == blocks[1]
    assert memory.uploads == 1


def test_a_table_goes_to_the_device_once_and_again_where_somebody_changed_it(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec()
    batch = random_batch(20, N_FEATURES, seed=5, loss="logistic")
    sent = []
    upload = cuda_training.cuda.to_device
    monkeypatch.setattr(
        cuda_training.cuda, "to_device", lambda array: sent.append(array) or upload(array)
    )

    def visits(trainers: list[CudaTrainer]) -> TrainState:
        state = worn_state(spec, N_FEATURES, seed=6)
        for epoch, trainer in enumerate(trainers):
            if epoch == 2:
                state = state.copy()  # as after a step that was too large
            if epoch == 3:
                state.rows *= 0.5
            trainer.train_inplace(state, batch, Visit(epoch), spec=spec)
        tables.append(sum(array.shape == state.rows.shape for array in sent))
        sent.clear()
        return state

    tables: list[int] = []
    anew = visits([CudaTrainer("rows", 4, memory=DeviceMemory()) for _ in range(5)])
    kept = visits([CudaTrainer("rows", 4, memory=memory)] * 5)

    np.testing.assert_array_equal(kept.rows, anew.rows)
    np.testing.assert_array_equal(kept.bias, anew.bias)
    assert tables == [5, 3]


def test_equal_passes_give_equal_bits(memory: DeviceMemory) -> None:
    one, other = (shuffled_pass(train_spec(), 1, memory)[0] for _ in range(2))

    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.bias, other.bias)


def test_rows_that_do_not_fit_are_brought_piece_by_piece_with_the_same_bits(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "PIECE_BYTES", 400)
    spec, tight = train_spec(), DeviceMemory()
    whole, order = shuffled_pass(spec, 1, memory)
    assert memory.uploads > 2
    allocate = cuda_memory._uploaded

    def with_room_for_two(*part: object) -> object:
        if len(tight._pieces) == 2:
            raise MemoryError("Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        return allocate(*part)

    monkeypatch.setattr(cuda_memory, "_uploaded", with_room_for_two)
    cuts = []
    cut = BlockedRows.of
    monkeypatch.setattr(BlockedRows, "of", lambda *args: cuts.append(1) or cut(*args))
    for _ in range(4):
        streamed, again = shuffled_pass(spec, 1, tight)

        np.testing.assert_array_equal(streamed.rows, whole.rows)
        assert again == order
    assert memory.uploads < tight.uploads < 4 * memory.uploads
    assert len(cuts) == 2  # sorted again once, and kept
    tight.clear()


def test_a_pass_in_several_launches_has_the_same_bits(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec(optimizer="adam")
    whole, order = shuffled_pass(spec, 1, memory)
    monkeypatch.setattr(cuda_training, "LAUNCH_BLOCKS", 2)

    parts, again = shuffled_pass(spec, 1, memory)

    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_array_equal(parts.bias, whole.bias)
    assert again == order


def full(_: object) -> object:
    raise MemoryError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")


def test_a_table_that_does_not_fit_says_so(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec()
    shuffled_pass(spec, 0, memory)  # kernels are there
    monkeypatch.setattr(cuda_training.cuda, "to_device", full)

    with pytest.raises(ModelTooLargeError, match=r'no room for .* bytes.*device="cpu"'):
        shuffled_pass(spec, 0, memory)


def test_rows_make_room_for_whatever_a_pass_needs(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = train_spec()
    upload = cuda_training.cuda.to_device
    asked = full_at = 0

    def full_once(array: np.ndarray) -> object:
        nonlocal asked
        asked += 1
        return full(array) if asked == full_at else upload(array)

    monkeypatch.setattr(cuda_training.cuda, "to_device", full_once)
    expected, _ = shuffled_pass(spec, 1, memory)
    asked = 0
    shuffled_pass(spec, 1, memory)
    n_arrays = asked  # the table, the bias, steps, labels and weights: rows are there
    assert n_arrays >= 5

    for number in range(1, n_arrays + 1):
        asked, full_at = 0, number
        found, _ = shuffled_pass(spec, 1, memory)
        np.testing.assert_array_equal(found.rows, expected.rows)
        assert asked > n_arrays  # once more, at least
        shuffled_pass(spec, 1, memory)  # rows are there again


def test_a_task_that_ends_lets_go_of_rows_until_half_of_the_gpu_is_free(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "PIECE_BYTES", 400)
    shuffled_pass(train_spec(), 0, memory)
    n_pieces = len(memory._pieces)
    assert n_pieces > 2

    waiting = {"bytes": 0}
    queue = SimpleNamespace(clear=lambda: waiting.update(bytes=0))
    total = 40 * n_pieces  # of which each piece has 20

    def memory_info() -> tuple[int, int]:
        return total - waiting["bytes"] - 20 * len(memory._pieces), total

    context = SimpleNamespace(
        memory_manager=SimpleNamespace(deallocations=queue), get_memory_info=memory_info
    )
    monkeypatch.setattr(cuda_memory.cuda, "current_context", lambda: context)

    waiting["bytes"] = total // 2
    memory.leave_room()
    assert len(memory._pieces) == n_pieces  # half is free once what waits is freed

    total -= 10
    memory.leave_room()
    assert len(memory._pieces) == n_pieces - 1


def test_each_gpu_has_a_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    current = SimpleNamespace(id=0)
    monkeypatch.setattr(cuda_memory.cuda, "gpus", SimpleNamespace(current=current))
    first = device_memory()
    current.id = 1
    second = device_memory()
    current.id = 0

    assert second is not first
    assert device_memory() is first


def test_a_gpu_that_is_broken_does_not_hide_what_broke_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_room(_: DeviceMemory) -> None:
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(DeviceMemory, "leave_room", leave_room)
    passes = GpuPasses(TaskGpu(local=True), "rows", 1)

    with pytest.raises(ValueError, match="rows"), passes.trainer(0):
        raise ValueError("rows")


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_leaves_room_on_the_gpu_whatever_comes_of_it(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, left = device_memory(), []
    monkeypatch.setattr(DeviceMemory, "leave_room", lambda self: left.append(self))
    error = pytest.raises(ValueError, match="rows") if fails else nullcontext()

    with error, task_trainer(GpuPasses(TaskGpu(local=True), "rows", 1), 0) as (trainer, name):
        assert isinstance(trainer, CudaTrainer)
        assert name is not None
        assert name.endswith(":0")
        assert not left
        if fails:
            raise ValueError("rows")

    assert left == [memory]


def test_rows_that_come_in_another_order_are_uploaded_anew(memory: DeviceMemory) -> None:
    spec = train_spec(shuffle=False)
    batch = random_batch(12, N_FEATURES, seed=5, loss="logistic")
    assert len(set(batch.labels)) == 2

    batch = replace(batch, weights=np.linspace(0.5, 2, 12, dtype=np.float32))
    same_labels = np.concatenate([np.flatnonzero(batch.labels == y)[::-1] for y in (0, 1)])
    by_label = np.argsort(batch.labels, kind="stable")
    for rows in (np.arange(12), by_label, same_labels):
        arrived = batch.take(rows)
        state = worn_state(spec, N_FEATURES, seed=6)
        twin = BlockTwin(state.rows, state.bias, spec)

        CudaTrainer("rows", 4, memory=memory).train_inplace(state, arrived, Visit(0), spec=spec)

        twin.visit(arrived, blocks_of(np.arange(12), 4))
        assert_state_is(state, twin.rows, twin.bias)
    assert memory.uploads == 3


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

    stats = CudaTrainer("rows", 2, memory=memory).train_inplace(
        state, weightless, Visit(0), spec=spec
    )

    assert (stats.loss_sum, stats.weight_sum, len(stats.order)) == (0.0, 0.0, 0)
    np.testing.assert_array_equal(state.rows, before.rows)


if not simulated():  # which has no registers to shuffle

    @pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
    def test_a_pass_is_the_same_through_registers_and_through_shared_memory(
        optimizer: Optimizer, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = train_spec(k=33, optimizer=optimizer)
        one, _ = shuffled_pass(spec, 1, memory)
        usual = cuda_training.passes
        monkeypatch.setattr(cuda_training, "passes", lambda *args: usual(*args, False))
        cuda_training._compiled.cache_clear()
        other, _ = shuffled_pass(spec, 1, memory)
        cuda_training._compiled.cache_clear()

        assert_state_is(one, other.rows, other.bias)

    def test_rows_that_a_full_gpu_cannot_hold_are_streamed_with_the_same_bits(
        memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, n_rows, n_fields, span = train_spec(k=8), 200_000, 40, 2_500
        rng = np.random.default_rng(0)
        ids = rng.integers(0, span, (n_rows, n_fields)) + span * np.arange(n_fields)
        batch = CsrBatch.from_arrays(
            np.arange(n_rows + 1, dtype=np.int64) * n_fields, ids.astype(np.int32).ravel(),
            np.ones(ids.size, np.float32), labels=rng.integers(0, 2, n_rows).astype(np.float32),
        )  # fmt: skip
        monkeypatch.setattr(cuda_memory, "PIECE_BYTES", 2**24)
        states = [worn_state(spec, span * n_fields, seed=6) for _ in range(2)]
        ballast, uploads = [], []
        for state, filled in zip(states, (False, True), strict=True):
            held = DeviceMemory() if filled else memory
            while filled and cuda.current_context().get_memory_info()[0] > 2**27:
                ballast.append(cuda.device_array(2**26, np.uint8))
            trainer = CudaTrainer("rows", 256, memory=held)
            for epoch in (0, 1):
                trainer.train_inplace(state, batch, Visit(epoch), spec=spec)
            uploads.append(held.uploads)
            held.clear()

        assert uploads[1] > uploads[0] > 1  # some pieces went there again
        np.testing.assert_array_equal(states[0].rows, states[1].rows)
        np.testing.assert_array_equal(states[0].bias, states[1].bias)
