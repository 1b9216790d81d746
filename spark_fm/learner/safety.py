"""The safety net: tell a training that explodes from one that learns."""

from __future__ import annotations

import math

import numpy as np

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.metrics import loss_sum
from spark_fm.learner.predict import margins
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import TrainState

STEP_SHRINK = 0.1
MAX_SHRINKS = 30
EXPLODED = 10.0  # times the loss of the first model or of no model at all
SAMPLE_ROWS = 10_000


def loss_limit(state: TrainState, train: CsrBatch, spec: TrainSpec) -> float:
    """Return the mean loss above which a training counts as exploded."""
    start, weight = sample_loss(state, train, spec)
    nothing = idle_loss(train, spec) / max(float(train.weights.sum(dtype=np.float64)), 1e-300)
    return exploded_loss(start / weight if weight else 0.0, nothing)


def exploded_loss(start: float, nothing: float) -> float:
    """Return ten times the loss of the first model or of one that says 0, whichever is more.

    Plus ten, for sets that a constant fits.
    """
    return EXPLODED * (max(start, nothing, 0.0) + 1.0)


def idle_loss(batch: CsrBatch, spec: TrainSpec) -> float:
    """Return the weighted loss sum of a model that says 0 of every row."""
    weights = batch.weights.astype(np.float64)
    if spec.loss == "logistic":
        return math.log(2.0) * float(weights.sum())
    return float(weights @ np.square(batch.labels, dtype=np.float64))


def sample_loss(state: TrainState, train: CsrBatch, spec: TrainSpec) -> tuple[float, float]:
    """Return the weighted loss sum of a state on the first rows, and their weight.

    The first rows are a sample, since rows were mixed when they were packed.
    """
    head = train.between(0, min(train.n_rows, SAMPLE_ROWS))
    bias = float(state.bias[0])
    if state.n_features <= head.nnz:
        scores = margins(head, state.parameters(), bias)
    else:  # a copy of the whole table would cost more than the scores
        ids = np.unique(head.indices)
        scores = margins(head, state.rows[ids, : state.layout.k + 1], bias, features=ids)
    loss = loss_sum(spec.loss, scores, head.labels, head.weights)
    return loss, float(head.weights.sum(dtype=np.float64))


def ends_sound(state: TrainState, train: CsrBatch, spec: TrainSpec, limit: float) -> bool:
    """Tell whether a state is finite and its loss on the first rows within the limit.

    The mean loss of a pass is taken before each row's update and does not see what the
    last updates did.
    """
    if not state.is_finite():
        return False
    loss, weight = sample_loss(state, train, spec)
    return loss <= limit * weight


def divergence_text(epoch: int, loss: float, limit: float, spec: TrainSpec) -> str:
    """Return the message of a training that no step size saves."""
    allowed = f", and more than {limit:.6g} is not a training" if np.isfinite(limit) else ""
    return (
        f"Training diverged in epoch {epoch}: with steps down to 1e-{MAX_SHRINKS} of "
        f"biasLr={spec.bias.lr}, linearLr={spec.linear.lr}, factorsLr={spec.factors.lr} the mean "
        f"loss is still {loss:.6g}{allowed}. Scale the "
        "features to about [0, 1], or lower the Lr and InitSigma parameters."
    )
