"""``spark-fm evaluate``, and the test channel of ``train``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession

from spark_fm.cli.input_formats import INPUT_FORMATS
from spark_fm.cli.inputs import (
    add_input_flags,
    explain_parse_errors,
    model_input,
    open_input,
    open_source,
)
from spark_fm.cli.outputs import to_json_safe
from spark_fm.cli.params import add_set_flag, apply_params, collect_params
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.formats.files import is_stream
from spark_fm.learner.metrics import METRICS
from spark_fm.ml.evaluation import FMEvaluation
from spark_fm.ml.model import FactorizationMachineModel

USAGE = "--model PATH --input PATH --format FORMAT [more flags]"
EXAMPLE = """example:
  spark-fm evaluate --model a9a.model --input a9a.t.gz --format libsvm
"""
_TITLES = {
    "rows": "rows", "logloss": "log loss", "accuracy": "accuracy", "precision": "precision",
    "recall": "recall", "f1": "F1", "roc_auc": "ROC AUC", "pr_auc": "PR AUC", "rmse": "RMSE",
    "mae": "MAE", "r2": "R2",
}  # fmt: skip
THRESHOLD = 0.5  # of a classifier on the test channel
_TEST_TITLES = {"rmse": "RMSE", "logloss": "log loss", "accuracy": "accuracy", "f1": "F1"}
_TEST_METRICS = ("logloss", "accuracy", "f1", "rmse", "mse", "mae")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="a saved model")
    add_input_flags(parser, what="rows with labels")
    parser.add_argument(
        "--num-features", type=int, metavar="N",
        help="length of the vectors in text files [the model's]",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_set_flag(parser)
    add_session_flags(parser)


def run(args: argparse.Namespace) -> None:
    values = collect_params(args, FactorizationMachineModel())
    with spark_session(args) as spark:
        model = apply_params(FactorizationMachineModel.load(args.model), values)
        spec = model_input(model, args.format, num_features=args.num_features)
        source = open_source(spark, args.input, spec)
        with explain_parse_errors(source):
            metrics = _with_confusion(model.evaluate(source.frame))
    print(json.dumps(to_json_safe(metrics)) if args.json else table(metrics, model.getThreshold()))


def _with_confusion(evaluation: FMEvaluation) -> dict[str, Any]:
    """Return the metrics, of a classifier with the confusion matrix."""
    if evaluation.confusion is None:
        return evaluation.metrics
    (tn, fp), (fn, tp) = evaluation.confusion.to_numpy().tolist()
    return {**evaluation.metrics, "confusion": {"tp": tp, "fp": fp, "fn": fn, "tn": tn}}


def table(metrics: dict[str, Any], threshold: float) -> str:
    """Return the metrics, and the confusion matrix of a classifier, as text."""
    lines = []
    for name in ("rows", *METRICS):
        if name in metrics:
            title = _TITLES.get(name, name)
            value = metrics[name]
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.6f}"
            lines.append(f"{title:<10} {shown:>12}")
    confusion = metrics.get("confusion")
    if confusion is not None:
        cells = {name: f"{value:,.10g}" for name, value in confusion.items()}
        lines += [
            "",
            f"{f'score >= {threshold:g}':<16}{'predicted 0':>14}{'predicted 1':>14}",
            f"{'label 0':<16}{cells['tn']:>14}{cells['fp']:>14}",
            f"{'label 1':<16}{cells['fn']:>14}{cells['tp']:>14}",
        ]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ChannelMetrics:
    """Metrics of a model on the test channel."""

    rows: int
    # Of a classifier logloss and, at THRESHOLD, accuracy and f1; of a regressor rmse, mse and
    # mae. NaN where undefined.
    metrics: dict[str, float]

    def text(self) -> str:
        """Return the main metrics in a line."""
        shown = ", ".join(
            f"{title} {self.metrics[name]:.6g}"
            for name, title in _TEST_TITLES.items()
            if name in self.metrics
        )
        threshold = f" (threshold {THRESHOLD:g})" if "f1" in self.metrics else ""
        return f"{shown}{threshold} on {self.rows:,} rows"


def check_test_paths(spark: SparkSession, paths: Sequence[str], file_format: str) -> None:
    """Raise before the training what would fail after it: paths without files."""
    for path in paths:
        if not is_stream(path):
            INPUT_FORMATS[file_format].check_exists(spark, path)


def evaluate_channel(
    spark: SparkSession,
    model: FactorizationMachineModel,
    paths: Sequence[str],
    *,
    file_format: str,
) -> ChannelMetrics:
    """Return the metrics of a model on files or a pipe, in one pass."""
    spec = model_input(model, file_format)
    model = model.copy({model.getParam("threshold"): THRESHOLD})
    with open_input(spark, paths, spec) as source, explain_parse_errors(source):
        metrics = dict(model.evaluate(source.frame).metrics)
    if "rmse" in metrics:
        metrics["mse"] = metrics["rmse"] ** 2
    selected = {name: metrics[name] for name in _TEST_METRICS if name in metrics}
    return ChannelMetrics(int(metrics["rows"]), selected)
