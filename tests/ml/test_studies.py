"""Optuna's studies propose the trials of a search, are told their results, and come out of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame

from spark_fm import tune
from spark_fm.errors import InvalidParamError
from spark_fm.ml.search_space import USUAL, SearchSpace
from spark_fm.ml.studies import StudySampler, study_of
from spark_fm.ml.trials import COMPLETE, DIVERGED, PRUNED, Trial, TrialsFile
from spark_fm.ml.tuning import Search
from tests.ml.builders import K, fast_fm

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

VALUES = {
    "optimizer": "adagrad", "useBias": True, "useLinear": True, "predictorType": "regressor",
    "biasInitMethod": "normal", "linearInitMethod": "normal", "factorsInitMethod": "normal",
}  # fmt: skip
SPACE = SearchSpace.around(VALUES, overrides=USUAL)


def ended(number: int, params: dict[str, Any], state: str = COMPLETE) -> Trial:
    return Trial(
        number=number, params=params, places={}, state=state, larger_is_better=False,
        curve=[] if state == DIVERGED else [0.5, 0.4, 0.45], metrics={}, seconds=1.0,
    )  # fmt: skip


def test_every_kind_of_param_is_proposed_and_told_as_it_is_trained() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    sampler = StudySampler(study, "logloss", larger_is_better=False)
    for number in range(1, 60):
        [point] = sampler.points(SPACE, [number])
        params = SPACE.params(point)
        sampler.tell(SPACE, [ended(number, params)])

        told = study.trials[-1]
        assert set(told.params) == set(params)
        for name, value in told.params.items():
            if isinstance(value, float):
                assert params[name] == pytest.approx(value, rel=1e-5)
            else:
                assert params[name] == value
    assert {name for trial in study.trials for name in trial.params} == set(SPACE.dimensions)


def test_states_and_curves_reach_the_study() -> None:
    params = {"optimizer": "adam", "factorsLr": 0.01}
    states = (COMPLETE, PRUNED, DIVERGED)
    study = study_of(SPACE, [ended(n, params, state) for n, state in enumerate(states)])

    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert study.best_value == 0.4
    assert study.trials[1].intermediate_values == {0: 0.5, 1: 0.4, 2: 0.45}


def test_values_of_the_estimator_beyond_the_space_are_kept_aside_or_widen_it() -> None:
    params = {"optimizer": "sgd", "numFactors": 3, "factorsWd": 0.0, "factorsLr": 99.0}
    [trial] = study_of(SPACE, [ended(0, params)]).trials

    assert trial.params == {"optimizer": "sgd", "factorsLr": 99.0}
    assert trial.user_attrs["params"] == params


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            optuna.create_study(direction="maximize"),
            "direction is maximize, but of logloss smaller",
        ),
        (optuna.create_study(directions=["minimize"] * 2), "direction is minimize, minimize"),
        ("study.db", "study is a str; expected an optuna.Study"),
    ],
)
def test_a_study_of_another_aim_is_refused_before_any_job(
    study: object, message: str, train: DataFrame
) -> None:
    with pytest.raises(InvalidParamError, match=message):
        tune(fast_fm(validationFraction=0.2), train, study=study)


def test_a_search_asks_a_study_tells_it_and_goes_on_from_it(train: DataFrame) -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=2))
    fm = fast_fm(validationFraction=0.2, solver="sgd")
    space = {"factorsLr": (0.01, 0.5, "log"), "numFactors": [K]}

    found = tune(fm, train, trials=4, parallel=2, space=space, study=study)
    again = tune(fm, train, trials=2, parallel=2, space=space, study=study)

    assert len(study.trials) == 6
    told = sorted((trial.params["factorsLr"], trial.value) for trial in study.trials)
    trained = sorted((t.params["factorsLr"], t.value) for t in found.trials + again.trials)
    assert np.array(told) == pytest.approx(np.array(trained), rel=1e-5)
    assert study.best_value == min(found.best.value, again.best.value)
    out = found.to_optuna()
    assert out.best_value == found.best.value
    assert out.best_trial.number == found.best.number
    assert math.isfinite(sum(trial.value for trial in out.trials))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("place", ["train", "append"])
def test_an_interrupted_round_leaves_no_trial_open_and_a_resumed_search_tells_the_saved_ones(
    error: type[BaseException], place: str, train: DataFrame, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    fm = fast_fm(validationFraction=0.2, solver="sgd")
    options = {"parallel": 2, "space": {"factorsLr": (0.01, 0.5, "log")}, "folder": tmp_path}
    tune(fm, train, trials=2, study=study, **options)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise error("stopped")

        where = Search if place == "train" else TrialsFile
        patch.setattr(where, "_train" if place == "train" else "append", fail)
        with pytest.raises(error, match="stopped"):
            tune(fm, train, trials=4, study=study, **options)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2 + ["FAIL"] * 2

    tune(fm, train, trials=2, study=study, **options)
    assert len(study.trials) == 4
    lost = optuna.create_study()
    found = tune(fm, train, trials=2, study=lost, **options)
    assert [t.value for t in lost.trials] == [t.value for t in found.trials]


@pytest.mark.parametrize(
    ("distribution", "space"),
    [
        (optuna.distributions.CategoricalDistribution((2, 4)), {"numFactors": [2, 8]}),
        (optuna.distributions.CategoricalDistribution((2, 4)), {"numFactors": (2, 8)}),
        (optuna.distributions.FloatDistribution(1, 8), {"numFactors": (2, 8)}),
        (optuna.distributions.IntDistribution(1, 8), {"numFactors": (2, 8, "log")}),
    ],
)
def test_a_study_of_other_values_of_a_param_is_refused_before_any_job(
    distribution: Any, space: dict[str, Any], train: DataFrame
) -> None:
    study = optuna.create_study()
    study.add_trial(
        optuna.trial.create_trial(
            params={"numFactors": 2}, distributions={"numFactors": distribution}, value=0.5
        )
    )
    with pytest.raises(InvalidParamError, match="study's trials draw numFactors from"):
        tune(fast_fm(validationFraction=0.2, solver="sgd"), train, space=space, study=study)
    assert len(study.trials) == 1


def test_a_value_that_is_not_finite_does_not_reach_a_study() -> None:
    study = optuna.create_study()
    sampler = StudySampler(study, "logloss", larger_is_better=False)
    for number, bad in enumerate((math.nan, math.inf, -math.inf), 1):
        [point] = sampler.points(SPACE, [number])
        sampler.tell(SPACE, [replace(ended(number, SPACE.params(point)), curve=[0.5, bad])])

        assert study.trials[-1].intermediate_values == {0: 0.5}
