"""What a user should know about a finished training; driver only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spark_fm.learner.spec import Hyperparameters
from spark_fm.learner.training import EpochRecord


@dataclass(frozen=True, slots=True)
class LinearPart:
    """How a model does on the held-out rows without its factors."""

    loss: float
    metric: str  # that decides, with its value without and with the factors
    value: float
    full: float
    is_better: bool


def divergence_notes(records: list[EpochRecord]) -> list[str]:
    """Return what the user should know about epochs that diverged."""
    return [
        f"Epoch {record.epoch} diverged {record.n_rejected} time(s) and was rolled back; training "
        f"continued at {record.step_scale:g} of the learning rates. Leave standardization on, or "
        "scale the features; or lower the learning rates."
        for record in records
        if record.n_rejected
    ]


def validation_notes(
    history: list[dict[str, Any]],
    *,
    best_epoch: int,
    constant_loss: float | None,
    linear: LinearPart | None,
    spec: Hyperparameters,
    n_rows: int,
    n_features: int,
) -> list[str]:
    """Return what held-out rows say against a model of this history, and what to do."""
    losses = [row["validationLoss"] for row in history if "validationLoss" in row]
    if not losses or constant_loss is None:
        return []
    rates = ", ".join(f"{g}Lr={getattr(spec, g).lr:g}" for g in ("bias", "linear", "factors"))
    advice = (
        f"raise factorsWd (now {spec.factors.wd:g}) and linearWd (now {spec.linear.wd:g}), lower "
        f"numFactors (now {spec.k}) or the learning rates ({rates}), or merge rare features"
    )
    texts = []
    reached = min(losses)
    if linear is not None and linear.is_better:
        reached = linear.loss
        texts.append(
            f"The factors do not pay: {linear.metric} of the held-out rows is {linear.full:.6g} "
            f"with them, and {linear.value:.6g} by the linear weights alone, which were kept. For "
            f"factors that do, {advice}, or train on more rows."
        )
    if reached >= constant_loss:
        reasons = ["the labels do not depend on the features"]
        if n_features > n_rows / 10:
            reasons.append(f"{n_rows} rows are few for {n_features} features: {advice}")
        else:
            reasons.append(f"the learning rates do not suit ({rates}): leave them unset")
        reasons.append("the held-out rows are of another kind than the others")
        text = (
            f"The model is no better than a constant on the held-out rows: loss {reached:.6g}, "
            f"that of the constant {constant_loss:.6g}. Likely reasons: {'; or '.join(reasons)}."
        )
        return [*texts, text]
    if not texts and best_epoch == 0 and len(history) > 1:
        text = (
            f"The first of {len(history)} epochs was the best: later ones learned the training "
            f"rows by heart. To gain from more epochs, {advice}."
        )
        texts.append(text)
    return texts


def sampling_notes(
    history: list[dict[str, Any]], *, constant_loss: float | None, **_: object
) -> list[str]:
    """Return what held-out rows say against a model of Gibbs sampling, and what to do."""
    losses = [row["validationLoss"] for row in history if "validationLoss" in row]
    if not losses or constant_loss is None or losses[-1] < constant_loss:
        return []
    text = (
        f"The model is no better than a constant on the held-out rows: loss {losses[-1]:.6g}, that "
        f"of the constant {constant_loss:.6g}. Likely reasons: the labels do not depend on the "
        'features; the rows are dense or of many columns, for which solver="sgd" is better; the '
        "held-out rows are of another kind than the others."
    )
    return [text]
