"""``spark.read.format("recordio-protobuf")``: batch and streaming reads; driver and executors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyspark import serializers
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession
from pyspark.sql.datasource import (
    DataSource,
    DataSourceReader,
    InputPartition,
)
from pyspark.sql.types import DoubleType, StringType, StructField, StructType

from spark_fm.datasource.options import (
    READ_OPTIONS,
    AskedColumn,
    ReadOptions,
    warn_of_unknown,
)
from spark_fm.datasource.splits import SplitGroup, files_of, first_width, packed_splits, read_split
from spark_fm.datasource.streaming import RecordIOStreamReader
from spark_fm.errors import InvalidParamError
from spark_fm.formats.columns import column_named
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
    featureDim (also numFeatures) : int
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
    pathGlobFilter : str
        A glob of the names of files.
    maxFilesPerTrigger : int
        Of a streaming query; by default all present files.

    Options for writing
    -------------------
    labelCol, featuresCol (also labelColumnName, featuresColumnName) : str
    compression : str
        none (default), uncompressed or gzip.

    Any other option is a warning.
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come out of a pickle, in the process that plans a read."""
        self.__dict__.update(state)
        allow_unlimited_batches()

    def reader(self, schema: StructType) -> RecordIOReader:
        """Return the reader of a batch query."""
        return RecordIOReader(self._read_options(schema))

    def streamReader(self, schema: StructType) -> Any:  # noqa: N802 - Spark's name
        """Return the reader of a streaming query."""
        return stream_reader(self._read_options(schema))

    def _read_options(self, schema: StructType) -> ReadOptions:
        """Return the options of a query; raise InvalidParamError for columns there are not."""
        warn_of_unknown(self.options, READ_OPTIONS, "read")
        expected = self.schema()
        asked = []
        for field in schema:
            name = column_named(field.name, "schema", expected.names)
            if name is None or expected[name].dataType != field.dataType:
                raise InvalidParamError(
                    f"{self.name()} has the columns {expected.simpleString()}; the schema asks for "
                    f"{field.name} of type {field.dataType.simpleString()}. Leave schema() out, "
                    "then select and cast; array<double> comes from "
                    "pyspark.ml.functions.vector_to_array."
                )
            asked.append(AskedColumn(name, field.name, field.nullable))
        return replace(ReadOptions.of(self.options), columns=tuple(asked))

    def writer(self, schema: StructType, overwrite: bool) -> Any:
        """Return the writer of a batch query."""
        from spark_fm.datasource.writer import WRITE_OPTIONS, RecordIOWriter, WriteOptions

        warn_of_unknown(self.options, WRITE_OPTIONS, "written")
        return RecordIOWriter(WriteOptions.of(self.options, schema), overwrite=overwrite)


class SageMakerDataSource(RecordIODataSource):
    """The same by the name of AWS's data source for Spark, ``sagemaker``."""

    @classmethod
    def name(cls) -> str:
        """Return the name for ``format``."""
        return "sagemaker"


class RecordIOReader(DataSourceReader):
    """Reads the files of one query."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options

    def partitions(self) -> list[InputPartition]:
        """List the files and assign their splits to tasks."""
        options = self._options
        if not options.paths:
            raise InvalidParamError(
                f'{RECORDIO} needs a path: spark.read.format("{RECORDIO}").load(path).'
            )
        files = files_of(options)
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
    for source in (RecordIODataSource, SageMakerDataSource):
        try:
            spark.dataSource.register(source)
        except AnalysisException as err:
            if err.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":
                raise


# Where PySpark plans reads and streams, in processes of their own.
_PLANNERS = (
    "pyspark.sql.worker.plan_data_source_read",
    "pyspark.sql.worker.data_source_pushdown_filters",
    "pyspark.sql.streaming.python_streaming_source_runner",
)


def allow_unlimited_batches() -> None:
    """Let PySpark plan a read where spark.sql.execution.arrow.maxRecordsPerBatch is not positive.

    Zero and less mean no limit, but the planner, which reads the number after the data source,
    refuses it, although we make our batches ourselves. In such a process, the next number that
    is read becomes positive; elsewhere this does nothing.
    """
    main = sys.modules["__main__"]
    modules = [sys.modules.get(name) for name in _PLANNERS]
    if getattr(getattr(main, "__spec__", None), "name", None) in _PLANNERS:
        modules.append(main)
    read_int = serializers.read_int
    for module in filter(None, modules):

        def positive(stream: Any, module: Any = module) -> int:
            module.read_int = read_int
            number = read_int(stream)
            return number if number > 0 else 2**31 - 1

        module.read_int = positive  # type: ignore[attr-defined]  # imported there by name
