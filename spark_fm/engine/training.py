"""Train factorization machines on a DataFrame: pack once, plan, train; driver only."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import zip_longest
from uuid import uuid4

from pyspark.sql import DataFrame, SparkSession

from spark_fm.engine.checkpoints import Checkpoint, checkpoint_name
from spark_fm.engine.dealing import dealt_blocks
from spark_fm.engine.dealt import DealtBlocks
from spark_fm.engine.devices import PROCESSOR, Device, DeviceName, choose_device
from spark_fm.engine.exchanges import conduct
from spark_fm.engine.gpu_tasks import GpuPasses
from spark_fm.engine.handles import Handle
from spark_fm.engine.history import EpochReport, Progress
from spark_fm.engine.model_training import Listener, ModelTraining, Phase, TrainResult
from spark_fm.engine.packed import PackedData, packed, packing_key
from spark_fm.engine.planning import TrainPlan, make_plan, trained_together
from spark_fm.engine.request import TrainRequest
from spark_fm.engine.session import tagged, task_slots, use_driver_interpreter
from spark_fm.engine.shipping import shipped
from spark_fm.engine.solo_training import train_solo
from spark_fm.errors import InvalidParamError, ModelTooLargeError, TrainingDivergedError
from spark_fm.learner.training import TrainRun, WarmStart
from spark_fm.learner.weights import FMWeights

log = logging.getLogger(__name__)

Outcome = TrainResult | TrainingDivergedError


def train(rows: DataFrame, request: TrainRequest, *, start: WarmStart | None = None) -> TrainResult:
    """Train one model on ``rows``, whose columns have the internal names.

    Parameters
    ----------
    rows : DataFrame
        Columns ``features``, ``label`` and, as the request says, ``weight`` and
        ``validation``.
    request : TrainRequest
    start : WarmStart, optional
        Model to go on from.

    Raises
    ------
    InvalidParamError, InvalidDataError, ModelTooLargeError, TrainingDivergedError,
    GpuNotFoundError

    Notes
    -----
    One pass packs the data. Then either one task runs all epochs, or each epoch is a
    few jobs over the packed blocks. Everything persisted or broadcast is released on
    the way out, however that is reached.
    """
    with training_set(rows, request) as data:
        [outcome] = data.train([request], start=start)
    if isinstance(outcome, TrainingDivergedError):
        raise outcome
    return outcome


@contextmanager
def training_set(rows: DataFrame, request: TrainRequest) -> Iterator[TrainingSet]:
    """Pack ``rows`` as a request says; inside the block any number of models train on them.

    Raises
    ------
    InvalidParamError, InvalidDataError
    GpuNotFoundError
        Before any row is read.
    """
    request.check()
    session = rows.sparkSession
    use_driver_interpreter(session)
    with ExitStack() as after, tagged(session, "fit"):
        devices = {request.device: choose_device(request.device, session)}
        with packed(rows, session, request) as data, ExitStack() as stack:
            yield TrainingSet(data, packing_key(request), session, stack, after, devices)


class TrainingSet:
    """A packed training set; ``training_set`` makes it."""

    def __init__(
        self,
        data: PackedData,
        key: tuple[object, ...],
        session: SparkSession,
        stack: ExitStack,
        after: ExitStack,
        devices: dict[DeviceName, Device],
    ) -> None:
        self._data = data
        self._key = key
        self._session = session
        self._stack = stack
        self._after = after  # what is to be done when no job runs any more
        self._name = uuid4().hex
        self._ids: dict[bytes, Handle] = {}
        self._dealt: dict[tuple[object, ...], DealtBlocks] = {}
        self._devices = devices

    @property
    def fingerprint(self) -> str:
        """Digest of every row, its set and its place: the same for the same data."""
        return self._data.fingerprint

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to validate on."""
        return self._data.has_validation

    def train(
        self,
        requests: Sequence[TrainRequest],
        *,
        start: WarmStart | None = None,
        listeners: Sequence[Listener | None] = (),
    ) -> list[Outcome]:
        """Train a model for each request, in passes over the rows that they share.

        Parameters
        ----------
        requests : sequence of TrainRequest
            They may differ in all that does not decide how rows are packed
            (``packing_key``).
        start : WarmStart, optional
            Model that all of them go on from.
        listeners : sequence of callable or None
            One a request: takes each of its epochs; False ends that training.

        Returns
        -------
        list
            A TrainResult for each request, the same as it would give alone; or the
            TrainingDivergedError of one that no step size saves.
        """
        for request in requests:
            request.check()
            if packing_key(request) != self._key:
                raise InvalidParamError("These Params need rows that are packed another way.")
        several = len(requests) > 1
        models = [
            self._model(request, start, listener, shares_folder=several)
            for request, listener in zip_longest(requests, listeners)
        ]
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, model in enumerate(models):
            groups.setdefault(model.plan.key, []).append(number)
        outcomes: dict[int, Outcome] = {}
        for numbers in groups.values():
            while numbers:
                count = trained_together([models[n].plan for n in numbers])
                chosen, numbers = numbers[:count], numbers[count:]
                trained = self._train_together([models[n] for n in chosen])
                outcomes |= dict(zip(chosen, trained, strict=True))
        return [outcomes[number] for number in range(len(requests))]

    def _model(
        self,
        request: TrainRequest,
        start: WarmStart | None,
        listener: Listener | None,
        *,
        shares_folder: bool,
    ) -> ModelTraining:
        checkpoint = saved = None
        asked = request
        if request.checkpoint_dir:
            fingerprint = self._data.fingerprint
            name = checkpoint_name(request, fingerprint) if shares_folder else "training"
            checkpoint = Checkpoint(request, name)
            saved = checkpoint.read(fingerprint)
            checkpoint.check_writable()
        if saved is not None:  # other partitions would end with another model
            workers, averagings = saved.facts["partitions"]
            asked = replace(request, num_workers=workers, averagings=averagings)
        known = None if start is None else start.weights
        plan = self._plan(asked, known)
        return ModelTraining(
            self._data, plan, request,
            start=start, checkpoint=checkpoint, saved=saved, listener=listener,
        )  # fmt: skip

    def _train_together(self, models: list[ModelTraining]) -> list[Outcome]:
        """Train models of one layout: first all first trainings, then all refits."""
        plan = models[0].plan
        _log_start(self._data, plan, len(models))
        first = [model.first_phase() for model in models]
        runs = self._run(models, first, "train")
        second: list[Phase | None] = [
            None if isinstance(run, TrainingDivergedError) else model.second_phase(phase, run)
            for model, phase, run in zip(models, first, runs, strict=True)
        ]
        again = self._run(models, second, "refit")
        return [
            run if isinstance(run, TrainingDivergedError) else model.result(phase, refitted)
            for model, run, phase, refitted in zip(models, runs, second, again, strict=True)
        ]

    def _run(
        self, models: list[ModelTraining], phases: list[Phase | None], what: str
    ) -> list[TrainRun | TrainingDivergedError | None]:
        """Run the phases that there are to their ends."""
        chosen = [(m, p) for m, p in zip(models, phases, strict=True) if p is not None]
        if not chosen:
            return [None] * len(phases)
        plan, session = models[0].plan, self._session
        on_all = chosen[0][1].train_on_all
        gpu = self._gpu_passes(plan, on_all=on_all)
        total = sum(phase.epochs_left for _, phase in chosen)
        what = what if len(chosen) == 1 else f"{what} {len(chosen)} models"
        outcomes: Sequence[TrainRun | TrainingDivergedError]
        with Progress(total, what) as progress:

            def tell(of: str, report: EpochReport) -> bool:
                if of:
                    progress(report, of)
                else:
                    progress(report)
                return True

            tellers = [
                partial(tell, f"model {number}" if len(models) > 1 else "")
                for number, phase in enumerate(phases)
                if phase is not None
            ]
            if plan.solo:
                trainings = [
                    model.solo(phase, teller)
                    for (model, phase), teller in zip(chosen, tellers, strict=True)
                ]
                outcomes = train_solo(
                    trainings, self._data, session, ids=self._ids_handle(plan),
                    train_on_all=on_all, n_tasks=plan.device.slots or task_slots(session),
                    device=plan.device, gpu=gpu,
                )  # fmt: skip
            else:
                steps = [
                    model.distributed(phase, teller).steps(phase.run)
                    for (model, phase), teller in zip(chosen, tellers, strict=True)
                ]
                outcomes = conduct(steps, self._dealt_blocks(plan), session, plan, gpu=gpu)
        left = iter(outcomes)
        return [None if phase is None else next(left) for phase in phases]

    def _plan(self, request: TrainRequest, known: FMWeights | None) -> TrainPlan:
        device = self._device(request.device)
        try:
            return make_plan(request, self._data, self._session, known=known, device=device)
        except ModelTooLargeError as err:
            if request.device != "auto" or not device.is_gpu:
                raise
            log.warning("device='auto' trains on the processor: %s", err)
            return make_plan(request, self._data, self._session, known=known, device=PROCESSOR)

    def _device(self, wanted: DeviceName) -> Device:
        if wanted not in self._devices:
            self._devices[wanted] = choose_device(wanted, self._session)
        return self._devices[wanted]

    def _gpu_passes(self, plan: TrainPlan, *, on_all: bool) -> GpuPasses | None:
        """Return how passes are made on a GPU; what has one key are the same rows."""
        ids = "all" if plan.ids is None else sha256(plan.ids.tobytes()).hexdigest()
        key = f"{self._name} {plan.n_partitions} {plan.n_exchanges} {on_all} {ids}"
        sums, n_partitions = self._data.sums(all_rows=on_all), plan.n_partitions
        return plan.device.passes(key, -(-sums.rows // n_partitions), sums.nnz // n_partitions)

    def _ids_handle(self, plan: TrainPlan) -> Handle | None:
        if plan.ids is None:
            return None
        key = plan.ids.tobytes()
        if key not in self._ids:
            self._ids[key] = self._stack.enter_context(
                shipped(self._session, plan.ids, n_bytes=plan.ids.nbytes)
            )
        return self._ids[key]

    def _dealt_blocks(self, plan: TrainPlan) -> DealtBlocks:
        ids = self._ids_handle(plan)
        key = (plan.n_partitions, plan.n_exchanges, id(ids))
        if key not in self._dealt:
            dealt = dealt_blocks(self._data.blocks, plan.n_partitions, plan.n_exchanges, ids)
            blocks = DealtBlocks(dealt, plan.n_exchanges, self._stack)
            self._stack.push(blocks.remove_files)
            self._after.callback(blocks.remove_left_files)
            self._dealt[key] = blocks
        return self._dealt[key]


def _log_start(data: PackedData, plan: TrainPlan, n_models: int) -> None:
    log.info(
        "packed %d rows (%d for validation), %d non-zeros, %d of %d features seen, in %.2f s; "
        "%s%d partition(s), %d averaging(s) an epoch",
        data.train.rows + data.validation.rows, data.validation.rows,
        data.train.nnz + data.validation.nnz, len(data.counts.ids), data.feature_dim,
        data.seconds, f"{n_models} models, " if n_models > 1 else "", plan.n_partitions,
        0 if plan.solo else plan.n_exchanges,
    )  # fmt: skip
