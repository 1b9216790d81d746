"""Training as SageMaker's algorithm does it, against a float64 twin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.metrics import RUNNING_METRICS, running_metrics
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters
from spark_fm.learner.state import initial_state
from spark_fm.learner.training import TrainingProgress, advance, new_stopping
from tests import sagemaker_twin as twin
from tests.builders import random_batch, train_spec

N_FEATURES, BATCH = 9, 8


def sagemaker_spec(loss="logistic", **changes) -> Hyperparameters:
    return replace(
        train_spec(
            loss=loss, optimizer="adam", k=5, epochs=3, shuffle=False, average_epochs=False,
            mini_batch_size=BATCH, sagemaker=True,
            bias=GroupHyperparameters(0.1, 0.01, "normal", 0.01),
            linear=GroupHyperparameters(0.01, 0.02, "normal", 0.1),
            factors=GroupHyperparameters(0.02, 0.03, "normal", 0.2),
        ),
        **changes,
    )  # fmt: skip


def dense_batch(n_rows: int, *, seed: int, loss: str) -> CsrBatch:
    """Rows with an entry for every feature, half of them of value 0."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, N_FEATURES)) * (rng.random((n_rows, N_FEATURES)) < 0.5)
    labels = rng.integers(0, 2, n_rows) if loss == "logistic" else rng.normal(2, 1, n_rows)
    return CsrBatch.from_arrays(
        np.arange(n_rows + 1) * N_FEATURES,
        np.tile(np.arange(N_FEATURES), n_rows),
        X.ravel().astype(np.float32),
        labels=labels.astype(np.float32),
    )


def train_both(batch: CsrBatch, spec: Hyperparameters):
    """Return the run and its twin after all epochs from the same first values."""
    counts = np.bincount(batch.indices, minlength=N_FEATURES)
    state = initial_state(spec, counts, label_mean=0.5)
    first = state.copy()
    metric = "logloss" if spec.loss == "logistic" else "rmse"
    run = TrainingProgress(state=state, stopping=new_stopping(spec, metric, patience=0, tol=0.0))
    list(advance(run, batch, None, spec, metric=metric))

    k = spec.k
    wide = first.rows.astype(np.float64)
    tensors = (
        twin.Adam(first.bias[:1].copy(), spec.bias.lr, spec.bias.wd),
        twin.Adam(wide[:, k].copy(), spec.linear.lr, spec.linear.wd),
        twin.Adam(wide[:, :k].copy(), spec.factors.lr, spec.factors.wd),
    )
    X, present = np.zeros((batch.n_rows, N_FEATURES)), np.zeros((batch.n_rows, N_FEATURES), bool)
    rows = np.repeat(np.arange(batch.n_rows), np.diff(batch.indptr))
    X[rows, batch.indices], present[rows, batch.indices] = batch.values, True
    scores = twin.train(
        tensors, X, present, batch.labels.astype(np.float64), loss=spec.loss,
        batch_size=spec.mini_batch_size, epochs=spec.epochs, rescale=spec.rescale_grad,
        clip=np.inf if spec.clip_gradient is None else spec.clip_gradient,
    )  # fmt: skip
    return run, tensors, scores


VARIANTS = [{}, {"rescale_grad": 0.7}, {"clip_gradient": 0.02}, {"mini_batch_size": 1}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_parameters_are_those_of_the_float64_twin(form, loss, changes):
    spec = sagemaker_spec(loss, **changes)
    batch = (
        random_batch(29, N_FEATURES, seed=4, lengths=(1, 3), loss=loss)
        if form == "sparse"
        else dense_batch(29, seed=4, loss=loss)
    )

    run, (bias, linear, factors), _ = train_both(batch, spec)

    # Adam divides by the root of tiny squares: float32 against float64 over 12 updates.
    close = {"rtol": 2e-3, "atol": 2e-4}
    np.testing.assert_allclose(run.state.bias[0], bias.value[0], **close)
    np.testing.assert_allclose(run.state.rows[:, spec.k], linear.value, **close)
    np.testing.assert_allclose(run.state.rows[:, : spec.k], factors.value, **close)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_running_metrics_are_those_of_the_twin_with_padded_rows(loss):
    spec = sagemaker_spec(loss)
    batch = random_batch(29, N_FEATURES, seed=4, lengths=(1, 3), loss=loss)

    run, _, scores = train_both(batch, spec)

    labels = [*batch.labels.tolist(), 0.0, 0.0, 0.0]
    for record, told in zip(run.history, scores, strict=True):
        expected = twin.metrics(told, labels, loss)
        assert record.running["metrics"] == pytest.approx(expected, rel=1e-4)
        first = twin.metrics(told[:BATCH], labels[:BATCH], loss)
        assert record.running["batches"][0] == {
            "batch": 0, "metrics": pytest.approx(first, rel=1e-4)
        }  # fmt: skip


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_running_metrics_are_published_every_500_batches_over_the_rows_so_far(loss):
    rng = np.random.default_rng(3)
    spec = sagemaker_spec(loss, mini_batch_size=2)
    scores, labels = rng.normal(size=2401), rng.integers(0, 2, 2401)

    told = running_metrics(scores.astype(np.float32), labels.astype(np.float32), spec)

    assert [entry["batch"] for entry in told["batches"]] == [0, 500, 1000]
    assert set(told["metrics"]) == set(RUNNING_METRICS[LOSSES[loss].predictor_type])
    expected = twin.metrics(scores[:1002].tolist(), labels[:1002].tolist(), loss)
    assert told["batches"][1]["metrics"] == pytest.approx(expected, rel=1e-4)


def test_features_that_no_row_has_keep_their_first_values():
    spec = sagemaker_spec()
    batch = random_batch(20, N_FEATURES - 1, seed=5, lengths=(1, 3), loss="logistic")
    counts = np.bincount(batch.indices, minlength=N_FEATURES)
    state = initial_state(spec, counts, label_mean=0.5)
    first = state.rows[-1, : spec.k + 1].copy()
    run = TrainingProgress(state=state, stopping=new_stopping(spec, "logloss", patience=0, tol=0.0))

    list(advance(run, batch, None, spec, metric="logloss"))

    assert (first != 0).all()
    np.testing.assert_array_equal(run.state.rows[-1, : spec.k + 1], first)


@pytest.mark.parametrize(("n_rows", "multiple", "expected"), [(5, 4, 8), (8, 4, 8), (0, 4, 0)])
def test_padding_adds_empty_rows_of_label_zero_up_to_a_multiple(n_rows, multiple, expected):
    batch = random_batch(n_rows, N_FEATURES, seed=1, weighted=True)

    padded = batch.padded(multiple)

    assert padded.n_rows == expected
    assert padded.nnz == batch.nnz
    assert (padded.labels[n_rows:] == 0).all()
    assert (padded.weights[n_rows:] == 1).all()
    assert (np.diff(padded.indptr)[n_rows:] == 0).all()
