"""Choose the learning rates of trainings on a sample of their packed rows: driver, and its task."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.race import FACTORS, RaceResult, race, race_epochs, scaled_rate
from spark_fm.learner.spec import Hyperparameters, Scaling
from spark_fm.learner.state import Layout
from spark_fm.learner.statistics import distinct_rows
from spark_fm.learner.training import TrainingState
from spark_fm.spark.broadcast import Broadcast
from spark_fm.spark.collect import to_chunks
from spark_fm.spark.session import SparkCluster
from spark_fm.spark.worker import WorkerTask, partition_number
from spark_fm.training.config import TrainConfig
from spark_fm.training.dataset import PackedDataset
from spark_fm.training.packing import TRAIN, VALIDATION, read_blocks
from spark_fm.training.partitions import Blocks, run_on_copies
from spark_fm.training.plan import SECONDS_FIXED, SECONDS_PER_FACTOR
from spark_fm.training.tasks import preparation_of

log = logging.getLogger(__name__)

# Most arithmetic and most memory of one race; they bound its sample.
RACE_SECONDS = 1.0
RACE_BYTES = 2**30
# Validation rows below which all rows take turns at judging, in up to so many folds.
JUDGES, MOST_FOLDS = 1000, 10
# Different rows that judge below which they say too little of a rate.
MIN_ROWS = 50
# Entries of the validation rows that judge, for each of those that train.
VALIDATION_ENTRIES = 0.5
# Of the sequence that spreads sampled blocks evenly over sources and places: Roberts, "The
# Unreasonable Effectiveness of Quasirandom Sequences" (2018), d = 2.
SOURCE_STEP, PLACE_STEP = 0.7548776662466927, 0.5698402909980532


@dataclass(frozen=True, slots=True)
class LearningRates:
    """The learning rates of a training, and the race that chose them, if there was one."""

    of_group: dict[str, float]
    tried: list[dict[str, Any]] = field(default_factory=list)  # as in RaceResult
    seconds: float = 0.0  # that the races of this fit's models took together
    # Where all rows took turns at judging, as in RaceResult; 0 and None elsewhere.
    epochs: int = 0
    with_factors: float | None = None
    without: float | None = None

    @classmethod
    def of(cls, config: TrainConfig, state: TrainingState | None) -> LearningRates:
        """Return those of the configuration; of what it leaves open, those of a state before."""
        rates = {group: getattr(config.spec, group).lr for group in ("bias", "linear", "factors")}
        if state is None or "rates" not in state.metadata:
            return cls(rates)
        before = cls(**state.metadata["rates"])
        rates |= {group: before.of_group[group] for group in config.chosen_rates}
        return replace(before, of_group=rates, seconds=0.0)

    def of_other_rows(self) -> LearningRates:
        """Return the rates for a training on other rows, of which the folds said nothing."""
        return replace(self, epochs=0, with_factors=None, without=None)

    def after(self, result: RaceResult, groups: Sequence[str], seconds: float) -> LearningRates:
        """Return the rates that won for some groups."""

        def times(factor: float) -> dict[str, float]:
            return self.of_group | {g: scaled_rate(self.of_group[g], factor) for g in groups}

        tried = [
            {f"{group}Lr": rate for group, rate in times(each["factor"]).items()}
            | {"epochs": each["epochs"], "value": each["value"]}
            | {"chosen": each["factor"] == result.factor}
            for each in result.tried
        ]
        return LearningRates(
            times(result.factor), tried, seconds, result.epochs, result.value, result.linear
        )

    def apply(self, spec: Hyperparameters) -> Hyperparameters:
        """Return hyperparameters with these rates."""
        groups = {
            group: replace(getattr(spec, group), lr=rate) for group, rate in self.of_group.items()
        }
        return replace(spec, **groups)


@dataclass(frozen=True)
class RaceEntry:
    """What a task must know to hold the race of one training."""

    spec: Hyperparameters
    groups: tuple[str, ...]
    scaling: Scaling
    preparation: Broadcast | None  # of the rows; None where they train as they are
    metric: str
    label_mean: float  # of the training rows, not scaled
    may_fold: bool  # the validation rows are not a set of the caller's own


@dataclass(frozen=True)
class RaceTask(WorkerTask):
    """Hold one race, that of the task's partition, on sampled blocks."""

    entries: tuple[RaceEntry, ...]  # one a partition

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the result as metadata; none where the sample cannot tell."""
        number = partition_number()
        entry = self.entries[number]
        prepare = preparation_of(entry.preparation)
        # Sorted, because a coalesced partition may meet its sources in any order.
        blocks = sorted(read_blocks(batches), key=lambda block: block[:3])
        train, validation = (
            entry.scaling.apply(
                prepare(CsrBatch.concat([rows for kind, _, _, rows in blocks if kind == wanted]))
            )
            for wanted in (TRAIN, VALIDATION)
        )
        if not train.n_rows or not validation.n_rows:
            return
        n_folds = 1
        if entry.may_fold and validation.n_rows < JUDGES:
            n_folds = min(MOST_FOLDS, -(-JUDGES // validation.n_rows))
        judges = validation if n_folds == 1 else CsrBatch.concat([train, validation])
        if distinct_rows(judges) < MIN_ROWS:
            return
        result = race(
            train, validation, entry.spec, entry.groups, metric=entry.metric,
            label_mean=entry.label_mean, scaling=entry.scaling, n_folds=n_folds,
        )  # fmt: skip
        yield from to_chunks(0, asdict(result), {}, model=number)


def hold_races(
    configs: Sequence[TrainConfig],
    scalings: Sequence[Scaling],
    preparations: Sequence[Broadcast | None],
    n_added: Sequence[int],
    data: PackedDataset,
    cluster: SparkCluster,
) -> list[RaceResult | None]:
    """Return who won the race of each configuration, each in a task of its own.

    None where the sample holds fewer than ``MIN_ROWS`` different rows to judge. A race sees
    about as many rows as it can train on in ``RACE_SECONDS``, whatever the number of workers;
    those with samples of one size share a job. ``n_added`` has the entries that standardization
    adds to all rows.
    """
    results: list[RaceResult | None] = [None] * len(configs)
    nnz = data.train.nnz + data.validation.nnz
    sizes = [
        _sample_size(config.spec, data) / (1 + added / max(1, nnz))
        for config, added in zip(configs, n_added, strict=True)
    ]
    for size in sorted(set(sizes)):
        numbers = [number for number, its_size in enumerate(sizes) if its_size == size]
        entries = [
            _entry(configs[number], scalings[number], preparations[number], data)
            for number in numbers
        ]
        found = _results(_sample(data, size), entries, cluster)
        for place, result in found.items():
            results[numbers[place]] = result
    return results


def _entry(
    config: TrainConfig, scaling: Scaling, preparation: Broadcast | None, data: PackedDataset
) -> RaceEntry:
    return RaceEntry(
        spec=config.spec,
        groups=config.chosen_rates,
        scaling=scaling,
        preparation=preparation,
        metric=config.metric,
        label_mean=data.train.label_mean,
        may_fold=config.columns.validation is None,
    )


def _results(
    blocks: Blocks, entries: Sequence[RaceEntry], cluster: SparkCluster
) -> dict[int, RaceResult]:
    """Hold the races in one job; return their results by number."""
    task = RaceTask(tuple(entries))
    found = run_on_copies(task, blocks, len(entries), cluster, n_bytes=0)
    results = {}
    for number, (metadata, _) in found.items():
        results[number] = result = RaceResult(
            **{each.name: metadata[each.name] for each in fields(RaceResult)}
        )
        log.info(
            "learning rates: %g times the optimizer's own, the best of %s by %s of held-out rows",
            result.factor, ", ".join(f"{factor:g}" for factor in sorted(FACTORS)),
            entries[number].metric,
        )  # fmt: skip
    return results


def _sample_size(spec: Hyperparameters, data: PackedDataset) -> float:
    """Return how many entries of training rows a race has time and memory for."""
    seconds = race_epochs() * (SECONDS_FIXED + SECONDS_PER_FACTOR * spec.k)
    size = RACE_SECONDS / seconds
    # The states of all candidates, each with the copy to return to, its mean and its best.
    n_bytes = 4 * len(FACTORS) * Layout(spec.k, spec.optimizer).bytes_per_feature
    if len(data.counts.ids) * n_bytes > RACE_BYTES:
        size = min(size, RACE_BYTES / n_bytes)
    return size


def _sample(data: PackedDataset, size: float) -> Blocks:
    """Return blocks of about ``size`` entries of training rows, and half as many to judge."""
    of_train = size / max(1, data.train.nnz)
    of_validation = size * VALIDATION_ENTRIES / max(1, data.validation.nnz)
    if min(of_train, of_validation) >= 1:
        return data.blocks
    if isinstance(data.blocks, DataFrame):
        fraction = F.when(F.col("kind") == TRAIN, of_train).otherwise(of_validation)
        return data.blocks.where(_order(F.col("source"), F.col("seq")) < fraction)
    kinds, sources, places = (np.asarray(data.blocks[name]) for name in ("kind", "source", "seq"))
    wanted = _order(sources, places) < np.where(kinds == TRAIN, of_train, of_validation)
    return data.blocks.filter(pa.array(wanted))


def _order(source: Any, place: Any) -> Any:
    """Return where blocks stand in the sequence that spreads them evenly; of columns or arrays."""
    return (source * SOURCE_STEP + place * PLACE_STEP) % 1.0
