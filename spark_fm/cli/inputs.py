"""Read training and test sets from libsvm, libfm, Parquet and recordIO; driver only."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import AnalysisException, PySparkException
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, NumericType, StringType, StructField, StructType

from spark_fm.cli.errors import UsageError, raised_on_worker
from spark_fm.cli.pipes import piped
from spark_fm.datasource.recordio import register
from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import is_stream
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.formats.text import LineParser, ParsedLines, shortened
from spark_fm.formats.vectors import VECTOR_TYPE, vector_column
from spark_fm.spark.files import literal
from spark_fm.spark.schema import quoted
from spark_fm.spark.session import is_connect, is_local_master

log = logging.getLogger(__name__)

FORMATS = ("libsvm", "libfm", "parquet", RECORDIO)
# The first word of a line, unless it is an index:value pair.
_FIRST_WORD = r"^[\uFEFF\s]*([^\s:#]+)(?:[\s#]|$)"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the flags and the Params say about an input.

    Parameters
    ----------
    file_format : str
        One of FORMATS.
    features_col, label_col : str
    num_features : int, optional
        Length of the vectors read from text or records; unset: as long as each needs to
        be, or as the records say.
    needs_label : bool
        Whether a line of text without a label is an error.
    in_order : bool
        Whether the rows must come in the order of file names and places in the files.
    """

    file_format: str
    features_col: str
    label_col: str
    num_features: int | None = None
    needs_label: bool = True
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """An input that was opened.

    Parameters
    ----------
    frame : DataFrame
        Columns as the InputSpec names them; ``input_file`` too when asked for.
    labels : DataFrame or None
        One column ``label``, double, cheap to scan; null where there is no number. None
        where rows can be read only once.
    faults : callable, optional
        Returns the DataFrame of the lines that cannot be read.
    """

    frame: DataFrame
    labels: DataFrame | None
    faults: Callable[[], DataFrame] | None = None


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
            "--train",
            nargs="+",
            metavar="PATH",
            help=f"the same under the channel's name; --format is then {RECORDIO} unless given",
        )
        parser.add_argument(
            "--test", nargs="+", metavar="PATH",
            help="test set of the same format: the model is measured on it when it is trained",
        )  # fmt: skip
    parser.add_argument(
        "--format", required=needs_format and not has_channels, choices=FORMATS,
        help="libsvm: label index:value ..., indices from 1; libfm: the same, indices from 0; "
        f"parquet: a label column and a column of vectors or arrays; {RECORDIO}: the files "
        "of SageMaker's algorithms",
    )  # fmt: skip


def open_source(
    spark: SparkSession, paths: Sequence[str], spec: InputSpec, *, with_file: bool = False
) -> Source:
    """Open an input; its rows are read when a job needs them.

    Parameters
    ----------
    spark : SparkSession
    paths : sequence of str
    spec : InputSpec
    with_file : bool, default False
        Add the column ``input_file`` to rows of text when there is more than one file.

    Raises
    ------
    UsageError
        For a path that does not exist.
    InvalidDataError
        For files that are not of the format.
    """
    for path in paths:
        if is_stream(path):
            raise UsageError(f"{path} can be read only once, which is enough for training only.")
    if spec.file_format == "parquet":
        return _open_parquet(spark, paths, spec)
    if spec.file_format == RECORDIO:
        return _open_recordio(spark, paths, spec)
    return _open_text(spark, paths, spec, with_file=with_file)


@contextmanager
def open_input(spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Iterator[Source]:
    """Open an input that is read once, a pipe too, inside the block."""
    if not any(map(is_stream, paths)):
        yield open_source(spark, paths, spec)
        return
    if len(paths) > 1 or spec.file_format == "parquet":
        raise UsageError(
            f"{' '.join(paths)}: a pipe is read alone, as libsvm, libfm or {RECORDIO}."
        )
    if is_connect(spark) and not is_local_master(spark):
        raise UsageError(
            f"{paths[0]}: a pipe needs the driver in this process; use --master, or spark-submit."
        )
    columns = (spec.label_col, spec.features_col)
    with piped(spark, paths[0], spec.file_format, spec.num_features or 0, columns) as frame:
        yield Source(frame, None)


def _open_parquet(spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
    try:
        frame = spark.read.parquet(*paths)
        schema = frame.schema
    except Exception as err:  # a broken footer comes as whatever Java threw
        if isinstance(err, AnalysisException):
            _refuse_missing(err, paths)
        raise InvalidDataError(
            f"{', '.join(paths)} cannot be read as parquet. Check --input and --format."
        ) from err
    labels = spark.createDataFrame([], "label double")
    if spec.label_col in schema.names and isinstance(schema[spec.label_col].dataType, NumericType):
        labels = frame.select(quoted(spec.label_col).cast("double").alias("label"))
    return Source(in_file_order(frame) if spec.in_order else frame, labels)


def _open_recordio(spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
    register(spark)
    reader = spark.read.format(RECORDIO)
    if spec.num_features:
        reader = reader.option("featureDim", spec.num_features)
    frame = reader.load(list(paths)).select(
        F.col("label").alias(spec.label_col), F.col("features").alias(spec.features_col)
    )
    return Source(frame, frame.select(quoted(spec.label_col).alias("label")))


def _open_text(
    spark: SparkSession, paths: Sequence[str], spec: InputSpec, *, with_file: bool
) -> Source:
    try:
        text = spark.read.text(list(paths)).select("value", F.input_file_name().alias("input_file"))
        _ = text.schema  # a missing path shows here on Spark Connect
    except AnalysisException as err:
        _refuse_missing(err, paths)
        raise
    parser = LineParser(
        text_format=spec.file_format,  # type: ignore[arg-type]  # one of FORMATS, not parquet
        num_features=spec.num_features or 0,
        needs_label=spec.needs_label,
    )
    fields = [
        StructField(spec.label_col, DoubleType()),
        StructField(spec.features_col, VectorUDT()),
    ]
    lines = in_file_order(spark.read.text(list(paths))) if spec.in_order else text.select("value")
    if with_file and len(text.inputFiles()) > 1:
        lines = text
        fields.append(StructField("input_file", StringType()))
    task = ParseTask(parser, label_col=spec.label_col, features_col=spec.features_col)
    first = F.regexp_extract("value", _FIRST_WORD, 1)
    return Source(
        frame=lines.mapInArrow(task, StructType(fields)),
        labels=text.select(first.try_cast("double").alias("label")),
        faults=lambda: text.mapInArrow(FaultTask(parser), FAULT_DDL),
    )


@contextmanager
def explain_parse_errors(*sources: Source) -> Iterator[None]:
    """Say which line of which file is at fault when jobs inside meet bad data.

    Looking for it costs another pass over the text, paid only then.
    """
    try:
        yield
    except (InvalidDataError, PySparkException) as err:
        if isinstance(err, PySparkException) and raised_on_worker(err) is None:
            raise
        for source in sources:
            fault = _first_fault(source)
            if fault is not None:
                raise InvalidDataError(fault) from err
        raise


def _first_fault(source: Source) -> str | None:
    if source.faults is None:
        return None
    found = source.faults().limit(1).collect()
    if not found:
        return None
    path, line, reason = found[0]
    return f"{_shown_path(path)}: the line {line!r} cannot be read: {reason}."


def has_signed_labels(source: Source) -> bool:
    """Tell whether the labels are -1 and 1, and log it; one pass over the labels."""
    if source.labels is None:
        return False
    # Sums, because a limit would break off Python tasks, which they tell on stderr.
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


def path_exists(spark: SparkSession, path: str, *, glob: bool = False) -> bool:
    """Tell whether a path, or a file that matches it as a ``glob``, is in its file system."""
    try:
        _ = spark.read.format("binaryFile").load(path if glob else literal(path)).schema
    except AnalysisException as err:
        if _is_missing(err):
            return False
        raise
    return True


def is_subpath(path: str, folder: str) -> bool:
    """Tell whether ``path`` is ``folder`` or below it, as far as their names show."""
    inner, outer = (name.removeprefix("file://").rstrip("/") for name in (path, folder))
    return inner == outer or inner.startswith(outer + "/")


def _refuse_missing(err: AnalysisException, paths: Sequence[str]) -> None:
    if _is_missing(err):
        named = (err.getMessageParameters() or {}).get("path")
        shown = _shown_path(named) if named else ", ".join(paths)
        raise UsageError(f"the input path {shown} does not exist, or no file matches it.") from err


def _is_missing(err: AnalysisException) -> bool:
    return err.getCondition() == "PATH_NOT_FOUND"


def _shown_path(uri: str) -> str:
    path = unquote(uri)
    for prefix in ("file://", "file:"):
        path = path.removeprefix(prefix)
    return path


@dataclass(frozen=True)
class ParseTask:
    """Lines to rows: for ``mapInArrow`` over a column ``value`` and maybe ``input_file``.

    Parameters
    ----------
    parser : LineParser
    label_col, features_col : str
        Names of the output columns.

    Notes
    -----
    A line that cannot be read gives null features and a null label, which training and
    scoring count or refuse as the user asked.
    """

    parser: LineParser
    label_col: str
    features_col: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield label, features and, where it came in, the input file."""
        for batch in batches:
            rows = self.parser.parse(_column(batch, "value"))
            columns = [
                pa.array(rows.labels, pa.float64(), mask=~rows.has_label),
                _vectors(rows, self.parser.num_features),
            ]
            names = [self.label_col, self.features_col]
            kinds = [pa.float64(), VECTOR_TYPE]
            if "input_file" in batch.schema.names:
                files = _column(batch, "input_file").take(pa.array(rows.positions))
                columns.append(files)
                names.append("input_file")
                kinds.append(files.type)
            schema = pa.schema(list(zip(names, kinds, strict=True)))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass(frozen=True)
class FaultTask:
    """The lines that cannot be read: for ``mapInArrow`` over ``value`` and ``input_file``."""

    parser: LineParser

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield file, shortened line and reason of each bad line."""
        for batch in batches:
            lines = _column(batch, "value")
            rows = self.parser.parse(lines)
            if not rows.errors:
                continue
            at = pa.array(rows.positions[list(rows.errors)])
            raw = pc.cast(lines.take(at), pa.large_binary())
            shown = [shortened(item.as_py().decode("utf-8", "replace").strip()) for item in raw]
            yield pa.RecordBatch.from_arrays(
                [
                    _column(batch, "input_file").take(at).cast(pa.string()),
                    pa.array(shown, pa.string()),
                    pa.array(rows.errors.values(), pa.string()),
                ],
                names=["input_file", "line", "error"],
            )


FAULT_DDL = "input_file string, line string, error string"


def _vectors(rows: ParsedLines, num_features: int) -> pa.StructArray:
    """Return sparse vectors; null for rows with an error."""
    is_null = np.zeros(rows.n_rows, bool)
    is_null[list(rows.errors)] = True
    return vector_column(
        rows.indptr, rows.indices, rows.values, rows.sizes(num_features),
        is_dense=np.zeros(rows.n_rows, bool), is_null=is_null,
    )  # fmt: skip


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))


def in_file_order(frame: DataFrame) -> DataFrame:
    """Return the rows in the order of (file name, place in the file), partitions included.

    Parameters
    ----------
    frame : DataFrame
        Read from text or Parquet files, with nothing done to it yet.

    Notes
    -----
    Spark puts the pieces of files together by their size. This sorts the rows, in a
    shuffle, for trainings that depend on the order.
    """
    keys = {
        "file_path": F.col("_metadata.file_path"),
        "file_start": F.col("_metadata.file_block_start"),
        "row_number": F.monotonically_increasing_id(),
    }
    keyed = frame.select("*", *(key.alias(f"spark_fm_{name}") for name, key in keys.items()))
    names = [f"spark_fm_{name}" for name in keys]
    return keyed.sort(*names).drop(*names)
