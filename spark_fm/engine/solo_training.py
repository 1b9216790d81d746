"""Drive a training that runs in one Spark task, a stretch of epochs a job; driver only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_fm._version import __version__
from spark_fm.engine.blocks import REPORT
from spark_fm.engine.gathering import gather
from spark_fm.engine.handles import Handle
from spark_fm.engine.history import EpochReport
from spark_fm.engine.pieces import PIECE_DDL, join_pieces
from spark_fm.engine.shipping import shipped
from spark_fm.engine.tasks import PIECE_NAMES, SoloTask, Units
from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.run import EpochRecord, TrainRun
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import Layout

# A job trains for this long before it reports: short at first, so that the user sees
# something, longer later, so that jobs cost little.
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 16.0


def train_solo(
    run: TrainRun,
    frame: DataFrame,
    session: SparkSession,
    spec: TrainSpec,
    *,
    ids: Handle | None,
    units: Units,
    metric: str,
    train_on_all: bool,
    tell: Callable[[EpochReport], None],
) -> TrainRun:
    """Return the finished run.

    Parameters
    ----------
    run : TrainRun
        Where to start.
    frame : DataFrame
        Packed blocks.
    tell : callable
        Called after each job for each epoch it finished.

    Raises
    ------
    TrainingDivergedError
        When no step size keeps the model finite.
    """
    blocks = frame.where(F.col("kind") != REPORT).select(
        "kind", "source", "seq", "n_rows", "nnz", "payload"
    )
    layout = Layout(spec.k, spec.optimizer)
    seconds = FIRST_SECONDS
    while not run.finished:
        started = time.perf_counter()
        facts, arrays = run.to_arrays(since=run.epoch)
        n_bytes = sum(array.nbytes for array in arrays.values())
        with shipped(session, (facts, arrays), n_bytes=n_bytes) as handle:
            task = SoloTask(
                version=__version__, spec=spec, run=handle, ids=ids, units=units, metric=metric,
                train_on_all=train_on_all, seconds=seconds,
            )  # fmt: skip
            rows = gather(
                blocks.coalesce(1).mapInArrow(task, PIECE_DDL), session,
                columns=list(PIECE_NAMES), n_bytes=3 * n_bytes, spread=["name", "part"],
            )  # fmt: skip
            facts, arrays = join_pieces(rows)
        if "diverged" in facts:
            raise TrainingDivergedError(facts["diverged"])
        history = run.history
        run = TrainRun.from_arrays(layout, facts, arrays)
        job_seconds = time.perf_counter() - started
        _tell_all(run.history, facts, spec, job_seconds, tell)
        run.history = history + run.history
        seconds = min(2 * seconds, LONGEST_SECONDS)
    return run


def _tell_all(
    records: list[EpochRecord],
    facts: dict[str, Any],
    spec: TrainSpec,
    job_seconds: float,
    tell: Callable[[EpochReport], None],
) -> None:
    """Report the epochs of one job; its own overhead is spread over them evenly."""
    inside = sum(r.train_seconds + r.validate_seconds for r in records)
    overhead = (job_seconds - inside) / max(1, len(records))
    for record in records:
        train_seconds = record.train_seconds - record.compile_seconds
        tell(
            EpochReport(
                record=record,
                spec=spec,
                n_rows=facts["n_rows"],
                seconds=record.train_seconds + record.validate_seconds + overhead,
                phases={
                    "train": max(0.0, train_seconds),
                    "validate": record.validate_seconds,
                    "broadcast": overhead,
                    "merge": 0.0,
                },
            )
        )
