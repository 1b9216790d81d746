"""Every field of Hyperparameters changes the model that comes out."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from spark_fm.learner import training
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.spec import GroupHyperparameters, Hyperparameters
from spark_fm.learner.training import Parameters, TrainingProgress, new_stopping
from tests.builders import planted_batch, planted_weights, started_state, train_spec

EFFECTS: dict[str, tuple[dict[str, object], object]] = {
    # field: (what must hold for it to matter, its other value)
    "k": ({}, 2),
    "loss": ({}, "squared"),
    "optimizer": ({}, "sgd"),
    "epochs": ({}, 3),
    "seed": ({}, 8),
    "shuffle": ({}, False),
    "use_bias": ({}, False),
    "use_linear": ({}, False),
    "mini_batch_size": ({}, 4),
    "sagemaker": ({"mini_batch_size": 8}, True),
    "adagrad_init": ({}, 0.01),
    "decay_frequency_power": ({"factors.wd": 0.1}, 0.5),
    "clip_gradient": ({}, 0.05),
    "eps": ({}, 0.5),
    "rescale_grad": ({}, 0.5),
    "average_epochs": ({}, False),
}
for _group in ("bias", "linear", "factors"):
    EFFECTS |= {
        f"{_group}.lr": ({}, 0.01),
        f"{_group}.wd": ({}, 0.2),
        f"{_group}.init_method": ({f"{_group}.init_method": "uniform"}, "normal"),
        f"{_group}.init_sigma": ({f"{_group}.init_method": "normal"}, 0.7),
        f"{_group}.init_scale": ({f"{_group}.init_method": "uniform"}, 0.7),
        f"{_group}.init_value": ({f"{_group}.init_method": "constant"}, 0.7),
    }


def fit(spec: Hyperparameters, train: CsrBatch) -> Parameters:
    stopping = new_stopping(
        spec, "accuracy" if spec.loss == "logistic" else "r2", patience=0, tol=0.0
    )
    run = TrainingProgress(started_state(spec, train, 12), stopping)
    for _ in training.advance(run, train, None, spec, metric="unused without validation"):
        pass
    return run.result()


def changed(spec: Hyperparameters, changes: dict[str, object]) -> Hyperparameters:
    for path, value in changes.items():
        name, _, inner = path.partition(".")
        new = replace(getattr(spec, name), **{inner: value}) if inner else value
        spec = replace(spec, **{name: new})
    return spec


@pytest.mark.parametrize("field", EFFECTS)
def test_every_hyperparameter_has_an_effect(field: str) -> None:
    needs, value = EFFECTS[field]
    base = changed(train_spec(epochs=2), needs)
    train = planted_batch(planted_weights(12, 3, seed=5), 60, seed=1, loss="logistic")

    before, after = (fit(s, train) for s in (base, changed(base, {field: value})))

    assert not np.array_equal(before.table, after.table)
    assert np.isfinite(after.table).all()


def test_no_hyperparameter_is_missing_from_the_effects() -> None:
    groups = ("bias", "linear", "factors")
    names = {f.name for f in fields(Hyperparameters)} - set(groups)
    names |= {f"{group}.{f.name}" for group in groups for f in fields(GroupHyperparameters)}

    assert names == set(EFFECTS)
