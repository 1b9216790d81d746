"""A training in one process: its state, early stopping, divergence checks, warm start."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.averaging import move_towards_inplace
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import CPU_BACKEND, Backend, RowOrder
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.metrics import (
    MetricSums,
    loss_sum,
    metric_sums,
    running_metrics,
    validation_metrics,
)
from spark_fm.learner.predict import margins, scoring_kernel
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.standardization import Standardization
from spark_fm.learner.state import Layout, TrainState
from spark_fm.learner.weights import FMWeights

LR_BACKOFF = 0.1
MAX_BACKOFFS = 30
DIVERGED = 10.0  # times the loss of the initial or the null model
SAMPLE_ROWS = 10_000

# Weight of late epochs in the average: eta of Shamir and Zhang, "Stochastic Gradient
# Descent for Non-smooth Optimization" (ICML 2013), section 4, polynomial decay. Averaged
# models are means already and need less of the past.
SEQUENTIAL_ETA = 1.0
AVERAGED_ETA = 8.0


def advance(
    progress: TrainingProgress,
    train: CsrBatch,
    validation: CsrBatch | None,
    spec: Hyperparameters,
    *,
    metric: str,
    label_scale: float = 1.0,
    seconds: float = float("inf"),
    backend: Backend = CPU_BACKEND,
) -> Iterator[EpochRecord]:
    """Train epoch after epoch in place, until done or out of time; yield each epoch.

    Labels are in units of ``label_scale``; ``metric``, one of ``validation_metrics(spec.loss)``,
    chooses the best epoch. At least one epoch is trained, so that repeated calls always come
    to an end; none is started after ``seconds``. Raises TrainingDivergedError when no learning
    rate keeps the model finite.
    """
    started = time.perf_counter()
    if spec.sagemaker:
        train = train.padded(spec.mini_batch_size)
    if np.isnan(progress.loss_limit):
        progress.loss_limit = loss_limit(progress.state, train, spec)
    first = progress.epoch
    while progress.epoch < spec.epochs and not progress.stopping.should_stop:
        if progress.epoch > first and time.perf_counter() - started > seconds:
            return
        record = _one_epoch(progress, train, validation, spec, label_scale, backend)
        progress.epoch += 1
        if record.validation is not None:
            value = record.validation.values(spec.loss)[metric]
            if progress.stopping.observe(record.epoch, value):
                progress.best = (progress.average or Parameters.of(progress.state)).copy()
        progress.history.append(record)
        yield record
    progress.finished = True


def _one_epoch(
    progress: TrainingProgress,
    train: CsrBatch,
    validation: CsrBatch | None,
    spec: Hyperparameters,
    label_scale: float,
    backend: Backend,
) -> EpochRecord:
    clock = time.perf_counter()
    compile_seconds, n_rollbacks = 0.0, 0
    before = progress.state.copy()
    scores = np.zeros(train.n_rows, np.float32) if spec.sagemaker else None
    while True:
        stats = backend.run_epoch(
            progress.state,
            train,
            RowOrder(progress.epoch),
            spec=spec,
            step_scale=progress.step_scale,
            scores=scores,
        )
        compile_seconds += stats.compile_seconds
        mean = stats.loss_sum / stats.weight_sum if stats.weight_sum else 0.0
        limit = progress.loss_limit
        if mean <= limit and is_converging(progress.state, train, spec, limit):
            break
        n_rollbacks += 1
        progress.step_scale *= LR_BACKOFF
        progress.state = before.copy()
        if n_rollbacks > MAX_BACKOFFS:
            raise TrainingDivergedError(divergence_text(progress.epoch, mean, limit, spec))
    trained = time.perf_counter()
    if spec.average_epochs:
        if progress.average is None:
            progress.average = Parameters.of(progress.state)
        else:
            progress.average.move_towards_inplace(progress.state, progress.epoch, SEQUENTIAL_ETA)
    sums = None
    if validation is not None and validation.n_rows:
        clock_compile = time.perf_counter()
        scoring_kernel(spec.k)
        compile_seconds += time.perf_counter() - clock_compile
        parameters = progress.average or Parameters.of(progress.state)
        sums = evaluate(parameters, validation, spec, label_scale, backend=backend)
    return EpochRecord(
        epoch=progress.epoch,
        train_loss=mean * loss_scale(spec, label_scale),
        validation=sums,
        train_seconds=trained - clock,
        validate_seconds=time.perf_counter() - trained,
        compile_seconds=compile_seconds,
        step_scale=progress.step_scale,
        n_rejected=n_rollbacks,
        running=None
        if scores is None
        else running_metrics(scores, train.labels[stats.order], spec, label_scale=label_scale),
    )


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """History of one epoch."""

    epoch: int
    train_loss: float
    validation: MetricSums | None
    train_seconds: float
    validate_seconds: float
    compile_seconds: float
    step_scale: float
    n_rejected: int
    running: dict[str, Any] | None = None  # as ``running_metrics`` gives them
    sampled: dict[str, float] | None = None  # of a sweep of Gibbs sampling, columns of the history

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for transport as JSON."""
        metadata = {item.name: getattr(self, item.name) for item in fields(self)}
        sums = self.validation
        return {**metadata, "validation": None if sums is None else sums.to_dict()}

    @classmethod
    def from_dict(cls, metadata: dict[str, Any]) -> EpochRecord:
        """Rebuild a record from ``to_dict``."""
        sums = metadata["validation"]
        validation = None if sums is None else MetricSums.from_dict(sums)
        return cls(**{**metadata, "validation": validation})


@dataclass(slots=True)
class TrainingProgress:
    """A training between two epochs."""

    state: TrainState
    stopping: EarlyStopping
    epoch: int = 0  # the next one
    step_scale: float = 1.0  # on the learning rates, lowered after a divergence
    loss_limit: float = float("nan")  # a mean loss above it is a divergence; NaN at first
    # Mean loss of the last round, before that the variance of the labels: for the averaging rule.
    last_loss: float = float("nan")
    average: Parameters | None = None
    best: Parameters | None = None
    linear: MetricSums | None = None  # at its end, of the validation rows without the factors
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)

    def to_arrays(self, since: int = 0) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return plain data and arrays for ``from_arrays``, with the history from ``since`` on."""
        arrays: dict[str, NDArray[Any]] = {"state": self.state.synced_columns()}
        metadata: dict[str, Any] = {
            "bias": self.state.bias.tolist(),
            "stopping": asdict(self.stopping),
            "epoch": self.epoch,
            "step_scale": self.step_scale,
            "loss_limit": self.loss_limit,
            "last_loss": self.last_loss,
            "linear": None if self.linear is None else self.linear.to_dict(),
            "finished": self.finished,
            "history": [record.to_dict() for record in self.history if record.epoch >= since],
        }
        for name, parameters in (("average", self.average), ("best", self.best)):
            metadata[name] = None if parameters is None else parameters.bias
            if parameters is not None:
                arrays[name] = parameters.table
        return metadata, arrays

    @classmethod
    def from_arrays(
        cls, layout: Layout, metadata: dict[str, Any], arrays: dict[str, NDArray[Any]]
    ) -> TrainingProgress:
        """Rebuild the progress; its arrays are copied."""
        kept = {
            name: None
            if metadata[name] is None
            else Parameters(arrays[name].copy(), metadata[name])
            for name in ("average", "best")
        }
        linear = metadata.get("linear")  # earlier versions have none
        return cls(
            linear=None if linear is None else MetricSums.from_dict(linear),
            state=TrainState.from_synced(layout, arrays["state"], np.array(metadata["bias"])),
            stopping=EarlyStopping(**metadata["stopping"]),
            epoch=metadata["epoch"],
            step_scale=metadata["step_scale"],
            loss_limit=metadata["loss_limit"],
            last_loss=metadata["last_loss"],
            finished=metadata["finished"],
            history=[EpochRecord.from_dict(record) for record in metadata["history"]],
            **kept,
        )

    def result(self) -> Parameters:
        """Return the parameters to keep: the best epoch's, otherwise the last ones."""
        return self.best or self.average or Parameters.of(self.state)


def loss_scale(spec: Hyperparameters, label_scale: float) -> float:
    """Return what one unit of internal loss is in the caller's units."""
    return label_scale ** LOSSES[spec.loss].label_power


def new_stopping(spec: Hyperparameters, metric: str, *, patience: int, tol: float) -> EarlyStopping:
    """Return a fresh EarlyStopping for one of the metrics of ``spec.loss``."""
    return EarlyStopping(validation_metrics(spec.loss)[metric].larger_is_better, patience, tol)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training between two epochs, as plain data that can be kept on disk."""

    metadata: dict[str, Any]  # JSON-able: the progress, and what it was made of
    # state (n, m), average and best (n, k + 1), float32; ids (n,), int32, where the table
    # holds only some features
    arrays: dict[str, NDArray[Any]]

    @classmethod
    def of(
        cls,
        progress: TrainingProgress,
        *,
        fingerprint: str,
        metric: str,
        scaling: Scaling,
        standardization: Standardization,
        ids: NDArray[np.int32] | None,
        history: list[dict[str, Any]],
    ) -> TrainingState:
        """Copy the progress of a training on the data of this fingerprint."""
        progress_facts, arrays = progress.to_arrays()
        if ids is not None:
            arrays["ids"] = ids
        metadata = {
            "run": progress_facts,
            "k": progress.state.layout.k,
            "optimizer": progress.state.layout.optimizer,
            "fingerprint": fingerprint,
            "metric": metric,
            "units": [scaling.label, scaling.weight, scaling.offset],
            "standardization": standardization.digest,
            "history": list(history),
        }
        return cls(metadata, arrays)

    @property
    def layout(self) -> Layout:
        """Columns of the state."""
        return Layout(int(self.metadata["k"]), self.metadata["optimizer"])

    @property
    def ids(self) -> NDArray[np.int32]:
        """Sorted feature ids of the table's rows."""
        rows = len(self.arrays["state"])
        return self.arrays.get("ids", np.arange(rows, dtype=np.int32))

    @property
    def history(self) -> list[dict[str, Any]]:
        """The summary's rows up to here."""
        return list(self.metadata["history"])

    def progress(self) -> TrainingProgress:
        """Return the progress, independent of this object."""
        return TrainingProgress.from_arrays(self.layout, self.metadata["run"], self.arrays)

    @property
    def standardization(self) -> str:
        """Digest of the standardization; "" for none, as in those of earlier versions."""
        return str(self.metadata.get("standardization", ""))

    def continues(
        self,
        *,
        fingerprint: str,
        layout: Layout,
        metric: str,
        scaling: Scaling,
        standardization: Standardization,
        n_features: int,
    ) -> bool:
        """Return whether a training with these properties continues this one."""
        return (
            self.metadata["fingerprint"] == fingerprint
            and self.layout == layout
            and self.metadata["metric"] == metric
            # Earlier versions knew no offset.
            and [*self.metadata["units"], 0.0][:3]
            == [scaling.label, scaling.weight, scaling.offset]
            and self.standardization == standardization.digest
            and len(self.arrays["state"]) == n_features
        )


@dataclass(slots=True)
class EarlyStopping:
    """Remember the best epoch and decide when to stop."""

    larger_is_better: bool
    patience: int  # epochs without improvement before stopping; 0 never stops
    tol: float  # smallest relative improvement that resets the count
    best_value: float = math.nan
    best_epoch: int = -1
    waited: int = 0
    mark: float = math.nan  # the value that the next one must beat by tol

    def observe(self, epoch: int, value: float) -> bool:
        """Take in an epoch's metric; return whether it is the new best.

        Any improvement makes an epoch the best one; only one by ``tol`` starts the
        count of epochs anew.
        """
        if math.isnan(value):
            self.waited += 1
            return False
        first = self.best_epoch < 0
        if first or self._gain(value, self.mark) > self.tol * abs(self.mark):
            self.mark, self.waited = value, 0
        else:
            self.waited += 1
        improved = first or self._gain(value, self.best_value) > 0
        if improved:
            self.best_value, self.best_epoch = value, epoch
        return improved

    def _gain(self, value: float, before: float) -> float:
        return value - before if self.larger_is_better else before - value

    @property
    def should_stop(self) -> bool:
        """Whether patience is used up."""
        return 0 < self.patience <= self.waited


def loss_limit(state: TrainState, train: CsrBatch, spec: Hyperparameters) -> float:
    """Return the mean loss above which a training counts as diverged."""
    start, weight = sample_loss(state, train, spec)
    null_loss = null_model_loss(train, spec) / max(
        float(train.weights.sum(dtype=np.float64)), 1e-300
    )
    return divergence_limit(start / weight if weight else 0.0, null_loss)


def divergence_limit(start: float, null_loss: float) -> float:
    """Return ten times the loss of the initial or of the null model, whichever is more.

    Plus ten, for sets that a constant fits.
    """
    return DIVERGED * (max(start, null_loss, 0.0) + 1.0)


def null_model_loss(batch: CsrBatch, spec: Hyperparameters) -> float:
    """Return the weighted loss sum of a model that scores every row 0."""
    return LOSSES[spec.loss].null_model_loss(batch.labels, batch.weights.astype(np.float64))


def sample_loss(state: TrainState, train: CsrBatch, spec: Hyperparameters) -> tuple[float, float]:
    """Return the weighted loss sum of a state on the first rows, and their weight.

    The first rows are a sample, since rows were mixed when they were packed.
    """
    head = train.between(0, min(train.n_rows, SAMPLE_ROWS))
    bias = float(state.bias[0])
    if state.n_features <= head.nnz:
        scores = margins(head, state.parameters(), bias)
    else:  # a copy of the whole table would cost more than the scores
        ids = np.unique(head.indices)
        scores = margins(head, state.rows[ids, : state.layout.k + 1], bias, features=ids)
    loss = loss_sum(spec.loss, scores, head.labels, head.weights)
    return loss, float(head.weights.sum(dtype=np.float64))


def is_converging(state: TrainState, train: CsrBatch, spec: Hyperparameters, limit: float) -> bool:
    """Return whether a state is finite and its loss on the first rows within the limit.

    The mean loss of a pass is taken before each row's update and does not see what the
    last updates did.
    """
    if not state.is_finite():
        return False
    loss, weight = sample_loss(state, train, spec)
    return loss <= limit * weight


def divergence_text(epoch: int, loss: float, limit: float, spec: Hyperparameters) -> str:
    """Return the message of a training that diverges at every learning rate."""
    allowed = f", and more than {limit:.6g} is not a training" if np.isfinite(limit) else ""
    return (
        f"Training diverged in epoch {epoch}: with steps down to 1e-{MAX_BACKOFFS} of "
        f"biasLr={spec.bias.lr}, linearLr={spec.linear.lr}, factorsLr={spec.factors.lr} the mean "
        f"loss is still {loss:.6g}{allowed}. Leave standardization on, or scale the features to "
        "about [0, 1]; or lower the Lr and InitSigma parameters."
    )


@dataclass(slots=True)
class Parameters:
    """Parameters that may become the model: shape (n_features, k + 1), and the bias."""

    table: NDArray[np.float32]
    bias: float

    @classmethod
    def of(cls, state: TrainState) -> Parameters:
        """Copy the parameters out of a state."""
        return cls(state.parameters(), float(state.bias[0]))

    def copy(self) -> Parameters:
        """Return an independent copy."""
        return Parameters(self.table.copy(), self.bias)

    def linear_part(self) -> Parameters:
        """Return a copy whose factors are 0."""
        copy = self.copy()
        copy.table[:, :-1] = 0
        return copy

    def move_towards_inplace(self, state: TrainState, epoch: int, eta: float) -> None:
        """Take epoch number ``epoch`` (from 0) into the polynomial-decay average."""
        fraction = (eta + 1) / (epoch + 1 + eta)
        move_towards_inplace(self.table, state.rows, np.float32(fraction))
        self.bias += fraction * (float(state.bias[0]) - self.bias)


def evaluate(
    parameters: Parameters,
    batch: CsrBatch,
    spec: Hyperparameters,
    label_scale: float = 1.0,
    *,
    backend: Backend = CPU_BACKEND,
) -> MetricSums:
    """Return the metric sums of parameters, in the caller's label units."""
    scores = backend.margins(batch, parameters.table, parameters.bias)
    scale = np.float32(label_scale)
    return metric_sums(spec.loss, scores * scale, batch.labels * scale, batch.weights)


@dataclass(frozen=True, eq=False)
class WarmStart:
    """A model to continue from."""

    weights: FMWeights
    training_state: TrainingState | None = None  # of the training that made it, where kept


def warm_state_inplace(
    state: TrainState,
    start: WarmStart,
    spec: Hyperparameters,
    *,
    ids: np.ndarray[tuple[int], np.dtype[np.int32]] | None,
    scaling: Scaling,
    standardization: Standardization,
) -> None:
    """Change an initial state in place: features of the model get its parameters.

    All features of the model must be in the table, whose rows have the sorted ``ids`` (None
    when ids are rows). With labels less m and divided by s, the model of w0, w and V has
    (w0 - m) / s, w / s and V / sqrt(s). Where the training of the model was kept, with the same
    optimizer, its statistics are taken over too; otherwise they begin anew. O(n_features k).
    """
    weights, k, scale = start.weights, spec.k, scaling.label
    known = weights.features
    rows = np.arange(weights.feature_dim) if known is None else known
    if ids is not None:
        rows = np.searchsorted(ids, rows)
    table = weights.table / np.float32(scale)
    table[:, :k] = weights.factors / np.float32(math.sqrt(scale))
    bias = scaling.score_of(weights.bias)
    table, bias = standardization.from_feature_units(table, bias, known)
    if weights.factors.any():  # from zeros, factors have no gradient: those keep their draw
        state.rows[rows, :k] = table[:, :k]
    if spec.use_linear:
        state.rows[rows, k] = table[:, k]
    if spec.use_bias:
        state.bias[0] = bias
    training_state = start.training_state
    if training_state is None or training_state.layout != state.layout:
        return
    if bool(training_state.standardization) == standardization.changes_nothing:
        return  # its statistics are those of other gradients
    known_rows = training_state.ids if ids is None else np.searchsorted(ids, training_state.ids)
    columns = slice(k + 1, state.layout.n_synced)
    state.rows[known_rows, columns] = training_state.arrays["state"][:, columns]
    state.bias[1:] = training_state.metadata["run"]["bias"][1:]
