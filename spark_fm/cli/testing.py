"""Measure a training's model on the test channel; driver only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import SparkSession

from spark_fm.cli.failures import UsageError
from spark_fm.cli.inputs import InputSpec, explained, opened, path_exists
from spark_fm.formats.files import is_stream, list_files
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.ml.model import FactorizationMachineModel

THRESHOLD = 0.5
_TITLES = {"rmse": "RMSE", "logloss": "log loss", "accuracy": "accuracy", "f1": "F1"}
_KEPT = ("logloss", "accuracy", "f1", "rmse", "mse", "mae")


@dataclass(frozen=True, slots=True)
class ChannelResult:
    """What a model is worth on the test channel.

    Parameters
    ----------
    rows : int
    metrics : dict of str to float
        Of a classifier ``logloss`` and, at threshold 0.5, ``accuracy`` and ``f1``; of a
        regressor ``rmse``, ``mse`` and ``mae``. NaN where undefined.
    """

    rows: int
    metrics: dict[str, float]

    def text(self) -> str:
        """Return the main ones in a line."""
        shown = ", ".join(
            f"{title} {self.metrics[name]:.6g}"
            for name, title in _TITLES.items()
            if name in self.metrics
        )
        where = f" (threshold {THRESHOLD:g})" if "f1" in self.metrics else ""
        return f"{shown}{where} on {self.rows:,} rows"


def check_test_paths(spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> None:
    """Raise before the training what would fail after it: paths with nothing behind them."""
    for path in paths:
        if is_stream(path):
            continue
        if spec.file_format == RECORDIO:
            list_files([path])
        elif not path_exists(spark, path, glob=True):
            raise UsageError(f"the test path {path} does not exist, or no file matches it.")


def tested(
    spark: SparkSession,
    model: FactorizationMachineModel,
    paths: Sequence[str],
    *,
    file_format: str,
) -> ChannelResult:
    """Return the metrics of a model on files or a pipe, in one pass.

    Raises
    ------
    InvalidDataError
        For labels, or features, that the model cannot be measured on.
    """
    spec = InputSpec(
        file_format=file_format,
        features_col=model.getFeaturesCol(),
        label_col=model.getLabelCol(),
        num_features=model.numFeatures,
    )
    at_half = model.copy({model.getParam("threshold"): THRESHOLD})
    with opened(spark, paths, spec) as source, explained(source):
        metrics = dict(at_half.evaluate(source.frame).metrics)
    if "rmse" in metrics:
        metrics["mse"] = metrics["rmse"] ** 2
    kept = {name: metrics[name] for name in _KEPT if name in metrics}
    return ChannelResult(int(metrics["rows"]), kept)
