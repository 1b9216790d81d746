"""Train a factorization machine on a DataFrame: pack, plan, train, refit; driver only."""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_fm.engine.dealing import dealt_blocks
from spark_fm.engine.handles import Handle
from spark_fm.engine.history import EpochReport, Progress, validation_curve
from spark_fm.engine.packed import PackedData, label_scale, packed
from spark_fm.engine.packing import SetSums
from spark_fm.engine.planning import TrainPlan, make_plan
from spark_fm.engine.request import REFIT_ROWS, TrainRequest
from spark_fm.engine.rounds import DistributedTraining
from spark_fm.engine.session import persisted, tagged, use_driver_interpreter
from spark_fm.engine.shipping import shipped
from spark_fm.engine.solo_training import train_solo
from spark_fm.engine.tasks import Units
from spark_fm.errors import InvalidDataError, TrainingDivergedError
from spark_fm.learner.candidate import Candidate
from spark_fm.learner.run import EpochRecord, TrainRun, new_stopping
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import initial_state
from spark_fm.learner.weights import FMWeights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training.

    Parameters
    ----------
    weights : FMWeights
    history : list of dict
        One row an epoch.
    facts : dict
        Everything else that the summary shows, JSON-able.
    """

    weights: FMWeights
    history: list[dict[str, Any]]
    facts: dict[str, Any]


def train(rows: DataFrame, request: TrainRequest) -> TrainResult:
    """Train on ``rows``, whose columns have the internal names.

    Parameters
    ----------
    rows : DataFrame
        Columns ``features``, ``label`` and, as the request says, ``weight`` and
        ``validation``.
    request : TrainRequest

    Raises
    ------
    InvalidParamError, InvalidDataError, ModelTooLargeError, TrainingDivergedError

    Notes
    -----
    One pass packs the data. Then either one task runs all epochs, or each epoch is a
    few jobs over the packed blocks. Everything persisted or broadcast is released on
    the way out, however that is reached.
    """
    request.check()
    session = rows.sparkSession
    use_driver_interpreter(session)
    started = time.perf_counter()
    with tagged(session, "fit"), packed(rows, session, request) as data:
        plan = make_plan(request, data, session)
        _log_start(data, plan, request)
        with ExitStack() as stack:
            ids = None
            if plan.ids is not None:
                ids = stack.enter_context(shipped(session, plan.ids, n_bytes=plan.ids.nbytes))
            trainer = _Trainer(data, plan, request, ids, stack)
            return trainer.run(started)


class _Trainer:
    """Runs the first training, and the second on all rows where that is wanted."""

    def __init__(
        self,
        data: PackedData,
        plan: TrainPlan,
        request: TrainRequest,
        ids: Handle | None,
        stack: ExitStack,
    ) -> None:
        self._data = data
        self._plan = plan
        self._request = request
        self._ids = ids
        self._session = data.frame.sparkSession
        self._history: list[dict[str, Any]] = []
        self._workers_seen = 1
        self._warnings = list(data.warnings)
        self._frame = data.frame
        if not plan.solo:
            dealt = dealt_blocks(data.frame, plan.n_partitions, plan.n_exchanges, ids)
            self._frame = stack.enter_context(persisted(dealt))
        # All rows were drawn for validation: too few of them to hold any out.
        self._nothing_left = data.train.weight == 0
        self._has_validation = data.validation.weight > 0 and not self._nothing_left

    def run(self, started: float) -> TrainResult:
        request = self._request
        spec = request.spec
        self._check_indicator()
        self._check_labels()
        units = self._units(all_rows=self._nothing_left)
        run = self._train(spec, units, train_on_all=self._nothing_left, tell=self._tell)
        runs = [run]
        best_epoch = run.stopping.best_epoch if run.best is not None else run.epoch - 1
        if self._has_validation and run.best is None:
            self._warn(
                f"validationMetric={request.metric!r} was undefined in every epoch, so the last "
                "one was kept: the validation rows have one class only, or constant labels."
            )
        result, refitted = run.result(), False
        clock = time.perf_counter()
        if self._wants_refit():
            log.info("refitting on all rows for %d epoch(s)", best_epoch + 1)
            again = replace(spec, epochs=best_epoch + 1)
            all_units = self._units(all_rows=True)
            try:
                second = self._train(again, all_units, train_on_all=True, tell=_tell_nobody)
                runs.append(second)
                result, units, refitted = second.result(), all_units, True
            except TrainingDivergedError as err:
                self._warn(f"The refit on all rows failed, the first model is kept: {err}")
        weights = self._weights(result, units.label)
        facts = self._facts(runs, best_epoch, units)
        facts["refit"] = refitted
        facts["refitSeconds"] = time.perf_counter() - clock
        facts["totalSeconds"] = time.perf_counter() - started
        return TrainResult(weights, self._history, facts)

    def _check_indicator(self) -> None:
        """Raise when the caller's validation column leaves nothing to train on."""
        name = self._request.columns.validation
        if name is None:
            return
        if self._nothing_left:
            raise InvalidDataError(
                f"validationIndicatorCol={name!r} is true in every row; rows to train on have "
                "false. Negate it, or use validationFraction."
            )
        if not self._has_validation:
            self._warn(
                f"validationIndicatorCol={name!r} is true in no row: all epochs were run, without "
                "early stopping."
            )

    def _check_labels(self) -> None:
        """Warn of a classifier with one class, and of many rows left out."""
        sums = self._sums(all_rows=True)
        if self._request.spec.loss == "logistic" and sums.label in (0.0, sums.weight):
            self._warn(
                f"Every label is {0 if sums.label == 0 else 1}: the model can say nothing else."
            )
        skipped = sum(self._data.n_skipped.values())
        if skipped > 0.1 * (skipped + sums.rows):
            reasons = ", ".join(
                f"{count} {reason}" for reason, count in self._data.n_skipped.items()
            )
            self._warn(f"{skipped} of {skipped + sums.rows} rows were skipped: {reasons}.")

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self._warnings.append(text)

    def _units(self, *, all_rows: bool) -> Units:
        sums = self._sums(all_rows=all_rows)
        return Units(label=label_scale(self._request, sums), weight=sums.weight / sums.rows)

    def _sums(self, *, all_rows: bool) -> SetSums:
        train, validation = self._data.train, self._data.validation
        if not all_rows:
            return train
        return SetSums(*(getattr(train, n) + getattr(validation, n) for n in SetSums.__slots__))

    def _wants_refit(self) -> bool:
        request = self._request
        if not self._has_validation or request.columns.validation is not None:
            return False  # a validation set of the user's own is never trained on
        rows = self._data.train.rows + self._data.validation.rows
        return request.refit == "always" or (request.refit == "auto" and rows <= REFIT_ROWS)

    def _train(self, spec: TrainSpec, units: Units, *, train_on_all: bool, tell: Any) -> TrainRun:
        request, plan = self._request, self._plan
        sums = self._sums(all_rows=train_on_all)
        mean = sums.label / sums.weight / units.label
        counts = plan.all_counts if train_on_all else plan.train_counts
        run = TrainRun(
            state=initial_state(spec, counts, label_mean=mean),
            stopping=new_stopping(spec, request.metric, patience=request.patience, tol=request.tol),
        )
        what = "refit" if tell is _tell_nobody else "train"
        with Progress(spec.epochs, what) as progress:

            def report(epoch: EpochReport) -> None:
                progress(epoch)
                tell(epoch)

            if plan.solo:
                return train_solo(
                    run, self._data.frame, self._session, spec, ids=self._ids, units=units,
                    metric=request.metric, train_on_all=train_on_all, tell=report,
                )  # fmt: skip
            variance = sums.label_square / sums.weight / units.label**2 - mean**2
            training = DistributedTraining(
                self._frame, self._session, spec, plan, units=units, metric=request.metric,
                train_on_all=train_on_all, first_loss=variance, n_rows=sums.rows,
                has_validation=self._has_validation and not train_on_all,
            )  # fmt: skip
            finished = training.train(run, report)
            self._workers_seen = training.workers_seen
            return finished

    def _tell(self, report: EpochReport) -> None:
        self._history.append(report.row())

    def _weights(self, result: Candidate, scale: float) -> FMWeights:
        """Return the model in the labels' own units.

        With labels divided by ``scale``, the score times ``scale`` is the score of the
        model with ``scale * w0``, ``scale * w`` and ``sqrt(scale) * V``.
        """
        table: NDArray[np.float32] = result.table.copy()
        if scale != 1.0:
            table[:, :-1] *= np.float32(math.sqrt(scale))
            table[:, -1] *= np.float32(scale)
        return FMWeights(
            bias=float(np.float32(result.bias * scale)),
            table=table,
            feature_dim=self._data.feature_dim,
            features=self._plan.ids,
        )

    def _facts(self, runs: list[TrainRun], best_epoch: int, units: Units) -> dict[str, Any]:
        records = [record for run in runs for record in run.history]
        sums = self._sums(all_rows=len(runs) > 1 or self._nothing_left)
        data, plan = self._data, self._plan
        return {
            "numRows": data.train.rows + data.validation.rows,
            "numTrainRows": data.train.rows,
            "numValidationRows": data.validation.rows,
            "numNonZeros": data.train.nnz + data.validation.nnz,
            "numFeatures": data.feature_dim,
            "numFeaturesSeen": len(data.counts.ids),
            "skippedRows": sum(data.n_skipped.values()),
            "skippedReasons": data.n_skipped,
            "zeroWeightRows": data.n_zero_weight,
            "numSourcePartitions": data.n_sources,
            "numWorkers": self._workers_seen,
            "averagingsPerEpoch": plan.n_exchanges if not plan.solo else 0,
            "mergedOnExecutors": plan.merge_on_executors,
            "labelMean": sums.label / sums.weight,
            "labelScale": units.label,
            "totalIterations": len(self._history),
            "bestEpoch": best_epoch,
            "validationMetric": self._request.metric if self._has_validation else None,
            "validationCurve": validation_curve(runs[0].history, best_epoch),
            "stepScale": runs[-1].step_scale,
            "rejectedAttempts": sum(record.n_rejected for record in records),
            "warnings": self._warnings + _divergence_notes(records),
            "packSeconds": data.seconds,
            "compileSeconds": sum(record.compile_seconds for record in records),
        }


def _divergence_notes(records: list[EpochRecord]) -> list[str]:
    return [
        f"Epoch {record.epoch} diverged {record.n_rejected} time(s) and was rolled back; the steps "
        f"went on at {record.step_scale:g} of the learning rates asked for. Scale the features or "
        "lower the learning rates."
        for record in records
        if record.n_rejected
    ]


def _tell_nobody(report: EpochReport) -> None:
    """Leave the refit out of the history: it has no validation to show."""


def _log_start(data: PackedData, plan: TrainPlan, request: TrainRequest) -> None:
    log.info(
        "packed %d rows (%d for validation), %d non-zeros, %d of %d features seen, in %.2f s; "
        "%d partition(s), %d averaging(s) an epoch, k=%d",
        data.train.rows + data.validation.rows, data.validation.rows,
        data.train.nnz + data.validation.nnz, len(data.counts.ids), data.feature_dim,
        data.seconds, plan.n_partitions, 0 if plan.solo else plan.n_exchanges, request.spec.k,
    )  # fmt: skip
