"""What the plan of a DataFrame shows: plain reads of files, and shuffles; driver only.

What is certain to be nothing but a selection of columns from files of this machine, tasks can read
themselves, without the JVM in between: on Classic alone.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from py4j.protocol import Py4JError  # type: ignore[import-untyped]  # py4j has no types
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    ByteType,
    DataType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    _parse_datatype_json_string,
)

from spark_fm.spark.schema import is_vector
from spark_fm.spark.session import is_connect

log = logging.getLogger(__name__)

PYTHON = "python"  # format of a scan of a Python data source
TEXT = "text"  # of lines that a function makes rows of
_FORMATS = {
    "org.apache.spark.sql.execution.datasources.parquet.ParquetFileFormat": "parquet",
    "org.apache.spark.ml.source.libsvm.LibSVMFileFormat": "libsvm",
    "org.apache.spark.sql.execution.datasources.text.TextFileFormat": TEXT,
}
# Nodes of a plan, before it is optimized, that read and select.
_PLAIN = (
    "Project", "SubqueryAlias", "View", "LogicalRelation", "DataSourceV2Relation", "MapInArrow",
)  # fmt: skip
MOST_COMMAND_BYTES = 2**14  # of a function that is looked at: a parser's has some hundred
MOST_FILES = 5000  # whose ranges are asked for one by one
_NUMBERS = (BooleanType, ByteType, ShortType, IntegerType, LongType, FloatType, DoubleType)


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of a file that a task reads, and what the file was when Spark listed it."""

    path: str
    start: int
    stop: int
    size: int  # of the file
    modified: int  # ms


@dataclass(frozen=True, slots=True)
class ScanColumn:
    """A column of the source."""

    name: str
    type: pa.DataType
    to_double: bool  # the frame casts it


@dataclass(frozen=True, slots=True)
class Scan:
    """A plain read: the partitions that Spark would read, in their order, and their columns."""

    format: str
    columns: dict[str, ScanColumn]  # by the frame's names
    # Of files: their ranges. Of a Python data source: its own partition, pickled.
    partitions: tuple[tuple[FileRange, ...] | bytes, ...]
    # Pickled. Of a Python data source: what reads a partition. Of text: what makes rows of lines.
    function: bytes = b""
    width: int = 0  # of the vectors of libsvm's lines


def plain_scan(rows: DataFrame, *, source: str, parser: type) -> Scan | None:
    """Return the read that these rows are, or None where they are more than one, or not seen.

    ``source`` is the Python data source that may be read: one written by others may be read once.
    ``parser`` is the class of the functions of ``mapInArrow`` that may make rows of lines.
    """
    if is_connect(rows.sparkSession):
        return None
    try:
        scan = _scan(rows._jdf.queryExecution(), source, parser)
    except (Py4JError, PySparkException, AttributeError, TypeError, ValueError) as err:
        log.debug("the plan of these rows was not understood: %s", err)
        return None
    return scan if scan and scan.partitions else None


def comes_in_any_order(rows: DataFrame) -> bool:
    """Return whether a partition's rows may come in another order each time they are computed.

    A task takes what was shuffled as it arrives from other executors. So it is, too, where the plan
    is not seen.
    """
    try:
        if is_connect(rows.sparkSession):
            text = str(rows._explain_string())  # type: ignore[operator]  # Connect's own
        else:
            plan: Any = rows._jdf.queryExecution().executedPlan()
            scans = [leaf for leaf in _items(plan.collectLeaves()) if _kind(leaf) == "RDDScanExec"]
            text = "".join([plan.toString(), *(scan.rdd().toDebugString() for scan in scans)])
    except (Py4JError, PySparkException, AttributeError, TypeError) as err:
        log.debug("the plan of these rows was not understood: %s", err)
        return True
    return re.search("(?<!Broadcast)Exchange|Shuffled", text) is not None


def _scan(query: Any, source: str, parser: type) -> Scan | None:
    # Most frames are no plain reads: these are not optimized here, which may take long.
    if not all(_kind(node) in _PLAIN for node in _chain(query.analyzed())):
        return None
    project, *others = _chain(query.optimizedPlan())
    scans = query.executedPlan().collectLeaves()
    function = b""
    if [_kind(node) for node in others[:-1]] == ["MapInArrow"]:
        function = _function(others.pop(0), parser)
        if not function:
            return None
    if _kind(project) != "Project" or len(others) != 1 or scans.size() != 1:
        return None
    [relation] = others
    if (_kind(relation), _kind(scans.apply(0))) == ("LogicalRelation", "FileSourceScanExec"):
        return _scan_of_files(project, relation.relation(), scans.apply(0), function)
    if function:
        return None
    if (_kind(relation), _kind(scans.apply(0))) != ("DataSourceV2ScanRelation", "BatchScanExec"):
        return None
    if str(relation.relation().table().name()) != source:
        return None
    return _scan_of_source(project, scans.apply(0).batch())


def _function(node: Any, parser: type) -> bytes:
    """Return the function of a mapInArrow, pickled; nothing where it is not of the class."""
    command = node.expressions().apply(0).func().command()
    if command.size() > MOST_COMMAND_BYTES:
        return b""
    pickled = bytes(int(each) & 255 for each in command.mkString(",").split(","))
    if parser.__module__.encode() not in pickled:  # loading it may take long, or do something
        return b""
    function, _ = pickle.loads(pickled)
    return pickle.dumps(function) if type(function) is parser else b""


def _scan_of_files(project: Any, relation: Any, scan: Any, function: bytes) -> Scan | None:
    name = _FORMATS.get(relation.fileFormat().getClass().getName())
    columns = _columns(project, None if function else list(relation.dataSchema().fieldNames()))
    if name is None or columns is None or relation.partitionSchema().size():
        return None
    keys = list(_items(relation.options().keys().toSeq()))
    options = {str(key).lower(): str(relation.options().apply(key)) for key in keys}
    if (name == TEXT) != bool(function):
        return None
    # ``spark.read.text`` sets the second one itself.
    if function and (options.keys() - {"path", "wholetext"} or options.get("wholetext") == "true"):
        return None
    if len(relation.location().inputFiles()) > MOST_FILES:
        return None
    width = 0
    if name == "libsvm":
        if options.keys() - {"path", "numfeatures"}:
            return None
        features = relation.dataSchema().apply("features").metadata()
        width = int(features.getLong("numFeatures"))
    partitions = tuple(
        tuple(_file_range(part) for part in partition.files())
        for partition in _items(scan.inputRDD().filePartitions())
    )
    return Scan(name, columns, partitions, function, width)


def _scan_of_source(project: Any, batch: Any) -> Scan | None:
    if _kind(batch) != "PythonBatch":
        return None
    columns = _columns(project, None)
    if columns is None:
        return None
    read = batch.infoInPython()
    partitions = tuple(bytes(partition) for partition in _items(read.partitions()))
    return Scan(PYTHON, columns, partitions, bytes(read.func()))


def _columns(project: Any, names: list[str] | None) -> dict[str, ScanColumn] | None:
    """Return the columns that a projection selects; None where it computes, but for casts.

    ``names`` are those that may be selected: metadata of files are not in them.
    """
    columns = {}
    for expression in _items(project.projectList()):
        column = expression.child() if _kind(expression) == "Alias" else expression
        if _kind(column) == "SparkPartitionID":
            continue
        is_cast = _kind(column) == "Cast" and column.dataType().typeName() == "double"
        column = column.child() if is_cast else column
        if _kind(column) != "AttributeReference" or column.metadata().contains("parquet.field.id"):
            return None
        kind = _parse_datatype_json_string(column.dataType().json())
        if not _is_read_alike(kind) or (names is not None and column.name() not in names):
            return None
        columns[expression.name()] = ScanColumn(
            column.name(), plain_type(to_arrow_type(kind)), is_cast
        )
    return columns


def _is_read_alike(kind: DataType) -> bool:
    """Return whether pyarrow reads a type of column as Spark does."""
    if isinstance(kind, ArrayType):
        return isinstance(kind.elementType, (FloatType, DoubleType))
    return is_vector(kind) or isinstance(kind, _NUMBERS)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return an Arrow type without what Spark does not distinguish: nullability, large lists."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(part.name, plain_type(part.type)) for part in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(pa.field("element", plain_type(kind.value_type)))
    return kind


def _file_range(part: Any) -> FileRange:
    url = urlsplit(part.urlEncodedPath())
    if url.scheme != "file" or url.netloc:
        raise ValueError(f"{part.urlEncodedPath()} is no file of this machine")
    return FileRange(
        unquote(url.path), part.start(), part.start() + part.length(), part.fileSize(),
        part.modificationTime(),
    )  # fmt: skip


def _chain(plan: Any) -> Iterator[Any]:
    """Yield a plan's nodes from the top, up to the first that has not one child."""
    yield plan
    while plan.children().size() == 1:
        plan = plan.children().apply(0)
        yield plan


def _items(sequence: Any) -> Iterator[Any]:
    """Yield the items of a Scala sequence."""
    return (sequence.apply(number) for number in range(sequence.size()))


def _kind(node: Any) -> str:
    return str(node.getClass().getSimpleName())
