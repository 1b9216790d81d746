"""Accessors of the Params, made from the table in ``params.py``; driver only.

Type checkers and editors read ``accessors.pyi``, which ``make params`` writes from the same
table. A stub hides its module from mypy: this one therefore holds the class statements only.
"""

from spark_fm.ml.params import PARAMS, FMParamsBase, KeywordParams, with_params, with_setters


@with_params
class FMParams(FMParamsBase):
    """Params and getters, of estimator and model."""


@with_setters(PARAMS)
class EstimatorParams(KeywordParams, FMParams):
    """Keyword arguments and setters of the estimator."""


@with_setters([row for row in PARAMS if row.on_model])
class ModelParams(FMParams):
    """Setters of the model."""
