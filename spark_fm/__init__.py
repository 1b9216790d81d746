"""Factorization machines on Apache Spark: train, score, save, load.

The public names are loaded on first use, so that executors, which only need the learner,
do not import ``pyspark.ml`` for every task, and ``load`` needs no PySpark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spark_fm._version import __version__
from spark_fm.spark.required import check_pyspark

if TYPE_CHECKING:
    from spark_fm.datasource.recordio import register
    from spark_fm.loaded import LoadedModel, load
    from spark_fm.ml.estimator import FactorizationMachine
    from spark_fm.ml.evaluation import FMEvaluation
    from spark_fm.ml.evaluator import FMEvaluator
    from spark_fm.ml.mllib import FMClassifier, FMRegressor
    from spark_fm.ml.model import FactorizationMachineModel, register_udf
    from spark_fm.ml.requests import instance_vector, request_vectors, response_body
    from spark_fm.ml.summary import FMTrainingSummary
    from spark_fm.ml.tuning import TuningResult, tune

__all__ = [
    "FMClassifier",
    "FMEvaluation",
    "FMEvaluator",
    "FMRegressor",
    "FMTrainingSummary",
    "FactorizationMachine",
    "FactorizationMachineModel",
    "LoadedModel",
    "TuningResult",
    "__version__",
    "instance_vector",
    "load",
    "register",
    "register_udf",
    "request_vectors",
    "response_body",
    "tune",
]

_MODULES = {
    "FMClassifier": "spark_fm.ml.mllib",
    "FMEvaluation": "spark_fm.ml.evaluation",
    "FMEvaluator": "spark_fm.ml.evaluator",
    "FMRegressor": "spark_fm.ml.mllib",
    "FMTrainingSummary": "spark_fm.ml.summary",
    "FactorizationMachine": "spark_fm.ml.estimator",
    "FactorizationMachineModel": "spark_fm.ml.model",
    "LoadedModel": "spark_fm.loaded",
    "TuningResult": "spark_fm.ml.tuning",
    "instance_vector": "spark_fm.ml.requests",
    "load": "spark_fm.loaded",
    "register": "spark_fm.datasource.recordio",
    "register_udf": "spark_fm.ml.model",
    "request_vectors": "spark_fm.ml.requests",
    "response_body": "spark_fm.ml.requests",
    "tune": "spark_fm.ml.tuning",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module 'spark_fm' has no attribute {name!r}")
    from importlib import import_module

    module = _MODULES[name]
    if module != "spark_fm.loaded":
        check_pyspark(f"spark_fm.{name}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
