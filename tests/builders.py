"""Data from planted weights, random batches and states; every builder takes a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import sigmoid
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters, LossName
from spark_fm.learner.state import TrainState, initial_state
from spark_fm.learner.weights import FMWeights


def planted_weights(n_features: int, k: int, *, seed: int) -> FMWeights:
    """Draw a model whose linear and pair terms both matter at any k."""
    rng = np.random.default_rng(seed)
    table = np.empty((n_features, k + 1), np.float32)
    table[:, :k] = rng.normal(0, 0.5 / k**0.25, (n_features, k))  # <v, v'> does not grow with k
    table[:, k] = rng.normal(0, 0.5, n_features)
    return FMWeights(float(rng.normal(0, 0.3)), table, n_features)


def random_batch(
    n_rows: int,
    n_features: int,
    *,
    seed: int,
    lengths: tuple[int, int] = (0, 6),
    loss: LossName = "squared",
    weighted: bool = False,
) -> CsrBatch:
    """Draw canonical rows of ``lengths[0]`` to ``lengths[1]`` entries, signs mixed.

    Weights are 0, 0.5, 1 or 3 when ``weighted``, otherwise 1.
    """
    rng = np.random.default_rng(seed)
    counts = rng.integers(lengths[0], min(lengths[1], n_features) + 1, n_rows)
    rows = [np.sort(rng.choice(n_features, size, replace=False)) for size in counts]
    indices = np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)
    values = rng.uniform(0.2, 1.5, len(indices)) * rng.choice([-1, 1], len(indices))
    labels = rng.integers(0, 2, n_rows) if loss == "logistic" else rng.normal(0, 1, n_rows)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], n_rows) if weighted else np.ones(n_rows)
    return CsrBatch(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        indices,
        values.astype(np.float32),
        labels.astype(np.float32),
        weights.astype(np.float32),
    )


def planted_batch(
    truth: FMWeights, n_rows: int, *, seed: int, loss: LossName = "squared", noise: float = 0.1
) -> CsrBatch:
    """Draw rows of 2 to 6 entries whose labels follow ``truth``."""
    rng = np.random.default_rng(seed)
    batch = random_batch(n_rows, truth.feature_dim, seed=seed + 1, lengths=(2, 6))
    raw = truth.margins(batch)
    if loss == "logistic":
        labels = rng.random(n_rows) < sigmoid(raw / np.float32(max(noise, 1e-3)))
    else:
        labels = raw + rng.normal(0, noise, n_rows)
    return replace(batch, labels=labels.astype(np.float32))


def raw_counts(n_rows: int, n_features: int, *, seed: int, loss: LossName) -> CsrBatch:
    """Draw dense rows of unscaled counts up to thousands, labels from their sum."""
    rng = np.random.default_rng(seed)
    X = np.floor(10 ** rng.uniform(0, 4, (n_rows, n_features)))
    total = X.sum(axis=1)
    labels = total > np.median(total) if loss == "logistic" else total
    return CsrBatch.from_matrix(X, labels=labels)


def feature_counts(batch: CsrBatch, n_features: int) -> NDArray[np.int64]:
    """Return the non-zeros of each feature."""
    return np.bincount(batch.indices, minlength=n_features)


def train_spec(**changes: object) -> Hyperparameters:
    """Return a spec that learns planted data in a few epochs, with some fields changed."""
    spec = Hyperparameters(
        k=3,
        loss="logistic",
        optimizer="adagrad",
        epochs=3,
        bias=GroupHyperparameters(0.1, 0.0),
        linear=GroupHyperparameters(0.1, 0.0, "normal", init_sigma=0.1),
        factors=GroupHyperparameters(0.1, 0.0, "normal", init_sigma=0.3),
        seed=7,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def started_state(spec: Hyperparameters, batch: CsrBatch, n_features: int) -> TrainState:
    """Return the first state of a training on ``batch``; its seed is ``spec.seed``."""
    live = float(batch.weights.sum())
    mean = float(batch.weights @ batch.labels) / live if live else 0.0
    return initial_state(spec, feature_counts(batch, n_features), label_mean=mean)


def worn_state(spec: Hyperparameters, n_features: int, *, seed: int) -> TrainState:
    """Return a state in mid-training: statistics, decay scales and touches all differ."""
    rng = np.random.default_rng(seed)
    state = initial_state(spec, np.full(n_features, 10), label_mean=0.3)
    layout = state.layout
    size = (n_features, layout.n_statistics)
    state.rows[:, layout.k + 1 : layout.n_synced] = rng.uniform(0.5, 2.0, size)
    state.rows[:, layout.decay] = rng.uniform(0.2, 3.0, n_features)
    state.rows[:, layout.n_updates] = rng.integers(0, 5, n_features)
    if spec.optimizer != "sgd":
        state.bias[1:3] = rng.uniform(0.5, 2.0, 2)
    if spec.optimizer == "adam":
        state.bias[3] = 4.0
    return state
