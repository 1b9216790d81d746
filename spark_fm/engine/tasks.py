"""Training tasks: what runs on executors, as picklable callables for ``mapInArrow``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import TaskContext

from spark_fm.engine.blocks import (
    BLOCK_SCHEMA,
    TRAIN,
    VALIDATION,
    block_row,
    encode,
    read_blocks,
)
from spark_fm.engine.collector import freeze_loaded_modules
from spark_fm.engine.handles import Handle
from spark_fm.engine.pieces import PIECE_BYTES, array_pieces, piece
from spark_fm.engine.version import check_version
from spark_fm.errors import InvalidDataError, TrainingDivergedError
from spark_fm.learner.averaging import Delta, MergeRule, merge_deltas
from spark_fm.learner.candidate import Candidate, evaluate
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.predict import table_positions
from spark_fm.learner.run import TrainRun, epoch_order
from spark_fm.learner.safety import idle_loss, sample_loss
from spark_fm.learner.solo import advance
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import Layout, TrainState

WINDOW_BYTES = 512 * 2**20
DELTA = "delta"
MERGED = "merged"
SAMPLE = "sample"
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Units:
    """What labels and weights are divided by before training.

    Labels by their standard deviation, where a regressor asks for it; weights by their
    mean, so that only their ratios matter.
    """

    label: float = 1.0
    weight: float = 1.0

    def apply(self, batch: CsrBatch) -> CsrBatch:
        """Return the batch with labels and weights in these units."""
        labels, weights = batch.labels, batch.weights
        if self.label != 1.0:
            labels = labels / np.float32(self.label)
        if self.weight != 1.0:
            weights = weights / np.float32(self.weight)
        return CsrBatch(batch.indptr, batch.indices, batch.values, labels, weights)


@dataclass(frozen=True)
class SoloTask:
    """Advance a whole training for some seconds in this one task.

    Parameters
    ----------
    run : Handle
        Facts and arrays of a TrainRun.
    ids : Handle or None
        Sorted feature ids of the table's rows; None when ids are rows.
    train_on_all : bool
        Train on validation rows too and validate nothing.
    seconds : float
        Start no further epoch after this much time.
    """

    version: str
    spec: TrainSpec
    run: Handle
    ids: Handle | None
    units: Units
    metric: str
    train_on_all: bool
    seconds: float

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the pieces of the advanced run."""
        check_version(self.version)
        facts, arrays = self.run.load()
        run = TrainRun.from_arrays(Layout(self.spec.k, self.spec.optimizer), facts, arrays)
        train, validation = self._read(batches, run.state.n_features)
        since = run.epoch
        try:
            for _ in advance(
                run, train, validation, self.spec,
                metric=self.metric, label_scale=self.units.label, seconds=self.seconds,
            ):  # fmt: skip
                pass
        except TrainingDivergedError as err:
            # As data: an exception would reach the driver as another class.
            yield from array_pieces(_partition(), {"diverged": str(err)}, {})
            return
        facts, arrays = run.to_arrays(since)
        facts["n_rows"] = train.n_rows
        yield from array_pieces(_partition(), facts, arrays)
        freeze_loaded_modules()

    def _read(
        self, batches: Iterator[pa.RecordBatch], n_features: int
    ) -> tuple[CsrBatch, CsrBatch | None]:
        # Sorted, because a coalesced partition may meet its sources in any order.
        blocks = sorted(read_blocks(batches), key=lambda block: block[:3])
        ids = None if self.ids is None else self.ids.load()
        kinds = (TRAIN, VALIDATION) if self.train_on_all else (TRAIN,)
        sets = []
        for chosen in (kinds, () if self.train_on_all else (VALIDATION,)):
            rows = CsrBatch.concat([batch for kind, _, _, batch in blocks if kind in chosen])
            sets.append(self.units.apply(checked(renumbered(rows, ids), n_features)))
        return sets[0], sets[1] if sets[1].n_rows else None


@dataclass(frozen=True)
class ExchangeTask:
    """Train this partition's rows of one exchange from the shared state.

    Parameters
    ----------
    state : Handle
        The exchanged columns and the bias vector to start from.
    candidate : Handle or None
        Parameters to validate on this partition's validation rows.
    epoch, exchange : int
    step_scale : float
    train_on_all : bool
        Train on validation rows too.
    sample_rows, sample_nnz : int
        Hand the first training rows to the driver, up to so many rows and entries.
    """

    version: str
    spec: TrainSpec
    state: Handle
    candidate: Handle | None
    units: Units
    epoch: int
    exchange: int
    step_scale: float
    train_on_all: bool
    sample_rows: int
    sample_nnz: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield facts and a sample, then the touched features in ranges of ids."""
        check_version(self.version)
        columns, bias = self.state.load()
        state = TrainState.from_exchanged(Layout(self.spec.k, self.spec.optimizer), columns, bias)
        candidate = None if self.candidate is None else Candidate(*self.candidate.load())
        totals: dict[str, Any] = {
            "n_rows": 0, "nnz": 0, "loss_sum": 0.0, "weight_sum": 0.0, "idle_sum": 0.0,
            "sample_before": [0.0, 0.0], "sample_after": [0.0, 0.0], "compile_seconds": 0.0,
            "train_seconds": 0.0, "validate_seconds": 0.0,
        }  # fmt: skip
        sums = MetricSums()
        sample: CsrBatch | None = None
        last: CsrBatch | None = None
        for window, (kind, rows) in enumerate(self._windows(batches, state.n_features)):
            clock = time.perf_counter()
            if kind == VALIDATION:
                if candidate is not None:
                    sums += evaluate(candidate, rows, self.spec, self.units.label)
                totals["validate_seconds"] += time.perf_counter() - clock
                continue
            if last is None:
                totals["sample_before"] = sample_loss(state, rows, self.spec)
                sample = self._sample(rows)
            last = rows
            self._train_window(state, rows, window, totals)
            totals["train_seconds"] += time.perf_counter() - clock
        totals["finite"] = bool(np.isfinite(totals["loss_sum"])) and state.is_finite()
        if last is not None and totals["finite"]:
            totals["sample_after"] = sample_loss(state, last, self.spec)
        totals["bias"] = state.bias.tolist()
        totals["validation"] = sums.to_dict()
        totals["sample_shape"] = None if sample is None else [sample.n_rows, sample.nnz]
        yield from array_pieces(_partition(), totals, {})
        if sample is not None:
            yield piece(_partition(), SAMPLE, 0, encode(sample))
        if totals["finite"]:
            yield from self._deltas(state)
        freeze_loaded_modules()

    def _sample(self, rows: CsrBatch) -> CsrBatch | None:
        fitting = int(np.searchsorted(rows.indptr, self.sample_nnz, "right")) - 1
        n_rows = min(self.sample_rows, max(1, fitting))
        return rows.take(np.arange(n_rows)) if n_rows > 0 else None

    def _train_window(
        self, state: TrainState, rows: CsrBatch, window: int, totals: dict[str, Any]
    ) -> None:
        """Train on one stretch of rows, in place, and add up what it did."""
        order = epoch_order(
            self.spec, rows.n_rows, epoch=self.epoch, exchange=self.exchange,
            partition=_partition(), window=window,
        )  # fmt: skip
        stats = train_inplace(state, rows, order, spec=self.spec, step_scale=self.step_scale)
        totals["n_rows"] += rows.n_rows
        totals["nnz"] += rows.nnz
        totals["loss_sum"] += stats.loss_sum
        totals["weight_sum"] += stats.weight_sum
        totals["idle_sum"] += idle_loss(rows, self.spec)
        totals["compile_seconds"] += stats.compile_seconds

    def _windows(
        self, batches: Iterator[pa.RecordBatch], n_features: int
    ) -> Iterator[tuple[int, CsrBatch]]:
        """Yield training and validation rows in stretches that fit memory."""
        waiting: dict[int, list[CsrBatch]] = {TRAIN: [], VALIDATION: []}
        n_bytes = dict.fromkeys(waiting, 0)
        for kind, _, _, rows in read_blocks(batches):
            target = TRAIN if self.train_on_all else kind
            waiting[target].append(checked(rows, n_features))
            n_bytes[target] += rows.n_bytes
            if n_bytes[target] >= WINDOW_BYTES:
                yield target, self.units.apply(CsrBatch.concat(waiting[target]))
                waiting[target], n_bytes[target] = [], 0
        for target, parts in waiting.items():
            if parts:
                yield target, self.units.apply(CsrBatch.concat(parts))

    def _deltas(self, state: TrainState) -> Iterator[pa.RecordBatch]:
        layout = state.layout
        touches = state.rows[:, layout.touches]
        ids = np.flatnonzero(touches > 0).astype(np.int32)
        span = features_per_range(layout)
        cuts = np.searchsorted(ids, np.arange(0, state.n_features + span, span))
        for number, (start, stop) in enumerate(pairwise(cuts)):
            if start < stop:
                chosen = ids[start:stop]
                delta = Delta(
                    chosen, touches[chosen],
                    np.ascontiguousarray(state.rows[chosen, : layout.n_exchanged]),
                )  # fmt: skip
                yield piece(_partition(), DELTA, number, delta.to_bytes())


@dataclass(frozen=True)
class MergeTask:
    """Merge all partitions' deltas of one range of ids: for ``applyInArrow``."""

    version: str
    rule: MergeRule
    state: Handle

    def __call__(self, group: pa.Table) -> pa.Table:
        """Return one merged piece for the group's range of ids; facts pass through."""
        check_version(self.version)
        if group.column("name")[0].as_py() != DELTA:
            return group
        columns, _ = self.state.load()
        rows = zip(*(group.column(name).to_pylist() for name in PIECE_NAMES), strict=True)
        ordered = sorted(rows, key=lambda row: row[0])
        part = ordered[0][2]
        payloads = [row[3] for row in ordered]
        merged = merge_range(columns, part, payloads, self.rule)
        freeze_loaded_modules()
        return pa.Table.from_batches([piece(0, MERGED, part, merged.to_bytes())])


PIECE_NAMES = ("partition", "name", "part", "payload")


def merge_range(
    columns: NDArray[np.float32], part: int, payloads: list[bytes], rule: MergeRule
) -> Delta:
    """Merge the payloads of range ``part``, given in the order of partitions."""
    span = features_per_range(rule.layout)
    deltas = [Delta.from_bytes(payload, rule.layout.n_exchanged) for payload in payloads]
    return merge_deltas(columns[part * span : (part + 1) * span], part * span, deltas, rule)


def features_per_range(layout: Layout) -> int:
    """Return how many features' deltas make one piece."""
    return max(1, PIECE_BYTES // (4 * (layout.n_exchanged + 2)))


@dataclass(frozen=True)
class DealTask:
    """Give every block a partition, and cut it into the exchanges that train it.

    Parameters
    ----------
    keys : tuple of int
        Value of column ``key`` that hashes to each partition.
    n_exchanges : int
    ids : Handle or None
        Sorted feature ids of the table's rows.
    """

    version: str
    keys: tuple[int, ...]
    n_exchanges: int
    ids: Handle | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield pieces of the blocks with columns ``key`` and ``exchange`` added."""
        check_version(self.version)
        ids = None if self.ids is None else self.ids.load()
        n_partitions, n_exchanges = len(self.keys), self.n_exchanges
        for kind, source, seq, rows in read_blocks(batches):
            partition = (seq + source) % n_partitions
            exchanges = exchanges_of(seq // n_partitions + source, rows.n_rows, n_exchanges)
            shares = np.array_split(np.arange(rows.n_rows), len(exchanges))
            rows = renumbered(rows, ids)
            for exchange, chosen in zip(exchanges, shares, strict=True):
                dealt = block_row(kind, source, seq, rows.take(chosen))
                yield pa.RecordBatch.from_arrays(
                    [
                        *dealt.columns,
                        pa.array([self.keys[partition]], pa.int32()),
                        pa.array([exchange], pa.int32()),
                    ],
                    schema=DEALT_SCHEMA,
                )


def exchanges_of(turn: int, n_rows: int, n_exchanges: int) -> list[int]:
    """Return the exchanges that the pieces of a block go to: all, rows permitting.

    Pieces of small blocks are spread evenly, and start at multiples of the golden ratio,
    which leave no exchange out for long (Knuth, The Art of Computer Programming, 6.4).
    """
    n_pieces = min(n_rows, n_exchanges)
    first = int(turn * GOLDEN % 1 * n_exchanges)
    return [(first + i * n_exchanges // n_pieces) % n_exchanges for i in range(n_pieces)]


DEALT_SCHEMA = BLOCK_SCHEMA.append(pa.field("key", pa.int32())).append(
    pa.field("exchange", pa.int32())
)


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


def renumbered(rows: CsrBatch, ids: NDArray[np.int32] | None) -> CsrBatch:
    """Return the batch with feature ids replaced by rows of the table of ``ids``."""
    if ids is None:
        return rows
    places = table_positions(ids, rows.indices)
    return CsrBatch(rows.indptr, places, rows.values, rows.labels, rows.weights)


def _partition() -> int:
    context = TaskContext.get()
    return context.partitionId() if context is not None else 0
