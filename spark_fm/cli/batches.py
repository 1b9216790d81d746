"""``spark-fm score --content-type``: a file of predictions for each file of instances.

Needs neither a Spark session nor Java, unless a master is named or spark-submit runs it.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from typing import Any

from spark_fm.cli.failures import UsageError
from spark_fm.cli.interrupts import interruptible
from spark_fm.cli.session import spark_session
from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.batch_transform import (
    Outcome,
    Transform,
    Work,
    default_accept,
    plan,
    transform_file,
)
from spark_fm.formats.files import is_stream
from spark_fm.formats.models.native import read_model
from spark_fm.formats.requests import CONTENT_TYPES, plain_type
from spark_fm.learner.spec import require

log = logging.getLogger(__name__)

_SHORT = {name.split("/")[1].removeprefix("x-"): name for name in CONTENT_TYPES}


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this way to score."""
    group = parser.add_argument_group(
        "batch transform, instead of --format",
        "For each input file FILE.out with its predictions in the order of its rows, as "
        "SageMaker's batch transform writes it. Without --master it needs neither Spark nor "
        "Java; with it, or under spark-submit, each file is a Spark task.",
    )
    group.add_argument(
        "--content-type", metavar="TYPE", type=_type_name, help=f"of the input: {_names()}"
    )
    group.add_argument(
        "--accept", metavar="TYPE", type=_type_name,
        help="of the output [the input's; jsonlines for recordio-protobuf]",
    )  # fmt: skip
    group.add_argument(
        "--join", action="store_true",
        help="write each instance with its prediction: JSON as SageMakerOutput, a record with "
        "score and predicted_label in its label map",
    )  # fmt: skip


def _names() -> str:
    return ", ".join(f"{short} ({name})" for short, name in _SHORT.items())


def _type_name(text: str) -> str:
    try:
        return plain_type(_SHORT.get(text, text))
    except InvalidParamError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {_names()}") from None


def is_batch(args: argparse.Namespace) -> bool:
    """Tell whether the flags ask for this way to score, and check that they fit together."""
    if args.content_type is None:
        if args.accept or args.join:
            raise UsageError("--accept and --join go with --content-type; name the input's type.")
        if args.format is None:
            raise UsageError("give --format, or --content-type for a file of scores each file.")
        return False
    for flag, value in (
        ("--format", args.format),
        ("--output-format", args.output_format),
        ("--num-features", args.num_features),
    ):
        if value is not None:
            raise UsageError(
                f"{flag} does not go with --content-type; the output's type is --accept, and the "
                "number of features is the model's."
            )
    return True


def run_batch(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Score each file as the flags say; ``values`` are Params that were set."""
    unused = sorted(set(values) - {"threshold"})
    if unused:
        raise UsageError(
            f"--set {unused[0]}=... has no effect with --content-type; only threshold has."
        )
    threshold = values.get("threshold")
    require(threshold is None or 0 <= threshold <= 1, "threshold", threshold, "0 to 1")
    job = _job(args)
    for path in args.input:
        if is_stream(path):
            raise UsageError(f"{path} is no file; the output of each file is named after it.")
    works = plan(args.input, job, overwrite=args.overwrite)
    started = time.monotonic()
    if args.master or args.remote or args.conf or "PYSPARK_GATEWAY_PORT" in os.environ:
        outcomes = _by_spark(args, threshold, job, works)
    else:
        outcomes = _here(args.model, threshold, job, works)
    _tell(outcomes, job, time.monotonic() - started)


def _job(args: argparse.Namespace) -> Transform:
    accept = args.accept or default_accept(args.content_type, join=args.join)
    # Workers may stand in other folders than this process.
    return Transform(args.content_type, accept, _absolute(args.output), join=args.join)


def _absolute(path: str) -> str:
    return path if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:/", path) else os.path.abspath(path)


def _here(model: str, threshold: float | None, job: Transform, works: list[Work]) -> list[Outcome]:
    """Score file after file in this process."""
    loaded = read_model(model).with_threshold(threshold)
    outcomes = []
    with interruptible():
        for work in works:
            outcomes.append(transform_file(loaded, job, work))
            log.info("read %s", work.file.path)
    return outcomes


def _by_spark(
    args: argparse.Namespace, threshold: float | None, job: Transform, works: list[Work]
) -> list[Outcome]:
    from spark_fm.scoring.batch_transform import TransformTask, transform_files

    model = _absolute(args.model)
    read_model(model)  # a wrong model is an error before there is a job
    with spark_session(args) as spark:
        task = TransformTask(model, threshold, job, tuple(works))
        return transform_files(spark, task, works)


def _tell(outcomes: list[Outcome], job: Transform, seconds: float) -> None:
    """Print what was done; raise if files failed."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    bad = [outcome for outcome in outcomes if outcome.error is not None]
    n_rows = sum(outcome.n_rows for outcome in good)
    print(
        f"scored {n_rows:,} rows of {len(good):,} file{'s' * (len(good) != 1)} to {job.output} in "
        f"{seconds:.1f} s"
    )
    if not bad:
        return
    for outcome in bad:
        print(f"failed: {outcome.path}: {' '.join(str(outcome.error).split())}", file=sys.stderr)
    raise InvalidDataError(
        f"{len(bad)} of {len(outcomes)} files failed and have no output, such as {bad[0].path}. "
        "Mend them and score them again."
    )
