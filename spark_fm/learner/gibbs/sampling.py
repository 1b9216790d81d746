"""Run one chain: what it adds to the posterior, and how its mean did on the way."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.gibbs.chain import Chain, ChainSpec, ChainState
from spark_fm.learner.gibbs.fields import fields_of
from spark_fm.learner.gibbs.posterior import MeanModel, Member
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.metrics import MetricSums, loss_sum, metric_sums, validation_metrics
from spark_fm.learner.predict import margins
from spark_fm.learner.training import EarlyStopping, EpochRecord

BURN_IN = 0.4  # of the sweeps, whose draws still depend on where the chain began
SPREAD = 0.065  # k E[pairs a row] sigma^4 of the first factors
FEW_FIELDS = 3  # of which the leading directions of the mean model are enough
WIDE = 0.3  # their other standard deviation, which suits data with strong pairs
FEWEST_LEFT = 10  # sweeps, for which a chain that could pause goes on to its end


@dataclass(frozen=True, slots=True)
class ChainPlan:
    """How long a chain is, and what is kept of it."""

    spec: ChainSpec
    sweeps: int  # at most
    most_members: int  # that are kept one by one, for a distillation
    most_draws: int  # that are kept of the posterior
    label_scale: float  # units of the labels, for losses
    metric: str  # the validation metric that ends a chain early
    patience: int  # sweeps without improvement of it before a chain ends; 0 never ends one
    tol: float  # relative improvement that counts

    @property
    def burn_in(self) -> int:
        """Sweeps whose draws are left out."""
        return min(int(BURN_IN * self.sweeps), self.sweeps - 1)


@dataclass(slots=True)
class ChainProgress:
    """What a chain has left so far, and what it goes on from."""

    sigma: float  # standard deviation of its first factors
    stopping: EarlyStopping  # by the validation metric of the mean, from the burn-in on
    mean: MeanModel
    members: list[Member] = field(default_factory=list)
    draws: list[Member] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)  # its standard deviation with each draw
    records: list[EpochRecord] = field(default_factory=list)  # one a sweep
    # Sums of the predictions of the validation rows, which the mean's are made of.
    predicted: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    state: ChainState | None = None  # of a chain that goes on; None before its first sweep
    finished: bool = False

    @classmethod
    def start(
        cls, plan: ChainPlan, train: CsrBatch, n_features: int, *, sigma: float
    ) -> ChainProgress:
        """Return that of a chain before its first sweep."""
        is_larger_better = validation_metrics(plan.spec.loss)[plan.metric].larger_is_better
        counts = np.bincount(train.indices, minlength=n_features)
        stopping = EarlyStopping(is_larger_better, plan.patience, plan.tol)
        return cls(sigma, stopping, MeanModel(2 * plan.spec.k, counts))

    def record(self, sweep: int) -> EpochRecord:
        """Return the record of a sweep; if the chain has ended before, its last one."""
        if sweep < len(self.records):
            return self.records[sweep]
        return replace(self.records[-1], epoch=sweep, train_seconds=0.0, validate_seconds=0.0)

    def without_kept(self) -> ChainProgress:
        """Return what the chain needs to go on."""
        return replace(self, members=[], draws=[], noise=[], records=[])

    def after(self, before: ChainProgress) -> ChainProgress:
        """Return this progress, made from ``before.without_kept()``, with what that had kept."""
        kept = {
            name: getattr(before, name) + getattr(self, name)
            for name in ("members", "draws", "noise", "records")
        }
        return replace(self, **kept)

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return plain data and arrays for ``from_arrays``."""
        arrays: dict[str, NDArray[Any]] = {
            "linear": self.mean.linear, "directions": self.mean.directions,
            "counts": self.mean.counts, "predicted": self.predicted,
        }  # fmt: skip
        arrays |= {f"member{i}": member.table for i, member in enumerate(self.members)}
        arrays |= {f"draw{i}": draw.table for i, draw in enumerate(self.draws)}
        state = None
        if self.state is not None:
            state = {each.name: getattr(self.state, each.name) for each in fields(self.state)}
            arrays |= {name: state.pop(name) for name in ("table", "mu", "precision")}
        metadata = {
            "rank": self.mean.rank, "n": self.mean.n, "bias": self.mean.bias,
            "biases": [member.bias for member in self.members],
            "draws": [draw.bias for draw in self.draws], "noise": self.noise,
            "records": [record.to_dict() for record in self.records],
            "sigma": self.sigma, "stopping": asdict(self.stopping), "state": state,
            "finished": self.finished,
        }  # fmt: skip
        return metadata, arrays

    @classmethod
    def from_arrays(
        cls, metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]
    ) -> ChainProgress:
        """Rebuild the progress."""
        mean = MeanModel(
            metadata["rank"], arrays["counts"], metadata["n"], metadata["bias"],
            arrays["linear"], arrays["directions"],
        )  # fmt: skip
        members = [Member(arrays[f"member{i}"], bias) for i, bias in enumerate(metadata["biases"])]
        draws = [Member(arrays[f"draw{i}"], bias) for i, bias in enumerate(metadata["draws"])]
        records = [EpochRecord.from_dict(each) for each in metadata["records"]]
        state = metadata["state"]
        if state is not None:
            state = ChainState(arrays["table"], arrays["mu"], arrays["precision"], **state)
        return cls(
            metadata["sigma"], EarlyStopping(**metadata["stopping"]), mean, members, draws,
            metadata["noise"], records, arrays["predicted"], state, metadata["finished"],
        )  # fmt: skip


def first_sigma(batch: CsrBatch, k: int) -> float:
    """Return the standard deviation of first factors that leaves the pairs of a row small."""
    lengths = np.diff(batch.indptr).astype(np.float64)
    pairs = float((lengths * (lengths - 1) / 2).mean()) if len(lengths) else 0.0
    return float(min(WIDE, (SPREAD / (k * max(pairs, 1.0))) ** 0.25))


def advance_chain(
    progress: ChainProgress,
    train: CsrBatch,
    validation: CsrBatch | None,
    plan: ChainPlan,
    *,
    seconds: float = math.inf,
) -> None:
    """Sweep in place to the end, or on for about ``seconds``; keep what comes after the burn-in.

    Members are conditional means under squared loss, whose mean is less noisy than that of the
    draws, and draws under logistic loss, where probabilities are averaged. A record's
    validation is of the mean over the members so far. Where a chain pauses changes no bit of it.
    """
    started = time.perf_counter()
    spec, squared = plan.spec, plan.spec.loss == "squared"
    groups = fields_of(train, len(progress.mean.counts))
    chain = Chain(train, groups, replace(spec, init_sigma=progress.sigma))
    if progress.state is not None:
        chain.resume(progress.state)
    keeps = not squared or groups.max(initial=0) >= FEW_FIELDS or not groups.any()
    kept, drawn = (
        np.linspace(plan.burn_in, plan.sweeps - 1, count).astype(int)
        for count in (plan.most_members if keeps else 0, plan.most_draws)
    )
    first = chain.n_sweeps
    for sweep in range(first, plan.sweeps):
        clock = time.perf_counter()
        may_pause = sweep > first and chain.may_pause and plan.sweeps - sweep >= FEWEST_LEFT
        if may_pause and clock - started > seconds:
            progress.state = chain.state
            return
        chain.sweep()
        member = Member(chain.member(mean=squared), chain.bias)
        n_averaged = max(1, sweep - plan.burn_in + 1)
        if sweep >= plan.burn_in:
            progress.mean.add(member)
            if sweep in kept:
                progress.members.append(member)
            if sweep in drawn:
                progress.draws.append(Member(chain.draw(), chain.bias))
                progress.noise.append(1 / math.sqrt(chain.alpha) if squared else 0.0)
        trained = time.perf_counter()
        sums, sampled = None, _precisions(chain, plan)
        if validation is not None:
            scores = _scores(member, validation)
            before = progress.predicted if n_averaged > 1 else 0.0
            progress.predicted = before + LOSSES[spec.loss].link(scores)
            sums = _validated(progress.predicted / n_averaged, validation, plan)
            if squared:
                scores = _scores(Member(chain.member(mean=False), chain.bias), validation)
            sampled = {"validationSampleLoss": _mean_loss(scores, validation, plan), **sampled}
        record = EpochRecord(
            epoch=sweep, train_loss=_mean_loss(chain.scores(), train, plan), validation=sums,
            train_seconds=trained - clock, validate_seconds=time.perf_counter() - trained,
            compile_seconds=0.0, step_scale=1.0, n_rejected=0, sampled=sampled,
        )  # fmt: skip
        progress.records.append(record)
        if sums is not None and sweep >= plan.burn_in:
            progress.stopping.observe(sweep, sums.values(spec.loss)[plan.metric])
            if progress.stopping.should_stop:
                break
    progress.finished, progress.state = True, None


def _scores(member: Member, rows: CsrBatch) -> NDArray[np.float64]:
    return margins(rows, member.table, 0.0).astype(np.float64) + member.bias


def _precisions(chain: Chain, plan: ChainPlan) -> dict[str, float]:
    """Return the noise, and the precisions of the priors, in units of the labels."""
    scale, squared = plan.label_scale, plan.spec.loss == "squared"
    linear, factors = chain.prior_precisions()
    precisions = {"linearPrecision": linear / scale**2, "factorsPrecision": factors / scale}
    return {"noise": scale / math.sqrt(chain.alpha), **precisions} if squared else precisions


def _validated(predicted: NDArray[np.float64], rows: CsrBatch, plan: ChainPlan) -> MetricSums:
    """Return the metric sums of mean predictions: probabilities, or values."""
    loss, scale = plan.spec.loss, plan.label_scale
    if loss == "squared":
        return metric_sums(loss, predicted * scale, rows.labels * scale, rows.weights)
    p = np.clip(predicted, 1e-12, 1 - 1e-12)
    return metric_sums(loss, np.log(p / (1 - p)), rows.labels, rows.weights)


def _mean_loss(scores: NDArray[np.float64], rows: CsrBatch, plan: ChainPlan) -> float:
    """Return the mean loss of rows in the units of their labels."""
    loss = loss_sum(plan.spec.loss, scores, rows.labels, rows.weights)
    scale = plan.label_scale ** LOSSES[plan.spec.loss].label_power
    return float(loss / max(float(rows.weights.sum()), 1e-300) * scale)
