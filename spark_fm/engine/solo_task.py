"""The task that trains a whole model on all rows, one of several at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from spark_fm.engine.blocks import TRAIN, VALIDATION, checked, read_blocks, renumbered
from spark_fm.engine.collector import freeze_loaded_modules
from spark_fm.engine.gpu_tasks import GpuPasses, task_trainer
from spark_fm.engine.handles import Handle
from spark_fm.engine.pieces import array_pieces
from spark_fm.engine.task_context import partition_number
from spark_fm.engine.version import check_version
from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import TablePositions
from spark_fm.learner.spec import TrainSpec, Units
from spark_fm.learner.state import Layout
from spark_fm.learner.training import TrainRun, advance


@dataclass(frozen=True)
class SoloPart:
    """What a task must know to advance one model.

    Parameters
    ----------
    model : int
        Number of the model among those that share the rows.
    spec : TrainSpec
    units : Units
    metric : str
    run : Handle
        Facts and arrays of the model's TrainRun.
    """

    model: int
    spec: TrainSpec
    units: Units
    metric: str
    run: Handle


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
    gpu : GpuPasses or None
        How the passes are made on a GPU; None for the processor.
    """

    version: str
    parts: tuple[SoloPart, ...]
    ids: Handle | None
    train_on_all: bool
    seconds: float
    gpu: GpuPasses | None = None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the pieces of the advanced run."""
        check_version(self.version)
        yield from self._advanced(self.parts[partition_number()], batches)
        freeze_loaded_modules()

    def _advanced(
        self, part: SoloPart, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        started = time.perf_counter()
        facts, arrays = part.run.load()
        run = TrainRun.from_arrays(Layout(part.spec.k, part.spec.optimizer), facts, arrays)
        since, n_features = run.epoch, run.state.n_features
        train, validation = self._read(batches)
        train = part.units.apply(checked(train, n_features))
        if validation is not None:
            validation = part.units.apply(checked(validation, n_features))
        try:
            with task_trainer(self.gpu, 0) as (trainer, gpu):  # all models train on the same rows
                for _ in advance(
                    run, train, validation, part.spec, metric=part.metric,
                    label_scale=part.units.label, trainer=trainer,
                    seconds=self.seconds - (time.perf_counter() - started),
                ):  # fmt: skip
                    pass
        except TrainingDivergedError as err:
            # As data: an exception would reach the driver as another class.
            yield from array_pieces(0, {"diverged": str(err)}, {}, model=part.model)
        else:
            result, advanced = run.to_arrays(since)
            result |= {"n_rows": train.n_rows, "gpu": gpu}
            yield from array_pieces(0, result, advanced, model=part.model)

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
