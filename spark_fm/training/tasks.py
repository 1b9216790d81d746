"""What the tasks of a training do; executors."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import cloudpickle

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.averaging import AveragingRule, Delta, average_deltas
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import Backend, RowOrder
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.state import Layout, TrainState
from spark_fm.learner.training import (
    Parameters,
    TrainingProgress,
    advance,
    evaluate,
    null_model_loss,
    sample_loss,
)
from spark_fm.spark.broadcast import Broadcast, write_buffers
from spark_fm.spark.collect import CHUNK_BYTES, CHUNK_SCHEMA, chunk, to_chunks
from spark_fm.spark.gpu import GpuPassConfig, task_backend
from spark_fm.spark.worker import GroupTask, WorkerTask, partition_number
from spark_fm.training.local_files import BlockFile, Place, local_folders
from spark_fm.training.packing import (
    BLOCK_SCHEMA,
    TRAIN,
    VALIDATION,
    MappedFiles,
    block_row,
    checked,
    decode,
    encode,
    payload_bytes,
    read_blocks,
)
from spark_fm.training.shards import (
    RowSelection,
    RowsMissingError,
    ShardStore,
    cut_into_shards,
    read_rows,
    set_name,
)

DELTA = "delta"
DELTA_FILE = "delta-file"
AVERAGED = "averaged"
SAMPLE = "sample"


@dataclass(frozen=True)
class LocalUpdate:
    """What a task must know to train one model in a round."""

    spec: Hyperparameters
    scaling: Scaling
    epoch: int
    round_index: int
    step_scale: float
    # Hand the first training rows to the driver, up to so many rows and entries.
    sample_rows: int
    sample_nnz: int
    judges_start: bool  # take the loss of the first rows before training
    judges_end: bool  # and of the last ones after it


@dataclass(frozen=True)
class LocalUpdateTask(WorkerTask):
    """Train this partition's rows of one round, each model from its shared state.

    Yields for each model metrics and a sample, then the deltas of the updated features by range;
    where rows were to be in files and are not, only metadata that says so.
    """

    updates: tuple[LocalUpdate, ...]  # one a model; all train in one pass over the rows
    states: Broadcast  # synced columns and bias vector of each model
    to_validate: Broadcast | None  # table and bias of each model to validate
    rows: RowSelection
    outbox: str | None = None  # folder that takes the deltas, where the driver sees it
    gpu: GpuPassConfig | None = None
    partitions: frozenset[int] | None = None  # that train; None for all

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of every model."""
        if self.partitions is not None and partition_number() not in self.partitions:
            return
        states = self.states.load()
        tables = [None] * len(states) if self.to_validate is None else self.to_validate.load()
        try:
            with task_backend(self.gpu, partition_number()) as (backend, gpu):
                learners = [
                    _Learner(update, state, table, backend)
                    for update, state, table in zip(self.updates, states, tables, strict=True)
                ]
                self._pass_over(batches, learners)
        except RowsMissingError as err:
            yield from to_chunks(partition_number(), {"missing": str(err)}, {})
            return
        for model, learner in enumerate(learners):
            yield from learner.results(model, outbox=self.outbox, gpu=gpu)

    def _pass_over(self, batches: Iterator[pa.RecordBatch], learners: list[_Learner]) -> None:
        trained = 0
        for kind, rows in read_rows(self.rows, batches, learners[0].n_features):
            for learner in learners:
                if kind == VALIDATION:
                    learner.validate(rows)
                else:
                    learner.train(rows, trained)
            trained += kind == TRAIN


class _Learner:
    """One model inside a LocalUpdateTask."""

    def __init__(
        self,
        update: LocalUpdate,
        state: tuple[NDArray[np.float32], NDArray[np.float64]],
        to_validate: tuple[NDArray[np.float32], float] | None,
        backend: Backend,
    ) -> None:
        self._update = update
        self._backend = backend
        self._state = TrainState.from_synced(Layout(update.spec.k, update.spec.optimizer), *state)
        self._parameters = None if to_validate is None else Parameters(*to_validate)
        self._metrics: dict[str, Any] = {
            "n_rows": 0, "nnz": 0, "loss_sum": 0.0, "weight_sum": 0.0, "null_loss_sum": 0.0,
            "sample_before": [0.0, 0.0], "sample_after": [0.0, 0.0], "compile_seconds": 0.0,
            "train_seconds": 0.0, "validate_seconds": 0.0, "sample_shape": None,
        }  # fmt: skip
        self._sums = MetricSums()
        self._sample: CsrBatch | None = None
        self._last: CsrBatch | None = None

    @property
    def n_features(self) -> int:
        """Rows of the table."""
        return self._state.n_features

    def validate(self, rows: CsrBatch) -> None:
        """Add up the validation metrics of the parameters."""
        clock = time.perf_counter()
        if self._parameters is not None:
            scaling, spec = self._update.scaling, self._update.spec
            self._sums += evaluate(
                self._parameters, scaling.apply(rows), spec, scaling.label, backend=self._backend
            )
        self._metrics["validate_seconds"] += time.perf_counter() - clock

    def train(self, rows: CsrBatch, shard: int) -> None:
        """Train on the rows of one shard, and add up what they did."""
        clock = time.perf_counter()
        update, metrics = self._update, self._metrics
        rows = update.scaling.apply(rows)
        if self._last is None:
            if update.judges_start:
                metrics["sample_before"] = sample_loss(self._state, rows, update.spec)
            self._sample = self._first_rows(rows)
        self._last = rows
        row_order = RowOrder(update.epoch, update.round_index, partition_number(), shard)
        stats = self._backend.run_epoch(
            self._state, rows, row_order, spec=update.spec, step_scale=update.step_scale
        )
        metrics["n_rows"] += rows.n_rows
        metrics["nnz"] += rows.nnz
        metrics["loss_sum"] += stats.loss_sum
        metrics["weight_sum"] += stats.weight_sum
        metrics["null_loss_sum"] += null_model_loss(rows, update.spec)
        metrics["compile_seconds"] += stats.compile_seconds
        metrics["train_seconds"] += time.perf_counter() - clock

    def results(
        self, model: int, *, outbox: str | None, gpu: str | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield metrics, sample and deltas."""
        state, metrics, sample = self._state, self._metrics, self._sample
        metrics["gpu"] = gpu
        metrics["executor"] = f"{socket.gethostname()}:{local_folders()[0]}"
        metrics["finite"] = bool(np.isfinite(metrics["loss_sum"])) and state.is_finite()
        if self._last is not None and self._update.judges_end and metrics["finite"]:
            metrics["sample_after"] = sample_loss(state, self._last, self._update.spec)
        metrics["bias"] = state.bias.tolist()
        metrics["validation"] = self._sums.to_dict()
        if sample is not None:
            metrics["sample_shape"] = [sample.n_rows, sample.nnz]
        yield from to_chunks(partition_number(), metrics, {}, model=model)
        if sample is not None:
            yield chunk(partition_number(), SAMPLE, 0, encode(sample), model=model)
        if metrics["finite"]:
            for number, delta in self._deltas():
                if outbox is None:
                    name, payload = DELTA, delta.to_bytes()
                else:
                    name, payload = DELTA_FILE, write_buffers(outbox, delta.buffers()).encode()
                yield chunk(partition_number(), name, number, payload, model=model)

    def _first_rows(self, rows: CsrBatch) -> CsrBatch | None:
        fitting = int(np.searchsorted(rows.indptr, self._update.sample_nnz, "right")) - 1
        n_rows = min(self._update.sample_rows, max(1, fitting))
        return rows.take(np.arange(n_rows)) if n_rows > 0 else None

    def _deltas(self) -> Iterator[tuple[int, Delta]]:
        """Yield the deltas of updated features, with the number of their range."""
        state = self._state
        span = features_per_range(state.layout)
        for number, start in enumerate(range(0, state.n_features, span)):
            delta = Delta.of(state, start, min(start + span, state.n_features))
            if len(delta.ids):
                yield number, delta


@dataclass(frozen=True)
class AverageTask(GroupTask):
    """Average all partitions' deltas of one model and range of features: for ``applyInArrow``."""

    rules: tuple[AveragingRule, ...]  # one a model
    states: Broadcast  # as in LocalUpdateTask

    def run(self, *groups: pa.Table) -> pa.Table:
        """Return one averaged chunk for the group's range; other chunks pass unchanged."""
        (group,) = groups
        if group.column("name")[0].as_py() != DELTA:
            return group
        rows = zip(*(group.column(name).to_pylist() for name in CHUNK_SCHEMA.names), strict=True)
        ordered = sorted(rows, key=lambda row: row[1])
        model, _, _, part, _ = ordered[0]
        columns, _ = self.states.load()[model]
        averaged = average_range(columns, part, [row[4] for row in ordered], self.rules[model])
        return pa.Table.from_batches([chunk(0, AVERAGED, part, averaged.to_bytes(), model=model)])


def average_range(
    columns: NDArray[np.float32],
    part: int,
    payloads: Sequence[bytes | memoryview],
    rule: AveragingRule,
) -> Delta:
    """Average the payloads of range ``part``, given in the order of partitions."""
    span = features_per_range(rule.layout)
    deltas = [Delta.from_bytes(payload, rule.layout.n_synced) for payload in payloads]
    return average_deltas(columns[part * span : (part + 1) * span], part * span, deltas, rule)


def features_per_range(layout: Layout) -> int:
    """Return how many features' deltas make one chunk."""
    return max(1, CHUNK_BYTES // (4 * (layout.n_synced + 2)))


@dataclass(frozen=True)
class SingleTaskPart:
    """What a task must know to advance one model."""

    model: int  # number of the model among those that share the rows
    spec: Hyperparameters
    scaling: Scaling
    metric: str
    progress: Broadcast  # metadata and arrays of a TrainingProgress


@dataclass(frozen=True)
class SingleTask(WorkerTask):
    """Advance one model for some seconds, the one of the task's partition."""

    parts: tuple[SingleTaskPart, ...]  # one a partition
    rows: RowReader
    seconds: float  # start no further epoch after this much time; one at least is trained
    gpu: GpuPassConfig | None = None

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of the advanced progress."""
        started = time.perf_counter()
        part = self.parts[partition_number()]
        layout = Layout(part.spec.k, part.spec.optimizer)
        progress = TrainingProgress.from_arrays(layout, *part.progress.load())
        since, n_features = progress.epoch, progress.state.n_features
        clock = time.perf_counter()
        train, validation = self.rows.read(batches, part.scaling, n_features)
        store_seconds = time.perf_counter() - clock
        try:
            with task_backend(self.gpu, 0) as (backend, gpu):  # all models train on the same rows
                for _ in advance(
                    progress, train, validation, part.spec, metric=part.metric,
                    label_scale=part.scaling.label, backend=backend,
                    seconds=self.seconds - (time.perf_counter() - started),
                ):  # fmt: skip
                    pass
                if progress.finished and validation is not None and part.spec.use_linear:
                    progress.linear = evaluate(
                        progress.result().linear_part(), validation, part.spec, part.scaling.label,
                        backend=backend,
                    )  # fmt: skip
        except TrainingDivergedError as err:
            # As data: an exception would reach the driver as another class.
            yield from to_chunks(0, {"diverged": str(err)}, {}, model=part.model)
        else:
            metadata, arrays = progress.to_arrays(since)
            metadata |= {"n_rows": train.n_rows, "gpu": gpu, "store_seconds": store_seconds}
            yield from to_chunks(0, metadata, arrays, model=part.model)


@dataclass(frozen=True)
class RowReader:
    """Reads all rows into one task."""

    preparation: Broadcast | None  # of the rows; None where they train as they are
    train_on_all: bool  # validation rows train too

    def read(
        self, batches: Iterator[pa.RecordBatch], scaling: Scaling, n_features: int
    ) -> tuple[CsrBatch, CsrBatch | None]:
        """Return the rows to train on, and those to validate on, if any."""
        # Sorted, because a coalesced partition may meet its sources in any order.
        blocks = sorted(read_blocks(batches), key=lambda block: block[:3])
        prepare = preparation_of(self.preparation)
        kinds = (TRAIN, VALIDATION) if self.train_on_all else (TRAIN,)
        sets = []
        for selected in (kinds, () if self.train_on_all else (VALIDATION,)):
            rows = CsrBatch.concat([batch for kind, _, _, batch in blocks if kind in selected])
            sets.append(scaling.apply(checked(prepare(rows), n_features)))
        return sets[0], sets[1] if sets[1].n_rows else None


def preparation_of(preparation: Broadcast | None) -> Callable[[CsrBatch], CsrBatch]:
    """Return what prepares packed rows for training."""
    if preparation is None:
        return lambda rows: rows
    prepare: Callable[[CsrBatch], CsrBatch] = preparation.load().apply
    return prepare


GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class AssignTask(WorkerTask):
    """Give every block a partition, and cut it into the rounds that train it."""

    keys: tuple[int, ...]  # value of column ``key`` that hashes to each partition
    n_rounds: int
    preparation: Broadcast | None  # of the rows; None where they train as they are
    store: str | None = None  # key of the files that take the parts, as in PackTask

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield parts of the blocks with columns ``key`` and ``round`` added."""
        prepare = preparation_of(self.preparation)
        n_partitions, n_rounds = len(self.keys), self.n_rounds
        with ExitStack() as stack:
            file = None
            if self.store is not None:
                file = stack.enter_context(BlockFile(self.store, partition_number()))
            for kind, source, seq, rows in read_blocks(batches):
                partition = (seq + source) % n_partitions
                rounds = rounds_of(seq // n_partitions + source, rows.n_rows, n_rounds)
                cuts = np.linspace(0, rows.n_rows, len(rounds) + 1).astype(np.int64)
                rows = prepare(rows)
                for round_index, (start, stop) in zip(rounds, pairwise(cuts), strict=True):
                    part = rows.between(start, stop)
                    payload = encode(part)
                    place = None if file is None else file.add(payload)
                    assigned = block_row(kind, source, seq, part, payload, place)
                    yield pa.RecordBatch.from_arrays(
                        [
                            *assigned.columns,
                            pa.array([self.keys[partition]], pa.int32()),
                            pa.array([round_index], pa.int32()),
                        ],
                        schema=ASSIGNED_SCHEMA,
                    )


def rounds_of(turn: int, n_rows: int, n_rounds: int) -> list[int]:
    """Return the rounds that the parts of a block go to: all, rows permitting.

    Parts of small blocks are distributed evenly, and start at multiples of the golden ratio,
    which leave no round out for long (Knuth, The Art of Computer Programming, 6.4).
    """
    n_parts = min(n_rows, n_rounds)
    first = int(turn * GOLDEN % 1 * n_rounds)
    return [(first + i * n_rounds // n_parts) % n_rounds for i in range(n_parts)]


ASSIGNED_SCHEMA = BLOCK_SCHEMA.append(pa.field("key", pa.int32())).append(
    pa.field("round", pa.int32())
)


LISTING_DDL = "kind int, round int, source int, seq int, n_rows int, nnz bigint"
LISTED = ("kind", "round", "source", "seq", "n_rows", "nnz")


@dataclass(frozen=True)
class WriteShardsTask(WorkerTask):
    """Write the row sets of a partition into files of its machine, and list their blocks.

    Blocks come in any order and are written as they come; sorting them in the JVM would
    hold them there.
    """

    store: str  # key of the shard stores
    n_rounds: int

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the blocks without their payload."""
        store = ShardStore(self.store, partition_number())
        mapped = MappedFiles()
        places: dict[str, list[tuple[Any, ...]]] = {  # source, seq, n_rows, nnz, file, start
            set_name(kind, round_index): []
            for kind in (TRAIN, VALIDATION)
            for round_index in range(self.n_rounds)
        }
        with BlockFile(self.store, partition_number()) as spool:
            for batch in batches:
                numbers = [np.asarray(batch.column(name)).tolist() for name in LISTED]
                payloads, files, starts = map(batch.column, ("payload", "file", "start"))
                for i, (kind, round_index, *block) in enumerate(zip(*numbers, strict=True)):
                    place: Place | None = (files[i].as_py(), starts[i].as_py())
                    if payloads[i].is_valid:
                        place = spool.add(payloads[i].as_buffer())
                    places[set_name(kind, round_index)].append((*block, *(place or ("", 0))))
                yield batch.select(list(LISTED))
            if spool.error is not None:
                spool.remove()
                return
            for name, blocks in places.items():
                with store.writer(name) as writer:
                    for shard in cut_into_shards(
                        decode(mapped(file, start, payload_bytes(n_rows, nnz)), n_rows, nnz)
                        for _, _, n_rows, nnz, file, start in sorted(blocks)
                    ):
                        writer.add(shard)
                    writer.finish()
            spool.remove()


# The worker pool's protocol: files in a folder that driver and tasks share.
STOP = "stop"
POLL_SECONDS = 0.002
CHECK_DRIVER_SECONDS = 1.0
_COMMAND = re.compile(r"command-(\d+)")


def command_file(folder: Path, number: int) -> Path:
    """Return the file of a command of the driver."""
    return folder / f"command-{number}"


def reply_file(folder: Path, number: int, partition: int) -> Path:
    """Return the file of a task's reply to a command."""
    return folder / f"reply-{number}-{partition}"


def ready_file(folder: Path, partition: int) -> Path:
    """Return the file by which a task shows that it runs."""
    return folder / f"ready-{partition}"


def write_complete(path: Path, content: bytes) -> None:
    """Write a file that appears only when it is complete."""
    draft = _draft(path)
    draft.write_bytes(content)
    draft.replace(path)


def _draft(path: Path) -> Path:
    # Two attempts of a task are two processes.
    return path.with_name(f".{path.name}-{os.getpid()}")


@dataclass(frozen=True)
class WorkerLoop(WorkerTask):
    """Reply to commands until the driver stops the pool, its folder is gone, or it is gone itself.

    A command is a pickled task for ``mapInArrow``, a reply all that it yields. Commands carry all
    they need, so that a second attempt of this task continues where the first was lost.
    """

    folder: str
    driver: int  # process that gives the commands, on this machine

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing, in the end."""
        rows, partition, folder = list(batches), partition_number(), Path(self.folder)
        for number, command in self._commands(partition):
            try:
                _reply(command, rows, reply_file(folder, number, partition))
            except FileNotFoundError:
                # Another attempt may have replied, or the driver was interrupted: then the
                # command has been withdrawn, and what it names may be gone.
                if command_file(folder, number).exists():
                    raise
        yield from ()

    def _commands(self, partition: int) -> Iterator[tuple[int, bytes]]:
        """Yield the commands that this partition has not replied to yet, with their numbers."""
        folder, done, checked_at = Path(self.folder), -1, time.monotonic()
        with suppress(FileNotFoundError):
            write_complete(ready_file(folder, partition), b"")
        while STOP not in (names := _names_in(folder)):
            number = max((int(m[1]) for m in map(_COMMAND.fullmatch, names) if m), default=-1)
            command = b""
            if number > done and not reply_file(folder, number, partition).exists():
                with suppress(FileNotFoundError):  # by now all may have replied to it
                    command = command_file(folder, number).read_bytes()
            if command:
                yield number, command
                done = number
                continue
            time.sleep(POLL_SECONDS)
            if time.monotonic() - checked_at > CHECK_DRIVER_SECONDS:
                checked_at = time.monotonic()
                if not _is_alive(self.driver):
                    return


def _reply(command: bytes, rows: list[pa.RecordBatch], path: Path) -> None:
    draft = _draft(path)
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, CHUNK_SCHEMA) as writer:
        for batch in cloudpickle.loads(command)(iter(rows)):
            writer.write_batch(batch)
    draft.replace(path)


def _names_in(folder: Path) -> list[str]:
    """Return the names of a folder's files; STOP alone where the folder is gone."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return [STOP]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
