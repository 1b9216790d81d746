"""``spark-fm train``: fit a model on files, save it, measure it on a test set; driver only."""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import nullcontext
from pathlib import Path

from pyspark.sql import SparkSession

from spark_fm.cli.errors import UsageError
from spark_fm.cli.evaluate import ChannelMetrics, check_test_paths, tested
from spark_fm.cli.inputs import CHANNEL_FORMAT
from spark_fm.cli.outputs import check_installed, check_local_folder
from spark_fm.cli.params import add_param_flags, apply_params, json_object
from spark_fm.cli.sagemaker_job import is_container_call, train_in_container
from spark_fm.cli.sagemaker_log import SageMakerLog, SageMakerLogCallback
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.cli.training_io import (
    add_training_flags,
    check_model_path,
    training_params,
    training_rows,
    write_summary,
)
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel

log = logging.getLogger(__name__)

USAGE = (
    "--input PATH --format FORMAT --model OUT [more flags]\n"
    "       spark-fm train --train PATH [--test PATH] --model OUT [more flags]\n"
    "       spark-fm train [--root DIR]    in a training container"
)
EXAMPLE = """Without inputs and --model it trains as a SageMaker training container does, from the
configuration and the channels under --root: docs/sagemaker-container.md.

example:
  spark-fm train --input a9a.gz --format libsvm --num-features 123 --model a9a.model \\
      --validation a9a.t.gz --num-factors 8 --seed 7 --summary a9a.json
"""
LOG_FORMATS = ("plain", "sagemaker")
PICTURES = (".png", ".svg", ".pdf")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    add_training_flags(parser, has_channels=True)
    parser.add_argument(
        "--hyperparameters", metavar="FILE.json",
        help="a SageMaker job's hyperparameters: train as its algorithm does, in file order; "
        "Params that are given come on top",
    )  # fmt: skip
    parser.add_argument("--summary", metavar="FILE.json", help="write the training summary there")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw loss by epoch there (.png, .svg or .pdf)"
    )
    parser.add_argument(
        "--log-format", choices=LOG_FORMATS, default=LOG_FORMATS[0],
        help="sagemaker: what happens, on standard output, in the grammar of SageMaker's logs, "
        "for the regular expressions that read those [plain]",
    )  # fmt: skip
    parser.add_argument(
        "--root", metavar="DIR",
        help="train as a training container does, with DIR in place of /opt/ml",
    )  # fmt: skip
    add_session_flags(parser)
    add_param_flags(parser, FactorizationMachine())


def run(args: argparse.Namespace) -> None:
    """Train as the flags say."""
    if is_container_call(args):
        train_in_container(args)
        return
    _check_inputs(args)
    estimator = _estimator(args)
    _check_local_outputs(args)
    telling = _telling(args, estimator)
    with spark_session(args) as spark:
        check_model_path(spark, args.model, overwrite=args.overwrite)
        if args.test is not None:
            check_test_paths(spark, args.test, args.format)
        with nullcontext() if telling is None else telling.listening():
            model = _trained(spark, args, estimator, telling)
            result = None
            if args.test is not None:
                started = time.time()
                result = tested(spark, model, args.test, file_format=args.format)
                if telling is not None:
                    telling.tested(result, time.time() - started)
    _write_outputs(model, args)
    if telling is not None:
        telling.ended()
    else:
        _tell(model, args, result)


def _check_inputs(args: argparse.Namespace) -> None:
    """Take ``--train`` for ``--input``, and raise UsageError for what is missing."""
    if args.train is not None:
        args.input = args.train
        args.format = args.format or CHANNEL_FORMAT
    flags = {"--input (or --train)": args.input, "--format": args.format, "--model": args.model}
    missing = [flag for flag, value in flags.items() if value is None]
    if missing:
        raise UsageError(
            f"the following arguments are required: {', '.join(missing)} "
            "(see spark-fm train --help)"
        )


def _estimator(args: argparse.Namespace) -> FactorizationMachine:
    values = training_params(args)
    if args.hyperparameters is None:
        return FactorizationMachine(**values)
    mapping = json_object(args.hyperparameters, "--hyperparameters")
    stage: FactorizationMachine = apply_params(
        FactorizationMachine.from_hyperparameters(mapping), values
    )
    return stage


def _telling(
    args: argparse.Namespace, estimator: FactorizationMachine
) -> SageMakerLogCallback | None:
    if args.log_format == "plain":
        return None
    return SageMakerLogCallback(
        SageMakerLog(), epochs=estimator.getEpochs(), batch_size=estimator.getMiniBatchSize()
    )


def _trained(
    spark: SparkSession,
    args: argparse.Namespace,
    estimator: FactorizationMachine,
    telling: SageMakerLogCallback | None,
) -> FactorizationMachineModel:
    """Return the model, fitted and saved."""
    with training_rows(spark, args, estimator) as rows:
        model: FactorizationMachineModel = estimator.fit(rows)
    if telling is not None:
        telling.trained()
    started = time.time()
    writer = model.write()
    (writer.overwrite() if args.overwrite else writer).save(args.model)
    if telling is not None:
        telling.saved(args.model, time.time() - started)
    return model


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


def _write_outputs(model: FactorizationMachineModel, args: argparse.Namespace) -> None:
    """Write what the summary holds to where the flags say."""
    if model.summary is None:
        return
    if args.summary is not None:
        write_summary(Path(args.summary), model.summary)
    if args.plot is not None:
        model.summary.plot(args.plot)


def _tell(
    model: FactorizationMachineModel, args: argparse.Namespace, result: ChannelMetrics | None
) -> None:
    """Log and print what the summary holds, and the test set's metrics."""
    summary = model.summary
    if summary is None:
        return
    facts = summary.facts
    if facts["skippedRows"]:
        reasons = ", ".join(f"{count} {why}" for why, count in facts["skippedReasons"].items())
        log.warning("skipped %d row(s): %s", facts["skippedRows"], reasons)
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
    if result is not None:
        print(f"test       {result.text()}")
    print(f"seconds    {facts['totalSeconds']:.1f}")
