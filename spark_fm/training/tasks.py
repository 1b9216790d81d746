"""What the tasks of a training do; executors."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
from spark_fm.learner.predict import TablePositions, renumbered
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
from spark_fm.spark.gpu import GpuPassConfig, task_trainer
from spark_fm.spark.worker import check_version, freeze_loaded_modules, partition_number
from spark_fm.training.packing import (
    BLOCK_SCHEMA,
    TRAIN,
    VALIDATION,
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
    cut_into_windows,
    read_rows,
    remove_store,
    set_name,
)

DELTA = "delta"
DELTA_FILE = "delta-file"
MERGED = "merged"
SAMPLE = "sample"


@dataclass(frozen=True)
class LocalUpdate:
    """What a task must know to train one model in a round.

    Parameters
    ----------
    spec : Hyperparameters
    units : Units
    epoch, round : int
    step_scale : float
    sample_rows, sample_nnz : int
        Hand the first training rows to the driver, up to so many rows and entries.
    judges_start, judges_end : bool
        Take the loss of the first rows before training, and of the last ones after it.
    """

    spec: Hyperparameters
    units: Scaling
    epoch: int
    round_index: int
    step_scale: float
    sample_rows: int
    sample_nnz: int
    judges_start: bool
    judges_end: bool


@dataclass(frozen=True)
class LocalUpdateTask:
    """Train this partition's rows of one round, each model from its shared state.

    Parameters
    ----------
    version : str
    parts : tuple of LocalUpdate
        One a model; all train in one pass over the rows.
    states : Handle
        For each model the synced columns and the bias vector to start from.
    candidates : Handle or None
        For each model the parameters to validate on this partition's validation rows.
    rows : RowSelection
    outbox : str or None
        Folder that takes the deltas, where the driver sees it.
    gpu : GpuPassConfig or None
        How the passes are made on a GPU; None for the processor.
    """

    version: str
    parts: tuple[LocalUpdate, ...]
    states: Broadcast
    candidates: Broadcast | None
    rows: RowSelection
    outbox: str | None = None
    gpu: GpuPassConfig | None = None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield for each model facts and a sample, then the touched features by range.

        Where rows were to be in files and are not, the one fact that says so.
        """
        check_version(self.version)
        states = self.states.load()
        candidates = [None] * len(states) if self.candidates is None else self.candidates.load()
        try:
            with task_trainer(self.gpu, partition_number()) as (trainer, gpu):
                learners = [
                    _Learner(part, state, candidate, trainer)
                    for part, state, candidate in zip(self.parts, states, candidates, strict=True)
                ]
                self._pass_over(batches, learners)
        except RowsMissingError as err:
            yield from to_chunks(partition_number(), {"missing": str(err)}, {})
            return
        for model, learner in enumerate(learners):
            yield from learner.results(model, outbox=self.outbox, gpu=gpu)
        freeze_loaded_modules()

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
    """One model inside a round task."""

    def __init__(
        self,
        part: LocalUpdate,
        state: tuple[NDArray[np.float32], NDArray[np.float64]],
        candidate: tuple[NDArray[np.float32], float] | None,
        trainer: Backend,
    ) -> None:
        self._part = part
        self._trainer = trainer
        self._state = TrainState.from_synced(Layout(part.spec.k, part.spec.optimizer), *state)
        self._candidate = None if candidate is None else Parameters(*candidate)
        self._facts: dict[str, Any] = {
            "n_rows": 0, "nnz": 0, "loss_sum": 0.0, "weight_sum": 0.0, "idle_sum": 0.0,
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
        """Add up the metrics of the candidate."""
        clock = time.perf_counter()
        if self._candidate is not None:
            units, spec = self._part.units, self._part.spec
            self._sums += evaluate(
                self._candidate, units.apply(rows), spec, units.label, backend=self._trainer
            )
        self._facts["validate_seconds"] += time.perf_counter() - clock

    def train(self, rows: CsrBatch, shard: int) -> None:
        """Train on one stretch of rows, and add up what it did."""
        clock = time.perf_counter()
        part, facts = self._part, self._facts
        rows = part.units.apply(rows)
        if self._last is None:
            if part.judges_start:
                facts["sample_before"] = sample_loss(self._state, rows, part.spec)
            self._sample = self._first_rows(rows)
        self._last = rows
        visit = RowOrder(part.epoch, part.round_index, partition_number(), shard)
        stats = self._trainer.run_epoch(
            self._state, rows, visit, spec=part.spec, step_scale=part.step_scale
        )
        facts["n_rows"] += rows.n_rows
        facts["nnz"] += rows.nnz
        facts["loss_sum"] += stats.loss_sum
        facts["weight_sum"] += stats.weight_sum
        facts["idle_sum"] += null_model_loss(rows, part.spec)
        facts["compile_seconds"] += stats.compile_seconds
        facts["train_seconds"] += time.perf_counter() - clock

    def results(
        self, model: int, *, outbox: str | None, gpu: str | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield facts, sample and deltas."""
        state, facts, sample = self._state, self._facts, self._sample
        facts["gpu"] = gpu
        facts["finite"] = bool(np.isfinite(facts["loss_sum"])) and state.is_finite()
        if self._last is not None and self._part.judges_end and facts["finite"]:
            facts["sample_after"] = sample_loss(state, self._last, self._part.spec)
        facts["bias"] = state.bias.tolist()
        facts["validation"] = self._sums.to_dict()
        if sample is not None:
            facts["sample_shape"] = [sample.n_rows, sample.nnz]
        yield from to_chunks(partition_number(), facts, {}, model=model)
        if sample is not None:
            yield chunk(partition_number(), SAMPLE, 0, encode(sample), model=model)
        if facts["finite"]:
            for number, delta in self._deltas():
                if outbox is None:
                    name, payload = DELTA, delta.to_bytes()
                else:
                    name, payload = DELTA_FILE, write_buffers(outbox, delta.buffers()).encode()
                yield chunk(partition_number(), name, number, payload, model=model)

    def _first_rows(self, rows: CsrBatch) -> CsrBatch | None:
        fitting = int(np.searchsorted(rows.indptr, self._part.sample_nnz, "right")) - 1
        n_rows = min(self._part.sample_rows, max(1, fitting))
        return rows.take(np.arange(n_rows)) if n_rows > 0 else None

    def _deltas(self) -> Iterator[tuple[int, Delta]]:
        """Yield the touched features range by range, with the number of the range."""
        state = self._state
        span = features_per_range(state.layout)
        for number, start in enumerate(range(0, state.n_features, span)):
            delta = Delta.of(state, start, min(start + span, state.n_features))
            if len(delta.ids):
                yield number, delta


@dataclass(frozen=True)
class AverageTask:
    """Merge all partitions' deltas of one model and range of ids: for ``applyInArrow``.

    Parameters
    ----------
    version : str
    rules : tuple of AveragingRule
        One a model.
    states : Handle
        As in LocalUpdateTask.
    """

    version: str
    rules: tuple[AveragingRule, ...]
    states: Broadcast

    def __call__(self, group: pa.Table) -> pa.Table:
        """Return one merged chunk for the group's range of ids; facts pass through."""
        check_version(self.version)
        if group.column("name")[0].as_py() != DELTA:
            return group
        rows = zip(*(group.column(name).to_pylist() for name in PIECE_NAMES), strict=True)
        ordered = sorted(rows, key=lambda row: row[1])
        model, _, _, part, _ = ordered[0]
        columns, _ = self.states.load()[model]
        merged = average_range(columns, part, [row[4] for row in ordered], self.rules[model])
        freeze_loaded_modules()
        return pa.Table.from_batches([chunk(0, MERGED, part, merged.to_bytes(), model=model)])


PIECE_NAMES = ("model", "partition", "name", "part", "payload")


def average_range(
    columns: NDArray[np.float32],
    part: int,
    payloads: Sequence[bytes | memoryview],
    rule: AveragingRule,
) -> Delta:
    """Merge the payloads of range ``part``, given in the order of partitions."""
    span = features_per_range(rule.layout)
    deltas = [Delta.from_bytes(payload, rule.layout.n_synced) for payload in payloads]
    return average_deltas(columns[part * span : (part + 1) * span], part * span, deltas, rule)


def features_per_range(layout: Layout) -> int:
    """Return how many features' deltas make one chunk."""
    return max(1, CHUNK_BYTES // (4 * (layout.n_synced + 2)))


@dataclass(frozen=True)
class SoloPart:
    """What a task must know to advance one model.

    Parameters
    ----------
    model : int
        Number of the model among those that share the rows.
    spec : Hyperparameters
    units : Units
    metric : str
    run : Handle
        Facts and arrays of the model's TrainingProgress.
    """

    model: int
    spec: Hyperparameters
    units: Scaling
    metric: str
    run: Broadcast


@dataclass(frozen=True)
class SoloTask:
    """Advance one training for some seconds, the one of the task's partition.

    Parameters
    ----------
    version : str
    parts : tuple of SoloPart
        One a partition.
    ids : Handle or None
        Sorted feature ids of the table's rows; None when ids are rows.
    train_on_all : bool
        Train on validation rows too and validate nothing.
    seconds : float
        Start no further epoch after this much time; one at least is trained.
    gpu : GpuPassConfig or None
        How the passes are made on a GPU; None for the processor.
    """

    version: str
    parts: tuple[SoloPart, ...]
    ids: Broadcast | None
    train_on_all: bool
    seconds: float
    gpu: GpuPassConfig | None = None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of the advanced run."""
        check_version(self.version)
        yield from self._advanced(self.parts[partition_number()], batches)
        freeze_loaded_modules()

    def _advanced(
        self, part: SoloPart, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        started = time.perf_counter()
        facts, arrays = part.run.load()
        run = TrainingProgress.from_arrays(Layout(part.spec.k, part.spec.optimizer), facts, arrays)
        since, n_features = run.epoch, run.state.n_features
        train, validation = self._read(batches)
        train = part.units.apply(checked(train, n_features))
        if validation is not None:
            validation = part.units.apply(checked(validation, n_features))
        try:
            with task_trainer(self.gpu, 0) as (trainer, gpu):  # all models train on the same rows
                for _ in advance(
                    run, train, validation, part.spec, metric=part.metric,
                    label_scale=part.units.label, backend=trainer,
                    seconds=self.seconds - (time.perf_counter() - started),
                ):  # fmt: skip
                    pass
        except TrainingDivergedError as err:
            # As data: an exception would reach the driver as another class.
            yield from to_chunks(0, {"diverged": str(err)}, {}, model=part.model)
        else:
            result, advanced = run.to_arrays(since)
            result |= {"n_rows": train.n_rows, "gpu": gpu}
            yield from to_chunks(0, result, advanced, model=part.model)

    def _read(self, batches: Iterator[pa.RecordBatch]) -> tuple[CsrBatch, CsrBatch | None]:
        # Sorted, because a coalesced partition may meet its sources in any order.
        blocks = sorted(read_blocks(batches), key=lambda block: block[:3])
        positions = None if self.ids is None else TablePositions(self.ids.load())
        kinds = (TRAIN, VALIDATION) if self.train_on_all else (TRAIN,)
        sets = []
        for chosen in (kinds, () if self.train_on_all else (VALIDATION,)):
            rows = CsrBatch.concat([batch for kind, _, _, batch in blocks if kind in chosen])
            sets.append(renumbered(rows, positions))
        return sets[0], sets[1] if sets[1].n_rows else None


GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class AssignTask:
    """Give every block a partition, and cut it into the rounds that train it.

    Parameters
    ----------
    keys : tuple of int
        Value of column ``key`` that hashes to each partition.
    n_rounds : int
    ids : Handle or None
        Sorted feature ids of the table's rows.
    """

    version: str
    keys: tuple[int, ...]
    n_rounds: int
    ids: Broadcast | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield chunks of the blocks with columns ``key`` and ``round`` added."""
        check_version(self.version)
        positions = None if self.ids is None else TablePositions(self.ids.load())
        n_partitions, n_rounds = len(self.keys), self.n_rounds
        for kind, source, seq, rows in read_blocks(batches):
            partition = (seq + source) % n_partitions
            rounds = rounds_of(seq // n_partitions + source, rows.n_rows, n_rounds)
            cuts = np.linspace(0, rows.n_rows, len(rounds) + 1).astype(np.int64)
            rows = renumbered(rows, positions)
            for round_index, (start, stop) in zip(rounds, pairwise(cuts), strict=True):
                partitioned = block_row(kind, source, seq, rows.between(start, stop))
                yield pa.RecordBatch.from_arrays(
                    [
                        *partitioned.columns,
                        pa.array([self.keys[partition]], pa.int32()),
                        pa.array([round_index], pa.int32()),
                    ],
                    schema=DEALT_SCHEMA,
                )


def rounds_of(turn: int, n_rows: int, n_rounds: int) -> list[int]:
    """Return the rounds that the chunks of a block go to: all, rows permitting.

    Pieces of small blocks are spread evenly, and start at multiples of the golden ratio,
    which leave no round out for long (Knuth, The Art of Computer Programming, 6.4).
    """
    n_pieces = min(n_rows, n_rounds)
    first = int(turn * GOLDEN % 1 * n_rounds)
    return [(first + i * n_rounds // n_pieces) % n_rounds for i in range(n_pieces)]


DEALT_SCHEMA = BLOCK_SCHEMA.append(pa.field("key", pa.int32())).append(
    pa.field("round", pa.int32())
)


LISTING_DDL = "kind int, round int, source int, seq int, n_rows int, nnz bigint"
LISTED = ("kind", "round", "source", "seq", "n_rows", "nnz")


@dataclass(frozen=True)
class WriteShardsTask:
    """Write the sets of a partition into files of its machine, and list their blocks.

    Blocks come in any order and are put down as they come; sorting them in the JVM would
    hold them there.

    Parameters
    ----------
    version : str
    store : str
        Key of the shard stores.
    n_rounds : int
    """

    version: str
    store: str
    n_rounds: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the blocks without their payload."""
        check_version(self.version)
        store = ShardStore(self.store, partition_number())
        places: dict[str, list[tuple[int, ...]]] = {
            set_name(kind, round_index): []
            for kind in (TRAIN, VALIDATION)
            for round_index in range(self.n_rounds)
        }
        with store.spool() as spool:
            for batch in batches:
                numbers = [np.asarray(batch.column(name)).tolist() for name in LISTED]
                payloads = batch.column("payload")
                for i, facts in enumerate(zip(*numbers, strict=True)):
                    kind, round_index, *rest = facts
                    start = spool.add(payloads[i].as_buffer())
                    places[set_name(kind, round_index)].append((*rest, start))
                yield batch.select(list(LISTED))
            blocks = spool.contents()
            if blocks is None:
                return
            for name, found in places.items():
                with store.writer(name) as writer:
                    for shard in cut_into_windows(_blocks(blocks, sorted(found))):
                        writer.add(shard)
                    writer.finish()


def _blocks(contents: memoryview, places: list[tuple[int, ...]]) -> Iterator[CsrBatch]:
    """Yield the blocks at these places: source, seq, n_rows, nnz, start."""
    for _, _, n_rows, nnz, start in places:
        yield decode(contents[start : start + payload_bytes(n_rows, nnz)], n_rows, nnz)


@dataclass(frozen=True)
class RemoveFiles:
    """Remove a training set's files from the machine of a task: for ``mapInArrow``."""

    store: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing."""
        for _ in batches:
            pass
        remove_store(self.store)
        yield from ()


STOP = "stop"
POLL_SECONDS = 0.002
LOOK_SECONDS = 1.0
_ORDER = re.compile(r"order-(\d+)")


def order_file(folder: Path, number: int) -> Path:
    """Return where the driver puts an order."""
    return folder / f"order-{number}"


def answer_file(folder: Path, number: int, partition: int) -> Path:
    """Return where a task puts what it has to say to an order."""
    return folder / f"answer-{number}-{partition}"


def presence_file(folder: Path, partition: int) -> Path:
    """Return the file by which a task tells that it runs."""
    return folder / f"here-{partition}"


def place(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    draft = _draft(path)
    draft.write_bytes(content)
    draft.replace(path)


def _draft(path: Path) -> Path:
    # Two attempts of a task are two processes.
    return path.with_name(f".{path.name}-{os.getpid()}")


@dataclass(frozen=True)
class WorkerLoop:
    """Answer orders until the driver says stop, its folder is gone, or it is gone itself.

    An order is a pickled task for ``mapInArrow``, and an answer all that it yields. Orders
    say everything, so that a second attempt of this task goes on where the first was lost.

    Parameters
    ----------
    version : str
    folder : str
    driver : int
        Process that gives the orders, on this machine.
    """

    version: str
    folder: str
    driver: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield nothing, in the end."""
        check_version(self.version)
        rows, partition, folder = list(batches), partition_number(), Path(self.folder)
        for number, order in self._orders(partition):
            try:
                _answer(order, rows, answer_file(folder, number, partition))
            except FileNotFoundError:
                # Another attempt may have answered, or the driver was interrupted: then the
                # order has been withdrawn, and what it names may be gone.
                if order_file(folder, number).exists():
                    raise
        yield from ()

    def _orders(self, partition: int) -> Iterator[tuple[int, bytes]]:
        """Yield the orders that this partition has not answered yet, with their numbers."""
        folder, done, looked = Path(self.folder), -1, time.monotonic()
        with suppress(FileNotFoundError):
            place(presence_file(folder, partition), b"")
        while STOP not in (names := _names_in(folder)):
            number = max((int(m[1]) for m in map(_ORDER.fullmatch, names) if m), default=-1)
            order = b""
            if number > done and not answer_file(folder, number, partition).exists():
                with suppress(FileNotFoundError):  # by now all may have answered it
                    order = order_file(folder, number).read_bytes()
            if order:
                yield number, order
                done = number
                continue
            time.sleep(POLL_SECONDS)
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if not _is_alive(self.driver):
                    return


def _answer(order: bytes, rows: list[pa.RecordBatch], path: Path) -> None:
    draft = _draft(path)
    with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, CHUNK_SCHEMA) as writer:
        for batch in cloudpickle.loads(order)(iter(rows)):
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
