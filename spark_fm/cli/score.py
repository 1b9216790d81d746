"""``spark-fm score``: scores of a saved model for files, as rows or as batch transform."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from typing import Any

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import AtomicType

from spark_fm.cli.errors import UsageError, interruptible
from spark_fm.cli.input_formats import InputSpec, path_exists
from spark_fm.cli.inputs import (
    add_input_flags,
    explain_parse_errors,
    has_signed_labels,
    map_signed_labels,
    model_input,
    open_source,
)
from spark_fm.cli.params import add_set_flag, apply_params, collect_params
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.batch_transform import (
    Outcome,
    Transform,
    Work,
    default_accept,
    plan,
    transform_file,
)
from spark_fm.formats.content_types import CONTENT_TYPES, content_type_of
from spark_fm.formats.files import is_stream
from spark_fm.formats.models.native import read_model
from spark_fm.learner.losses import BINARY
from spark_fm.learner.spec import require
from spark_fm.ml.base import SPARK_OUTPUTS
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.spark.files import replace_folder
from spark_fm.spark.schema import find_column, quoted
from spark_fm.spark.session import persisted

log = logging.getLogger(__name__)

USAGE = (
    "--model PATH --input PATH (--format FORMAT | --content-type TYPE) --output OUT [more flags]"
)
EXAMPLE = """example:
  spark-fm score --model a9a.model --input a9a.t.gz --format libsvm --output a9a.scores \\
      --output-format csv
example of batch transform, a file of predictions for each file of instances:
  spark-fm score --model a9a.model --input requests/ --content-type recordio-protobuf \\
      --output scores/
"""
OUTPUT_FORMATS = ("parquet", "csv", "json")
# By short name.
_CONTENT_TYPES = {name.split("/")[1].removeprefix("x-"): name for name in CONTENT_TYPES}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PATH", help="a saved model")
    add_input_flags(parser, what="rows, with or without labels", needs_format=False)
    parser.add_argument(
        "--num-features", type=int, metavar="N",
        help="length of the vectors in text files [the model's]",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="OUT",
        help="folder for the scores and every column but the features; rows of one text file keep "
        "their order, rows of several have the column input_file",
    )  # fmt: skip
    parser.add_argument("--output-format", choices=OUTPUT_FORMATS, help="with --format [parquet]")
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing output")
    add_batch_flags(parser)
    add_set_flag(parser)
    add_session_flags(parser)


def run(args: argparse.Namespace) -> None:
    if is_batch(args):
        run_batch(args, collect_params(args, FactorizationMachineModel()))
    else:
        run_rows(args, collect_params(args, FactorizationMachineModel()))


def run_rows(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Score rows with Spark; ``values`` are Params that were set."""
    args.output_format = args.output_format or "parquet"
    with spark_session(args) as spark:
        _check_output(spark, args)
        model = FactorizationMachineModel.load(args.model)
        # A file of scores repeats them in Spark's columns only where somebody has named these.
        unset = {name: "" for name in SPARK_OUTPUTS if not model.isSet(name)}
        model = apply_params(model, {**unset, **values})
        spec = model_input(model, args.format, num_features=args.num_features, is_scored=True)
        source = open_source(spark, args.input, spec)
        frame = source.frame
        if model.getPredictorType() == BINARY and has_signed_labels(source):
            frame = map_signed_labels(frame, spec.label_col)
        scored = model.transform(frame).drop(quoted(spec.features_col))
        # Persisted, so that bad rows are found before anything is written or replaced.
        with persisted(_writable(scored, args.output_format)) as rows, explain_parse_errors(source):
            n_rows = _write(rows, spec, args)
    print(f"scored {n_rows:,} rows to {args.output}")


def _check_output(spark: SparkSession, args: argparse.Namespace) -> None:
    if not args.overwrite:
        if path_exists(spark, args.output):
            raise UsageError(f"--output {args.output} exists; give another path, or --overwrite.")
        return
    for flag, path in [("--model", args.model), *(("--input", path) for path in args.input)]:
        inner, outer = (name.removeprefix("file://").rstrip("/") for name in (path, args.output))
        if inner == outer or inner.startswith(outer + "/"):  # as far as the names show
            raise UsageError(
                f"--output {args.output} holds {flag} {path}, which --overwrite would remove; give "
                "another path."
            )


def _writable(frame: DataFrame, output_format: str) -> DataFrame:
    """Return the frame with the columns that the format can hold."""
    if output_format == "parquet":
        return frame
    columns, left_out = [], []
    for field in frame.schema.fields:
        column = quoted(field.name)
        if output_format == "csv" and not isinstance(field.dataType, AtomicType):
            left_out.append(field.name)
        elif isinstance(field.dataType, VectorUDT):
            columns.append(vector_to_array(column).alias(field.name))
        else:
            columns.append(column)
    if left_out:
        log.warning("left out %s, which CSV cannot hold", ", ".join(left_out))
    return frame.select(*columns)


def _write(rows: DataFrame, spec: InputSpec, args: argparse.Namespace) -> int:
    counts = [F.count(F.lit(1)).alias("rows")]
    has_label = find_column(rows, spec.label_col) is not None
    if has_label:
        counts.append(F.count(quoted(spec.label_col)).alias("labels"))
    totals = rows.agg(*counts).collect()[0]
    if has_label and not totals["labels"]:
        rows = rows.drop(quoted(spec.label_col))
    writer = rows.write.format(args.output_format)
    if args.output_format == "csv":
        writer = writer.option("header", True)
    if args.overwrite:
        replace_folder(rows.sparkSession, args.output, writer.save)
    else:
        writer.save(args.output)
    return int(totals["rows"])


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "batch transform, instead of --format",
        "Write FILE.out for each input file, with its predictions in the order of its rows, like "
        "SageMaker's batch transform. Without --master this needs neither Spark nor Java; with "
        "it, or under spark-submit, each file is a Spark task.",
    )
    group.add_argument(
        "--content-type",
        metavar="TYPE",
        type=_content_type,
        help=f"of the input: {_content_type_names()}",
    )
    group.add_argument(
        "--accept", metavar="TYPE", type=_content_type,
        help="of the output [the input's; jsonlines for recordio-protobuf]",
    )  # fmt: skip
    group.add_argument(
        "--split-type", type=_word, choices=_WORDS[:3],
        help="Line: each line of application/json is a document, or an instance, and so is its "
        "output; otherwise as is usual for the type",
    )  # fmt: skip
    group.add_argument(
        "--assemble-with", type=_word, choices=_WORDS[:2],
        help="Line: a line end after each output [as the input is split]",
    )  # fmt: skip
    group.add_argument(
        "--join-source", type=_word, choices=_WORDS[::3], default=_WORDS[0],
        help="Input: write each record with its prediction: JSON as SageMakerOutput, beside any "
        "members, such as id; a record of recordIO with score and predicted_label in its label "
        "map [None]",
    )  # fmt: skip
    group.add_argument(
        "--join", dest="join_source", action="store_const", const=_WORDS[3],
        help="the same as --join-source Input",
    )  # fmt: skip
    group.add_argument(
        "--input-filter", default="$", metavar="JSONPATH",
        help="which part of each JSON record is scored, such as $.features [$: all]",
    )  # fmt: skip
    group.add_argument(
        "--output-filter", default="$", metavar="JSONPATH",
        help="which part of each output is written, such as \"$['id','SageMakerOutput']\" [$: all]",
    )  # fmt: skip


_WORDS = ("None", "Line", "RecordIO", "Input")  # SageMaker's


def _word(text: str) -> str:
    """Return one of SageMaker's words in its own spelling."""
    return {word.lower(): word for word in _WORDS}.get(text.lower(), text)


def _content_type_names() -> str:
    return ", ".join(f"{short} ({name})" for short, name in _CONTENT_TYPES.items())


def _content_type(text: str) -> str:
    try:
        return content_type_of(_CONTENT_TYPES.get(text, text)).name
    except InvalidParamError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {_content_type_names()}") from None


def is_batch(args: argparse.Namespace) -> bool:
    """Return whether the flags ask for a batch transform, and check that they go together."""
    if args.content_type is None:
        flags = {
            "--accept": args.accept,
            "--split-type": args.split_type,
            "--assemble-with": args.assemble_with,
            "--join": args.join_source == "Input",
            "--input-filter": args.input_filter != "$",
            "--output-filter": args.output_filter != "$",
        }
        for flag, is_given in flags.items():
            if is_given:
                raise UsageError(f"{flag} goes with --content-type; name the input's type.")
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
    """Score each file; ``values`` are Params that were set."""
    unused = sorted(set(values) - {"threshold"})
    if unused:
        raise UsageError(
            f"--set {unused[0]}=... has no effect with --content-type; only threshold has."
        )
    threshold = values.get("threshold")
    require(threshold is None or 0 <= threshold <= 1, "threshold", threshold, "0 to 1")
    join = args.join_source == "Input"
    job = Transform(
        args.content_type,
        args.accept or default_accept(args.content_type, join=join),
        _absolute(args.output),  # as workers may run in other folders than this process
        join=join,
        split_type=args.split_type,
        assemble_with=args.assemble_with,
        input_filter=args.input_filter,
        output_filter=args.output_filter,
    )
    for path in args.input:
        if is_stream(path):
            raise UsageError(f"{path} is no file; the output of each file is named after it.")
    works = plan(args.input, job, overwrite=args.overwrite)
    started = time.monotonic()
    if args.master or args.remote or args.conf or "PYSPARK_GATEWAY_PORT" in os.environ:
        outcomes = _transform_with_spark(args, threshold, job, works)
    else:
        outcomes = _transform_here(args.model, threshold, job, works)
    _print_outcomes(outcomes, job, time.monotonic() - started)


def _absolute(path: str) -> str:
    return path if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:/", path) else os.path.abspath(path)


def _transform_here(
    model: str, threshold: float | None, job: Transform, works: list[Work]
) -> list[Outcome]:
    loaded = read_model(model).with_threshold(threshold)
    outcomes = []
    with interruptible():
        for work in works:
            outcomes.append(transform_file(loaded, job, work))
            log.info("read %s", work.file.path)
    return outcomes


def _transform_with_spark(
    args: argparse.Namespace, threshold: float | None, job: Transform, works: list[Work]
) -> list[Outcome]:
    from spark_fm.scoring.batch_transform import TransformTask, transform_files

    model = _absolute(args.model)
    read_model(model)  # a bad model is an error before there is a job
    with spark_session(args) as spark:
        task = TransformTask(model, threshold, job, tuple(works))
        return transform_files(spark, task, works)


def _print_outcomes(outcomes: list[Outcome], job: Transform, seconds: float) -> None:
    """Print what was scored; raise InvalidDataError if files failed."""
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
