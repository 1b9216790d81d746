"""What stays on a GPU and what makes room there: on a GPU, or under Numba's simulator."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from spark_fm.errors import ModelTooLargeError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.cuda.blocks import BlockedRows
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.state import TrainState
from spark_fm.spark.gpu import GpuAssignment, GpuPassConfig, task_backend
from tests.builders import random_batch, train_spec, worn_state
from tests.cuda.twin import BlockTwin

cuda = pytest.importorskip("numba.cuda", reason="no numba.cuda here")
if not cuda.is_available():
    pytest.skip("neither a GPU nor the simulator", allow_module_level=True)

from spark_fm.learner.cuda import memory as cuda_memory
from spark_fm.learner.cuda import trainer as cuda_training
from spark_fm.learner.cuda.device import simulated
from spark_fm.learner.cuda.memory import DeviceMemory, device_memory
from spark_fm.learner.cuda.trainer import CudaBackend
from tests.cuda.passes import N_FEATURES, assert_state_is, blocks_of, shuffled_pass


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

    def visits(trainers: list[CudaBackend]) -> TrainState:
        state = worn_state(spec, N_FEATURES, seed=6)
        for epoch, trainer in enumerate(trainers):
            if epoch == 2:
                state = state.copy()  # as after a step that was too large
            if epoch == 3:
                state.rows *= 0.5
            trainer.run_epoch(state, batch, RowOrder(epoch), spec=spec)
        tables.append(sum(array.shape == state.rows.shape for array in sent))
        sent.clear()
        return state

    tables: list[int] = []
    anew = visits([CudaBackend("rows", 4, memory=DeviceMemory()) for _ in range(5)])
    kept = visits([CudaBackend("rows", 4, memory=memory)] * 5)

    np.testing.assert_array_equal(kept.rows, anew.rows)
    np.testing.assert_array_equal(kept.bias, anew.bias)
    assert tables == [5, 3]


def test_rows_that_do_not_fit_are_brought_piece_by_piece_with_the_same_bits(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_memory, "CHUNK_BYTES", 400)
    spec, tight = train_spec(), DeviceMemory()
    whole, order = shuffled_pass(spec, 1, memory)
    assert memory.uploads > 2
    allocate = cuda_memory._uploaded

    def with_room_for_two(*part: object) -> object:
        if len(tight._chunks) == 2:
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
    monkeypatch.setattr(cuda_memory, "CHUNK_BYTES", 400)
    shuffled_pass(train_spec(), 0, memory)
    n_pieces = len(memory._chunks)
    assert n_pieces > 2

    waiting = {"bytes": 0}
    queue = SimpleNamespace(clear=lambda: waiting.update(bytes=0))
    total = 40 * n_pieces  # of which each chunk has 20

    def memory_info() -> tuple[int, int]:
        return total - waiting["bytes"] - 20 * len(memory._chunks), total

    context = SimpleNamespace(
        memory_manager=SimpleNamespace(deallocations=queue), get_memory_info=memory_info
    )
    monkeypatch.setattr(cuda_memory.cuda, "current_context", lambda: context)

    waiting["bytes"] = total // 2
    memory.leave_room()
    assert len(memory._chunks) == n_pieces  # half is free once what waits is freed

    total -= 10
    memory.leave_room()
    assert len(memory._chunks) == n_pieces - 1


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
    passes = GpuPassConfig(GpuAssignment(local=True), "rows", 1)

    with pytest.raises(ValueError, match="rows"), passes.backend(0):
        raise ValueError("rows")


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_leaves_room_on_the_gpu_whatever_comes_of_it(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, left = device_memory(), []
    monkeypatch.setattr(DeviceMemory, "leave_room", lambda self: left.append(self))
    error = pytest.raises(ValueError, match="rows") if fails else nullcontext()

    with (
        error,
        task_backend(GpuPassConfig(GpuAssignment(local=True), "rows", 1), 0) as (trainer, name),
    ):
        assert isinstance(trainer, CudaBackend)
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

        CudaBackend("rows", 4, memory=memory).run_epoch(state, arrived, RowOrder(0), spec=spec)

        twin.visit(arrived, blocks_of(np.arange(12), 4))
        assert_state_is(state, twin.rows, twin.bias)
    assert memory.uploads == 3


if not simulated():  # whose memory is the processor's

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
        monkeypatch.setattr(cuda_memory, "CHUNK_BYTES", 2**24)
        states = [worn_state(spec, span * n_fields, seed=6) for _ in range(2)]
        ballast, uploads = [], []
        for state, filled in zip(states, (False, True), strict=True):
            held = DeviceMemory() if filled else memory
            while filled and cuda.current_context().get_memory_info()[0] > 2**27:
                ballast.append(cuda.device_array(2**26, np.uint8))
            trainer = CudaBackend("rows", 256, memory=held)
            for epoch in (0, 1):
                trainer.run_epoch(state, batch, RowOrder(epoch), spec=spec)
            uploads.append(held.uploads)
            held.clear()

        assert uploads[1] > uploads[0] > 1  # some chunks went there again
        np.testing.assert_array_equal(states[0].rows, states[1].rows)
        np.testing.assert_array_equal(states[0].bias, states[1].bias)
