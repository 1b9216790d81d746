"""Train all epochs in one process, for data that one core handles at once.

Runs inside one Spark task (or without Spark). The same arithmetic as a training cut
into many partitions, minus the exchanges. A run can be stopped after any epoch and
taken up again with the same result, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spark_fm.errors import TrainingDivergedError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.metrics import METRICS, MetricSums, metric_sums
from spark_fm.learner.predict import margins, scoring_kernel
from spark_fm.learner.spec import TrainSpec
from spark_fm.learner.state import Layout, TrainState
from spark_fm.learner.stopping import EarlyStopping

# Weight of late epochs in the average: eta of Shamir and Zhang, "Stochastic Gradient
# Descent for Non-smooth Optimization" (ICML 2013), section 4, polynomial decay.
AVERAGE_ETA = 1.0
STEP_SHRINK = 0.1
MAX_SHRINKS = 30
EXPLODED = 10.0  # times the loss of the first model or of no model at all
SAMPLE_ROWS = 10_000


@dataclass(slots=True)
class Candidate:
    """Parameters that may become the model: shape (n_features, k + 1), and the bias."""

    table: NDArray[np.float32]
    bias: float

    @classmethod
    def of(cls, state: TrainState) -> Candidate:
        """Copy the parameters out of a state."""
        return cls(state.parameters(), float(state.bias[0]))

    def copy(self) -> Candidate:
        """Return an independent copy."""
        return Candidate(self.table.copy(), self.bias)

    def move_towards_inplace(self, state: TrainState, epoch: int) -> None:
        """Take epoch number ``epoch`` (from 0) into the polynomial-decay average."""
        share = (AVERAGE_ETA + 1) / (epoch + 1 + AVERAGE_ETA)
        columns = state.rows[:, : self.table.shape[1]]
        self.table += np.float32(share) * (columns - self.table)
        self.bias += share * (float(state.bias[0]) - self.bias)


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

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for transport as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> EpochRecord:
        """Rebuild a record from ``to_dict``."""
        sums = facts["validation"]
        return cls(**{**facts, "validation": None if sums is None else MetricSums(**sums)})


@dataclass(slots=True)
class SoloRun:
    """A training between two epochs.

    Parameters
    ----------
    state : TrainState
    stopping : EarlyStopping
    epoch : int
        Next epoch.
    step_scale : float
        Factor on the step sizes, lowered by the safety net.
    loss_limit : float
        Mean loss above which an epoch counts as exploded; NaN before the first one.
    average, best : Candidate or None
    """

    state: TrainState
    stopping: EarlyStopping
    epoch: int = 0
    step_scale: float = 1.0
    loss_limit: float = float("nan")
    average: Candidate | None = None
    best: Candidate | None = None
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)

    def to_arrays(self, since: int = 0) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return plain data and arrays that ``from_arrays`` rebuilds the run from.

        Parameters
        ----------
        since : int
            First epoch whose history is included; earlier ones are known already.
        """
        arrays: dict[str, NDArray[Any]] = {"state": self.state.exchanged()}
        facts: dict[str, Any] = {
            "bias": self.state.bias.tolist(),
            "stopping": asdict(self.stopping),
            "epoch": self.epoch,
            "step_scale": self.step_scale,
            "loss_limit": self.loss_limit,
            "finished": self.finished,
            "history": [record.to_dict() for record in self.history if record.epoch >= since],
        }
        for name, candidate in (("average", self.average), ("best", self.best)):
            facts[name] = None if candidate is None else candidate.bias
            if candidate is not None:
                arrays[name] = candidate.table
        return facts, arrays

    @classmethod
    def from_arrays(
        cls, layout: Layout, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]
    ) -> SoloRun:
        """Rebuild a run; its arrays are copied."""
        candidates = {
            name: None if facts[name] is None else Candidate(arrays[name].copy(), facts[name])
            for name in ("average", "best")
        }
        return cls(
            state=TrainState.from_exchanged(layout, arrays["state"], np.array(facts["bias"])),
            stopping=EarlyStopping(**facts["stopping"]),
            epoch=facts["epoch"],
            step_scale=facts["step_scale"],
            loss_limit=facts["loss_limit"],
            finished=facts["finished"],
            history=[EpochRecord.from_dict(record) for record in facts["history"]],
            **candidates,
        )

    def result(self) -> Candidate:
        """Return the parameters to keep: the best epoch's, otherwise the last ones."""
        return self.best or self.average or Candidate.of(self.state)


def advance(
    run: SoloRun,
    train: CsrBatch,
    validation: CsrBatch | None,
    spec: TrainSpec,
    *,
    metric: str,
    label_scale: float = 1.0,
    seconds: float = float("inf"),
) -> Iterator[EpochRecord]:
    """Train epoch after epoch in place, until done or out of time; yield each epoch.

    At least one epoch is trained, so that repeated calls always come to an end.

    Parameters
    ----------
    run : SoloRun
    train, validation : CsrBatch
        Labels in units of ``label_scale``.
    spec : TrainSpec
    metric : str
        Validation metric that decides, one of ``METRICS[spec.loss]``.
    label_scale : float
        Unit of the labels, for losses in the caller's units.
    seconds : float
        Start no further epoch after this much time.

    Raises
    ------
    TrainingDivergedError
        When no step size keeps the model finite.
    """
    started = time.perf_counter()
    if np.isnan(run.loss_limit):
        run.loss_limit = loss_limit(run.state, train, spec)
    first = run.epoch
    while run.epoch < spec.epochs and not run.stopping.should_stop:
        if run.epoch > first and time.perf_counter() - started > seconds:
            return
        record = _one_epoch(run, train, validation, spec, label_scale)
        run.epoch += 1
        if record.validation is not None:
            value = record.validation.values(spec.loss)[metric]
            if run.stopping.observe(record.epoch, value):
                run.best = (run.average or Candidate.of(run.state)).copy()
        run.history.append(record)
        yield record
    run.finished = True


def _one_epoch(
    run: SoloRun,
    train: CsrBatch,
    validation: CsrBatch | None,
    spec: TrainSpec,
    label_scale: float,
) -> EpochRecord:
    order = epoch_order(spec, train.n_rows, epoch=run.epoch)
    clock = time.perf_counter()
    compile_seconds, rejected = 0.0, 0
    before = run.state.copy()
    while True:
        stats = train_inplace(run.state, train, order, spec=spec, step_scale=run.step_scale)
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
            run.average.move_towards_inplace(run.state, run.epoch)
    sums = None
    if validation is not None and validation.n_rows:
        clock_compile = time.perf_counter()
        scoring_kernel(spec.k)
        compile_seconds += time.perf_counter() - clock_compile
        sums = evaluate(run.average or Candidate.of(run.state), validation, spec, label_scale)
    return EpochRecord(
        epoch=run.epoch,
        train_loss=mean * loss_unit(spec, label_scale),
        validation=sums,
        train_seconds=trained - clock,
        validate_seconds=time.perf_counter() - trained,
        compile_seconds=compile_seconds,
        step_scale=run.step_scale,
        n_rejected=rejected,
    )


def evaluate(
    candidate: Candidate, batch: CsrBatch, spec: TrainSpec, label_scale: float = 1.0
) -> MetricSums:
    """Return the metric sums of a candidate, in the caller's label units."""
    scores = margins(batch, candidate.table, candidate.bias)
    scale = np.float32(label_scale)
    return metric_sums(spec.loss, scores * scale, batch.labels * scale, batch.weights)


def loss_unit(spec: TrainSpec, label_scale: float) -> float:
    """Return what one unit of internal loss is in the caller's units."""
    return label_scale**2 if spec.loss == "squared" else 1.0


def epoch_order(
    spec: TrainSpec,
    n_rows: int,
    *,
    epoch: int,
    exchange: int = 0,
    partition: int = 0,
    window: int = 0,
) -> NDArray[np.int64]:
    """Return the order in which a partition visits the rows of a window."""
    if not spec.shuffle:
        return np.arange(n_rows)
    words = (*spec.init_key, epoch, exchange, partition, window)
    return np.random.default_rng(np.random.SeedSequence(words)).permutation(n_rows)


def loss_limit(state: TrainState, train: CsrBatch, spec: TrainSpec) -> float:
    """Return the mean loss above which a training counts as exploded."""
    start, weight = sample_loss(state, train, spec)
    nothing = idle_loss(train, spec) / max(float(train.weights.sum(dtype=np.float64)), 1e-300)
    return exploded_loss(start / weight if weight else 0.0, nothing)


def exploded_loss(start: float, nothing: float) -> float:
    """Return ten times the loss of the first model or of one that says 0, whichever is more.

    Plus ten, for sets that a constant fits.
    """
    return EXPLODED * (max(start, nothing, 0.0) + 1.0)


def idle_loss(batch: CsrBatch, spec: TrainSpec) -> float:
    """Return the weighted loss sum of a model that says 0 of every row."""
    zeros = np.zeros(batch.n_rows, np.float32)
    return metric_sums(spec.loss, zeros, batch.labels, batch.weights).loss


def sample_loss(state: TrainState, train: CsrBatch, spec: TrainSpec) -> tuple[float, float]:
    """Return the weighted loss sum of a state on the first rows, and their weight.

    The first rows are a sample, since rows were mixed when they were packed.
    """
    n_rows = min(train.n_rows, SAMPLE_ROWS)
    stop = int(train.indptr[n_rows])
    head = CsrBatch(
        train.indptr[: n_rows + 1], train.indices[:stop], train.values[:stop],
        train.labels[:n_rows], train.weights[:n_rows],
    )  # fmt: skip
    sums = evaluate(Candidate.of(state), head, spec)
    return sums.loss, sums.weight


def ends_sound(state: TrainState, train: CsrBatch, spec: TrainSpec, limit: float) -> bool:
    """Tell whether a state is finite and its loss on the first rows within the limit.

    The mean loss of a pass is taken before each row's update and does not see what the
    last updates did.
    """
    if not state.is_finite():
        return False
    loss, weight = sample_loss(state, train, spec)
    return loss <= limit * weight


def divergence_text(epoch: int, loss: float, limit: float, spec: TrainSpec) -> str:
    """Return the message of a training that no step size saves."""
    return (
        f"Training diverged in epoch {epoch}: with steps down to 1e-{MAX_SHRINKS} of "
        f"biasLr={spec.bias.lr}, linearLr={spec.linear.lr}, factorsLr={spec.factors.lr} the mean "
        f"loss is still {loss:.6g}, and more than {limit:.6g} is not a training. Scale the "
        "features to about [0, 1], or lower the Lr and InitSigma parameters."
    )


def new_stopping(spec: TrainSpec, metric: str, *, patience: int, tol: float) -> EarlyStopping:
    """Return a fresh EarlyStopping for one of the metrics of ``spec.loss``."""
    return EarlyStopping(METRICS[spec.loss][metric], patience, tol)
