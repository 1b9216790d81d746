"""``spark-fm train``: fit a model on files, save it, evaluate it on a test set."""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import nullcontext
from pathlib import Path

from pyspark.sql import SparkSession

from spark_fm.cli.errors import UsageError, table_advice
from spark_fm.cli.evaluate import ChannelMetrics, check_test_paths, evaluate_channel
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
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_training_flags(parser, has_channels=True)
    parser.add_argument(
        "--hyperparameters", metavar="FILE.json",
        help="a SageMaker job's hyperparameters: train as its algorithm does, in file order; "
        "Params override them",
    )  # fmt: skip
    parser.add_argument(
        "--summary", metavar="FILE.json", help="write the training summary to this file"
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="plot loss by epoch to this file (.png, .svg or .pdf)"
    )
    parser.add_argument(
        "--log-format", choices=LOG_FORMATS, default=LOG_FORMATS[0],
        help="sagemaker: progress and metrics on standard output, in the format of SageMaker's "
        "logs, for regular expressions that read those [plain]",
    )  # fmt: skip
    parser.add_argument(
        "--root", metavar="DIR",
        help="train as a training container does, with DIR instead of /opt/ml",
    )  # fmt: skip
    add_session_flags(parser)
    add_param_flags(parser, FactorizationMachine())


def run(args: argparse.Namespace) -> None:
    if is_container_call(args):
        train_in_container(args)
        return
    _check_inputs(args)
    values = training_params(args)
    if args.hyperparameters is None:
        estimator = FactorizationMachine(**values)
    else:
        hyperparameters = json_object(args.hyperparameters, "--hyperparameters")
        estimator = FactorizationMachine.from_hyperparameters(hyperparameters)
        estimator = apply_params(estimator, values)
    estimator._train_config()  # wrong values end the command before Spark starts
    _check_local_outputs(args)
    callback = None
    if args.log_format == "sagemaker":
        callback = SageMakerLogCallback(
            SageMakerLog(), epochs=estimator.getEpochs(), batch_size=estimator.getMiniBatchSize()
        )
    with spark_session(args) as spark:
        check_model_path(spark, args.model, overwrite=args.overwrite)
        if args.test is not None:
            check_test_paths(spark, args.test, args.format)
        with nullcontext() if callback is None else callback.attached():
            model = _fit_and_save(spark, args, estimator, callback)
            test_metrics = None
            if args.test is not None:
                started = time.time()
                test_metrics = evaluate_channel(spark, model, args.test, file_format=args.format)
                if callback is not None:
                    callback.on_test_end(test_metrics, time.time() - started)
    if model.summary is not None and args.summary is not None:
        write_summary(Path(args.summary), model.summary)
    if model.summary is not None and args.plot is not None:
        model.summary.plot(args.plot)
    if callback is not None:
        callback.on_end()
    else:
        _print_summary(model, args, test_metrics)


def _check_inputs(args: argparse.Namespace) -> None:
    """Take ``--train`` as ``--input``, and raise UsageError for what is missing."""
    if args.train is not None:
        args.input = args.train
        args.format = args.format or CHANNEL_FORMAT
    flags = {"--input (or --train)": args.input, "--format": args.format, "--model": args.model}
    missing = [flag for flag, value in flags.items() if value is None]
    if args.format is None:
        for advice in filter(None, map(table_advice, args.input or ())):
            raise UsageError(advice)
    if missing:
        raise UsageError(
            f"the following arguments are required: {', '.join(missing)} "
            "(see spark-fm train --help)"
        )


def _fit_and_save(
    spark: SparkSession,
    args: argparse.Namespace,
    estimator: FactorizationMachine,
    callback: SageMakerLogCallback | None,
) -> FactorizationMachineModel:
    with training_rows(spark, args, estimator) as rows:
        model: FactorizationMachineModel = estimator.fit(rows)
    if callback is not None:
        callback.on_fit_end()
    started = time.time()
    writer = model.write()
    (writer.overwrite() if args.overwrite else writer).save(args.model)
    if callback is not None:
        callback.on_save_end(args.model, time.time() - started)
    return model


def _check_local_outputs(args: argparse.Namespace) -> None:
    """Raise before the training what would fail after it."""
    for flag, path in (("--summary", args.summary), ("--plot", args.plot)):
        if path is None:
            continue
        check_local_folder(flag, path, Path(path).absolute().parent)
        if Path(path).is_dir():
            raise UsageError(f"{flag} {path} is a folder; expected a file.")
    if args.plot is None:
        return
    if Path(args.plot).suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"--plot {args.plot}: the name must end in {', '.join(PLOT_SUFFIXES)}.")
    check_installed("--plot", "matplotlib", extra="plot")


def _print_summary(
    model: FactorizationMachineModel, args: argparse.Namespace, test_metrics: ChannelMetrics | None
) -> None:
    summary = model.summary
    if summary is None:
        return
    totals = summary.facts
    if totals["skippedRows"]:
        reasons = ", ".join(f"{count} {why}" for why, count in totals["skippedReasons"].items())
        log.warning("skipped %d row(s): %s", totals["skippedRows"], reasons)
    best = summary.rows[summary.bestEpoch]
    metrics = [
        f"{name.replace('validation_', 'validation ')} {value:.6g}"
        for name, value in best.items()
        if name.startswith("validation_")
    ]
    print(f"model      {args.model}")
    print(
        f"rows       {totals['numRows']:,} ({totals['numValidationRows']:,} for validation), "
        f"{totals['numFeatures']:,} features"
    )
    print(f"best epoch {summary.bestEpoch} of 0 to {summary.totalIterations - 1}: " + ", ".join(
        [f"loss {best['trainLoss']:.6g}", *metrics]))  # fmt: skip
    if totals["refit"]:
        epochs = totals["refitEpochs"]
        print(
            f"refit      on all {totals['numRows']:,} rows for {epochs} epoch(s): the saved model"
        )
    if test_metrics is not None:
        print(f"test       {test_metrics.text()}")
    print(f"seconds    {totals['totalSeconds']:.1f}")
