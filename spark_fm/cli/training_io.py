"""What ``train`` and ``tune`` share: flags, rows to train on, the model's path, the summary."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm.cli.errors import UsageError
from spark_fm.cli.input_formats import InputSpec, Source, path_exists
from spark_fm.cli.inputs import (
    add_input_flags,
    explain_parse_errors,
    has_signed_labels,
    map_signed_labels,
    open_input,
)
from spark_fm.cli.outputs import to_json_safe
from spark_fm.cli.params import add_set_flag, collect_params
from spark_fm.learner.losses import BINARY
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.summary import FMTrainingSummary
from spark_fm.ml.trials import write_text
from spark_fm.spark.schema import ColumnNames, check_training_columns, find_column, quoted

VALIDATION_COL = "is_validation"


def add_training_flags(parser: argparse.ArgumentParser, *, has_channels: bool = False) -> None:
    """Add the flags of inputs, model and ``--set``; with channels none is required here."""
    add_input_flags(parser, what="training set", has_pipes=True, has_channels=has_channels)
    parser.add_argument(
        "--model", required=not has_channels, metavar="OUT", help="path of the model to save"
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing model")
    parser.add_argument(
        "--validation", nargs="+", metavar="PATH",
        help="validation set of the same format; by default a part of the input is held out",
    )  # fmt: skip
    parser.add_argument(
        "--num-features", "--feature-dim", type=int, metavar="N",
        help="length of the feature vectors (1 to 2^31 - 1) [from the largest index]",
    )  # fmt: skip
    parser.add_argument("--params", metavar="FILE.json", help="Params by name, as JSON")
    add_set_flag(parser)


def training_params(args: argparse.Namespace) -> dict[str, Any]:
    """Return the Params that the flags set, that of ``--validation`` included."""
    values = collect_params(args, FactorizationMachine())
    if args.validation is not None:
        if (values.get("validationIndicatorCol") or VALIDATION_COL) != VALIDATION_COL:
            raise UsageError("--validation and validationIndicatorCol exclude each other.")
        values["validationIndicatorCol"] = VALIDATION_COL
    return values


@contextmanager
def training_rows(
    spark: SparkSession,
    args: argparse.Namespace,
    estimator: FactorizationMachine,
    *,
    maps_signed_labels: bool = True,
) -> Iterator[DataFrame]:
    """Yield the rows of the inputs; errors inside the block name the file and the line."""
    spec = InputSpec(
        file_format=args.format,
        features_col=estimator.getFeaturesCol(),
        label_col=estimator.getLabelCol(),
        num_features=estimator.getFeatureDim(),
        in_order=estimator.getSageMakerTraining(),
    )
    size = spec.num_features
    if size is not None and not 1 <= size <= 2**31 - 1:
        raise UsageError(f"--num-features {size} is not allowed: expected 1 to 2,147,483,647.")
    with ExitStack() as stack:
        train = stack.enter_context(open_input(spark, args.input, spec))
        sources, frame, labels = [train], train.frame, train.labels
        if args.validation is not None:
            validation = stack.enter_context(open_input(spark, args.validation, spec))
            sources.append(validation)
            frame = _with_validation(frame, validation.frame, estimator)
            if labels is not None and validation.labels is not None:
                labels = labels.union(validation.labels)
            else:
                labels = None
        check_training_columns(frame, _columns(estimator))
        is_binary = estimator.getPredictorType() == BINARY
        if maps_signed_labels and is_binary and has_signed_labels(Source(frame, labels)):
            frame = map_signed_labels(frame, spec.label_col)
        with explain_parse_errors(*sources):
            yield frame


def check_model_path(spark: SparkSession, path: str, *, overwrite: bool) -> None:
    """Raise UsageError unless a model may be written to ``path``."""
    if not path_exists(spark, path):
        return
    if not overwrite:
        raise UsageError(f"--model {path} exists already; give another path, or --overwrite.")
    if not path_exists(spark, path.rstrip("/") + "/metadata"):
        raise UsageError(
            f"--model {path} exists and is not a saved model, so --overwrite does not replace it; "
            "give another path, or remove it yourself."
        )


def _columns(estimator: FactorizationMachine) -> ColumnNames:
    def column(name: str) -> str | None:
        return (estimator.getOrDefault(name) if estimator.isDefined(name) else None) or None

    return ColumnNames(
        features=estimator.getFeaturesCol(),
        label=estimator.getLabelCol(),
        weight=column("weightCol"),
        validation=column("validationIndicatorCol"),
    )


def _with_validation(
    train: DataFrame, validation: DataFrame, estimator: FactorizationMachine
) -> DataFrame:
    """Return both sets as one, with the indicator column."""
    columns = _columns(estimator)
    names = [name for name in (columns.features, columns.label, columns.weight) if name]
    parts = []
    for frame, is_validation in ((train, False), (validation, True)):
        selected = [quoted(name).alias(name) for name in names if find_column(frame, name)]
        parts.append(frame.select(*selected, F.lit(is_validation).alias(VALIDATION_COL)))
    if parts[0].schema.names != parts[1].schema.names:
        raise UsageError(
            f"--input has the columns {', '.join(parts[0].schema.names[:-1])} and --validation "
            f"{', '.join(parts[1].schema.names[:-1])}; both need {', '.join(names)}."
        )
    return parts[0].unionByName(parts[1])


def write_summary(path: Path, summary: FMTrainingSummary) -> None:
    """Write the summary as JSON."""
    content = json.dumps(to_json_safe(summary.to_dict()), indent=2, allow_nan=False)
    write_text(path, content + "\n")
