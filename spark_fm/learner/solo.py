"""Train all epochs in one process, for data that one core handles at once.

Runs inside one Spark task (or without Spark). The same arithmetic as a training cut
into many partitions, minus the exchanges. A run can be stopped after any epoch and
taken up again with the same result, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.candidate import SERIAL_ETA, Candidate, evaluate
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.predict import scoring_kernel
from spark_fm.learner.run import EpochRecord, TrainRun, loss_unit
from spark_fm.learner.running import running_metrics
from spark_fm.learner.safety import (
    MAX_SHRINKS,
    STEP_SHRINK,
    divergence_text,
    ends_sound,
    loss_limit,
)
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.trainers import CPU, Trainer
from spark_fm.learner.visit import Visit


def advance(
    run: TrainRun,
    train: CsrBatch,
    validation: CsrBatch | None,
    spec: TrainSpec,
    *,
    metric: str,
    label_scale: float = 1.0,
    seconds: float = float("inf"),
    trainer: Trainer = CPU,
) -> Iterator[EpochRecord]:
    """Train epoch after epoch in place, until done or out of time; yield each epoch.

    At least one epoch is trained, so that repeated calls always come to an end.

    Parameters
    ----------
    run : TrainRun
    train, validation : CsrBatch
        Labels in units of ``label_scale``.
    spec : TrainSpec
    metric : str
        Validation metric that decides, one of ``METRICS[spec.loss]``.
    label_scale : float
        Unit of the labels, for losses in the caller's units.
    seconds : float
        Start no further epoch after this much time.
    trainer : Trainer
        What makes the passes.

    Raises
    ------
    TrainingDivergedError
        When no step size keeps the model finite.
    """
    started = time.perf_counter()
    if spec.sagemaker:
        train = train.padded(spec.mini_batch_size)
    if np.isnan(run.loss_limit):
        run.loss_limit = loss_limit(run.state, train, spec)
    first = run.epoch
    while run.epoch < spec.epochs and not run.stopping.should_stop:
        if run.epoch > first and time.perf_counter() - started > seconds:
            return
        record = _one_epoch(run, train, validation, spec, label_scale, trainer)
        run.epoch += 1
        if record.validation is not None:
            value = record.validation.values(spec.loss)[metric]
            if run.stopping.observe(record.epoch, value):
                run.best = (run.average or Candidate.of(run.state)).copy()
        run.history.append(record)
        yield record
    run.finished = True


def _one_epoch(
    run: TrainRun,
    train: CsrBatch,
    validation: CsrBatch | None,
    spec: TrainSpec,
    label_scale: float,
    trainer: Trainer,
) -> EpochRecord:
    clock = time.perf_counter()
    compile_seconds, rejected = 0.0, 0
    before = run.state.copy()
    scores = np.zeros(train.n_rows, np.float32) if spec.sagemaker else None
    while True:
        stats = trainer.train_inplace(
            run.state, train, Visit(run.epoch), spec=spec, step_scale=run.step_scale, scores=scores
        )
        compile_seconds += stats.compile_seconds
        mean = stats.loss_sum / stats.weight_sum if stats.weight_sum else 0.0
        if mean <= run.loss_limit and ends_sound(run.state, train, spec, run.loss_limit):
            break
        rejected += 1
        run.step_scale *= STEP_SHRINK
        run.state = before.copy()
        if rejected > MAX_SHRINKS:
            raise TrainingDivergedError(divergence_text(run.epoch, mean, run.loss_limit, spec))
    trained = time.perf_counter()
    if spec.average_epochs:
        if run.average is None:
            run.average = Candidate.of(run.state)
        else:
            run.average.move_towards_inplace(run.state, run.epoch, SERIAL_ETA)
    sums = None
    if validation is not None and validation.n_rows:
        clock_compile = time.perf_counter()
        scoring_kernel(spec.k)
        compile_seconds += time.perf_counter() - clock_compile
        candidate = run.average or Candidate.of(run.state)
        sums = evaluate(candidate, validation, spec, label_scale, trainer=trainer)
    return EpochRecord(
        epoch=run.epoch,
        train_loss=mean * loss_unit(spec, label_scale),
        validation=sums,
        train_seconds=trained - clock,
        validate_seconds=time.perf_counter() - trained,
        compile_seconds=compile_seconds,
        step_scale=run.step_scale,
        n_rejected=rejected,
        running=None
        if scores is None
        else running_metrics(scores, train.labels[stats.order], spec, label_scale=label_scale),
    )
