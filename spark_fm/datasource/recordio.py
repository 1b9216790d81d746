"""``spark.read.format("recordio-protobuf")``: batch and streaming reads; driver and executors."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession
from pyspark.sql.datasource import (
    DataSource,
    DataSourceReader,
    DataSourceStreamReader,
    InputPartition,
)
from pyspark.sql.types import DoubleType, StringType, StructField, StructType

from spark_fm.errors import InvalidDataError, InvalidParamError
from spark_fm.formats.recordio.framing import RECORDIO

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_fm.formats.files import DataFile
    from spark_fm.formats.recordio.reader import RowBatch

log = logging.getLogger(__name__)

MODES = ("FAILFAST", "DROPMALFORMED", "PERMISSIVE")
SPLIT_BYTES = 2**25
DIGEST_BYTES = 8  # of a file's name in the offset of a stream
FILE_COST = 2**22  # opening a file counts as reading this much, as in Spark
_EXTRA_COLUMNS = {"includeUid": "uid", "includeMetadata": "metadata", "includeFileName": "fileName"}


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


@dataclass(frozen=True)
class ReadOptions:
    """Checked options of a read; see RecordIODataSource."""

    paths: tuple[str, ...]
    feature_dim: int
    mode: str
    corrupt_column: str
    extra: tuple[str, ...]
    split_bytes: int
    max_record_bytes: int
    recursive: bool
    max_files: int

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Columns after label and features."""
        corrupt = (self.corrupt_column,) if self.mode == "PERMISSIVE" else ()
        return self.extra + corrupt

    @classmethod
    def of(cls, options: Any) -> ReadOptions:
        """Check Spark's options, whose names are in any case."""
        mode = str(options.get("mode", MODES[0])).upper()
        if mode not in MODES:
            raise InvalidParamError(f"mode={options['mode']!r} is not one of {', '.join(MODES)}.")
        return cls(
            paths=_paths(options),
            feature_dim=_whole(options, "featureDim", 0, lowest=1, highest=2**31 - 1),
            mode=mode,
            corrupt_column=options.get("columnNameOfCorruptRecord", "_corrupt_record"),
            extra=tuple(c for name, c in _EXTRA_COLUMNS.items() if _flag(options, name)),
            split_bytes=_whole(options, "splitBytes", SPLIT_BYTES, lowest=2**10, highest=2**40),
            max_record_bytes=_whole(options, "maxRecordBytes", 2**26, lowest=1, highest=2**29 - 1),
            recursive=_flag(options, "recursiveFileLookup"),
            max_files=_whole(options, "maxFilesPerTrigger", 0, lowest=1, highest=2**31 - 1),
        )


def _paths(options: Any) -> tuple[str, ...]:
    """Return one path, or the list that Spark passes as JSON."""
    if options.get("paths"):
        return tuple(json.loads(options["paths"]))
    return (options["path"],) if options.get("path") else ()


def _whole(options: Any, name: str, default: int, *, lowest: int, highest: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not lowest <= number <= highest:
        raise InvalidParamError(
            f"{name}={text!r} is not a whole number from {lowest:,} to {highest:,}."
        )
    return number


def _flag(options: Any, name: str) -> bool:
    text = str(options.get(name, "false")).lower()
    if text not in ("true", "false"):
        raise InvalidParamError(f"{name}={options[name]!r} is neither true nor false.")
    return text == "true"


@dataclass(frozen=True)
class FileSplit:
    """Bytes of a file: the records that start from ``start`` on and before ``stop``."""

    file: DataFile
    start: int
    stop: int
    is_compressed: bool


class SplitGroup(InputPartition):
    """The splits that one task reads."""

    def __init__(self, splits: Sequence[FileSplit], feature_dim: int) -> None:
        self.splits = tuple(splits)
        self.feature_dim = feature_dim


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


def packed_splits(files: Sequence[DataFile], split_bytes: int) -> list[list[FileSplit]]:
    """Cut large files into splits and put small ones together, in order."""
    groups: list[list[FileSplit]] = []
    room = 0
    for file in files:
        # Of a small file it shows when it is read.
        is_whole = file.is_compressed or (file.size > split_bytes and _starts_compressed(file))
        step = file.size if is_whole else split_bytes
        for start in range(0, file.size, step):
            stop = min(start + step, file.size)
            cost = stop - start + FILE_COST
            if not groups or cost > room:
                groups.append([])
                room = split_bytes + FILE_COST
            groups[-1].append(FileSplit(file, start, stop, is_whole))
            room -= cost
    return groups


def _starts_compressed(file: DataFile) -> bool:
    from spark_fm.formats.files import GZIP_BYTES

    with file.open() as stream:
        return stream.read(len(GZIP_BYTES)) == GZIP_BYTES


def first_width(files: Sequence[DataFile], options: ReadOptions) -> int:
    """Return the number of features that the first records claim, 0 without records.

    Raises InvalidDataError for records without a claim.
    """
    n_rows = 0
    for file in files[:8]:
        end = min(file.size, options.split_bytes)
        head = FileSplit(file, 0, end, file.is_compressed)
        lenient = replace(options, mode="DROPMALFORMED")
        for batch in _batches(head, lenient, chunk_bytes=2**18):
            known = batch.widths[batch.widths >= 0]
            if len(known):
                return int(known[0])
            n_rows += batch.n_rows
            if batch.n_rows:
                break
    if n_rows:
        raise InvalidDataError(
            f"None of the first {n_rows} records says how many features there are. Set the option "
            'featureDim, such as .option("featureDim", 100000).'
        )
    return 0


def _batches(split: FileSplit, options: ReadOptions, chunk_bytes: int) -> Iterator[RowBatch]:
    """Read a split, from one proven boundary to the next."""
    from spark_fm.formats.files import unzipped
    from spark_fm.formats.recordio.decode import REACH_BYTES, find_boundary
    from spark_fm.formats.recordio.reader import RecordReader

    size = split.file.size
    with split.file.open() as stream:

        def read_at(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        start, stop = 0, None
        if not split.is_compressed:
            start, stop = (
                find_boundary(
                    read_at, size, offset, max_record_bytes=options.max_record_bytes,
                    reach=min(REACH_BYTES, options.split_bytes),
                )
                for offset in (split.start, split.stop)
            )  # fmt: skip
            if start >= stop:
                return
        stream.seek(start)
        yield from RecordReader(
            unzipped(stream) if start == 0 else stream,
            source=split.file.path, offset=start, stop=None if stop == size else stop,
            on_malformed=None if options.mode == "FAILFAST" else (lambda malformed: None),
            with_texts=bool({"uid", "metadata"} & set(options.extra)),
            chunk_bytes=chunk_bytes, max_record_bytes=options.max_record_bytes,
            advice="Repair the file, or leave such records out by the option mode=DROPMALFORMED.",
        )  # fmt: skip


def read_split(split: FileSplit, options: ReadOptions, width: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a split as record batches of the source's schema."""
    from spark_fm.datasource.batches import RowTable

    n_malformed = 0
    for batch in _batches(split, options, chunk_bytes=2**22):
        table = RowTable.of(batch, width, is_set=bool(options.feature_dim), source=split.file.path)
        if table.reasons and options.mode == "FAILFAST":
            first = min(table.reasons)
            raise InvalidDataError(table.reasons[first])
        n_malformed += len(table.reasons)
        yield from table.record_batches(options)
    if n_malformed:
        log.warning("%s: %d malformed record(s), %s", split.file.path, n_malformed, options.mode)


class RecordIOStreamReader(DataSourceStreamReader):
    """Reads each new file of the paths once.

    Files must appear complete, by a rename or an upload, and stay until their batch is
    done. An offset takes 11 characters a file.
    """

    def __init__(self, options: ReadOptions) -> None:
        if not options.paths:
            raise InvalidParamError(
                f'{RECORDIO} needs a path: readStream.format("{RECORDIO}").load(path).'
            )
        self._options = options

    def initialOffset(self) -> dict[str, Any]:  # noqa: N802 - Spark's name
        """Return the offset at which no file has been seen."""
        return offset_of([])

    # As before PySpark 4.2, which passes a start and a limit.
    def latestOffset(self) -> dict[str, Any]:  # type: ignore[override]  # noqa: N802 - Spark's name
        """Return the offset after all present files."""
        return offset_of(self.files())

    def partitions(self, start: dict[str, Any], end: dict[str, Any]) -> Sequence[InputPartition]:
        """Return the splits of the files between two offsets."""
        digests = digests_of(end) - digests_of(start)
        if not digests:
            return []
        present = self.files()
        missing = digests - present.keys()
        if missing:
            raise InvalidDataError(
                f"{len(missing)} of {len(digests)} files of a batch are gone from "
                f"{', '.join(self._options.paths)}. Files must stay until their batch is done: "
                "put them back, or start from a new checkpoint."
            )
        files = [file for digest, file in present.items() if digest in digests]
        width = self._options.feature_dim or first_width(files, self._options)
        return [
            SplitGroup(group, width) for group in packed_splits(files, self._options.split_bytes)
        ]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yield record batches of the rows of a task."""
        if isinstance(partition, SplitGroup):
            for split in partition.splits:
                yield from read_split(split, self._options, partition.feature_dim)

    def files(self) -> dict[bytes, DataFile]:
        """Return the present files by digest, in the order of the paths."""
        from spark_fm.formats.files import list_files

        options = self._options
        return {
            hashlib.blake2b(file.path.encode(), digest_size=DIGEST_BYTES).digest(): file
            for file in list_files(options.paths, recursive=options.recursive)
        }


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


def offset_of(digests: Iterable[bytes]) -> dict[str, Any]:
    """Return the offset at which these files have been seen."""
    ordered = sorted(digests)
    return {"count": len(ordered), "files": base64.b64encode(b"".join(ordered)).decode()}


def digests_of(offset: dict[str, Any]) -> set[bytes]:
    """Return the files of an offset."""
    joined = base64.b64decode(offset["files"])
    return {joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)}


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
