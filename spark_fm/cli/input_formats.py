"""The formats of ``--format``: one object each, in one registry; driver, and tasks of a pipe.

To add a format, write a class like these and put an object of it into INPUT_FORMATS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from pyspark.errors import AnalysisException, PySparkException
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, NumericType, StringType, StructField, StructType

from spark_fm.cli.errors import UsageError
from spark_fm.datasource.batches import RowTable
from spark_fm.datasource.options import ReadOptions
from spark_fm.datasource.recordio import register
from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import list_files
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.formats.recordio.reader import RecordReader
from spark_fm.formats.text import (
    LineParser,
    ParseTask,
    TextFormat,
    read_text,
    shortened,
    text_of,
)
from spark_fm.formats.vectors import vector_column
from spark_fm.ml.persistence import READ_ERRORS
from spark_fm.spark.files import check_store_known, literal
from spark_fm.spark.schema import find_column, quoted


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What the flags and the Params say about an input."""

    file_format: str  # a name in INPUT_FORMATS
    features_col: str
    label_col: str
    num_features: int | None = None  # unset: as records say, or as long as each line needs
    needs_label: bool = True  # whether a line of text without a label is an error
    in_order: bool = False  # rows in the order of file names and of their offsets in the files
    with_file: bool = False  # add the column input_file to rows of more than one text file


@dataclass(frozen=True, slots=True)
class Source:
    """An input that was opened."""

    frame: DataFrame  # columns as the InputSpec names them
    # One column ``label``, double, cheap to scan, null where there is no number; None where
    # rows can be read only once.
    labels: DataFrame | None
    # Returns the lines that cannot be read, with the columns of FAULT_DDL.
    faults: Callable[[], DataFrame] | None = None


class InputFormat(ABC):
    """How files of one format become rows."""

    name: str
    help: str
    is_streamable = True  # whether rows can be read from a pipe

    @abstractmethod
    def open(self, spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
        """Open files; raise UsageError or InvalidDataError for those that cannot be."""

    def read_stream(
        self, stream: BinaryIO, source: str, num_features: int
    ) -> Iterator[tuple[pa.Array, pa.Array]]:
        """Yield labels and vectors of a pipe's rows, in a task; ``num_features`` 0: unset."""
        raise NotImplementedError

    def check_exists(self, spark: SparkSession, path: str) -> None:
        """Raise unless a file is at ``path``, or matches it as a glob."""
        if not path_exists(spark, path, glob=True):
            raise UsageError(f"the test path {path} does not exist, or no file matches it.")


@dataclass(frozen=True)
class TextInput(InputFormat):
    """Lines of ``label index:value ...``."""

    name: TextFormat
    help: str

    def open(self, spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
        try:
            text = spark.read.text(list(paths)).select(
                "value", F.input_file_name().alias("input_file")
            )
            _ = text.schema  # a missing path shows here on Spark Connect
        except AnalysisException as err:
            _raise_if_missing(err, paths)
            raise
        lines = spark.read.text(list(paths))  # which tasks of a fit read themselves
        if spec.in_order:
            lines = in_file_order(lines)
        fields = [
            StructField(spec.label_col, DoubleType()),
            StructField(spec.features_col, VectorUDT()),
        ]
        if spec.with_file and len(text.inputFiles()) > 1:
            lines = text
            fields.append(StructField("input_file", StringType()))
        parser = LineParser(
            text_format=self.name,
            num_features=spec.num_features or 0,
            needs_label=spec.needs_label,
        )
        task = ParseTask(parser, label_col=spec.label_col, features_col=spec.features_col)
        # The first word of a line, unless it is an index:value pair.
        label = F.regexp_extract("value", r"^[\uFEFF\s]*([^\s:#]+)(?:[\s#]|$)", 1)
        return Source(
            frame=lines.mapInArrow(task, StructType(fields)),
            labels=text.select(label.try_cast("double").alias("label")),
            faults=lambda: text.mapInArrow(FaultTask(parser), FAULT_DDL),
        )

    def read_stream(
        self, stream: BinaryIO, source: str, num_features: int
    ) -> Iterator[tuple[pa.Array, pa.Array]]:
        for rows in read_text(stream, LineParser(self.name, num_features), source=source):
            nowhere = np.zeros(rows.n_rows, np.bool_)
            features = vector_column(
                rows.indptr, rows.indices, rows.values,
                rows.widths if num_features else rows.tops(), is_dense=nowhere, is_null=nowhere,
            )  # fmt: skip
            yield pa.array(rows.labels, pa.float64()), features


class ParquetInput(InputFormat):
    name = "parquet"
    help = "a label column and a column of vectors or arrays"
    is_streamable = False

    def open(self, spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
        try:
            frame = spark.read.parquet(*paths)
            _ = frame.schema
        except Exception as err:  # a broken footer comes as whatever Java threw
            if isinstance(err, AnalysisException):
                _raise_if_missing(err, paths)
            raise InvalidDataError(
                f"{', '.join(paths)} cannot be read as parquet. Check --input and --format."
            ) from err
        return Source(in_file_order(frame) if spec.in_order else frame, _labels(spark, frame, spec))


class TableInput(InputFormat):
    name = "table"
    help = "a table or view of the catalog by name, such as main.ads.clicks, in place of a path"
    is_streamable = False

    def open(self, spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
        for name in paths:
            self.check_exists(spark, name)
        frame = reduce(DataFrame.unionByName, map(spark.table, paths))
        return Source(frame, _labels(spark, frame, spec))

    def check_exists(self, spark: SparkSession, path: str) -> None:
        try:
            if spark.catalog.tableExists(path):
                return
        except PySparkException as err:  # no name, or of a catalog that is not there
            reason = str(err).partition("\n")[0]
            raise UsageError(f"the table {path} cannot be read: {reason}") from err
        raise UsageError(
            f"the table {path} does not exist. Name it as SHOW TABLES does, with its catalog and "
            "schema where these are not the current ones."
        )


def _labels(spark: SparkSession, frame: DataFrame, spec: InputSpec) -> DataFrame:
    column = find_column(frame, spec.label_col)
    if column is None or not isinstance(column.dataType, NumericType):
        return spark.createDataFrame([], "label double")
    return frame.select(quoted(column.name).cast("double").alias("label"))


class RecordIOInput(InputFormat):
    name = RECORDIO
    help = "the files of SageMaker's algorithms"

    def open(self, spark: SparkSession, paths: Sequence[str], spec: InputSpec) -> Source:
        register(spark)
        reader = spark.read.format(RECORDIO)
        if spec.num_features:
            reader = reader.option("featureDim", spec.num_features)
        frame = reader.load(list(paths)).select(
            F.col("label").alias(spec.label_col), F.col("features").alias(spec.features_col)
        )
        return Source(frame, frame.select(quoted(spec.label_col).alias("label")))

    def read_stream(
        self, stream: BinaryIO, source: str, num_features: int
    ) -> Iterator[tuple[pa.Array, pa.Array]]:
        width = num_features
        options = ReadOptions.of({"path": source})
        for batch in RecordReader(stream, source=source):
            if not width and (batch.widths >= 0).any():
                width = int(batch.widths[batch.widths >= 0][0])
            table = RowTable.of(batch, width, is_set=bool(num_features), source=source)
            if table.reasons:
                raise InvalidDataError(table.reasons[min(table.reasons)])
            for rows in table.record_batches(options):
                yield rows.column(0), rows.column(1)

    def check_exists(self, spark: SparkSession, path: str) -> None:
        list_files([path])  # as the data source finds them


INPUT_FORMATS: dict[str, InputFormat] = {
    each.name: each
    for each in (
        TextInput("libsvm", "label index:value ..., indices from 1"),
        TextInput("libfm", "the same, indices from 0"),
        ParquetInput(),
        TableInput(),
        RecordIOInput(),
    )
}


FAULT_DDL = "input_file string, line string, error string"


@dataclass(frozen=True)
class FaultTask:
    """The lines that cannot be read: for ``mapInArrow`` over ``value`` and ``input_file``."""

    parser: LineParser

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            lines = batch.column("value")
            rows = self.parser.parse(lines)
            if not rows.errors:
                continue
            bad = pa.array(rows.positions[list(rows.errors)])
            yield pa.RecordBatch.from_arrays(
                [
                    batch.column("input_file").take(bad).cast(pa.string()),
                    pa.array([shortened(text_of(line)) for line in lines.take(bad)], pa.string()),
                    pa.array(rows.errors.values(), pa.string()),
                ],
                names=["input_file", "line", "error"],
            )


def in_file_order(frame: DataFrame) -> DataFrame:
    """Sort rows just read from text or Parquet files by file name and offset.

    Spark groups splits of files by their size; trainings that depend on the order of rows
    pay a shuffle for this one, partitions included.
    """
    keys = {
        "file_path": F.col("_metadata.file_path"),
        "file_start": F.col("_metadata.file_block_start"),
        "row_number": F.monotonically_increasing_id(),
    }
    keyed = frame.select("*", *(key.alias(f"spark_fm_{name}") for name, key in keys.items()))
    names = [f"spark_fm_{name}" for name in keys]
    return keyed.sort(*names).drop(*names)


def path_exists(spark: SparkSession, path: str, *, glob: bool = False) -> bool:
    """Return whether a path, or a file that matches it as a ``glob``, is in its file system."""
    try:
        _ = spark.read.format("binaryFile").load(path if glob else literal(path)).schema
    except AnalysisException as err:
        if _is_missing(err):
            return False
        raise
    except READ_ERRORS as err:
        check_store_known(path, err)
        raise
    return True


def _raise_if_missing(err: AnalysisException, paths: Sequence[str]) -> None:
    if _is_missing(err):
        named = (err.getMessageParameters() or {}).get("path")
        shown = shown_path(named) if named else ", ".join(paths)
        raise UsageError(f"the input path {shown} does not exist, or no file matches it.") from err


def _is_missing(err: AnalysisException) -> bool:
    return err.getCondition() == "PATH_NOT_FOUND"


def shown_path(uri: str) -> str:
    """Return a URI of Spark's as a user would write it."""
    return unquote(uri).removeprefix("file://").removeprefix("file:")
