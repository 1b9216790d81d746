"""``spark-fm score``: write the scores of a saved model for files; driver only."""

from __future__ import annotations

import argparse
import logging

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import AtomicType

from spark_fm.cli.batches import add_batch_flags, is_batch, run_batch
from spark_fm.cli.failures import UsageError
from spark_fm.cli.inputs import (
    InputSpec,
    add_input_flags,
    explained,
    lies_in,
    minus_one_means_zero,
    open_source,
    path_exists,
    with_binary_labels,
)
from spark_fm.cli.params import add_set_flag, apply_params, collect_params
from spark_fm.cli.session import add_session_flags, spark_session
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.params import BINARY
from spark_fm.spark.files import replace_folder
from spark_fm.spark.schema import quoted
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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("--model", required=True, metavar="PATH", help="a saved model")
    add_input_flags(parser, what="rows, with or without labels", needs_format=False)
    parser.add_argument(
        "--num-features", type=int, metavar="N",
        help="length of the vectors in text files [the model's]",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="OUT",
        help="folder for the scores, next to every column but the features; rows of one text file "
        "keep their order, rows of several come with the column input_file",
    )  # fmt: skip
    parser.add_argument("--output-format", choices=OUTPUT_FORMATS, help="with --format [parquet]")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    add_batch_flags(parser)
    add_set_flag(parser)
    add_session_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Score as the flags say."""
    if is_batch(args):
        run_batch(args, collect_params(args, FactorizationMachineModel()))
        return
    args.output_format = args.output_format or "parquet"
    values = collect_params(args, FactorizationMachineModel())
    with spark_session(args) as spark:
        _check_output(spark, args)
        model = apply_params(FactorizationMachineModel.load(args.model), values)
        spec = InputSpec(
            file_format=args.format,
            features_col=model.getFeaturesCol(),
            label_col=model.getLabelCol(),
            num_features=args.num_features or model.numFeatures,
            needs_label=False,
        )
        source = open_source(spark, args.input, spec, with_file=True)
        frame = source.frame
        if model.getPredictorType() == BINARY and minus_one_means_zero(source):
            frame = with_binary_labels(frame, spec.label_col)
        scored = model.transform(frame).drop(quoted(spec.features_col))
        # Kept, so that bad rows show before anything is written or replaced.
        with persisted(_writable(scored, args.output_format)) as rows, explained(source):
            n_rows = _write(rows, spec, args)
    print(f"scored {n_rows:,} rows to {args.output}")


def _write(rows: DataFrame, spec: InputSpec, args: argparse.Namespace) -> int:
    counts = [F.count(F.lit(1)).alias("rows")]
    has_label = spec.label_col in rows.schema.names
    if has_label:
        counts.append(F.count(quoted(spec.label_col)).alias("labels"))
    found = rows.agg(*counts).collect()[0]
    if has_label and not found["labels"]:
        rows = rows.drop(quoted(spec.label_col))
    writer = rows.write.format(args.output_format)
    if args.output_format == "csv":
        writer = writer.option("header", True)
    if args.overwrite:
        replace_folder(rows.sparkSession, args.output, writer.save)
    else:
        writer.save(args.output)
    return int(found["rows"])


def _check_output(spark: SparkSession, args: argparse.Namespace) -> None:
    if not args.overwrite:
        if path_exists(spark, args.output):
            raise UsageError(f"--output {args.output} exists; give another path, or --overwrite.")
        return
    for flag, path in [("--model", args.model), *(("--input", path) for path in args.input)]:
        if lies_in(path, args.output):
            raise UsageError(
                f"--output {args.output} holds {flag} {path}, which --overwrite would remove; give "
                "another path."
            )


def _writable(frame: DataFrame, output_format: str) -> DataFrame:
    """Return the frame with the columns that the format can hold."""
    if output_format == "parquet":
        return frame
    kept, left_out = [], []
    for field in frame.schema.fields:
        column = quoted(field.name)
        if isinstance(field.dataType, AtomicType):
            kept.append(column)
        elif output_format == "csv":
            left_out.append(field.name)
        elif isinstance(field.dataType, VectorUDT):
            kept.append(vector_to_array(column).alias(field.name))
        else:
            kept.append(column)
    if left_out:
        log.warning("left out %s, which CSV cannot hold", ", ".join(left_out))
    return frame.select(*kept)
