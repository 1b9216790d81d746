"""From the members of chains to one ordinary model of k factors.

The mean of S factorization machines is one with S k factors, v / sqrt(S) each; most of it lies
in few directions where rows have few fields. ``MeanModel`` keeps 2 k of them while members come.
Elsewhere, and under logistic loss, where probabilities are averaged, ``distilled`` fits a model to
the mean scores of the members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.gibbs.chain import Chain, ChainSpec
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.predict import margins
from spark_fm.learner.spec import LossName

CROSSOVERS = 2  # made-up rows for each row that is learned from
RIDGE = 1.0  # precision of all parameters in a distillation, of targets of unit variance
MOST_CERTAIN = 1e-9  # probability beyond which a label is taken for certain
LEAST_WEIGHT = 1e-2  # of a row, relative to the mean of p (1 - p)


@dataclass(frozen=True, slots=True)
class Member:
    """One draw of a chain, or its conditional mean."""

    table: NDArray[np.float32]  # (n_features, k + 1), V before w
    bias: float


@dataclass(slots=True)
class MeanModel:
    """The mean of models, of which ``rank`` directions of the factors are kept.

    Factors count by the square root of their feature's rows, so that what is left out is
    what changes the scores of the rows least.
    """

    rank: int
    counts: NDArray[np.int64]  # (n_features,), rows that have the feature
    n: int = 0  # members
    bias: float = 0.0  # mean
    linear: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # mean, (n_features,)
    # (n_features, up to rank), factors of the mean times the root of the counts
    directions: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def add(self, member: Member) -> None:
        """Take a member in; O(n_features rank^2)."""
        factors, linear = member.table[:, :-1], member.table[:, -1].astype(np.float64)
        scaled = factors * self._roots
        self.merge(MeanModel(self.rank, self.counts, 1, member.bias, linear, scaled))

    def merge(self, other: MeanModel) -> None:
        """Take in the mean of other models; O(n_features rank^2)."""
        if not self.n:
            self.linear = np.zeros(len(other.linear))
            self.directions = np.zeros((len(other.linear), 0), np.float32)
        n = self.n + other.n
        part = other.n / n
        self.bias += part * (other.bias - self.bias)
        self.linear = self.linear + part * (other.linear - self.linear)
        both = [
            self.directions * np.float32(np.sqrt(1 - part)),
            other.directions * np.float32(np.sqrt(part)),
        ]
        self.directions = _leading(np.hstack(both), self.rank)
        self.n = n

    def model(self, k: int) -> Member:
        """Return the model of the k leading directions."""
        factors = _leading(self.directions, k) / self._roots
        table = np.zeros((len(self.counts), k + 1), np.float32)
        table[:, : factors.shape[1]] = factors
        table[:, -1] = self.linear
        return Member(table, self.bias)

    @property
    def _roots(self) -> NDArray[np.float32]:
        roots: NDArray[np.float32] = np.sqrt(np.maximum(self.counts, 1)).astype(np.float32)
        return roots[:, None]


def _leading(columns: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Return the columns turned to their principal directions, the leading ones."""
    if columns.shape[1] <= rank:
        return columns
    wide = columns.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)  # ascending
    leading: NDArray[np.float32] = (wide @ vectors[:, : -rank - 1 : -1]).astype(np.float32)
    return leading


def mean_predictions(
    members: Sequence[Member], batch: CsrBatch, loss: LossName
) -> NDArray[np.float64]:
    """Return the mean over members of each row's score; O(members nnz k)."""
    link = LOSSES[loss].link
    total = np.zeros(batch.n_rows)
    for member in members:
        total += link(margins(batch, member.table, 0.0).astype(np.float64) + member.bias)
    return total / len(members)


def distilled(
    members: Sequence[Member],
    start: Member,
    batch: CsrBatch,
    fields: NDArray[np.int32],
    loss: LossName,
    *,
    sweeps: int,
    seed: int,
    use_bias: bool = True,
) -> Member:
    """Return one model whose scores are close to the members' mean.

    Alternating least squares from ``start`` on the mean scores, under logistic loss on the
    log-odds of the mean probabilities p with the weights p (1 - p), on the rows of ``batch`` and
    twice as many crossovers of two rows.
    """
    generator = np.random.default_rng([seed, 0xD157])
    rows = _stacked([batch, *(_crossovers(batch, fields, generator) for _ in range(CROSSOVERS))])
    targets, weights = mean_predictions(members, rows, loss), rows.weights.astype(np.float64)
    if loss == "logistic":
        p = np.clip(targets, MOST_CERTAIN, 1 - MOST_CERTAIN)
        targets, variances = np.log(p / (1 - p)), p * (1 - p)
        weights = weights * np.maximum(variances / variances.mean(), LEAST_WEIGHT)
    centre = float(np.average(targets, weights=weights)) if use_bias else 0.0
    scale = max(float(np.sqrt(np.average((targets - centre) ** 2, weights=weights))), 1e-6)
    rows = replace(rows, labels=(targets - centre) / scale, weights=weights / weights.mean())
    k = start.table.shape[1] - 1
    spec = ChainSpec(
        k, "squared", (seed,), 1.0, use_bias=use_bias, draws=False, learns_priors=False
    )
    chain = Chain(rows, np.zeros(len(start.table), np.int32), spec)
    table = start.table / np.float32(np.sqrt(scale))
    table[:, -1] = start.table[:, -1] / np.float32(scale)
    chain.restart(table, (start.bias - centre) / scale, precision=RIDGE)
    for _ in range(sweeps):
        chain.sweep()
    table = chain.table * np.float32(np.sqrt(scale))
    table[:, -1] = chain.table[:, -1] * np.float32(scale)
    return Member(table, chain.bias * scale + centre)


def _crossovers(
    batch: CsrBatch, fields: NDArray[np.int32], generator: np.random.Generator
) -> CsrBatch:
    """Return rows with the first fields of one row and the last of another."""
    n = batch.n_rows
    first, second = (batch.take(generator.permutation(n)) for _ in range(2))
    if not batch.nnz:
        return first
    # The first id of a field, which is an interval.
    cuts = np.searchsorted(fields, fields[batch.indices[generator.integers(0, batch.nnz, n)]])
    parts = []
    for rows, keeps_low in ((first, True), (second, False)):
        row_of = np.repeat(np.arange(n), np.diff(rows.indptr))
        kept = (rows.indices < cuts[row_of]) == keeps_low
        parts.append((row_of[kept], rows.indices[kept], rows.values[kept]))
    row_of, indices, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(row_of, kind="stable")  # the lower ids of a row come first already
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=n))])
    return CsrBatch.from_arrays(indptr, indices[order], values[order], weights=first.weights)


def _stacked(batches: Sequence[CsrBatch]) -> CsrBatch:
    lengths = np.concatenate([np.diff(batch.indptr) for batch in batches])
    return CsrBatch.from_arrays(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([batch.indices for batch in batches]),
        np.concatenate([batch.values for batch in batches]),
        weights=np.concatenate([batch.weights for batch in batches]),
    )
