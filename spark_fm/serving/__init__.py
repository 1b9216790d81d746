"""The HTTP server of ``spark-fm serve``, which needs the ``[serve]`` extra, and its client.

It imports formats and learner, and neither pyspark nor pandas. Only cli imports it; users
import `Predictor` and `Predictions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_fm.formats.responses import Predictions
    from spark_fm.serving.client import Predictor

__all__ = ["Predictions", "Predictor"]

_MODULES = {
    "Predictions": "spark_fm.formats.responses",
    "Predictor": "spark_fm.serving.client",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'spark_fm.serving' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
