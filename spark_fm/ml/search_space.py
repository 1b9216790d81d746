"""The space of a search: ranges, choices and samplers; driver only.

Samplers propose points of the unit cube, one coordinate per Param searched.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from spark_fm.errors import InvalidParamError
from spark_fm.learner.optimizers import OPTIMIZERS
from spark_fm.ml.trials import COMPLETE, Trial, UnitPoint


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False  # draw the logarithm evenly (low > 0)
    whole: bool = False  # round to whole numbers
    relative: bool = False  # in units of the optimizer's default learning rate

    def from_unit(self, unit: float) -> int | float:
        """Return the value at a coordinate from 0 to 1."""
        low, high = self._ends
        value = low * (high / low) ** unit if self.log else low + (high - low) * unit
        value = min(max(round(value) if self.whole else value, self.low), self.high)
        return int(value) if self.whole else value

    def to_unit(self, value: float) -> float:
        """Return the coordinate of a value; outside the range, that of the nearest end."""
        value = min(max(value, self.low), self.high)
        low, high = self._ends
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    @property
    def _ends(self) -> tuple[float, float]:
        # A whole number gets the interval from half below to half above it.
        half = 0.5 if self.whole else 0.0
        return self.low - half, self.high + half


@dataclass(frozen=True, slots=True)
class Choices:
    """One of at least one value."""

    values: tuple[Any, ...]

    def from_unit(self, unit: float) -> Any:
        """Return the value at a coordinate from 0 to 1."""
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def to_unit(self, value: Any) -> float:
        """Return the middle of a value's interval; raise ValueError for one that is no choice."""
        return (self.values.index(value) + 0.5) / len(self.values)

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers in rising order."""
        numbers = [v for v in self.values if isinstance(v, (int, float)) and v is not True]
        return len(numbers) == len(self.values) and sorted(numbers) == numbers


Dimension = Range | Choices

_LR = Range(1 / 8, 4.0, log=True, relative=True)
_SIGMA = Range(1e-3, 0.1, log=True)
_METHODS = Choices(("constant", "normal", "uniform"))

# Searched unless they are set; docs/tuning.md gives the reasons.
SEARCHED: dict[str, Dimension] = {
    "optimizer": Choices(tuple(sorted(OPTIMIZERS))),
    "numFactors": Choices((4, 8, 16, 32, 64)),
    "biasLr": _LR,
    "linearLr": _LR,
    "factorsLr": _LR,
    "linearWd": Range(2e-4, 0.1, log=True),
    "factorsWd": Range(5e-4, 0.2, log=True),
    "decayFrequencyPower": Range(0.0, 0.8),
    "factorsInitSigma": Range(0.005, 0.5, log=True),
    "factorsInitScale": Range(0.005, 0.5, log=True),
    "adagradInit": Range(0.1, 10.0, log=True),
}
# Searched only on request: they change little, or are seldom worth changing.
ON_REQUEST: dict[str, Dimension] = {
    "miniBatchSize": Range(1, 256, log=True, whole=True),
    "biasWd": Range(1e-6, 1e-2, log=True),
    "clipGradient": Range(0.1, 100.0, log=True),
    "eps": Range(1e-10, 1e-4, log=True),
    "rescaleGrad": Range(1e-3, 1.0, log=True),
    "useBias": Choices((True, False)),
    "useLinear": Choices((True, False)),
    "averageEpochs": Choices((True, False)),
    "standardization": Choices((True, False)),
    "standardizeLabel": Choices((True, False)),
    "biasInitMethod": _METHODS,
    "biasInitSigma": _SIGMA,
    "biasInitScale": _SIGMA,
    "biasInitValue": Range(-1.0, 1.0),
    "linearInitMethod": _METHODS,
    "linearInitSigma": _SIGMA,
    "linearInitScale": _SIGMA,
    "linearInitValue": Range(-0.1, 0.1),
    "factorsInitMethod": Choices(("normal", "uniform")),
    "factorsInitValue": Range(1e-3, 0.1, log=True),
}
USUAL = {**SEARCHED, **ON_REQUEST}
_WHOLE = {"numFactors", "miniBatchSize"}

# A Param has an effect only where another one has this value.
_CONDITIONS: dict[str, tuple[str, Any]] = {
    "adagradInit": ("optimizer", "adagrad"),
    "biasLr": ("useBias", True),
    "biasWd": ("useBias", True),
    "linearLr": ("useLinear", True),
    "linearWd": ("useLinear", True),
    "standardizeLabel": ("predictorType", "regressor"),
} | {
    f"{group}Init{kind}": (f"{group}InitMethod", method)
    for group in ("bias", "linear", "factors")
    for kind, method in (("Sigma", "normal"), ("Scale", "uniform"), ("Value", "constant"))
}


class SearchSpace:
    """The Params that are searched, and the values of those on which their effect depends."""

    def __init__(self, dimensions: Mapping[str, Dimension], fixed: Mapping[str, Any]) -> None:
        self._fixed = {name: v for name, v in fixed.items() if name not in dimensions}
        self.dimensions = {
            name: dimension for name, dimension in dimensions.items()
            if self._may_matter(name, dimensions)
        }  # fmt: skip

    @classmethod
    def around(
        cls,
        values: Mapping[str, Any],
        *,
        is_set: Sequence[str] = (),
        overrides: Mapping[str, Dimension] | None = None,
    ) -> SearchSpace:
        """Return the usual space: all of SEARCHED but the Params set, and the overrides.

        ``values`` holds every Param's value, default or set.
        """
        usual = {name: d for name, d in SEARCHED.items() if name not in is_set}
        # In the order of the table, whatever order the overrides are given in.
        dimensions = {**usual, **(overrides or {})}
        return cls({name: dimensions[name] for name in USUAL if name in dimensions}, values)

    def params(self, point: UnitPoint) -> dict[str, Any]:
        """Return the values at a point, of those Params that have an effect.

        Rounded to six digits, so that the values in trials.jsonl are the values trained.
        """
        values: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            values[name] = dimension.from_unit(point[name])
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Range) and dimension.relative:
                values[name] *= self._unit(values)
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value
            for name, value in values.items() if self.matters(name, values)
        }  # fmt: skip

    def searched(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of ``values`` that are searched, defined, and have an effect."""
        return {
            name: values[name] for name in self.dimensions
            if values.get(name) is not None and self.matters(name, values)
        }  # fmt: skip

    def unit_point(self, params: Mapping[str, Any]) -> UnitPoint:
        """Return the coordinates of values, of all that have one."""
        point = {}
        for name, dimension in self.dimensions.items():
            value = params.get(name)
            if value is None or (isinstance(dimension, Choices) and value not in dimension.values):
                continue
            if isinstance(dimension, Range) and dimension.relative:
                value /= self._unit(params)
            point[name] = dimension.to_unit(value)
        return point

    def scaled(self, name: str, values: Mapping[str, Any]) -> Dimension:
        """Return the dimension of a Param in its own unit, beside these values."""
        dimension = self.dimensions[name]
        if isinstance(dimension, Range) and dimension.relative:
            unit = self._unit(values)
            return replace(dimension, low=dimension.low * unit, high=dimension.high * unit)
        return dimension

    def independent_first(self) -> list[str]:
        """Return the Params searched, those on which others depend in front of them."""
        return sorted(self.dimensions, key=_CONDITIONS.__contains__)

    def corners(self) -> list[dict[str, Any]]:
        """Return every choice and both ends of every range, each by itself."""
        return [
            {name: value}
            for name, dimension in self.dimensions.items()
            for value in (
                dimension.values if isinstance(dimension, Choices)
                else (dimension.from_unit(0.0), dimension.from_unit(1.0))
            )
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the space in the types of JSON."""
        return {
            name: list(d.values) if isinstance(d, Choices) else asdict(d)
            for name, d in self.dimensions.items()
        }

    def _unit(self, values: Mapping[str, Any]) -> float:
        optimizer = values.get("optimizer") or self._fixed["optimizer"]
        known = OPTIMIZERS.get(optimizer)
        return 1.0 if known is None else known.default_lr  # the trial checks its name

    def matters(self, name: str, values: Mapping[str, Any]) -> bool:
        """Return whether a Param has an effect beside these values."""
        if name not in _CONDITIONS:
            return True
        other, required = _CONDITIONS[name]
        value = values.get(other, self._fixed.get(other))
        return bool(value == required)

    def _may_matter(self, name: str, dimensions: Mapping[str, Dimension]) -> bool:
        """Return whether the Param has an effect in any trial."""
        if name not in _CONDITIONS:
            return True
        other, required = _CONDITIONS[name]
        dimension = dimensions.get(other)
        if isinstance(dimension, Choices):
            return required in dimension.values
        return bool(self._fixed.get(other) == required)


def dimension_of(name: str, given: Any) -> Dimension:
    """Return the dimension of a Param: ``given``, as ``tune`` takes it, or the usual one."""
    if name not in USUAL:
        raise InvalidParamError(
            f"{name} cannot be searched: expected one of {', '.join(sorted(USUAL))}."
        )
    usual = USUAL[name]
    if given is None:
        return usual
    if isinstance(given, list) and given:
        return Choices(tuple(given))
    has_numbers = isinstance(usual, Range) or usual.ordered
    is_range = isinstance(given, tuple) and (len(given) == 2 or given[2:] == ("log",))
    if not is_range or not has_numbers:
        allowed = '(low, high) or (low, high, "log") or ' if has_numbers else ""
        raise InvalidParamError(
            f"the space {given!r} of {name} is not allowed: expected {allowed}a list of choices."
        )
    low, high, log = given[0], given[1], len(given) == 3
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
        raise InvalidParamError(
            f"the space {given!r} of {name} is not allowed: expected finite ends, the smaller one "
            "first, and above 0 for a logarithmic range."
        )
    return Range(float(low), float(high), log=log, whole=name in _WHOLE)


# From the space, the seed, the numbers of the trials to propose, and all trials before these.
Sampler = Callable[[SearchSpace, int, Sequence[int], Sequence[Trial]], list[UnitPoint]]


def random_points(
    space: SearchSpace, seed: int, numbers: Sequence[int], earlier: Sequence[Trial]
) -> list[UnitPoint]:
    """Draw evenly and independently, whatever ``earlier`` trials were."""
    return [
        {name: float(rng.random()) for name in space.dimensions}
        for rng in (np.random.default_rng(_seed_of(seed, number)) for number in numbers)
    ]


def tpe_points(
    space: SearchSpace, seed: int, numbers: Sequence[int], earlier: Sequence[Trial]
) -> list[UnitPoint]:
    """Propose by Optuna's tree-structured Parzen estimator [1]_, the first ten at random.

    References
    ----------
    .. [1] J. Bergstra, R. Bardenet, Y. Bengio, B. Kegl, "Algorithms for Hyper-Parameter
       Optimization", NeurIPS 2011, section 4.
    """
    try:
        import optuna
    except ImportError as err:
        raise ImportError("The sampler 'tpe' needs Optuna: pip install 'spark-fm[tune]'.") from err
    distributions: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Choices) and not dimension.ordered:
            units = [dimension.to_unit(value) for value in dimension.values]
            distributions[name] = optuna.distributions.CategoricalDistribution(units)
        else:
            distributions[name] = optuna.distributions.FloatDistribution(0.0, 1.0)
    with _quiet_optuna(optuna):
        words = _seed_of(seed, numbers[0]).generate_state(1)
        sampler = optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)
        study = optuna.create_study(sampler=sampler)
        for trial in earlier:
            study.add_trial(_to_optuna(optuna, trial, space, distributions))
        return [dict(study.ask(distributions).params) for _ in numbers]


SAMPLERS: dict[str, Sampler] = {"random": random_points, "tpe": tpe_points}


def _to_optuna(
    optuna: Any, trial: Trial, space: SearchSpace, distributions: dict[str, Any]
) -> Any:  # fmt: skip
    """Return a trial in Optuna's terms; all but complete ones are pruned, and ranked last."""
    point = dict(trial.places)
    for name, dimension in space.dimensions.items():
        if name in point and isinstance(dimension, Choices):
            point[name] = dimension.to_unit(dimension.from_unit(point[name]))
    complete = trial.state == COMPLETE
    costs = {} if complete else {e: c for e, c in enumerate(trial.costs) if np.isfinite(c)}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED,
        value=trial.cost if complete else None,
        params=point,
        distributions={name: distributions[name] for name in point},
        intermediate_values=costs,
    )


def _seed_of(seed: int, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, number])


@contextmanager
def _quiet_optuna(optuna: Any) -> Iterator[None]:
    """Suppress Optuna's log of a short-lived study, and its warning."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Optuna 4 calls the constant liar experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
