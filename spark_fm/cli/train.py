"""``spark-fm train``: fit a model on files and save it; driver only."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm.cli.failures import UsageError
from spark_fm.cli.inputs import (
    InputSpec,
    Source,
    add_input_flags,
    explained,
    minus_one_means_zero,
    opened,
    path_exists,
    with_binary_labels,
)
from spark_fm.cli.params import add_param_flags, add_set_flag, collect_params
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.engine.columns import check_training_columns, quoted
from spark_fm.engine.request import ColumnNames
from spark_fm.errors import SparkFMError
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.params import BINARY
from spark_fm.ml.summary import FMTrainingSummary

log = logging.getLogger(__name__)

USAGE = "--input PATH --format FORMAT --model OUT [more flags]"
EXAMPLE = """example:
  spark-fm train --input a9a.gz --format libsvm --num-features 123 --model a9a.model \\
      --validation a9a.t.gz --num-factors 8 --seed 7 --summary a9a.json
"""
PICTURES = (".png", ".svg", ".pdf")
VALIDATION_COL = "is_validation"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_input_flags(parser, what="training set", has_pipes=True)
    parser.add_argument("--model", required=True, metavar="OUT", help="where the model is saved")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    parser.add_argument(
        "--validation", nargs="+", metavar="PATH",
        help="validation set, of the same format; without it a part of the input is held out",
    )  # fmt: skip
    parser.add_argument(
        "--num-features", "--feature-dim", type=int, metavar="N",
        help="length of the feature vectors (1 to 2^31 - 1) [the largest index decides]",
    )  # fmt: skip
    parser.add_argument("--params", metavar="FILE.json", help="Params by their own names, as JSON")
    add_set_flag(parser)
    parser.add_argument("--summary", metavar="FILE.json", help="write the training summary there")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw loss by epoch there (.png, .svg or .pdf)"
    )
    add_session_flags(parser)
    add_param_flags(parser, FactorizationMachine())


def run(args: argparse.Namespace) -> None:
    """Train as the flags say."""
    values = collect_params(args, FactorizationMachine())
    if args.validation is not None:
        if values.get("validationIndicatorCol"):
            raise UsageError("--validation and validationIndicatorCol exclude each other.")
        values["validationIndicatorCol"] = VALIDATION_COL
    estimator = FactorizationMachine(**values)
    _check_local_outputs(args)
    with spark_session(args) as spark:
        check_model_path(spark, args.model, overwrite=args.overwrite)
        model = fit(spark, args, estimator)
        writer = model.write()
        (writer.overwrite() if args.overwrite else writer).save(args.model)
    _tell(model, args)


def fit(
    spark: SparkSession, args: argparse.Namespace, estimator: FactorizationMachine
) -> FactorizationMachineModel:
    """Return the model trained on the inputs of the flags."""
    spec = InputSpec(
        file_format=args.format,
        features_col=estimator.getFeaturesCol(),
        label_col=estimator.getLabelCol(),
        num_features=estimator.getFeatureDim(),
    )
    _check_num_features(spec)
    with ExitStack() as stack:
        train = stack.enter_context(opened(spark, args.input, spec))
        sources, frame = [train], train.frame
        if args.validation is not None:
            sources.append(stack.enter_context(opened(spark, args.validation, spec)))
            frame = _joined(frame, sources[1].frame, estimator)
        check_training_columns(frame.schema, _columns(estimator))
        if estimator.getPredictorType() == BINARY and minus_one_means_zero(
            Source(frame, _all_labels(sources))
        ):
            frame = with_binary_labels(frame, spec.label_col)
        with explained(*sources):
            model: FactorizationMachineModel = estimator.fit(frame)
            return model


def _all_labels(sources: list[Source]) -> DataFrame | None:
    """Return the labels of all inputs, None when some can be read only once."""
    labels = sources[0].labels
    for source in sources[1:]:
        if labels is not None and source.labels is not None:
            labels = labels.union(source.labels)
        else:
            labels = None
    return labels


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


def _check_num_features(spec: InputSpec) -> None:
    size = spec.num_features
    if size is not None and not 1 <= size <= 2**31 - 1:
        raise UsageError(f"--num-features {size} is not allowed: expected 1 to 2,147,483,647.")


def _columns(estimator: FactorizationMachine) -> ColumnNames:
    return ColumnNames(
        features=estimator.getFeaturesCol(),
        label=estimator.getLabelCol(),
        weight=_defined(estimator, "weightCol"),
        validation=_defined(estimator, "validationIndicatorCol"),
    )


def _defined(estimator: FactorizationMachine, name: str) -> str | None:
    value = estimator.getOrDefault(name) if estimator.isDefined(name) else None
    return value or None


def _joined(train: DataFrame, validation: DataFrame, estimator: FactorizationMachine) -> DataFrame:
    """Return both sets as one, with the indicator column."""
    columns = _columns(estimator)
    names = [name for name in (columns.features, columns.label, columns.weight) if name]
    parts = []
    for frame, is_validation in ((train, False), (validation, True)):
        kept = [quoted(name) for name in names if name in frame.schema.names]
        parts.append(frame.select(*kept, F.lit(is_validation).alias(VALIDATION_COL)))
    if parts[0].schema.names != parts[1].schema.names:
        raise UsageError(
            f"--input has the columns {', '.join(parts[0].schema.names[:-1])} and --validation "
            f"{', '.join(parts[1].schema.names[:-1])}; both need {', '.join(names)}."
        )
    return parts[0].unionByName(parts[1])


def _check_local_outputs(args: argparse.Namespace) -> None:
    """Raise before the work what would fail after it."""
    for flag, path in (("--summary", args.summary), ("--plot", args.plot)):
        if path is None:
            continue
        folder = Path(path).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"{flag} {path}: {folder} is not a folder that can be written to.")
        if Path(path).is_dir():
            raise UsageError(f"{flag} {path} is a folder; expected a file.")
    if args.plot is None:
        return
    if Path(args.plot).suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {args.plot}: the name must end in {', '.join(PICTURES)}.")
    if find_spec("matplotlib") is None:
        raise SparkFMError("--plot needs matplotlib: pip install 'spark-fm[plot]'.")


def _tell(model: FactorizationMachineModel, args: argparse.Namespace) -> None:
    """Log and write what the summary holds."""
    summary = model.summary
    if summary is None:
        return
    facts = summary.facts
    if facts["skippedRows"]:
        reasons = ", ".join(f"{count} {why}" for why, count in facts["skippedReasons"].items())
        log.warning("skipped %d row(s): %s", facts["skippedRows"], reasons)
    if args.summary is not None:
        _write_json(Path(args.summary), summary)
    if args.plot is not None:
        summary.plot(args.plot)
    best = summary.rows[summary.bestEpoch]
    metrics = [
        f"{name.replace('validation_', 'validation ')} {value:.6g}"
        for name, value in best.items()
        if name.startswith("validation_")
    ]
    print(f"model      {args.model}")
    print(
        f"rows       {facts['numRows']:,} ({facts['numValidationRows']:,} for validation), "
        f"{facts['numFeatures']:,} features"
    )
    print(f"best epoch {summary.bestEpoch} of 0 to {summary.totalIterations - 1}: " + ", ".join(
        [f"loss {best['trainLoss']:.6g}", *metrics]))  # fmt: skip
    if facts["refit"]:
        epochs = summary.bestEpoch + 1
        print(f"refit      on all {facts['numRows']:,} rows for {epochs} epoch(s): the saved model")
    print(f"seconds    {facts['totalSeconds']:.1f}")


def _write_json(path: Path, summary: FMTrainingSummary) -> None:
    content = json.dumps(_plain(summary.to_dict()), indent=2, allow_nan=False)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content + "\n", encoding="utf-8")
    partial.replace(path)


def _plain(value: Any) -> Any:
    """Return the value with null for what JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
