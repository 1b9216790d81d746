"""The estimator under MLlib's names; driver only. Class paths are part of the on-disk format."""

from __future__ import annotations

from typing import Any

from pyspark import keyword_only

from spark_fm.learner.losses import BINARY, REGRESSOR, loss_of_predictor
from spark_fm.learner.metrics import validation_metrics
from spark_fm.learner.spec import require
from spark_fm.ml.estimator import FactorizationMachine

# MLlib's Params and those that each of them sets here.
TRANSLATED = {
    "maxIter": ("epochs",),
    "stepSize": ("biasLr", "linearLr", "factorsLr"),
    "regParam": ("linearWd", "factorsWd"),
    "factorSize": ("numFactors",),
    "fitIntercept": ("useBias",),
    "fitLinear": ("useLinear",),
    "initStd": ("factorsInitSigma",),
}


class MLlibNames(FactorizationMachine):
    """A machine of one predictor type that takes MLlib's names of Params beside its own."""

    _predictor_type: str
    _other_names = tuple(TRANSLATED)

    @keyword_only
    def __init__(self, **params: Any) -> None:
        params = self._in_our_names("__init__", params)
        super().__init__()
        self._setDefault(predictorType=self._predictor_type)
        self.setParams(**params)

    def __getattr__(self, name: str) -> Any:
        """Return what MLlib's name stands for: a Param, as of a grid, or its getter or setter."""
        action, theirs = name[:3], name[3:4].lower() + name[4:]
        if action == "set" and theirs in TRANSLATED:
            return lambda value: self._set(**dict.fromkeys(TRANSLATED[theirs], value))
        if action == "get" and theirs in TRANSLATED:
            last = TRANSLATED[theirs][-1]
            return getattr(self, f"get{last[0].upper()}{last[1:]}")
        ours = TRANSLATED.get(name, ())
        if len(ours) == 1:
            return getattr(self, ours[0])
        hint = f"; here {', '.join(ours)} are Params of their own" if ours else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def _in_our_names(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, value in params.items():
            for ours in TRANSLATED.get(name, (name,)):
                if ours in given or (ours in params and ours != name):
                    raise TypeError(
                        f"{type(self).__name__}.{method}() got {name!r} and another name of "
                        f"{ours}. Give one of them."
                    )
                given[ours] = value
        return super()._in_our_names(method, given)

    def _check_value(self, name: str, value: Any) -> None:
        if name == "solver":
            require(value not in ("adamW", "gd"), name, value,
                    "a solver of this library; MLlib's is the optimizer here, "
                    f"""optimizer="{'adam' if value == 'adamW' else 'sgd'}\"""")  # fmt: skip
        if name == "predictorType":
            require(value == self._predictor_type, name, value,
                    f'"{self._predictor_type}"; a FactorizationMachine takes others')  # fmt: skip
        if name == "validationMetric":
            known = validation_metrics(loss_of_predictor(self._predictor_type).name)
            require(value in known, name, value, f"one of {', '.join(map(repr, known))}")
        super()._check_value(name, value)


class FMClassifier(MLlibNames):
    """``FactorizationMachine(predictorType="binary_classifier")`` under MLlib's name.

    Takes every Param of ``FactorizationMachine``, and these of MLlib's FMClassifier and
    FMRegressor as keyword arguments, setters and getters: ``maxIter`` (``epochs``),
    ``stepSize`` (``biasLr``, ``linearLr`` and ``factorsLr``), ``regParam`` (``linearWd`` and
    ``factorsWd``), ``factorSize`` (``numFactors``), ``fitIntercept`` (``useBias``),
    ``fitLinear`` (``useLinear``) and ``initStd`` (``factorsInitSigma``).

    Notes
    -----
    Defaults are those of ``FactorizationMachine``. An epoch updates after every row, an
    iteration of MLlib once: see docs/coming-from-mllib.md.
    """

    _predictor_type = BINARY


class FMRegressor(MLlibNames):
    """``FactorizationMachine(predictorType="regressor")`` under MLlib's name.

    Takes the same Params as ``FMClassifier``.
    """

    _predictor_type = REGRESSOR
