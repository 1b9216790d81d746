"""SageMaker's hyperparameters and the Params that they set; driver only.

Names, ranges and defaults are those of the public table of Amazon SageMaker's
Factorization Machines ("Factorization Machines Hyperparameters", AWS developer guide).
A job's hyperparameters travel as a map of strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_fm.errors import InvalidParamError, did_you_mean
from spark_fm.learner.losses import BINARY, REGRESSOR
from spark_fm.learner.spec import MAX_FACTORS
from spark_fm.ml.accessors import EstimatorParams
from spark_fm.ml.base import FittedModel

if TYPE_CHECKING:
    from typing_extensions import Self

METHODS = ("normal", "uniform", "constant")
# Set by the tuning service in every job of a tuning job; it changes nothing in training.
TUNING_METRIC = "_tuning_objective_metric"
_WHOLE = re.compile(r"[1-9][0-9]*")
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One hyperparameter of SageMaker's table."""

    read: Callable[[str], Any]  # from text; ValueError or KeyError when it is not allowed
    allowed: str  # legal values, for messages
    default: Any = None  # where it differs from ours


def _whole(text: str, most: int) -> int:
    if not _WHOLE.fullmatch(text) or len(text) > 10 or int(text) > most:
        raise ValueError(text)
    return int(text)


def _number(text: str, least: float = -math.inf) -> float:
    value = float(text)
    if "_" in text or not math.isfinite(value) or value < least:
        raise ValueError(text)
    return value


def _count(most: int, default: int | None = None) -> Hyperparameter:
    return Hyperparameter(
        lambda text: _whole(text, most), f"a whole number from 1 to {most:,}", default
    )


def _not_negative(default: float | None = None) -> Hyperparameter:
    return Hyperparameter(lambda text: _number(text, 0.0), "a finite number >= 0", default)


def _one_of(*names: str, default: str | None = None) -> Hyperparameter:
    table = {name: name for name in names}
    return Hyperparameter(table.__getitem__, " or ".join(map(repr, names)), default)


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise ValueError(text)
    return value


def _table() -> dict[str, Hyperparameter]:
    table = {
        "feature_dim": _count(2**31 - 1),
        "num_factors": _count(MAX_FACTORS),
        "predictor_type": _one_of(BINARY, REGRESSOR),
        "mini_batch_size": _count(2**31 - 1, 1000),
        "epochs": _count(1_000_000, 1),
        "clip_gradient": Hyperparameter(_positive, "a finite number > 0"),
        "eps": Hyperparameter(_positive, "a finite number > 0", 1e-8),
        "rescale_grad": Hyperparameter(_positive, "a finite number > 0"),
        "use_bias": Hyperparameter(_TRUTH.__getitem__, "'true' or 'false'"),
        "use_linear": Hyperparameter(_TRUTH.__getitem__, "'true' or 'false'"),
    }
    groups = {
        "bias": (0.1, 0.01, 0.01),
        "linear": (0.001, 0.001, 0.01),
        "factors": (0.0001, 0.00001, 0.001),
    }
    for group, (lr, wd, sigma) in groups.items():
        table |= {
            f"{group}_lr": _not_negative(lr),
            f"{group}_wd": _not_negative(wd),
            f"{group}_init_method": _one_of(*METHODS, default="normal"),
            f"{group}_init_sigma": _not_negative(sigma),
            f"{group}_init_scale": _not_negative(),
            f"{group}_init_value": Hyperparameter(_number, "a finite number"),
        }
    return table


HYPERPARAMETERS = _table()
REQUIRED = ("feature_dim", "num_factors", "predictor_type")
# Beside the default hyperparameters: lazy Adam over all rows in their order, one worker, no
# choice among epochs.
_MODE: dict[str, Any] = {
    "optimizer": "adam",
    "sageMakerTraining": True,
    "shuffle": False,
    "numWorkers": 1,
    "validationFraction": 0.0,
    "patience": 0,
    "refit": "never",
    "averageEpochs": False,
    "standardization": False,
    "standardizeLabel": False,
    "decayFrequencyPower": 0.0,
}


def param_name(name: str) -> str:
    """Return the Param of a hyperparameter: ``bias_lr`` is ``biasLr``."""
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def read_hyperparameters(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Params that a map of hyperparameters sets; None counts as not given.

    InvalidParamError names a hyperparameter that is unknown, missing or out of range.
    """
    if not isinstance(mapping, Mapping):
        raise InvalidParamError(
            f"The hyperparameters are a {type(mapping).__name__}; expected a dict of names and "
            'values, such as {"feature_dim": "1000", "num_factors": "64", "predictor_type": '
            '"regressor"}.'
        )
    given = {name: value for name, value in mapping.items() if value is not None}
    given.pop(TUNING_METRIC, None)
    _check_known([name for name in given if name not in HYPERPARAMETERS])
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise InvalidParamError(
            f"Hyperparameter {missing[0]!r} is required and missing: expected "
            f"{HYPERPARAMETERS[missing[0]].allowed}."
        )
    values = {name: _read(name, value) for name, value in given.items()}
    for group in ("bias", "linear", "factors"):
        method = values.get(f"{group}_init_method")
        needed = {"uniform": f"{group}_init_scale", "constant": f"{group}_init_value"}.get(
            str(method)
        )
        if needed is not None and needed not in values:
            raise InvalidParamError(
                f"Hyperparameter {group}_init_method={method!r} needs {needed}, which has no "
                f"default: set it to {HYPERPARAMETERS[needed].allowed}."
            )
    return {param_name(name): value for name, value in values.items()}


def _check_known(names: list[str]) -> None:
    if not names:
        return
    hint = did_you_mean(str(names[0]), HYPERPARAMETERS) or (
        f"known are {', '.join(sorted(HYPERPARAMETERS))}."
    )
    raise InvalidParamError(
        f"Unknown hyperparameter{'s' if len(names) > 1 else ''} "
        f"{', '.join(map(repr, names))} (additional properties are not allowed); {hint}"
    )


def _read(name: str, value: Any) -> Any:
    known = HYPERPARAMETERS[name]
    try:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        return known.read(_as_text(value).strip())
    except (KeyError, ValueError) as err:
        raise InvalidParamError(
            f"Hyperparameter {name}={value!r} is not allowed: expected {known.allowed}."
        ) from err


def _as_text(value: Any) -> str:
    """Return a value as the string of a job's map."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class FromHyperparameters(EstimatorParams):
    """The constructor of an estimator from a map of hyperparameters."""

    @classmethod
    def from_hyperparameters(cls, mapping: Mapping[str, Any]) -> Self:
        """Return an estimator that trains like SageMaker's algorithm.

        Parameters
        ----------
        mapping : mapping of str to str
            A job's hyperparameters: ``feature_dim``, ``num_factors`` and
            ``predictor_type``, and any other of SageMaker's public table. Numbers and
            booleans need not be strings; None counts as not given.

        Returns
        -------
        FactorizationMachine
            With the map's Params set, and SageMaker's defaults for the others. Set other
            Params to depart from SageMaker's algorithm, for example ``setShuffle(True)``.

        Raises
        ------
        InvalidParamError
            Naming the hyperparameter that is unknown, missing or out of range.

        Notes
        -----
        The training is lazy Adam on mini-batches of the rows in their order, with
        gradients summed and divided by ``mini_batch_size``, weight decay inside the
        gradient, and the last mini-batch filled up with empty rows of label 0
        (docs/sagemaker.md). The map has no seed: set it with ``setSeed``.
        """
        values = read_hyperparameters(mapping)
        estimator = cls()
        defaults = {
            param_name(name): known.default
            for name, known in HYPERPARAMETERS.items()
            if known.default is not None
        }
        estimator._setDefault(**defaults, **_MODE)
        return estimator._set(**values)


class HyperparameterMethods(FittedModel):
    """The method of a model that returns its hyperparameters."""

    def hyperparameters(self) -> dict[str, str]:
        """Return SageMaker's map of strings for the training of this model.

        The three that SageMaker requires, those that were set, and those of an imported
        SageMaker artifact. ``FactorizationMachine.from_hyperparameters`` takes the map.
        """
        origin = self.origin or {}
        saved = origin.get("hyperparameters", {}) if origin.get("format") == "sagemaker" else {}
        imported = {name: value for name, value in saved.items() if name in HYPERPARAMETERS}
        set_here = {
            name: self.getOrDefault(param_name(name))
            for name in HYPERPARAMETERS
            if self.isSet(param_name(name))
        }
        required = {
            "feature_dim": self.weights.feature_dim,
            "num_factors": self.weights.k,
            "predictor_type": self.getPredictorType(),
        }
        values = {**imported, **set_here, **required}
        return {name: _as_text(value) for name, value in values.items()}
