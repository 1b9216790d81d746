"""Rows of a DataFrame to CSR blocks in binary columns, checked and counted; executors."""

from __future__ import annotations

import json
import socket
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.errors import InvalidDataError, SparkFMError
from spark_fm.formats.vectors import read_vectors, row_lengths
from spark_fm.learner.csr import MAX_FEATURE_ID, CsrBatch, canonical
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.spec import LossName
from spark_fm.learner.statistics import FeatureCounter, validation_rows
from spark_fm.spark.broadcast import read_bytes
from spark_fm.spark.worker import WorkerTask, partition_number
from spark_fm.training.local_files import BlockFile, Place, local_folders

TRAIN, VALIDATION, REPORT = 0, 1, 2
STATS, COUNTS, MOMENTS = "stats", "counts", "moments"  # parts of a report

BLOCK_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.int32()),
        pa.field("source", pa.int32()),
        pa.field("seq", pa.int32()),
        pa.field("n_rows", pa.int32()),
        pa.field("nnz", pa.int64()),
        pa.field("name", pa.string()),
        pa.field("payload", pa.binary()),
        pa.field("report", pa.binary()),
        # Where payload or report are, when they are in a file.
        pa.field("file", pa.string()),
        pa.field("start", pa.int64()),
    ]
)
BLOCK_DDL = (
    "kind int, source int, seq int, n_rows int, nnz bigint, name string, payload binary, "
    "report binary, file string, start bigint"
)
# What of them a pass over the rows reads.
BLOCK_COLUMNS = ("kind", "source", "seq", "n_rows", "nnz", "payload", "file", "start")

# Rows are checked and counted in windows, and cut into blocks in stretches of them.
WINDOW_ROWS = 10_000
WINDOW_NNZ = 2**20
STRETCH_ROWS = 65_536
STRETCH_NNZ = 2**22
BLOCK_ROWS = 4096
BLOCK_NNZ = 2**19
FEATURES_PER_REPORT = 300_000

# Reasons a row is not usable, in the order in which they are looked for.
NULL_FEATURES = "null features"
BROKEN_VECTOR = "vector with unequally many indices and values"
BAD_INDEX = "feature index out of range"
BAD_VALUE = "NaN or infinite feature value"
BAD_LABEL = "null, NaN or infinite label"
NOT_BINARY = "label other than 0 or 1"
WRONG_LENGTH = "vector of another length than featureDim"
BAD_WEIGHT = "null, negative, NaN or infinite weight"


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Size of a set of rows of positive weight, and weighted mean and variance of its labels.

    Means, not sums, and differences from them: weights may be as large as float64 can hold, and
    labels far from 0.
    """

    rows: int = 0
    nnz: int = 0
    mean_weight: float = 0.0
    label_mean: float = 0.0
    label_variance: float = 0.0

    @classmethod
    def of(cls, batch: CsrBatch) -> RowStatistics:
        """Return the statistics of a batch with one row at least."""
        largest = float(batch.weights.max())
        shares = batch.weights / largest
        total = float(shares.sum())
        mean = float(shares @ batch.labels) / total
        variance = float(shares @ (batch.labels - mean) ** 2) / total
        return cls(batch.n_rows, batch.nnz, largest * (total / batch.n_rows), mean, variance)

    def plus(self, other: RowStatistics) -> RowStatistics:
        """Return the statistics of both sets: Chan, Golub and LeVeque (1979), eq. (2.1)."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        largest = max(self.mean_weight, other.mean_weight)
        mine = self.rows * (self.mean_weight / largest)
        total = mine + other.rows * (other.mean_weight / largest)
        share = 1 - mine / total  # the other's
        apart = other.label_mean - self.label_mean
        return RowStatistics(
            rows=self.rows + other.rows,
            nnz=self.nnz + other.nnz,
            mean_weight=largest * (total / (self.rows + other.rows)),
            label_mean=self.label_mean + share * apart,
            label_variance=(1 - share) * self.label_variance + share * other.label_variance
            + share * (1 - share) * apart**2,
        )  # fmt: skip


@dataclass(slots=True)
class PackReport:
    """What packing one source partition found; travels as JSON."""

    source: int
    checksum: int = 0  # of the blocks' payloads, in order
    train: RowStatistics = RowStatistics()
    validation: RowStatistics = RowStatistics()
    n_zero_weight: int = 0
    n_tiny_values: int = 0  # of features, smaller than float32 holds
    max_size: int = 0
    max_index: int = -1
    dense_sizes: tuple[int, int] | None = None  # least and most values of a dense vector
    bad_rows: dict[str, int] = field(default_factory=dict)
    bad_examples: dict[str, str] = field(default_factory=dict)
    table_bytes: int = 0  # of the features' counts and moments, which follow
    value_ranges: tuple[float, list[tuple[int, float, float]]] = (0.0, [])
    folders: list[str] = field(default_factory=list)  # of this machine that take files

    @classmethod
    def from_json(cls, text: bytes) -> PackReport:
        """Rebuild a report from its JSON."""
        fields = json.loads(text)
        for name in ("train", "validation"):
            fields[name] = RowStatistics(**fields[name])
        return cls(**fields)

    def note_rows(self, kind: int, rows: CsrBatch) -> None:
        """Take in usable rows of a kind."""
        name = "validation" if kind == VALIDATION else "train"
        setattr(self, name, getattr(self, name).plus(RowStatistics.of(rows)))

    def note_dense(self, sizes: NDArray[np.int64]) -> None:
        """Note how many values dense vectors have."""
        if len(sizes):
            known = self.dense_sizes or (int(sizes[0]), int(sizes[0]))
            self.dense_sizes = min(known[0], int(sizes.min())), max(known[1], int(sizes.max()))

    def note_bad(self, reason: str, rows: NDArray[np.bool_], example: str) -> None:
        """Count rows that are bad for this reason, keeping the first example."""
        self.bad_rows[reason] = self.bad_rows.get(reason, 0) + int(rows.sum())
        self.bad_examples.setdefault(reason, example)


@dataclass(frozen=True)
class PackTask(WorkerTask):
    """Pack one source partition, of the internal columns, into blocks and reports."""

    loss: LossName
    feature_dim: int  # ids must be below; 0 means any id is legal
    has_weight: bool
    has_indicator: bool
    validation_fraction: float
    seed: int
    shuffle: bool  # mix the rows of a stretch before they are cut into blocks
    # Every stretch gives a multiple of this many blocks, rows permitting, so that they can be
    # assigned evenly.
    block_multiple: int
    # Keep entries of value 0, as SageMaker's algorithm does, to which they are features that a
    # row has; every vector must then have the length feature_dim.
    keep_zeros: bool = False
    # Key of the files that take the blocks, where every task sees them; None: Spark's rows do.
    store: str | None = None
    tables_in_file: bool = False  # counts and moments, too: the driver sees the files

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield data blocks, then the report."""
        first = next(batches, None)
        source = _source_of(first)
        batches = batches if first is None else chain([first], batches)
        report = PackReport(source)
        counter = FeatureCounter()
        with ExitStack() as stack:
            file = None
            if self.store is not None:
                report.folders = list(map(str, local_folders()))
                # Nothing else would take the rows: all of the disk is theirs.
                file = stack.enter_context(BlockFile(self.store, source, free_fraction=0.0))
            writers = {kind: _BlockWriter(self, kind, report, file) for kind in (TRAIN, VALIDATION)}
            for number, window in enumerate(windows(batches)):
                rows, indicator = self._checked(window, report)
                for kind, subset in self._split(rows, indicator, (source << 32) + number):
                    if subset.n_rows:
                        counter.add(subset, validation=kind == VALIDATION)
                        report.note_rows(kind, subset)
                        yield from writers[kind].add(subset)
            for writer in writers.values():
                yield from writer.flush()
            report.value_ranges = counter.value_ranges()
            tables = {COUNTS: counter.counts().to_table(), MOMENTS: counter.moments().to_table()}
            report.table_bytes = sum(table.nbytes for table in tables.values())
            yield report_row(source, 0, STATS, json.dumps(asdict(report)).encode())
            for name, table in tables.items():
                for seq, start in enumerate(range(0, len(table), FEATURES_PER_REPORT)):
                    part = table[start : start + FEATURES_PER_REPORT].tobytes()
                    yield report_row(
                        source, seq, name, part, file=file if self.tables_in_file else None
                    )

    def _checked(  # noqa: C901 - one check after another
        self, batch: pa.RecordBatch, report: PackReport
    ) -> tuple[CsrBatch, NDArray[np.bool_] | None]:
        """Return the usable rows of a record batch and their validation flags."""
        vectors = read_vectors(_column(batch, "features"), keep_zeros=self.keep_zeros)
        labels = _numbers(batch, "label")
        n_rows = len(labels)
        weights = _numbers(batch, "weight") if self.has_weight else np.ones(n_rows)
        with np.errstate(over="ignore"):
            values = vectors.values.astype(np.float32)
            labels32 = labels.astype(np.float32)
        limit = self.feature_dim or MAX_FEATURE_ID + 1
        bad_entry = (vectors.indices < 0) | (vectors.indices >= limit)
        nan_entry = ~np.isfinite(values)
        starts = vectors.indptr
        checks: list[tuple[str, NDArray[np.bool_], str | None]] = [
            (NULL_FEATURES, vectors.is_null, None),
            (BROKEN_VECTOR, vectors.is_broken, None),
            (BAD_INDEX, _any_in_row(bad_entry, starts), None),
            (BAD_VALUE, _any_in_row(nan_entry, starts), None),
            (BAD_LABEL, ~np.isfinite(labels32), "label"),
            (BAD_WEIGHT, ~(np.isfinite(weights) & (weights >= 0)), "weight"),
        ]
        if LOSSES[self.loss].is_classifier:
            checks.append((NOT_BINARY, (labels != 0) & (labels != 1), "label"))
        if self.feature_dim:
            # A sparse vector may say no size of its own, but for SageMaker.
            other = (vectors.sizes != self.feature_dim) & (vectors.is_dense | self.keep_zeros)
            checks.insert(2, (WRONG_LENGTH, other, None))
        good = np.ones(n_rows, bool)
        for reason, flags, name in checks:
            bad = flags & good
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                if reason == BAD_INDEX:
                    entry = slice(starts[first], starts[first + 1])
                    example = f"index {vectors.indices[entry][bad_entry[entry]][0]}"
                elif reason == BAD_VALUE:
                    entry = slice(starts[first], starts[first + 1])
                    at = np.flatnonzero(nan_entry[entry])[0]
                    value = vectors.values[entry][at]
                    example = f"value {value} at index {vectors.indices[entry][at]}"
                    if np.isfinite(value):
                        example += ", which float32 cannot hold (3.4e38 at most)"
                elif reason == WRONG_LENGTH:
                    example = f"{vectors.sizes[first]}, not {self.feature_dim}"
                else:
                    value = None if name is None else _column(batch, name)[first].as_py()
                    example = "null" if value is None else f"{float(value)}"
                    if name == "label" and np.isfinite(labels[first]) and reason == BAD_LABEL:
                        example += ", which float32 cannot hold (3.4e38 at most)"
                report.note_bad(reason, bad, example)
                good &= ~bad
        rows = CsrBatch(starts, vectors.indices, values, labels, weights)
        is_tiny = np.abs(values) < np.finfo(np.float32).tiny
        if is_tiny.any():
            report.n_tiny_values += int((is_tiny & (vectors.values != 0)).sum())
        report.n_zero_weight += int((good & (weights == 0)).sum())
        good &= weights != 0  # they count for nothing, not even as features seen
        indicator = None
        if self.has_indicator:
            flags = _column(batch, "validation").fill_null(False)
            indicator = flags.to_numpy(zero_copy_only=False).astype(bool)
        if not good.all():
            usable = np.flatnonzero(good)
            rows = rows.take(usable)
            indicator = None if indicator is None else indicator[usable]
        if rows.n_rows:
            report.max_size = max(report.max_size, int(vectors.sizes[good].max()))
            report.note_dense(vectors.sizes[good & vectors.is_dense])
        if rows.nnz:
            report.max_index = max(report.max_index, int(rows.indices.max()))
        return canonical(rows), indicator

    def _split(
        self, rows: CsrBatch, indicator: NDArray[np.bool_] | None, window: int
    ) -> list[tuple[int, CsrBatch]]:
        held_out = indicator
        if held_out is None:
            held_out = validation_rows(rows, self.validation_fraction, self.seed, window)
        if not held_out.any():
            return [(TRAIN, rows)]
        return [
            (TRAIN, rows.take(np.flatnonzero(~held_out))),
            (VALIDATION, rows.take(np.flatnonzero(held_out))),
        ]


class _BlockWriter:
    """Gather rows of one kind into stretches and cut these into blocks."""

    def __init__(
        self, task: PackTask, kind: int, report: PackReport, file: BlockFile | None
    ) -> None:
        self._task = task
        self._kind = kind
        self._report = report
        self._source = report.source
        self._file = file
        self._parts: list[CsrBatch] = []
        self._n_rows = 0
        self._nnz = 0
        self._seq = 0

    def add(self, rows: CsrBatch) -> Iterator[pa.RecordBatch]:
        self._parts.append(rows)
        self._n_rows += rows.n_rows
        self._nnz += rows.nnz
        if self._n_rows >= STRETCH_ROWS or self._nnz >= STRETCH_NNZ:
            yield from self.flush()

    def flush(self) -> Iterator[pa.RecordBatch]:
        if not self._n_rows:
            return
        stretch = CsrBatch.concat(self._parts)
        n_rows, nnz = self._n_rows, self._nnz
        self._parts, self._n_rows, self._nnz = [], 0, 0
        order = np.arange(n_rows)
        if self._task.shuffle:
            words = [self._task.seed & (2**64 - 1), self._kind, self._source, self._seq]
            order = np.random.default_rng(np.random.SeedSequence(words)).permutation(n_rows)
        needed = max(1, -(-n_rows // BLOCK_ROWS), -(-nnz // BLOCK_NNZ))
        multiple = self._task.block_multiple
        n_blocks = min(n_rows, -(-needed // multiple) * multiple)
        for rows in np.array_split(order, n_blocks):
            payload, block = encode_rows(stretch, rows)
            self._report.checksum = zlib.crc32(payload.data, self._report.checksum)
            place = None if self._file is None else _placed(self._file, payload)
            yield block_row(self._kind, self._source, self._seq, block, payload, place)
            self._seq += 1


def _source_of(batch: pa.RecordBatch | None) -> int:
    """Return the number of the source partition.

    It comes with the rows, because one task may read several partitions; from the task
    when there are none.
    """
    if batch is not None and batch.num_rows and "source" in batch.schema.names:
        return int(_column(batch, "source")[0].as_py())
    return partition_number()


def windows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut and join record batches, so that where windows end depends on nothing but the rows.

    However the rows come, their sums then are added alike, and blocks hold the same rows.
    """
    parts: list[pa.RecordBatch] = []
    n_rows, nnz = 0, 0
    for batch in batches:
        ends = np.cumsum(row_lengths(_column(batch, "features")))
        start, before = 0, 0
        while start < batch.num_rows:
            full = int(np.searchsorted(ends, before + WINDOW_NNZ - nnz)) + 1
            stop = min(start + WINDOW_ROWS - n_rows, full, batch.num_rows)
            parts.append(batch.slice(start, stop - start))
            n_rows += stop - start
            nnz += int(ends[stop - 1]) - before
            start, before = stop, int(ends[stop - 1])
            if n_rows == WINDOW_ROWS or nnz >= WINDOW_NNZ:
                yield _joined(parts)
                parts, n_rows, nnz = [], 0, 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(parts) == 1:
        return parts[0]
    return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[np.float64]:
    """Return a column of numbers; a null is NaN."""
    column = _column(batch, name).to_numpy(zero_copy_only=False)
    return column.astype(np.float64)  # type: ignore[no-any-return]  # pyarrow has no types


def _any_in_row(flags: NDArray[np.bool_], indptr: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each row whether one of its entries is flagged."""
    if not flags.any():
        return np.zeros(len(indptr) - 1, bool)
    total = np.concatenate([[0], np.cumsum(flags)])
    return total[indptr[1:]] > total[indptr[:-1]]


_KINDS = ("<f8", "<f8", "<i4", "<i4", "<f4")  # labels, weights, lengths, indices, values


def encode(batch: CsrBatch) -> bytes:
    """Return the payload of a block."""
    parts = (batch.labels, batch.weights, np.diff(batch.indptr), batch.indices, batch.values)
    return b"".join(
        np.ascontiguousarray(part, kind).tobytes() for part, kind in zip(parts, _KINDS, strict=True)
    )


def encode_rows(batch: CsrBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], CsrBatch]:
    """Return the payload of some rows of a batch in the given order, and its rows.

    The bytes are those of ``encode(batch.take(rows))``, without the copy between them.
    """
    indptr = batch.pointers_of(rows)
    payload = np.empty(payload_bytes(len(rows), int(indptr[-1])), np.uint8)
    labels, weights, lengths, indices, values = _parts_of(payload, len(rows), int(indptr[-1]))
    labels[:], weights[:], lengths[:] = batch.labels[rows], batch.weights[rows], np.diff(indptr)
    batch.copy_entries(rows, indptr, indices, values)
    return payload, CsrBatch(indptr, indices, values, labels, weights)


def payload_bytes(n_rows: int, nnz: int) -> int:
    """Return the size of a block's payload."""
    return 20 * n_rows + 8 * nnz


def decode(payload: bytes | memoryview, n_rows: int, nnz: int) -> CsrBatch:
    """Return the rows of a block; labels, weights, indices and values are views."""
    content = np.frombuffer(payload, np.uint8)
    if len(content) != payload_bytes(n_rows, nnz):
        raise ValueError(f"a block of {n_rows} rows and {nnz} entries holds {len(content)} bytes")
    labels, weights, lengths, indices, values = _parts_of(content, n_rows, nnz)
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return CsrBatch(indptr, indices, values, labels, weights)


def _parts_of(content: NDArray[np.uint8], n_rows: int, nnz: int) -> list[NDArray[Any]]:
    """Return the arrays of ``_KINDS`` in a payload, views of it."""
    cuts = np.cumsum([0, 8 * n_rows, 8 * n_rows, 4 * n_rows, 4 * nnz, 4 * nnz])
    return [
        content[start:stop].view(kind)
        for start, stop, kind in zip(cuts[:-1], cuts[1:], _KINDS, strict=True)
    ]


def block_row(
    kind: int,
    source: int,
    seq: int,
    batch: CsrBatch,
    payload: bytes | NDArray[np.uint8] | None = None,
    place: Place | None = None,
) -> pa.RecordBatch:
    """Return the record batch of one block: with its payload, or with the place of it."""
    if payload is None:
        payload = encode(batch)
    return _row(
        kind=kind, source=source, seq=seq, n_rows=batch.n_rows, nnz=batch.nnz,
        **_content("payload", payload, place),
    )  # fmt: skip


def report_row(
    source: int, seq: int, name: str, report: bytes, *, file: BlockFile | None = None
) -> pa.RecordBatch:
    """Return the record batch of one part of a packing report, of ``nnz`` bytes."""
    place = None if file is None else _placed(file, report)
    return _row(
        kind=REPORT, source=source, seq=seq, n_rows=0, nnz=len(report), name=name,
        **_content("report", report, place),
    )  # fmt: skip


def _content(name: str, payload: bytes | NDArray[np.uint8], place: Place | None) -> dict[str, Any]:
    return {name: bytes(payload)} if place is None else {"file": place[0], "start": place[1]}


def _row(**values: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([values.get(field.name)], field.type) for field in BLOCK_SCHEMA],
        schema=BLOCK_SCHEMA,
    )


def _placed(file: BlockFile, payload: bytes | NDArray[np.uint8]) -> Place:
    """Add a payload to a file; raise SparkFMError, which names the disk, where it does not fit."""
    place = file.add(payload)
    if place is None:
        raise SparkFMError(
            f"The packed rows do not fit into {file.folder.parent} of {socket.gethostname()} "
            f"({file.error}). Make room there, or set spark.local.dir (SPARK_LOCAL_DIRS) to a "
            "folder on a larger disk."
        )
    return place


class MappedFiles:
    """The contents of blocks that are in files, each file mapped once."""

    def __init__(self) -> None:
        self._files: dict[str, memoryview] = {}

    def __call__(self, file: str, start: int, n_bytes: int) -> memoryview:
        """Return so many bytes of a file, a view that keeps it mapped."""
        if len(self._files.get(file, b"")) < start + n_bytes:  # unknown, or still growing
            try:
                self._files[file] = read_bytes(Path(file))
            except FileNotFoundError as err:
                raise SparkFMError(
                    f"{file} of {socket.gethostname()}, which holds packed rows, is gone: another "
                    "program has removed it, one that empties the temporary folder for example. "
                    "Set spark.local.dir (SPARK_LOCAL_DIRS) to a folder that is Spark's alone, and "
                    "fit again."
                ) from err
        return self._files[file][start : start + n_bytes]


def read_blocks(batches: Iterable[pa.RecordBatch]) -> Iterable[tuple[int, int, int, CsrBatch]]:
    """Yield ``(kind, source, seq, rows)`` of every data block in record batches."""
    mapped = MappedFiles()
    for batch in batches:
        columns = [batch.column(batch.schema.get_field_index(name)) for name in BLOCK_COLUMNS]
        numbers = [np.asarray(column) for column in columns[:5]]
        payloads, files, starts = columns[5:]
        for i in range(batch.num_rows):
            kind, source, seq, n_rows, nnz = (int(column[i]) for column in numbers)
            if kind == REPORT:
                continue
            payload = payloads[i].as_buffer()
            if payload is None:
                payload = mapped(files[i].as_py(), starts[i].as_py(), payload_bytes(n_rows, nnz))
            yield kind, source, seq, decode(payload, n_rows, nnz)


def checked(rows: CsrBatch, n_features: int) -> CsrBatch:
    """Return the batch; raise when an index is no row of the table.

    Kernels do not check indices, and blocks that are packed again may hold others when
    the source gives other rows each time it is read.
    """
    if rows.nnz and not 0 <= int(rows.indices.min()) <= int(rows.indices.max()) < n_features:
        raise InvalidDataError(
            "The training rows changed between two passes over them: a feature turned up that the "
            "first pass did not see. Cache the DataFrame, or write it out and read it back."
        )
    return rows
