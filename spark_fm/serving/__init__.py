"""A scoring server without Spark or Java, and its client.

``spark-fm serve`` runs the server; it needs the ``[serve]`` extra. The client is
`Predictor`. Nothing here imports pyspark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_fm.formats.responses import Predictions
    from spark_fm.serving.client import Predictor

__all__ = ["Predictions", "Predictor"]

_HOMES = {
    "Predictions": "spark_fm.formats.responses",
    "Predictor": "spark_fm.serving.client",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'spark_fm.serving' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
