"""``spark-fm tune``: search for hyperparameters on files, save the best model."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spark_fm.cli.errors import UsageError
from spark_fm.cli.outputs import check_installed, check_local_folder
from spark_fm.cli.params import add_param_flags, check_name, convert_value, parse_value
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.cli.training_io import (
    add_training_flags,
    check_model_path,
    training_params,
    training_rows,
)
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.search_space import SAMPLERS
from spark_fm.ml.trials import FILE_NAME
from spark_fm.ml.tuning import TuningResult, tune

USAGE = "--input PATH --format FORMAT --out FOLDER --model OUT [more flags]"
EXAMPLE = """Params that are set keep their value, the others are searched. The same command
resumes from the trials in --out.

example:
  spark-fm tune --input a9a.gz --format libsvm --num-features 123 --out a9a.search \\
      --model a9a.model --trials 40 --num-factors 8 --range factorsLr=0.05:0.8:log
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_training_flags(parser)
    group = parser.add_argument_group("search")
    group.add_argument(
        "--out", required=True, metavar="FOLDER",
        help="local folder of trials.csv, trials.png, best.json (for train --params), and "
        "trials.jsonl, from which a search resumes",
    )  # fmt: skip
    group.add_argument(
        "--trials", type=int, default=30, metavar="N",
        help="number of trainings, the first with the Params as set (>= 1) [30]",
    )  # fmt: skip
    group.add_argument(
        "--sampler", choices=list(SAMPLERS), default="random",
        help="uniform draws, or Optuna's tree-structured Parzen estimator [random]",
    )  # fmt: skip
    group.add_argument(
        "--parallel", type=int, default=4, metavar="N",
        help="trials per round, which share every pass over the rows (>= 1) [4]",
    )  # fmt: skip
    group.add_argument(
        "--max-seconds", type=float, default=math.inf, metavar="S",
        help="start no round after this many seconds [no limit]",
    )  # fmt: skip
    group.add_argument(
        "--range", dest="ranges", metavar="NAME=LOW:HIGH[:log]", action="append", default=[],
        help="search a Param over this range, even if it is set; NAME alone: its default range; "
        "may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--choices", metavar="NAME=A,B,...", action="append", default=[],
        help="search a Param over these values; may be repeated",
    )  # fmt: skip
    add_session_flags(parser)
    add_param_flags(parser, FactorizationMachine())


def run(args: argparse.Namespace) -> None:
    estimator = FactorizationMachine(**training_params(args))
    estimator._train_config()  # wrong values end the command before Spark starts
    space = search_space(args.ranges, args.choices, estimator)
    optuna = ["optuna"] if args.sampler == "tpe" else []
    check_installed("tune", *optuna, extra="tune")
    folder = Path(args.out).absolute()
    if not folder.exists():
        check_local_folder("--out", args.out, folder.parent)
        folder.mkdir()
    check_local_folder("--out", args.out, folder)
    with spark_session(args) as spark, _log_trials_only(args.log_level):
        check_model_path(spark, args.model, overwrite=args.overwrite)
        try:
            with training_rows(spark, args, estimator) as rows:
                result = tune(
                    estimator, rows, trials=args.trials, space=space, sampler=args.sampler,
                    parallel=args.parallel, max_seconds=args.max_seconds, folder=folder,
                )  # fmt: skip
        except BaseException:
            _print_kept_trials(folder)
            raise
        writer = result.model.write()
        (writer.overwrite() if args.overwrite else writer).save(args.model)
    _print_result(result, args)


def search_space(
    ranges: list[str], choices: list[str], estimator: FactorizationMachine
) -> dict[str, Any]:
    """Return the space of ``--range`` and ``--choices``, as ``tune`` takes it."""
    space: dict[str, Any] = {}
    for flag, texts in (("--range", ranges), ("--choices", choices)):
        for text in texts:
            name, equals, values = text.partition("=")
            check_name(name, estimator, f"{flag} {text}")
            if name in space:
                raise UsageError(f"{flag} {text}: {name} has a range or choices already.")
            if flag == "--range":
                space[name] = _parse_range(text, values) if equals else None
            else:
                space[name] = [
                    convert_value(name, parse_value(name, value, estimator), estimator)
                    for value in values.split(",")
                ]
    return space


def _parse_range(text: str, values: str) -> tuple[Any, ...]:
    low, _, high = values.partition(":")
    high, colon, log = high.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (math.nan, math.nan)
    if math.isnan(sum(ends)) or (colon and log != "log"):
        raise UsageError(
            f"--range {text} is not NAME=LOW:HIGH or NAME=LOW:HIGH:log, such as "
            "factorsLr=0.05:0.8:log."
        )
    return (*ends, log) if log else ends


@contextmanager
def _log_trials_only(level: str) -> Iterator[None]:
    """Log trials, and their epochs only at the level debug."""
    logger = logging.getLogger("spark_fm.training")
    before = logger.level
    if level != "debug":
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _print_kept_trials(folder: Path) -> None:
    path = folder / FILE_NAME
    n_trials = path.read_bytes().count(b"\n") - 1 if path.exists() else 0
    if n_trials > 0:
        print(f"kept       {n_trials} trial(s) in {path}; the same command resumes from there")


def _print_result(result: TuningResult, args: argparse.Namespace) -> None:
    best, folder = result.best, Path(args.out)
    counts = Counter(trial.state for trial in result.trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    epochs = sum(len(trial.curve) for trial in result.trials)
    print(f"trials     {len(result.trials)} ({states}), {epochs} epochs")
    print(
        f"best       trial {best.number}: validation {result.metric} {best.value:.6g} at epoch "
        f"{best.best_epoch}; trial 0, the Params as set: {result.trials[0].value:.6g}"
    )
    print(f"model      {args.model}")
    plot = folder / "trials.png"
    plotted = f", plotted in {plot}" if plot.exists() else ""
    print(f"table      {folder / 'trials.csv'}{plotted}")
    print(f"best Params, {folder / 'best.json'}: {json.dumps(result.bestParams)}")
