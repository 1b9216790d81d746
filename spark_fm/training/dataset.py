"""The training set as packed blocks, with what packing it found; driver only."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.errors import InvalidDataError
from spark_fm.formats.recordio.framing import RECORDIO
from spark_fm.formats.text import ParseTask
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.spec import LossName, Scaling
from spark_fm.learner.standardization import CENTRED_FRACTION, CONSTANT, Standardization
from spark_fm.learner.statistics import FeatureCounts, FeatureMoments, unscaled_features
from spark_fm.spark.collect import collect_rows, worker_errors
from spark_fm.spark.leftovers import PREFIX
from spark_fm.spark.local_tasks import run_local
from spark_fm.spark.scans import comes_in_any_order, plain_scan
from spark_fm.spark.schema import ColumnNames
from spark_fm.spark.session import SparkCluster, persisted
from spark_fm.training import packing
from spark_fm.training.config import TrainConfig
from spark_fm.training.local_files import remove_by_job
from spark_fm.training.packing import (
    BLOCK_COLUMNS,
    BLOCK_DDL,
    BLOCK_SCHEMA,
    COUNTS,
    MOMENTS,
    REPORT,
    STATS,
    MappedFiles,
    PackReport,
    PackTask,
    RowStatistics,
    payload_bytes,
)
from spark_fm.training.partitions import Blocks
from spark_fm.training.scans import UNREAD, PackScanTask

log = logging.getLogger(__name__)

FAR = 200.0  # times the standard deviation: a mean far from 0
CONSTANT_LABELS = 1e-13  # standard deviation, relative to the mean, of labels taken for equal
TINY = float(np.finfo(np.float32).tiny)  # the smallest number with all digits of float32

AUTO_BLOCK_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class PackedDataset:
    """The packed blocks of a training set, kept, and what packing them found."""

    blocks: Blocks
    train: RowStatistics
    validation: RowStatistics
    counts: FeatureCounts
    moments: FeatureMoments  # of all rows, for features with a value other than 1
    feature_dim: int
    n_sources: int  # partitions that the rows came in
    n_skipped: dict[str, int]  # rows left out, by reason
    n_zero_weight: int  # rows of weight 0, which count for nothing
    n_tiny_values: int  # of features, smaller than float32 holds
    unscaled: tuple[str, ...]  # warnings of features far larger than others
    seconds: float  # wall time of the packing pass
    fingerprint: str  # digest of every row with its set and position: equal for equal data
    has_dense: bool = False  # there are dense vectors, each of ``feature_dim`` values
    store: str | None = None  # key of the files that hold the rows, where every task sees them

    @property
    def has_no_training_rows(self) -> bool:
        """Whether all rows were drawn for validation: too few of them to hold any out."""
        return self.train.rows == 0

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to validate on."""
        return self.validation.rows > 0 and not self.has_no_training_rows

    def sums(self, *, all_rows: bool) -> RowStatistics:
        """Return the sums of the training rows, or of all."""
        if not all_rows:
            return self.train
        return self.train.plus(self.validation)

    def constant_loss(self, loss: LossName) -> float | None:
        """Return the validation loss of the constant that fits the training rows best."""
        if not self.has_validation:
            return None
        score = LOSSES[loss].initial_bias(self.train.label_mean)
        held_out = self.validation
        return LOSSES[loss].constant_loss(score, held_out.label_mean, held_out.label_variance)

    def standardization(self, config: TrainConfig) -> Standardization:
        """Return how features are standardized."""
        if not config.standardization:
            return Standardization()
        return Standardization.of(
            self.moments, self.train.rows + self.validation.rows,
            # What a mean adds to a score is linear and constant.
            may_centre=config.spec.use_bias and config.spec.use_linear,
        )  # fmt: skip

    @property
    def n_bytes(self) -> int:
        """Size of all payloads."""
        return sum(payload_bytes(s.rows, s.nnz) for s in (self.train, self.validation))


# Return of some of the reports ``(name, source, seq, content)``; the bytes of all tell how.
ReportReader = Callable[[list[str], int], Iterable[tuple[Any, ...]]]


@contextmanager
def pack(
    rows: DataFrame, cluster: SparkCluster, config: TrainConfig, after_jobs: ExitStack
) -> Iterator[PackedDataset]:
    """Pack ``rows`` (internal column names), and keep them inside the block.

    Files go away with ``after_jobs``, which ends when no job runs any more.

    Raises
    ------
    InvalidDataError
        For an empty set, or for bad rows unless handle_invalid says to skip them.
    """
    columns = config.columns
    store = uuid4().hex if cluster.tasks_share_files else None
    task = replace(pack_task(config), store=store, tables_in_file=cluster.shares_files)
    started = time.perf_counter()
    # Without shuffle the order is the caller's, of a sort for example.
    if config.spec.shuffle and not cluster.tasks_share_files and comes_in_any_order(rows):
        rows = _by_content(rows, config.spec.seed)
    with _packed(rows, task, cluster, after_jobs) as (blocks, read):
        reports = _reports(read)
        skipped = _check_rows(reports, config)
        counts, moments = _counts(read, reports)
        train, validation = RowStatistics(), RowStatistics()
        for report in reports:
            train, validation = train.plus(report.train), validation.plus(report.validation)
        zero_weight = sum(report.n_zero_weight for report in reports)
        if train.rows + validation.rows == 0 and zero_weight:
            raise InvalidDataError(
                f"Every row has weight 0 in weightCol={columns.weight!r}; at least one must count."
            )
        if train.rows + validation.rows == 0:
            raise InvalidDataError(
                "The training set has no rows"
                + (f" left after skipping {sum(skipped.values())}." if skipped else ".")
                + " Check the filter or path it comes from."
            )
        size = max(report.max_size for report in reports)
        top = max(report.max_index for report in reports) + 1
        feature_dim = config.feature_dim or max(size, top, 1)
        _check_dense(reports, feature_dim, columns)
        yield PackedDataset(
            blocks=blocks, train=train, validation=validation, counts=counts,
            moments=moments,
            feature_dim=feature_dim, n_sources=len(reports), n_skipped=skipped,
            n_zero_weight=zero_weight,
            n_tiny_values=sum(report.n_tiny_values for report in reports),
            unscaled=_unscaled(reports, columns), seconds=time.perf_counter() - started,
            fingerprint=_fingerprint(reports),
            has_dense=any(report.dense_sizes for report in reports), store=store,
        )  # fmt: skip


@contextmanager
def _packed(
    rows: DataFrame, task: PackTask, cluster: SparkCluster, after_jobs: ExitStack
) -> Iterator[tuple[Blocks, ReportReader]]:
    """Yield the blocks that a task makes of rows, and what reads its reports."""
    plan = rows.mapInArrow(task, BLOCK_DDL)
    if task.store is None or not cluster.shares_files:
        if task.store is not None:
            after_jobs.callback(remove_files, cluster, task.store)
        # A literal of its own keeps two fits on the same data out of each other's cache entry.
        plan = plan.withColumn("fit", F.lit(uuid4().hex))
        with persisted(plan, on_disk=True) as frame:
            blocks = frame.where(F.col("kind") != REPORT).select(*BLOCK_COLUMNS)
            yield blocks, partial(_collected, frame, cluster)
        return
    # The rows are in files that the driver sees: one job, and Spark keeps nothing.
    folders: set[str] = set()
    after_jobs.callback(remove_files, cluster, task.store, folders)
    with worker_errors():
        table = _packed_by_readers(rows, task, cluster)
        if table is None:
            table = plan.toArrow()
    is_report = pc.equal(table["kind"], REPORT)
    reports = table.filter(is_report).to_pylist()
    folders |= {folder for report in _reports(partial(_read, reports)) for folder in report.folders}
    yield table.filter(pc.invert(is_report)), partial(_read, reports)


def _by_content(rows: DataFrame, seed: int) -> DataFrame:
    """Sort the rows of each partition by a hash, so that they come in one order, a random one."""
    columns = [name for name in rows.columns if name != "source"]
    return rows.sortWithinPartitions(F.xxhash64(F.lit(str(seed)), *columns))


def _packed_by_readers(rows: DataFrame, task: PackTask, cluster: SparkCluster) -> pa.Table | None:
    """Return the blocks of rows that the tasks read themselves, or None where they cannot."""
    scan = plain_scan(rows, source=RECORDIO, parser=ParseTask)
    if scan is None:
        return None
    table = run_local(PackScanTask(scan, task), len(scan.partitions), BLOCK_SCHEMA, cluster)
    is_unread = pc.equal(table["name"], UNREAD)
    unread = [json.loads(each.as_py()) for each in table.filter(is_unread)["report"]]
    if unread:
        log.info("Spark reads the rows again, which the tasks could not: %s", unread[0]["reason"])
        remove_files(cluster, task.store or "", unread[0]["folders"])
        return None
    return table


def _collected(
    frame: DataFrame, cluster: SparkCluster, names: list[str], n_bytes: int
) -> Iterator[tuple[Any, ...]]:
    """Return reports by a job; a ReportReader."""
    found = frame.where((F.col("kind") == REPORT) & F.col("name").isin(*names))
    columns = ["name", "source", "seq", "report"]
    return collect_rows(found, cluster, columns=columns, n_bytes=n_bytes, spread=["source", "seq"])


def _read(
    reports: list[dict[str, Any]], names: list[str], n_bytes: int
) -> Iterator[tuple[Any, ...]]:
    """Yield reports from the files that they name; a ReportReader."""
    mapped = MappedFiles()
    for row in reports:
        if row["name"] in names:
            content = row["report"]
            if content is None:
                content = mapped(row["file"], row["start"], row["nnz"])
            yield row["name"], row["source"], row["seq"], content


def remove_files(cluster: SparkCluster, store: str, folders: Iterable[str] = ()) -> None:
    """Remove the files of a training set: those in folders that the driver sees, or by a job."""
    if folders:
        for folder in folders:
            shutil.rmtree(Path(folder) / f"{PREFIX}{store}", ignore_errors=True)
        return
    remove_by_job(store, cluster.session.range(0, 1, 1, 1))


def pack_task(config: TrainConfig) -> PackTask:
    """Return what packs a partition."""
    columns = config.columns
    return PackTask(
        loss=config.spec.loss,
        feature_dim=config.feature_dim,
        has_weight=columns.weight is not None,
        has_indicator=columns.validation is not None,
        validation_fraction=0.0 if columns.validation else config.validation_fraction,
        seed=config.spec.seed,
        shuffle=config.spec.shuffle,
        block_multiple=block_multiple(config),
        keep_zeros=config.spec.sagemaker,
    )


def packing_key(config: TrainConfig) -> tuple[object, ...]:
    """Return what of a configuration decides how rows are packed: equal keys share the blocks."""
    return (
        config.columns, config.feature_dim, config.handle_invalid, config.validation_fraction,
        config.spec.loss, config.spec.seed, config.spec.shuffle, config.spec.sagemaker,
        block_multiple(config),
    )  # fmt: skip


def block_multiple(config: TrainConfig) -> int:
    """Return how many blocks every shard is cut into multiples of."""
    return config.num_workers or AUTO_BLOCK_MULTIPLE


def _reports(read: ReportReader) -> list[PackReport]:
    found = [PackReport.from_json(bytes(content)) for _, _, _, content in read([STATS], 0)]
    if not found:
        raise InvalidDataError(
            "The training set has no rows, not even partitions. Check where it comes from."
        )
    return sorted(found, key=lambda report: report.source)


def _counts(read: ReportReader, reports: list[PackReport]) -> tuple[FeatureCounts, FeatureMoments]:
    """Return the features' counts, and the moments of those with a value other than 1."""
    n_bytes = sum(report.table_bytes for report in reports)
    total = FeatureCounts.merge([])
    waiting: list[FeatureCounts] = []
    moments: dict[tuple[int, int], FeatureMoments] = {}
    for name, source, seq, table in read([COUNTS, MOMENTS], n_bytes):
        if name == MOMENTS:
            moments[source, seq] = FeatureMoments.from_table(table)
            continue
        waiting.append(FeatureCounts.from_table(table))
        if len(waiting) == 64:
            total, waiting = FeatureCounts.merge([total, *waiting]), []
    counts = FeatureCounts.merge([total, *waiting])
    # In the order of the sources, so that their sums are the same each time.
    others = FeatureMoments.merge([moments[key] for key in sorted(moments)])
    ids = others.ids
    places = np.searchsorted(counts.ids, ids)
    ones = (counts.train + counts.validation)[places] - others.count
    return counts, FeatureMoments.merge([others, FeatureMoments.of_ones(ids, ones)])


def _fingerprint(reports: list[PackReport]) -> str:
    rows = [[r.source, r.train.rows, r.validation.rows, r.checksum] for r in reports]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


_COLUMN_OF: dict[str, Literal["features", "label", "weight"]] = {
    packing.NULL_FEATURES: "features",
    packing.BROKEN_VECTOR: "features",
    packing.WRONG_LENGTH: "features",
    packing.BAD_INDEX: "features",
    packing.BAD_VALUE: "features",
    packing.BAD_LABEL: "label",
    packing.NOT_BINARY: "label",
    packing.BAD_WEIGHT: "weight",
}


def _check_rows(reports: list[PackReport], config: TrainConfig) -> dict[str, int]:
    """Return the number of bad rows by reason; raise unless they are to be skipped."""
    bad: dict[str, int] = {}
    examples: dict[str, str] = {}
    for report in reports:
        for reason, count in report.bad_rows.items():
            bad[reason] = bad.get(reason, 0) + count
            examples.setdefault(reason, report.bad_examples[reason])
    if bad and config.handle_invalid == "error":
        found = []
        for reason, count in bad.items():
            kind = _COLUMN_OF[reason]
            name = getattr(config.columns, kind)
            range_text = ""
            if reason == packing.BAD_INDEX:
                limit = config.feature_dim or 2**31 - 1
                source = ", by featureDim or the column's metadata" if config.feature_dim else ""
                range_text = f" (allowed: 0 to {limit - 1}{source})"
            found.append(
                f"{kind}Col={name!r} has {count} row(s) with {reason}{range_text}, for example "
                f"{examples[reason]}"
            )
        advice = (
            "Clean the data, or set handleInvalid='skip' to leave such rows out and count them."
        )
        if packing.NOT_BINARY in bad:
            advice = "Map the labels to 0 and 1, or set predictorType='regressor'."
        raise InvalidDataError("; ".join(found) + ". " + advice)
    return bad


def _check_dense(reports: list[PackReport], feature_dim: int, columns: ColumnNames) -> None:
    """Raise InvalidDataError unless every dense vector has a value for every feature."""
    found = [size for report in reports for size in report.dense_sizes or ()]
    if found and (min(found), max(found)) != (feature_dim, feature_dim):
        lengths = f"{min(found)} to {max(found)}" if min(found) < max(found) else f"{min(found)}"
        raise InvalidDataError(
            f"featuresCol={columns.features!r} has dense vectors or arrays of {lengths} values "
            f"among {feature_dim} features; each needs one for every feature. Fill them up, use "
            f"sparse vectors, or set featureDim={feature_dim} and handleInvalid='skip' to leave "
            "out those of another length."
        )


def _unscaled(reports: list[PackReport], columns: ColumnNames) -> tuple[str, ...]:
    parts = [
        (
            report.value_ranges[0],
            [(int(j), float(a), float(b)) for j, a, b in report.value_ranges[1]],
        )
        for report in reports
    ]
    return tuple(
        f"Feature {j} of {columns.features!r} ranges from {low:g} to {high:g}, more than 100 times "
        "the usual magnitude of a feature, and its size will drown the others. Leave "
        "standardization on, or scale it yourself (StandardScaler, MaxAbsScaler)."
        for j, low, high in unscaled_features(parts)[:5]
    )


def _far_from_zero(data: PackedDataset, config: TrainConfig) -> list[str]:
    """Return warnings of features whose mean is so far from 0 that they are learned slowly."""
    n_rows, moments = data.train.rows + data.validation.rows, data.moments
    in_most = moments.count >= CENTRED_FRACTION * max(1, n_rows)
    deviation = np.sqrt(moments.square / np.maximum(moments.count, 1))
    ratio = np.abs(moments.mean) / np.maximum(deviation, 1e-300)
    far = np.flatnonzero(in_most & (deviation > CONSTANT * np.abs(moments.mean)) & (ratio > FAR))
    return [
        f"Feature {moments.ids[i]} of {config.columns.features!r} has the mean {moments.mean[i]:g} "
        f"and the standard deviation {deviation[i]:g}: so far from 0, it is learned slowly. "
        "Subtract a constant from it, its smallest value for example."
        for i in far[np.argsort(-ratio[far], kind="stable")][:5]
    ]


def check_sets(data: PackedDataset, config: TrainConfig) -> list[str]:
    """Return what there is to warn of in the training and validation rows.

    Raises
    ------
    InvalidDataError
        When the caller's validation column leaves nothing to train on.
    """
    texts = _far_from_zero(data, config) if config.standardization else list(data.unscaled)
    name, sums = config.columns.validation, data.sums(all_rows=True)
    if name is not None and data.has_no_training_rows:
        raise InvalidDataError(
            f"validationIndicatorCol={name!r} is true in every row; rows to train on have "
            "false. Negate it, or use validationFraction."
        )
    if name is not None and not data.has_validation:
        texts.append(
            f"validationIndicatorCol={name!r} is true in no row: all epochs were run, without "
            "early stopping."
        )
    if name is None and config.validation_fraction > 0 and not data.has_validation:
        texts.append(
            f"validationFraction={config.validation_fraction:g} held out none of the {sums.rows} "
            "rows: all epochs were run, without early stopping. Rows are chosen by their content, "
            "equal ones together, and these are few, or few differ: name a "
            "validationIndicatorCol, or set validationFraction=0 if you want none."
        )
    if LOSSES[config.spec.loss].is_classifier and _is_constant(sums):
        texts.append(f"Every label is {sums.label_mean:g}: the model can say nothing else.")
    if data.n_tiny_values:
        texts.append(
            f"{data.n_tiny_values} values of {config.columns.features!r} are between -{TINY:.2g} "
            f"and {TINY:.2g}, where float32 ends, and count as 0 or nearly. Multiply their columns "
            "by a constant."
        )
    spread = abs(sums.label_mean) + math.sqrt(sums.label_variance)
    if 0 < spread < 1e4 * TINY:
        texts.append(
            f"Labels are about {spread:.2g} in size, where float32, in which scores are summed, "
            f"ends ({TINY:.2g}): the model says little but their mean. Multiply them by a constant."
        )
    skipped = sum(data.n_skipped.values())
    if skipped > 0.1 * (skipped + sums.rows):
        reasons = ", ".join(f"{count} {reason}" for reason, count in data.n_skipped.items())
        texts.append(f"{skipped} of {skipped + sums.rows} rows were skipped: {reasons}.")
    for text in texts:
        log.warning("%s", text)
    return texts


def _is_constant(rows: RowStatistics) -> bool:
    """Return whether labels differ only by rounding."""
    return rows.label_variance <= CONSTANT_LABELS**2 * rows.label_mean**2


def scaling_of(config: TrainConfig, rows: RowStatistics) -> Scaling:
    """Return the scaling of a training on these rows."""
    spec, mean, variance = config.spec, rows.label_mean, rows.label_variance
    if LOSSES[spec.loss].is_classifier or not config.standardize_label:
        return Scaling(weight=rows.mean_weight)
    return Scaling(
        label=1.0 if _is_constant(rows) else math.sqrt(variance),
        weight=rows.mean_weight,
        # SageMaker's empty rows have the label 0.
        offset=mean if spec.use_bias and not spec.sagemaker else 0.0,
    )
