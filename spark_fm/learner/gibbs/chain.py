"""A Markov chain of factorization machines, after a while drawn from their posterior.

The model, with the field g of feature j, and targets y in units of their own:

    y = w0 + sum w_i x_i + sum <v_i, v_j> x_i x_j + N(0, 1 / alpha)
    theta_j = (v_j, w_j) ~ N(mu_g, diag(1 / lambda_g))

Sources: Freudenthaler, Schmidt-Thieme, Rendle, "Bayesian Factorization Machines" (NIPS
workshop 2011), which has one group of hyperpriors for all features; Salakhutdinov and Mnih,
"Bayesian Probabilistic Matrix Factorization using MCMC" (ICML 2008). Under logistic loss the
targets and their precisions are drawn, see ``polya_gamma``, and alpha is 1. The precision of
a field starts from one that is drawn for all features together, given the data: an empirical
Bayes step, which leaves the chain's law close to that of a joint model but not equal to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.csr import CsrBatch, frozen
from spark_fm.learner.gibbs.kernels import (
    RowLayout,
    columns_of,
    residual_sums,
    score_kernel,
    shift_residuals,
    sweep_kernel,
)
from spark_fm.learner.gibbs.polya_gamma import polya_gamma
from spark_fm.learner.spec import LossName
from spark_fm.learner.state import aligned_rows

REFRESH = 25  # sweeps after which rows are scored anew: float32 sums have drifted
POOLED = 20  # features of the pooled precision that a field's precision starts from
# Most that the rows of a feature may weigh: beyond, the prior is lost beside their float32.
MOST_EVIDENCE = 1e7
LEAST_PRECISION = 1e-6  # of a row's weight in sums that are divided by


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """What a chain takes besides rows."""

    k: int
    loss: LossName
    seed: tuple[int, ...]  # of the chain's generator
    init_sigma: float  # standard deviation of the first factors
    use_bias: bool = True
    draws: bool = True  # False: means in place of draws, which is alternating least squares
    learns_priors: bool = True  # False: mu, lambda and alpha stay as they are


@dataclass(frozen=True, slots=True, eq=False)
class ChainState:
    """All that a chain goes on from, bit for bit, where its next sweep scores the rows anew."""

    table: NDArray[np.float32]  # (n_features, k + 1)
    mu: NDArray[np.float64]  # (n_fields, k + 1), as precision
    precision: NDArray[np.float64]
    bias: float
    alpha: float
    n_sweeps: int
    generator: dict[str, Any]  # as NumPy's bit generator has it


class Chain:
    """The state of one chain, changed by each sweep.

    Parameters
    ----------
    batch : CsrBatch
        Rows with labels, of which those of the squared loss are centred and of unit variance,
        and weights, which multiply a row's part in the likelihood.
    fields : ndarray of shape (n_features,), int32
        Field of each feature.
    spec : ChainSpec

    Notes
    -----
    16 B a non-zero and ``4 RowLayout.stride`` a row. The chain depends on the order of the rows
    by rounding alone.
    """

    def __init__(self, batch: CsrBatch, fields: NDArray[np.int32], spec: ChainSpec) -> None:
        n_features, k = len(fields), spec.k
        self.spec, self.batch, self.fields = spec, batch, fields
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(spec.seed)))
        self._columns = columns_of(batch.indptr, batch.indices, batch.values, n_features)
        self.is_seen = np.diff(self._columns[0]) > 0
        most_rows = max(1, int(np.diff(self._columns[0]).max(initial=1)))
        self._most_alpha = MOST_EVIDENCE / most_rows
        seen = np.flatnonzero(self.is_seen).astype(np.int32)
        self.order = seen[np.argsort(fields[seen], kind="stable")]
        n_fields = int(fields.max(initial=0)) + 1
        self._bounds = np.searchsorted(fields[self.order], np.arange(n_fields + 1))
        self.table = np.zeros((n_features, k + 1), np.float32)
        self.table[:, :k] = self.generator.normal(0.0, spec.init_sigma, (n_features, k))
        self.table[~self.is_seen] = 0.0
        self.means = self.table.copy()
        self.bias, self.alpha = 0.0, 1.0
        self.mu = np.zeros((n_fields, k + 1))
        self.precision = np.ones((n_fields, k + 1))
        self.precision[:, :k] = spec.init_sigma**-2
        self.n_sweeps = 0
        layout = RowLayout(k)
        self._residual, self._omega = layout.residual, layout.residual + 1
        self._state = aligned_rows(batch.n_rows, layout.stride)
        self._state[:] = 0.0
        self._state[:, self._omega] = batch.weights
        self._labels = batch.labels.astype(np.float64)
        if self.is_logistic:
            rate = float(np.average(self._labels, weights=batch.weights))
            self.bias = math.log(rate / (1 - rate)) if 0 < rate < 1 and spec.use_bias else 0.0
        self.refresh()

    @property
    def is_logistic(self) -> bool:
        """Whether targets are drawn."""
        return self.spec.loss == "logistic"

    def restart(self, table: NDArray[np.float32], bias: float, *, precision: float) -> None:
        """Go on from these parameters, with priors of mean 0 and this precision."""
        self.table[:], self.bias = table, bias
        self.mu[:], self.precision[:] = 0.0, precision
        self.refresh()

    @property
    def may_pause(self) -> bool:
        """Whether the next sweep scores the rows anew, so that ``state`` is all of the chain."""
        return self.n_sweeps % REFRESH == REFRESH - 1

    @property
    def state(self) -> ChainState:
        """What another chain on the same rows goes on from with ``resume``."""
        return ChainState(
            self.table, self.mu, self.precision, self.bias, self.alpha, self.n_sweeps,
            dict(self.generator.bit_generator.state),
        )  # fmt: skip

    def resume(self, state: ChainState) -> None:
        """Go on as the chain of this state would, which was taken where it ``may_pause``."""
        self.table[:], self.mu[:], self.precision[:] = state.table, state.mu, state.precision
        self.bias, self.alpha, self.n_sweeps = state.bias, state.alpha, state.n_sweeps
        self.generator.bit_generator.state = state.generator

    def refresh(self) -> None:
        """Score all rows anew; O(nnz k)."""
        batch, scores = self.batch, np.empty(self.batch.n_rows)
        score_kernel(self.spec.k)(
            frozen(batch.indptr), frozen(batch.indices), frozen(batch.values),
            self.table, self.bias, self._state, scores,
        )  # fmt: skip
        self._scores = scores
        if not self.is_logistic:
            self._state[:, self._residual] = self._labels - scores

    def sweep(self) -> None:
        """Draw everything once, each part given all others; O(nnz k^2 + n_features k^3).

        Raises TrainingDivergedError for numbers that are not finite any more.
        """
        if self.may_pause:
            self.refresh()
        if self.is_logistic:
            self._draw_targets()
        elif self.spec.learns_priors:
            self._draw_alpha()
        if self.spec.use_bias:
            self._draw_bias()
        if self.spec.learns_priors:
            self._draw_priors()
        normals = np.zeros((len(self.order), self.spec.k + 1), np.float32)
        if self.spec.draws:
            self.generator.standard_normal(dtype=np.float32, out=normals)
        sweep_kernel(self.spec.k)(
            *self._columns, self.order, self._state, self.table, self.means, self.fields,
            self.mu, self.precision, self.alpha, normals,
        )  # fmt: skip
        if self.is_logistic:
            self._scores = self._targets - self._state[:, self._residual]
        if not np.isfinite(self.table.sum(dtype=np.float64)):
            raise TrainingDivergedError(
                f"Sweep {self.n_sweeps} of a chain led to numbers beyond float32. Leave "
                "standardization on, or scale the features."
            )
        self.n_sweeps += 1

    def scores(self) -> NDArray[np.float64]:
        """Return the scores of the rows under the last draw."""
        if self.is_logistic:
            return self._scores
        return self._labels - self._state[:, self._residual]

    def prior_precisions(self) -> tuple[float, float]:
        """Return the prior precisions of linear weights and of factors, geometric means."""
        used = np.log(self.precision[np.unique(self.fields[self.order])])
        return float(np.exp(used[:, -1].mean())), float(np.exp(used[:, :-1].mean()))

    def _normal(self, size: int) -> NDArray[np.float64]:
        return self.generator.standard_normal(size) if self.spec.draws else np.zeros(size)

    def _gamma(self, shape: float, rate: NDArray[np.float64]) -> NDArray[np.float64]:
        draw = self.generator.standard_gamma(shape, len(rate)) if self.spec.draws else shape
        return draw / rate

    def _draw_targets(self) -> None:
        weights = self.batch.weights.astype(np.float64)
        omega = polya_gamma(weights, self._scores, self.generator)
        self._targets = weights * (self._labels - 0.5) / omega
        self._state[:, self._omega] = omega
        self._state[:, self._residual] = self._targets - self._scores

    def _draw_alpha(self) -> None:
        weight, _, square = residual_sums(self._state, self._residual)
        alpha = float(self._gamma((1 + weight) / 2, np.array([(1 + square) / 2]))[0])
        self.alpha = min(alpha, self._most_alpha)

    def _draw_bias(self) -> None:
        weight, linear, _ = residual_sums(self._state, self._residual)
        precision = self.alpha * weight + LEAST_PRECISION
        change = self.alpha * linear / precision
        change += float(self._normal(1)[0]) / math.sqrt(precision)
        self.bias += change
        shift_residuals(self._state, self._residual, np.float32(change))

    def _draw_priors(self) -> None:
        """Draw mu and lambda of each field; a field counts as 20 features at the pooled lambda."""
        values = self.table[self.order].astype(np.float64)
        sizes = np.diff(self._bounds)
        groups = np.repeat(np.arange(len(sizes)), sizes)
        pooled = self._gamma(
            (1 + len(values)) / 2, (1 + ((values - self.mu[groups]) ** 2).sum(0)) / 2
        )
        for g in np.flatnonzero(sizes):
            part, n = values[self._bounds[g] : self._bounds[g + 1]], int(sizes[g])
            spread = 1 / np.sqrt(self.precision[g] * (n + 1))
            self.mu[g] = part.sum(0) / (n + 1) + spread * self._normal(len(pooled))
            squares = ((part - self.mu[g]) ** 2).sum(0) + self.mu[g] ** 2
            self.precision[g] = self._gamma((POOLED + n + 1) / 2, (POOLED / pooled + squares) / 2)

    def draw(self) -> NDArray[np.float32]:
        """Return this draw as a table, features without an entry drawn from their prior.

        By a generator of its own: the chain goes on as if nobody had asked.
        """
        generator = np.random.default_rng([*self.spec.seed, self.n_sweeps])
        table, unseen = self.table.copy(), np.flatnonzero(~self.is_seen)
        fields = self.fields[unseen]
        spread = 1 / np.sqrt(self.precision[fields])
        table[unseen] = self.mu[fields] + spread * generator.standard_normal(spread.shape)
        return table

    def member(self, *, mean: bool) -> NDArray[np.float32]:
        """Return a table of shape (n_features, k + 1): this draw, or its conditional mean.

        Features without an entry have their field's mu.
        """
        table = (self.means if mean else self.table).copy()
        unseen = ~self.is_seen
        table[unseen] = self.mu[self.fields[unseen]]
        return table
