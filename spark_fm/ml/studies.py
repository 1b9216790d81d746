"""Optuna's studies into and out of a search; Optuna is imported on use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from spark_fm.errors import InvalidParamError
from spark_fm.ml.search_space import Choices, Dimension, SearchSpace
from spark_fm.ml.trials import COMPLETE, PRUNED, Trial, UnitPoint


def imported_optuna() -> Any:
    """Return the module; ImportError says what to install."""
    try:
        import optuna
    except ImportError as err:
        raise ImportError("This needs Optuna: pip install 'spark-fm[tune]'.") from err
    return optuna


class StudySampler:
    """Proposes what a study's own sampler does, and tells the study how the trials went."""

    def __init__(self, study: Any, metric: str, *, larger_is_better: bool) -> None:
        optuna = imported_optuna()
        if not isinstance(study, optuna.Study):
            raise InvalidParamError(
                f"study is a {type(study).__name__}; expected an optuna.Study, as "
                "optuna.create_study returns."
            )
        direction = "maximize" if larger_is_better else "minimize"
        given = [each.name.lower() for each in study.directions]
        if given != [direction]:
            raise InvalidParamError(
                f"The study's direction is {', '.join(given)}, but of {metric} "
                f"{'larger' if larger_is_better else 'smaller'} values are better. Create it with "
                f"direction={direction!r}, or set another validationMetric."
            )
        self._study = study
        self._asked: dict[int, Any] = {}

    def points(self, space: SearchSpace, numbers: Sequence[int]) -> list[UnitPoint]:
        """Ask for trials; number 0, the estimator as given, is not asked for."""
        points = []
        for number in numbers:
            point = dict.fromkeys(space.dimensions, 0.5)  # of those without an effect
            if number:
                self._asked[number] = trial = self._study.ask()
                point |= space.unit_point(_suggested(space, trial))
            points.append(point)
        return points

    def check_space(self, space: SearchSpace) -> None:
        """Raise InvalidParamError where the study's trials have other kinds of values."""
        optuna = imported_optuna()
        known: dict[str, Any] = {}
        for trial in self._study.get_trials(deepcopy=False):
            known |= trial.distributions
        for name, dimension in space.dimensions.items():
            now = _kind(optuna, dimension)
            before = known.get(name, now)
            try:
                optuna.distributions.check_distribution_compatibility(before, now)
            except ValueError as err:
                raise InvalidParamError(
                    f"The study's trials draw {name} from {before}, which cannot become {now}: "
                    "Optuna keeps the choices of a Param, and whether its range is of whole "
                    f"numbers or logarithmic. Give space={{{name!r}: ...}} as before, or a new one."
                ) from err

    def tell(self, space: SearchSpace, trials: Sequence[Trial]) -> None:
        """Tell the study of trials that have ended."""
        for trial in trials:
            asked = self._asked.get(trial.number)
            if asked is None:
                self._study.add_trial(_frozen(space, trial))
                continue
            for epoch, value in _finite(trial).items():
                asked.report(value, epoch)
            for name, attribute in _attributes(trial).items():
                asked.set_user_attr(name, attribute)
            state = _state(trial)
            values = trial.value if state.name == "COMPLETE" else None
            self._study.tell(asked, values, state=state)
            del self._asked[trial.number]

    def tell_unknown(self, space: SearchSpace, trials: Sequence[Trial]) -> None:
        """Tell of those saved trials that the study lacks: a process may end before it tells."""
        told = [trial.user_attrs for trial in self._study.get_trials(deepcopy=False)]
        self.tell(space, [trial for trial in trials if _attributes(trial) not in told])

    def give_up(self) -> None:
        """Tell the study that the trials still open have failed."""
        failed = imported_optuna().trial.TrialState.FAIL
        while self._asked:
            _, asked = self._asked.popitem()
            self._study.tell(asked, state=failed, skip_if_finished=True)


def study_of(space: SearchSpace, trials: Sequence[Trial]) -> Any:
    """Return a study in memory with these trials."""
    direction = "maximize" if trials[0].larger_is_better else "minimize"
    study = imported_optuna().create_study(direction=direction)
    for trial in trials:
        study.add_trial(_frozen(space, trial))
    return study


def _suggested(space: SearchSpace, trial: Any) -> dict[str, Any]:
    """Return the values that an open trial of Optuna's has for the Params with an effect."""
    values: dict[str, Any] = {}
    for name in space.independent_first():
        if not space.matters(name, values):
            continue
        dimension = space.scaled(name, values)
        if isinstance(dimension, Choices):
            values[name] = trial.suggest_categorical(name, dimension.values)
        else:
            suggest = trial.suggest_int if dimension.whole else trial.suggest_float
            kind = int if dimension.whole else float
            low, high = kind(dimension.low), kind(dimension.high)
            values[name] = suggest(name, low, high, log=dimension.log)
    return values


def _frozen(space: SearchSpace, trial: Trial) -> Any:
    """Return a trial that has ended, in Optuna's terms, in the units of the Params."""
    optuna = imported_optuna()
    params, distributions = {}, {}
    for name, value in trial.params.items():
        distribution = _distribution(optuna, space.scaled(name, trial.params), value)
        if distribution is not None:
            params[name], distributions[name] = value, distribution
    state = _state(trial)
    return optuna.trial.create_trial(
        state=state,
        value=trial.value if state.name == "COMPLETE" else None,
        params=params,
        distributions=distributions,
        intermediate_values=_finite(trial),
        user_attrs=_attributes(trial),
    )


def _finite(trial: Trial) -> dict[int, float]:
    """Return the curve by epoch without what samplers, pruners and databases cannot take."""
    return {epoch: value for epoch, value in enumerate(trial.curve) if math.isfinite(value)}


def _attributes(trial: Trial) -> dict[str, Any]:
    """Return the user attributes by which a study's trial is known again."""
    return {"params": trial.params, "state": trial.state}


def _kind(optuna: Any, dimension: Dimension) -> Any:
    """Return what values are drawn from, in the dimension's own unit."""
    value = dimension.values[0] if isinstance(dimension, Choices) else dimension.low
    return _distribution(optuna, dimension, value)


def _distribution(optuna: Any, dimension: Dimension, value: Any) -> Any:
    """Return what a value was drawn from, if the estimator's own value can have been.

    Optuna knows the choices alone, and no logarithm of 0. Ranges are widened to the value:
    rounding may have moved it, too.
    """
    if isinstance(dimension, Choices):
        is_known = value in dimension.values
        return optuna.distributions.CategoricalDistribution(dimension.values) if is_known else None
    if dimension.log and value <= 0:
        return None
    low, high = min(dimension.low, value), max(dimension.high, value)
    if dimension.whole:
        return optuna.distributions.IntDistribution(int(low), int(high), dimension.log)
    return optuna.distributions.FloatDistribution(low, high, dimension.log)


def _state(trial: Trial) -> Any:
    states = imported_optuna().trial.TrialState
    if trial.state == PRUNED:
        return states.PRUNED
    is_complete = trial.state == COMPLETE and math.isfinite(trial.value)
    return states.COMPLETE if is_complete else states.FAIL
