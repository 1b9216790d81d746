"""The state of a training: one aligned row of parameters and statistics per feature.

Row layout, float32, columns in this order::

    v_1 .. v_k | w | optimizer statistics | decay scale | updates

``decay scale`` multiplies the weight decay of this feature; ``updates`` counts the
weighted entries seen since the last round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.losses import LOSSES
from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters, OptimizerName, Scaling

ALIGNMENT = 64  # bytes: a cache line
# Bias vector, float64: value, AdaGrad sum or Adam's first moment, Adam's second
# moment, number of updates.
BIAS_SLOTS = 4
DECAY_REFERENCE = 1000.0
NO_SCALING = Scaling()


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a state row for k factors and an optimizer."""

    k: int
    optimizer: OptimizerName

    @property
    def n_statistics(self) -> int:
        """Optimizer columns: 2 row-wise sums (AdaGrad), 2(k+1) moments (Adam), 0 (SGD)."""
        return OPTIMIZERS[self.optimizer].n_statistics(self.k)

    @property
    def n_synced(self) -> int:
        """Leading columns that change in training and travel between machines."""
        return self.k + 1 + self.n_statistics

    @property
    def decay(self) -> int:
        """Column of the decay scale."""
        return self.n_synced

    @property
    def n_updates(self) -> int:
        """Column of the number of updates."""
        return self.n_synced + 1

    @property
    def stride(self) -> int:
        """Floats from one row to the next: a multiple of 8, so vectors load aligned."""
        return -(-(self.n_synced + 2) // 8) * 8

    @property
    def bytes_per_feature(self) -> int:
        """Memory of one state row."""
        return 4 * self.stride


@dataclass(slots=True)
class TrainState:
    """Parameters and optimizer statistics; changed in place by the kernels."""

    layout: Layout
    rows: NDArray[np.float32]  # (n_features, layout.stride), aligned to 64 bytes
    bias: NDArray[np.float64]  # (BIAS_SLOTS,)

    @property
    def n_features(self) -> int:
        """Number of rows of the table."""
        return len(self.rows)

    def copy(self) -> TrainState:
        """Return an independent copy; O(n_features * stride)."""
        rows = aligned_rows(self.n_features, self.layout.stride)
        rows[:] = self.rows
        return TrainState(self.layout, rows, self.bias.copy())

    def parameters(self) -> NDArray[np.float32]:
        """Return a copy of factors and linear weights, shape (n_features, k + 1)."""
        return np.ascontiguousarray(self.rows[:, : self.layout.k + 1])

    def synced_columns(self) -> NDArray[np.float32]:
        """Return a copy of the synced columns and the decay scale."""
        return np.ascontiguousarray(self.rows[:, : self.layout.decay + 1])

    def is_finite(self) -> bool:
        """Return whether every parameter and statistic is finite; O(n_features * k)."""
        if not np.isfinite(self.bias).all():
            return False
        # A sum is non-finite when a term is; it costs no temporary of the table's size.
        columns = self.rows[:, : self.layout.n_synced]
        with np.errstate(invalid="ignore"):
            return bool(np.isfinite(columns.sum(dtype=np.float64)))

    @classmethod
    def from_synced(
        cls, layout: Layout, columns: NDArray[np.float32], bias: NDArray[np.float64]
    ) -> TrainState:
        """Rebuild a state from ``synced_columns``; updates start at 0."""
        rows = aligned_rows(len(columns), layout.stride)
        rows[:, : layout.decay + 1] = columns
        rows[:, layout.decay + 1 :] = 0
        return cls(layout, rows, np.array(bias, np.float64))


def aligned_rows(n_rows: int, stride: int) -> NDArray[np.float32]:
    """Return an uninitialised float32 table whose first row starts a cache line."""
    buffer = np.empty(n_rows * stride * 4 + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + n_rows * stride * 4].view(np.float32).reshape(n_rows, stride)


def initial_state(
    spec: Hyperparameters,
    counts: NDArray[np.integer],
    *,
    label_mean: float,
    scaling: Scaling = NO_SCALING,
) -> TrainState:
    """Draw the initial parameters; the same on every machine for the same seed.

    ``counts`` has the non-zeros of each feature in the training rows. A feature with none starts
    and stays at 0, so that it adds nothing to a score; unless ``spec.sagemaker``.
    ``label_mean`` is weighted; like a constant initial bias of the caller's it is in units of the
    labels, from which ``scaling`` makes those of the training. Draws are in the training's.
    """
    layout = Layout(spec.k, spec.optimizer)
    k, n_features = spec.k, len(counts)
    seeds = np.random.SeedSequence(spec.init_key).spawn(3)
    bias_rng, linear_rng, factor_rng = (np.random.default_rng(seed) for seed in seeds)
    rows = aligned_rows(n_features, layout.stride)
    rows[:] = 0
    _fill(rows[:, :k], spec.factors, factor_rng)
    if spec.use_linear:
        _fill(rows[:, k : k + 1], spec.linear, linear_rng)
    if not spec.sagemaker:
        rows[:, : k + 1] *= (counts > 0)[:, None]
    if OPTIMIZERS[spec.optimizer].sums_squares:
        rows[:, k + 1 : k + 3] = spec.adagrad_init
    scale = (np.maximum(counts, 1) / DECAY_REFERENCE) ** -spec.decay_frequency_power
    rows[:, layout.decay] = scale
    bias = np.zeros(BIAS_SLOTS)
    if spec.use_bias:
        bias[0] = _initial_bias(spec, label_mean, scaling, bias_rng)
    if OPTIMIZERS[spec.optimizer].sums_squares:
        bias[1] = spec.adagrad_init
    return TrainState(layout, rows, bias)


def _initial_bias(
    spec: Hyperparameters, label_mean: float, scaling: Scaling, rng: np.random.Generator
) -> float:
    group = spec.bias
    if group.init_method == "constant":
        value = group.init_value
        return scaling.score_of(
            LOSSES[spec.loss].initial_bias(label_mean) if value is None else value
        )
    cell = np.zeros((1, 1), np.float32)
    _fill(cell, group, rng)
    return float(cell[0, 0])


def _fill(
    target: NDArray[np.float32], group: GroupHyperparameters, rng: np.random.Generator
) -> None:
    """Draw in chunks of rows, so that a large table needs no second copy."""
    chunk = max(1, 2**22 // max(1, target.shape[1]))
    for start in range(0, len(target), chunk):
        part = target[start : start + chunk]
        if group.init_method == "normal":
            part[:] = rng.standard_normal(part.shape, dtype=np.float32) * group.init_sigma
        elif group.init_method == "uniform":
            part[:] = (rng.random(part.shape, dtype=np.float32) * 2 - 1) * group.init_scale
        else:
            part[:] = group.init_value or 0.0
