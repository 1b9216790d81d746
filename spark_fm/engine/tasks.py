"""Training tasks: what runs on executors, as picklable callables for ``mapInArrow``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_fm.engine.blocks import TRAIN, VALIDATION, encode
from spark_fm.engine.collector import freeze_loaded_modules
from spark_fm.engine.gpu_tasks import GpuPasses, task_trainer
from spark_fm.engine.handles import Handle
from spark_fm.engine.local_files import write_buffers
from spark_fm.engine.pieces import PIECE_BYTES, array_pieces, piece
from spark_fm.engine.row_windows import RowsMissingError, WantedRows, read_rows
from spark_fm.engine.task_context import partition_number
from spark_fm.engine.version import check_version
from spark_fm.learner.averaging import Delta, MergeRule, merge_deltas
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import Trainer, Visit
from spark_fm.learner.metrics import MetricSums
from spark_fm.learner.spec import TrainSpec, Units
from spark_fm.learner.state import Layout, TrainState
from spark_fm.learner.training import Candidate, evaluate, idle_loss, sample_loss

DELTA = "delta"
DELTA_FILE = "delta-file"
MERGED = "merged"
SAMPLE = "sample"


@dataclass(frozen=True)
class ExchangePart:
    """What a task must know to train one model in an exchange.

    Parameters
    ----------
    spec : TrainSpec
    units : Units
    epoch, exchange : int
    step_scale : float
    sample_rows, sample_nnz : int
        Hand the first training rows to the driver, up to so many rows and entries.
    judges_start, judges_end : bool
        Take the loss of the first rows before training, and of the last ones after it.
    """

    spec: TrainSpec
    units: Units
    epoch: int
    exchange: int
    step_scale: float
    sample_rows: int
    sample_nnz: int
    judges_start: bool
    judges_end: bool


@dataclass(frozen=True)
class ExchangeTask:
    """Train this partition's rows of one exchange, each model from its shared state.

    Parameters
    ----------
    version : str
    parts : tuple of ExchangePart
        One a model; all train in one pass over the rows.
    states : Handle
        For each model the exchanged columns and the bias vector to start from.
    candidates : Handle or None
        For each model the parameters to validate on this partition's validation rows.
    rows : WantedRows
    outbox : str or None
        Folder that takes the deltas, where the driver sees it.
    gpu : GpuPasses or None
        How the passes are made on a GPU; None for the processor.
    """

    version: str
    parts: tuple[ExchangePart, ...]
    states: Handle
    candidates: Handle | None
    rows: WantedRows
    outbox: str | None = None
    gpu: GpuPasses | None = None

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
            yield from array_pieces(partition_number(), {"missing": str(err)}, {})
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
    """One model inside an exchange task."""

    def __init__(
        self,
        part: ExchangePart,
        state: tuple[NDArray[np.float32], NDArray[np.float64]],
        candidate: tuple[NDArray[np.float32], float] | None,
        trainer: Trainer,
    ) -> None:
        self._part = part
        self._trainer = trainer
        self._state = TrainState.from_exchanged(Layout(part.spec.k, part.spec.optimizer), *state)
        self._candidate = None if candidate is None else Candidate(*candidate)
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
                self._candidate, units.apply(rows), spec, units.label, trainer=self._trainer
            )
        self._facts["validate_seconds"] += time.perf_counter() - clock

    def train(self, rows: CsrBatch, window: int) -> None:
        """Train on one stretch of rows, and add up what it did."""
        clock = time.perf_counter()
        part, facts = self._part, self._facts
        rows = part.units.apply(rows)
        if self._last is None:
            if part.judges_start:
                facts["sample_before"] = sample_loss(self._state, rows, part.spec)
            self._sample = self._first_rows(rows)
        self._last = rows
        visit = Visit(part.epoch, part.exchange, partition_number(), window)
        stats = self._trainer.train_inplace(
            self._state, rows, visit, spec=part.spec, step_scale=part.step_scale
        )
        facts["n_rows"] += rows.n_rows
        facts["nnz"] += rows.nnz
        facts["loss_sum"] += stats.loss_sum
        facts["weight_sum"] += stats.weight_sum
        facts["idle_sum"] += idle_loss(rows, part.spec)
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
        yield from array_pieces(partition_number(), facts, {}, model=model)
        if sample is not None:
            yield piece(partition_number(), SAMPLE, 0, encode(sample), model=model)
        if facts["finite"]:
            for number, delta in self._deltas():
                if outbox is None:
                    name, payload = DELTA, delta.to_bytes()
                else:
                    name, payload = DELTA_FILE, write_buffers(outbox, delta.buffers()).encode()
                yield piece(partition_number(), name, number, payload, model=model)

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
class MergeTask:
    """Merge all partitions' deltas of one model and range of ids: for ``applyInArrow``.

    Parameters
    ----------
    version : str
    rules : tuple of MergeRule
        One a model.
    states : Handle
        As in ExchangeTask.
    """

    version: str
    rules: tuple[MergeRule, ...]
    states: Handle

    def __call__(self, group: pa.Table) -> pa.Table:
        """Return one merged piece for the group's range of ids; facts pass through."""
        check_version(self.version)
        if group.column("name")[0].as_py() != DELTA:
            return group
        rows = zip(*(group.column(name).to_pylist() for name in PIECE_NAMES), strict=True)
        ordered = sorted(rows, key=lambda row: row[1])
        model, _, _, part, _ = ordered[0]
        columns, _ = self.states.load()[model]
        merged = merge_range(columns, part, [row[4] for row in ordered], self.rules[model])
        freeze_loaded_modules()
        return pa.Table.from_batches([piece(0, MERGED, part, merged.to_bytes(), model=model)])


PIECE_NAMES = ("model", "partition", "name", "part", "payload")


def merge_range(
    columns: NDArray[np.float32],
    part: int,
    payloads: Sequence[bytes | memoryview],
    rule: MergeRule,
) -> Delta:
    """Merge the payloads of range ``part``, given in the order of partitions."""
    span = features_per_range(rule.layout)
    deltas = [Delta.from_bytes(payload, rule.layout.n_exchanged) for payload in payloads]
    return merge_deltas(columns[part * span : (part + 1) * span], part * span, deltas, rule)


def features_per_range(layout: Layout) -> int:
    """Return how many features' deltas make one piece."""
    return max(1, PIECE_BYTES // (4 * (layout.n_exchanged + 2)))
