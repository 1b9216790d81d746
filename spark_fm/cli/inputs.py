"""The input of a command: its flags, files or a pipe, and what is wrong in it; driver only."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm.cli.errors import UsageError, input_format, raised_on_worker
from spark_fm.cli.input_formats import INPUT_FORMATS, InputSpec, Source, TableInput, shown_path
from spark_fm.cli.pipes import piped
from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import is_stream, name_of
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.spark.schema import quoted
from spark_fm.spark.session import is_connect, is_local_master

log = logging.getLogger(__name__)

CHANNEL_FORMAT = RECORDIO  # of SageMaker's channels


class _Table(argparse.Action):
    """Take a table for the input."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, name: Any, *_: Any
    ) -> None:
        namespace.input, namespace.format = [name], TableInput.name
        for action in parser._actions:  # these have a value now
            action.required = action.required and action.dest not in ("input", "format")


def add_input_flags(
    parser: argparse.ArgumentParser,
    *,
    what: str,
    has_pipes: bool = False,
    has_channels: bool = False,
    needs_format: bool = True,
) -> None:
    """Add ``--input`` and ``--format``; with channels also ``--train`` and ``--test``."""
    pipes = "; a named pipe; - is standard input" if has_pipes else ""
    group = parser.add_mutually_exclusive_group() if has_channels else parser
    group.add_argument(
        "--input", nargs="+", required=not has_channels, metavar="PATH",
        help=f"{what}: files, folders or globs, also .gz" + pipes,
    )  # fmt: skip
    if has_channels:
        group.add_argument(
            "--train", nargs="+", metavar="PATH",
            help="the same under the channel's name; --format is then "
            f"{CHANNEL_FORMAT} unless given",
        )  # fmt: skip
        parser.add_argument(
            "--test", nargs="+", metavar="PATH",
            help="test set of the same format, on which the trained model is evaluated",
        )  # fmt: skip
    group.add_argument(
        "--table", action=_Table, metavar="NAME",
        help="the same as --input NAME --format table: a table of the catalog",
    )  # fmt: skip
    parser.add_argument(
        "--format", required=needs_format and not has_channels, type=input_format,
        choices=tuple(INPUT_FORMATS),
        help="; ".join(f"{each.name}: {each.help}" for each in INPUT_FORMATS.values()),
    )  # fmt: skip


def model_input(
    model: FactorizationMachineModel,
    file_format: str,
    *,
    num_features: int | None = None,
    is_scored: bool = False,
) -> InputSpec:
    """Return how to read rows that a model evaluates or scores."""
    return InputSpec(
        file_format=file_format,
        features_col=model.getFeaturesCol(),
        label_col=model.getLabelCol(),
        num_features=num_features or model.numFeatures,
        needs_label=not is_scored,
        with_file=is_scored,
    )


def open_source(spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
    """Open files; their rows are read when a job needs them."""
    for path in paths:
        if is_stream(path):
            raise UsageError(f"{path} can be read only once, which is enough for training only.")
    return INPUT_FORMATS[spec.file_format].open(spark, paths, spec)


@contextmanager
def open_input(spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Iterator[Source]:
    """Open an input that is read once, a pipe too, inside the block."""
    if not any(map(is_stream, paths)):
        yield open_source(spark, paths, spec)
        return
    input_format = INPUT_FORMATS[spec.file_format]
    if len(paths) > 1 or not input_format.is_streamable:
        *most, last = (each.name for each in INPUT_FORMATS.values() if each.is_streamable)
        raise UsageError(
            f"{' '.join(paths)}: a pipe is read alone, as {', '.join(most)} or {last}."
        )
    if is_connect(spark) and not is_local_master(spark):
        raise UsageError(
            f"{paths[0]}: a pipe needs the driver in this process; use --master, or spark-submit."
        )
    read_rows = partial(
        input_format.read_stream, source=name_of(paths[0]), num_features=spec.num_features or 0
    )
    with piped(spark, paths[0], read_rows, (spec.label_col, spec.features_col)) as frame:
        yield Source(frame, None)


@contextmanager
def explain_parse_errors(*sources: Source) -> Iterator[None]:
    """Name the line and the file at fault when jobs inside the block meet bad data.

    Looking for it costs another pass over the text, paid only then.
    """
    try:
        yield
    except (InvalidDataError, PySparkException) as err:
        if isinstance(err, PySparkException) and raised_on_worker(err) is None:
            raise
        for source in sources:
            for path, line, reason in source.faults().limit(1).collect() if source.faults else ():
                raise InvalidDataError(
                    f"{shown_path(path)}: the line {line!r} cannot be read: {reason}."
                ) from err
        raise


def has_signed_labels(source: Source) -> bool:
    """Return whether the labels are -1 and 1, and log it; one pass over the labels."""
    if source.labels is None:
        return False
    # Sums, because a limit would break off Python tasks, which report that on stderr.
    negative, other = source.labels.agg(
        F.count_if(F.col("label") == -1.0), F.count_if(~F.col("label").isin(-1.0, 1.0))
    ).collect()[0]
    if not negative or other:
        return False
    log.info("labels -1/1 mapped to 0/1")
    return True


def map_signed_labels(frame: DataFrame, label_col: str) -> DataFrame:
    """Return the frame with label -1 replaced by 0."""
    label = quoted(label_col).cast("double")
    return frame.withColumn(label_col, F.when(label == -1.0, 0.0).otherwise(label))
