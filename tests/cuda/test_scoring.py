"""Scores of a GPU against their float64 twin: on a GPU, or under Numba's simulator."""

from __future__ import annotations

import numpy as np
import pytest

from spark_fm.errors import GpuNotFoundError, ModelTooLargeError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import margins
from tests import oracle
from tests.builders import planted_weights, random_batch

cuda = pytest.importorskip("numba.cuda", reason="no numba.cuda here")
if not cuda.is_available():
    pytest.skip("neither a GPU nor the simulator", allow_module_level=True)

from spark_fm.learner.cuda import device
from spark_fm.learner.cuda import scorer as cuda_scoring
from spark_fm.learner.cuda.device import pays
from spark_fm.learner.cuda.scorer import CudaScorer
from spark_fm.learner.cuda.trainer import CudaBackend
from spark_fm.spark import gpu
from spark_fm.spark.gpu import GpuAssignment, row_scorer

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def model_and_rows(k: int, n_rows: int = 7) -> tuple[oracle.Model, np.ndarray, CsrBatch]:
    weights = planted_weights(9, k, seed=k)
    batch = random_batch(n_rows, 9, seed=3, lengths=(0, 6))
    model = oracle.Model.of_table(weights.table, weights.bias)
    return model, weights.table, batch


@pytest.mark.parametrize("k", [1, 3, 4, 9])
def test_scores_equal_the_twins(k: int) -> None:
    model, table, batch = model_and_rows(k)

    found = CudaScorer(table).margins(batch, model.w0)

    np.testing.assert_allclose(found, oracle.scores(model, batch), **CLOSE)


def test_rows_that_come_in_pieces_have_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model, table, batch = model_and_rows(3)
    whole = CudaScorer(table).margins(batch, model.w0)

    for entries in (1, 5):
        monkeypatch.setattr(cuda_scoring, "CHUNK_BYTES", entries * cuda_scoring.ENTRY_BYTES)
        np.testing.assert_array_equal(CudaScorer(table).margins(batch, model.w0), whole)


def test_a_model_without_features_gives_its_bias() -> None:
    empty = CsrBatch.concat([])
    rows = random_batch(3, 9, seed=1, lengths=(0, 0))

    scorer = CudaScorer(np.zeros((0, 4), np.float32))

    assert scorer.margins(empty, 0.5).shape == (0,)
    np.testing.assert_array_equal(scorer.margins(rows, 0.5), np.full(3, 0.5, np.float32))


@pytest.mark.parametrize("has_features", [False, True])
def test_tasks_score_large_batches_on_their_gpu_as_the_processor_does(
    has_features: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, table, batch = model_and_rows(3)
    features = np.array([0, 2, 3, 5, 6], np.int32) if has_features else None
    table = table[: len(features)] if features is not None else table
    calls = []
    usual = CudaScorer.margins
    monkeypatch.setattr(CudaScorer, "margins", lambda *args: calls.append(args) or usual(*args))
    monkeypatch.setattr(device, "LEAST_PRODUCTS", batch.nnz * 19)

    score = row_scorer(GpuAssignment(local=True), table, 0.25, features)
    looked = []
    monkeypatch.setattr(gpu, "check_gpu", lambda: looked.append(1))

    expected = margins(batch, table, 0.25, features=features)
    few = batch.take(np.arange(3))
    np.testing.assert_array_equal(score(few), margins(few, table, 0.25, features=features))
    assert not looked  # few rows do not wait for a GPU
    for n_calls in (1, 2):
        np.testing.assert_allclose(score(batch), expected, **CLOSE)
        assert len(calls) == n_calls
    assert len(looked) == 1


def test_a_training_validates_large_sets_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, table, batch = model_and_rows(3)
    trainer = CudaBackend("rows", 2)
    np.testing.assert_array_equal(
        trainer.margins(batch, table, model.w0), margins(batch, table, model.w0)
    )
    monkeypatch.setattr(device, "LEAST_PRODUCTS", 1)

    found = trainer.margins(batch, table, model.w0)

    np.testing.assert_allclose(found, oracle.scores(model, batch), **CLOSE)


def test_small_batches_do_not_pay() -> None:
    assert not pays(100, 16)
    assert pays(400_000, 16)


def test_tasks_whose_gpu_does_not_work_score_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, table, batch = model_and_rows(3)

    def broken() -> None:
        raise GpuNotFoundError("the GPU runs no kernel")

    monkeypatch.setattr(gpu, "check_gpu", broken)
    monkeypatch.setattr(device, "LEAST_PRODUCTS", 1)

    score = row_scorer(GpuAssignment(local=True), table, 0.25, None)

    np.testing.assert_array_equal(score(batch), margins(batch, table, 0.25))


def test_tasks_go_on_on_the_processor_when_others_fill_their_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, table, batch = model_and_rows(3)
    calls = []

    def full(*_: object) -> None:
        calls.append(1)
        raise ModelTooLargeError("the GPU's memory has no room")

    monkeypatch.setattr(device, "LEAST_PRODUCTS", 1)
    score = row_scorer(GpuAssignment(local=True), table, 0.25, None)
    monkeypatch.setattr(CudaScorer, "margins", full)

    for _ in range(2):
        np.testing.assert_array_equal(score(batch), margins(batch, table, 0.25))

    assert len(calls) == 1
    assert caplog.text.count("scoring on the CPU from here on") == 1
