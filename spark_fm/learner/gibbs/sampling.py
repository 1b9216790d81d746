"""Run one chain to its end: what it adds to the posterior, and how its mean did on the way."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.gibbs.chain import Chain, ChainSpec
from spark_fm.learner.gibbs.fields import fields_of
from spark_fm.learner.gibbs.posterior import MeanModel, Member
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.metrics import MetricSums, loss_sum, metric_sums
from spark_fm.learner.predict import margins
from spark_fm.learner.training import EpochRecord

BURN_IN = 0.4  # of the sweeps, whose draws still depend on where the chain began
SPREAD = 0.065  # k E[pairs a row] sigma^4 of the first factors
FEW_FIELDS = 3  # of which the leading directions of the mean model are enough
WIDE = 0.3  # their other standard deviation, which suits data with strong pairs


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """How long a chain is, and what is kept of it."""

    spec: ChainSpec
    sweeps: int
    most_members: int  # that are kept one by one, for a distillation
    most_draws: int  # that are kept of the posterior
    label_scale: float  # units of the labels, for losses

    @property
    def burn_in(self) -> int:
        """Sweeps whose draws are left out."""
        return min(int(BURN_IN * self.sweeps), self.sweeps - 1)


@dataclass(slots=True)
class ChainResult:
    """What a chain leaves."""

    mean: MeanModel
    members: list[Member] = field(default_factory=list)
    draws: list[Member] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)  # its standard deviation with each draw
    records: list[EpochRecord] = field(default_factory=list)  # one a sweep

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return plain data and arrays for ``from_arrays``."""
        arrays: dict[str, NDArray[Any]] = {
            "linear": self.mean.linear, "directions": self.mean.directions,
            "counts": self.mean.counts,
        }  # fmt: skip
        arrays |= {f"member{i}": member.table for i, member in enumerate(self.members)}
        arrays |= {f"draw{i}": draw.table for i, draw in enumerate(self.draws)}
        metadata = {
            "rank": self.mean.rank, "n": self.mean.n, "bias": self.mean.bias,
            "biases": [member.bias for member in self.members],
            "draws": [draw.bias for draw in self.draws], "noise": self.noise,
            "records": [record.to_dict() for record in self.records],
        }  # fmt: skip
        return metadata, arrays

    @classmethod
    def from_arrays(cls, metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ChainResult:
        """Rebuild the result."""
        mean = MeanModel(
            metadata["rank"], arrays["counts"], metadata["n"], metadata["bias"],
            arrays["linear"], arrays["directions"],
        )  # fmt: skip
        members = [Member(arrays[f"member{i}"], bias) for i, bias in enumerate(metadata["biases"])]
        draws = [Member(arrays[f"draw{i}"], bias) for i, bias in enumerate(metadata["draws"])]
        records = [EpochRecord.from_dict(each) for each in metadata["records"]]
        return cls(mean, members, draws, metadata["noise"], records)


def first_sigma(batch: CsrBatch, k: int) -> float:
    """Return the standard deviation of first factors that leaves the pairs of a row small."""
    lengths = np.diff(batch.indptr).astype(np.float64)
    pairs = float((lengths * (lengths - 1) / 2).mean()) if len(lengths) else 0.0
    return float(min(WIDE, (SPREAD / (k * max(pairs, 1.0))) ** 0.25))


def run_chain(
    train: CsrBatch, validation: CsrBatch | None, n_features: int, plan: ChainPlan
) -> ChainResult:
    """Sweep, and keep what comes after the burn-in.

    Members are conditional means under squared loss, whose mean is less noisy than that of the
    draws, and draws under logistic loss, where probabilities are averaged. A record's
    validation is of the mean over the members so far.
    """
    spec, squared = plan.spec, plan.spec.loss == "squared"
    fields = fields_of(train, n_features)
    chain = Chain(train, fields, spec)
    counts = np.bincount(train.indices, minlength=n_features)
    result = ChainResult(MeanModel(2 * spec.k, counts))
    keeps = not squared or fields.max(initial=0) >= FEW_FIELDS or not fields.any()
    kept, drawn = (
        np.linspace(plan.burn_in, plan.sweeps - 1, count).astype(int)
        for count in (plan.most_members if keeps else 0, plan.most_draws)
    )
    total = np.zeros(0 if validation is None else validation.n_rows)
    for sweep in range(plan.sweeps):
        clock = time.perf_counter()
        chain.sweep()
        member = Member(chain.member(mean=squared), chain.bias)
        n_averaged = max(1, sweep - plan.burn_in + 1)
        if sweep >= plan.burn_in:
            result.mean.add(member)
            if sweep in kept:
                result.members.append(member)
            if sweep in drawn:
                result.draws.append(Member(chain.draw(), chain.bias))
                result.noise.append(1 / math.sqrt(chain.alpha) if squared else 0.0)
        trained = time.perf_counter()
        sums = None
        if validation is not None:
            scores = margins(validation, member.table, 0.0).astype(np.float64) + member.bias
            total = (total if n_averaged > 1 else 0.0) + LOSSES[spec.loss].link(scores)
            sums = _validated(total / n_averaged, validation, plan)
        record = EpochRecord(
            epoch=sweep, train_loss=_train_loss(chain, plan), validation=sums,
            train_seconds=trained - clock, validate_seconds=time.perf_counter() - trained,
            compile_seconds=0.0, step_scale=1.0, n_rejected=0,
        )  # fmt: skip
        result.records.append(record)
    return result


def _validated(predicted: NDArray[np.float64], rows: CsrBatch, plan: ChainPlan) -> MetricSums:
    """Return the metric sums of mean predictions: probabilities, or values."""
    loss, scale = plan.spec.loss, plan.label_scale
    if loss == "squared":
        return metric_sums(loss, predicted * scale, rows.labels * scale, rows.weights)
    p = np.clip(predicted, 1e-12, 1 - 1e-12)
    return metric_sums(loss, np.log(p / (1 - p)), rows.labels, rows.weights)


def _train_loss(chain: Chain, plan: ChainPlan) -> float:
    """Return the mean loss of the training rows under the last draw."""
    weights = chain.batch.weights
    loss = loss_sum(plan.spec.loss, chain.scores(), chain.batch.labels, weights)
    scale = plan.label_scale ** LOSSES[plan.spec.loss].label_power
    return float(loss / max(float(weights.sum()), 1e-300) * scale)
