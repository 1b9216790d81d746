"""``spark.read.format("recordio-protobuf")``: batch and streaming reads; driver and executors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession
from pyspark.sql.datasource import (
    DataSource,
    DataSourceReader,
    InputPartition,
)
from pyspark.sql.types import DoubleType, StringType, StructField, StructType

from spark_fm.datasource.options import ReadOptions
from spark_fm.datasource.splits import SplitGroup, first_width, packed_splits, read_split
from spark_fm.datasource.streaming import RecordIOStreamReader
from spark_fm.errors import InvalidParamError
from spark_fm.formats.recordio.framing import RECORDIO

if TYPE_CHECKING:
    import pyarrow as pa


log = logging.getLogger(__name__)


class RecordIODataSource(DataSource):
    """Reads and writes recordIO-protobuf, the format of SageMaker's algorithms.

    Options for reading
    -------------------
    path : str
        File, folder, glob, manifest, or a list of these passed to ``load``.
    featureDim : int
        Size of the vectors; by default that of the records.
    mode : str
        FAILFAST (default), DROPMALFORMED or PERMISSIVE.
    columnNameOfCorruptRecord : str
        Column of PERMISSIVE with the reason; ``_corrupt_record``.
    includeUid, includeMetadata, includeFileName : bool
        Add the columns ``uid``, ``metadata``, ``fileName``.
    splitBytes : int
        Files are read in splits of about this size; 32 MiB.
    maxRecordBytes : int
        A record that claims more is malformed; 64 MiB.
    recursiveFileLookup : bool
    maxFilesPerTrigger : int
        Of a streaming query; by default all present files.

    Options for writing
    -------------------
    labelCol, featuresCol (also labelColumnName, featuresColumnName) : str
    """

    @classmethod
    def name(cls) -> str:
        """Return the name for ``format``."""
        return RECORDIO

    def schema(self) -> StructType:
        """Return label, features, and the columns that options add."""
        from pyspark.ml.linalg import VectorUDT

        options = ReadOptions.of(self.options)
        fields = [StructField("label", DoubleType()), StructField("features", VectorUDT())]
        fields += [StructField(name, StringType()) for name in options.extra_columns]
        return StructType(fields)

    def reader(self, schema: StructType) -> RecordIOReader:
        """Return the reader of a batch query."""
        options = ReadOptions.of(self.options)
        expected = self.schema()
        if schema.fieldNames() != expected.fieldNames():
            raise InvalidParamError(
                f"The schema of {RECORDIO} is {expected.simpleString()}; one of its own choice, "
                f"such as {schema.simpleString()}, it cannot have. Leave schema() out and select."
            )
        return RecordIOReader(options)

    def streamReader(self, schema: StructType) -> Any:  # noqa: N802 - Spark's name
        """Return the reader of a streaming query."""
        self.reader(schema)  # checks it
        return stream_reader(ReadOptions.of(self.options))

    def writer(self, schema: StructType, overwrite: bool) -> Any:
        """Return the writer of a batch query."""
        from spark_fm.datasource.writer import RecordIOWriter, WriteOptions

        return RecordIOWriter(WriteOptions.of(self.options, schema), overwrite=overwrite)


class RecordIOReader(DataSourceReader):
    """Reads the files of one query."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options

    def partitions(self) -> list[InputPartition]:
        """List the files and assign their splits to tasks."""
        from spark_fm.formats.files import list_files

        options = self._options
        if not options.paths:
            raise InvalidParamError(
                f'{RECORDIO} needs a path: spark.read.format("{RECORDIO}").load(path).'
            )
        files = list_files(options.paths, recursive=options.recursive)
        width = options.feature_dim or first_width(files, options)
        return [SplitGroup(splits, width) for splits in packed_splits(files, options.split_bytes)]

    def read(self, partition: InputPartition | None) -> Iterator[pa.RecordBatch]:
        """Yield record batches of the rows of a task."""
        if not isinstance(partition, SplitGroup):
            return  # no files
        for split in partition.splits:
            yield from read_split(split, self._options, partition.feature_dim)


def stream_reader(options: ReadOptions) -> RecordIOStreamReader:
    """Return the reader that this version of PySpark can use."""
    try:
        from spark_fm.datasource.rate_limit import LimitedStreamReader
    except ImportError:
        if options.max_files:
            raise InvalidParamError(
                "maxFilesPerTrigger needs PySpark 4.2 or newer. Leave it out."
            ) from None
        return RecordIOStreamReader(options)
    return LimitedStreamReader(options)


def register(spark: SparkSession) -> None:
    """Register the data source ``recordio-protobuf`` with a session, Classic or Connect.

    Not needed where Spark finds the wheel's module ``pyspark_recordio_protobuf`` by
    itself; calling it anyway, or again, does no harm. On a local master the source runs
    in this interpreter, unless PYSPARK_PYTHON names another.
    """
    from spark_fm.spark.session import use_driver_interpreter  # not in Spark's own processes

    use_driver_interpreter(spark)
    try:
        spark.dataSource.register(RecordIODataSource)
    except AnalysisException as err:
        if err.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":
            raise
