"""``spark-fm train``: fit a model on files and save it; driver only."""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

from spark_fm.cli.failures import UsageError
from spark_fm.cli.params import add_param_flags
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.cli.training_input import (
    add_training_flags,
    check_installed,
    check_local_folder,
    check_model_path,
    training_params,
    training_rows,
)
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.summary import FMTrainingSummary
from spark_fm.ml.trials import write_text

log = logging.getLogger(__name__)

USAGE = "--input PATH --format FORMAT --model OUT [more flags]"
EXAMPLE = """example:
  spark-fm train --input a9a.gz --format libsvm --num-features 123 --model a9a.model \\
      --validation a9a.t.gz --num-factors 8 --seed 7 --summary a9a.json
"""
PICTURES = (".png", ".svg", ".pdf")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_training_flags(parser)
    parser.add_argument("--summary", metavar="FILE.json", help="write the training summary there")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw loss by epoch there (.png, .svg or .pdf)"
    )
    add_session_flags(parser)
    add_param_flags(parser, FactorizationMachine())


def run(args: argparse.Namespace) -> None:
    """Train as the flags say."""
    estimator = FactorizationMachine(**training_params(args))
    _check_local_outputs(args)
    with spark_session(args) as spark:
        check_model_path(spark, args.model, overwrite=args.overwrite)
        with training_rows(spark, args, estimator) as rows:
            model: FactorizationMachineModel = estimator.fit(rows)
        writer = model.write()
        (writer.overwrite() if args.overwrite else writer).save(args.model)
    _tell(model, args)


def _check_local_outputs(args: argparse.Namespace) -> None:
    """Raise before the work what would fail after it."""
    for flag, path in (("--summary", args.summary), ("--plot", args.plot)):
        if path is None:
            continue
        check_local_folder(flag, path, Path(path).absolute().parent)
        if Path(path).is_dir():
            raise UsageError(f"{flag} {path} is a folder; expected a file.")
    if args.plot is None:
        return
    if Path(args.plot).suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {args.plot}: the name must end in {', '.join(PICTURES)}.")
    check_installed("--plot", "matplotlib", extra="plot")


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
    write_text(path, content + "\n")


def _plain(value: Any) -> Any:
    """Return the value with null for what JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
