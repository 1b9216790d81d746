"""The Spark data source ``recordio-protobuf``: write part files.

Tasks write into a folder of this job, hidden from readers; only the driver, after all tasks,
moves the files of the attempts that succeeded to the target folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray
from pyspark import TaskContext
from pyspark.sql.datasource import DataSourceArrowWriter, WriterCommitMessage
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DoubleType,
    FloatType,
    NumericType,
    StructType,
)

from spark_fm.datasource.options import compression, option
from spark_fm.errors import InvalidColumnError, InvalidDataError, InvalidParamError
from spark_fm.formats.columns import column_named
from spark_fm.formats.files import has_folders, store_of
from spark_fm.formats.recordio.encode import encode_rows
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.formats.vectors import read_vectors
from spark_fm.spark.worker import partition_number

log = logging.getLogger(__name__)

# The second names are those of AWS's data source.
FEATURES_COL = ("featuresCol", "featuresColumnName")
LABEL_COL = ("labelCol", "labelColumnName")
WRITE_OPTIONS = ("path", *LABEL_COL, *FEATURES_COL, "compression")


@dataclass(frozen=True)
class WriteOptions:
    """Checked options of a write."""

    path: str
    features_col: str
    label_col: str | None  # None writes records without labels
    is_compressed: bool = False
    # Param and value of names that only fit a column when case does not count.
    inexact: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, options: Any, schema: StructType) -> WriteOptions:
        """Check the options, and that the columns exist and have a legal type."""
        from spark_fm.spark.schema import is_vector

        path = options.get("path")
        if not path:
            raise InvalidParamError(f"A write to {RECORDIO} needs a path: save(path).")
        _, asked_features = option(options, FEATURES_COL)
        _, asked_label = option(options, LABEL_COL)
        asked = {"featuresCol": asked_features or "features", "labelCol": asked_label or "label"}
        found = {param: column_named(name, param, schema.names) for param, name in asked.items()}
        names = ", ".join(schema.fieldNames())
        features, label = found["featuresCol"], found["labelCol"]
        if features is None:
            raise InvalidColumnError(
                f"featuresCol={asked['featuresCol']!r} is not a column; there are {names}. Set "
                "featuresCol."
            )
        kind = schema[features].dataType
        is_floats = isinstance(kind, ArrayType) and isinstance(
            kind.elementType, (FloatType, DoubleType)
        )
        if not (is_vector(kind) or is_floats):
            raise InvalidColumnError(
                f"featuresCol={features!r} has type {kind.simpleString()}; it must be a vector or "
                "an array of float or double."
            )
        if label is None:
            if asked_label:
                raise InvalidColumnError(
                    f"labelCol={asked_label!r} is not a column; there are {names}. Leave labelCol "
                    "out to write records without labels."
                )
        elif not isinstance(schema[label].dataType, (NumericType, BooleanType)):
            raise InvalidColumnError(
                f"labelCol={label!r} has type {schema[label].dataType.simpleString()}; it must be "
                "a number. Cast it."
            )
        inexact = tuple(
            (param, name) for param, name in asked.items() if found[param] not in (None, name)
        )
        return cls(path, features, label, compression(options), inexact)

    def check_case(self) -> None:
        """Raise InvalidColumnError, in a task, where case counts and a name is not exact."""
        context = TaskContext.get()
        counts = context and context.getLocalProperty("spark.sql.caseSensitive") == "true"
        if counts and self.inexact:
            param, name = self.inexact[0]
            column = self.features_col if param == "featuresCol" else self.label_col
            raise InvalidColumnError(
                f"{param}={name!r} is not a column, as spark.sql.caseSensitive is true; there is "
                f"{column!r}. Set {param} to it, or rename or drop it."
            )


@dataclass
class PartFile(WriterCommitMessage):
    """A finished file of one task; no name when the task had no rows."""

    name: str


class RecordIOWriter(DataSourceArrowWriter):
    """Writes one part file a task."""

    def __init__(self, options: WriteOptions, *, overwrite: bool) -> None:
        self._options = options
        self._overwrite = overwrite
        self._job = uuid4().hex

    def _folders(self) -> tuple[Any, str, str]:
        """Return the store, the folder in it, and the folder of this job in that."""
        store, folder = store_of(self._options.path)
        folder = folder.rstrip("/")
        return store, folder, f"{folder}/_temporary-{self._job}"

    def write(self, iterator: Iterator[pa.RecordBatch]) -> PartFile:
        """Write the rows of a task into a file that readers do not see yet."""
        self._options.check_case()
        suffix = ".gz" if self._options.is_compressed else ""
        name = f"part-{partition_number():05d}-{uuid4().hex}.pbr{suffix}"
        store, _, staging = self._folders()
        store.create_dir(staging, recursive=True)
        n_rows = 0
        codec = "gzip" if suffix else None
        with store.open_output_stream(f"{staging}/{name}", compression=codec) as stream:
            for batch in iterator:
                stream.write(encoded(batch, self._options, first_row=n_rows))
                n_rows += batch.num_rows
        return PartFile(name if n_rows else "")

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """Move the files of the successful attempts to the folder, and old ones out of it.

        A failure moves all of them back. Object stores cannot rename: there old files are
        deleted, after which a failure leaves the new ones.
        """
        store, folder, staging = self._folders()
        store.create_dir(folder, recursive=True)
        found = store.get_file_info(pafs.FileSelector(folder)) if self._overwrite else []
        old = [info for info in found if info.path.rstrip("/") != staging]
        moves = [
            (f"{staging}/{message.name}", f"{folder}/{message.name}")
            for message in messages
            if isinstance(message, PartFile) and message.name
        ]
        swaps, aside = bool(old) and has_folders(store), f"{staging}-old"
        if swaps:
            store.create_dir(aside)
            moves += [(info.path, f"{aside}/{info.base_name}") for info in old]
        moved: list[tuple[str, str]] = []
        try:
            for source, target in moves:
                moved.append((source, target))
                store.move(source, target)
            for i, info in enumerate([] if swaps else old):
                if i or not info.is_file:
                    moved = []  # from here on the old rows are incomplete: keep the new ones
                (store.delete_file if info.is_file else store.delete_dir)(info.path)
        except BaseException:
            for source, target in reversed(moved):
                with suppress(Exception):  # the last one was not moved
                    store.move(target, source)
            self._clean()
            _delete_if_empty(store, aside)
            raise
        self._clean()
        with store.open_output_stream(f"{folder}/_SUCCESS"):
            pass
        if swaps:
            try:
                store.delete_dir(aside)
            except OSError as err:
                log.warning("%s with the replaced files was not removed: %s", aside, err)

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """Remove what the tasks wrote."""
        self._clean()

    def _clean(self) -> None:
        store, _, staging = self._folders()
        if store.get_file_info(staging).type == pafs.FileType.Directory:
            store.delete_dir(staging)


def _delete_if_empty(store: Any, folder: str) -> None:
    inside = pafs.FileSelector(folder, allow_not_found=True)
    if store.get_file_info(folder).type == pafs.FileType.Directory and not store.get_file_info(
        inside
    ):
        store.delete_dir(folder)


def encoded(batch: pa.RecordBatch, options: WriteOptions, *, first_row: int) -> bytes:
    """Return the records of a batch; dense rows stay dense, sparse ones sparse.

    Raises InvalidDataError for nulls, and for numbers that are not finite as float32.
    """
    vectors = read_vectors(batch.column(options.features_col), keep_zeros=True)
    bad = vectors.is_null | vectors.is_broken
    if bad.any():
        raise InvalidDataError(
            f"featuresCol={options.features_col!r} has a null or broken vector in row "
            f"{first_row + int(np.flatnonzero(bad)[0])} of its partition. Filter such rows out."
        )
    labels = None
    if options.label_col is not None:
        column = batch.column(options.label_col).cast(pa.float64())
        labels = _float32(column.to_numpy(zero_copy_only=False), options.label_col, "labelCol")
    in_sparse = np.repeat(~vectors.is_dense, np.diff(vectors.indptr))
    return encode_rows(
        vectors.indptr, vectors.indices[in_sparse],
        _float32(vectors.values, options.features_col, "featuresCol"), vectors.sizes,
        vectors.is_dense, labels, first_row=first_row,
    )  # fmt: skip


def _float32(numbers: NDArray[np.float64], column: str, param: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        small = numbers.astype(np.float32)
    bad = ~np.isfinite(small)
    if bad.any():
        raise InvalidDataError(
            f"{param}={column!r} holds {numbers[bad][0]}, which is null, not finite, or too large "
            "for float32, the type of the format. Replace or filter such rows."
        )
    return small
