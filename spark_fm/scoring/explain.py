"""Explain predictions in columns of a DataFrame, with the names of features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql.types import (
    ArrayType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.explain import Explanations, FeatureEffects, GroupEffects, explain
from spark_fm.learner.weights import FMWeights
from spark_fm.scoring.columns import FeatureReader, lists_with_bad_rows, with_bad_rows
from spark_fm.spark.broadcast import Broadcast
from spark_fm.spark.worker import WorkerTask

LINEAR = StructType(
    [
        StructField("feature", IntegerType()),
        StructField("name", StringType()),
        StructField("value", FloatType()),
        StructField("contribution", DoubleType()),
    ]
)
PAIR = StructType(
    [
        StructField("feature_a", IntegerType()),
        StructField("name_a", StringType()),
        StructField("feature_b", IntegerType()),
        StructField("name_b", StringType()),
        StructField("contribution", DoubleType()),
    ]
)
EXPLANATION = StructType(
    [
        StructField("margin", DoubleType()),
        StructField("bias", DoubleType()),
        StructField("linear", ArrayType(LINEAR)),
        StructField("other_linear", DoubleType()),
        StructField("pairs", ArrayType(PAIR)),
        StructField("other_pairs", DoubleType()),
    ]
)
FEATURE_SUMS = StructType(
    [
        StructField("feature", IntegerType()),
        StructField("n_rows", LongType()),
        StructField("linear", DoubleType()),
        StructField("pairs", DoubleType()),
        StructField("total", DoubleType()),
    ]
)
GROUP_SUMS = StructType(
    [
        StructField("a", IntegerType()),
        StructField("b", IntegerType()),
        StructField("total", DoubleType()),
    ]
)
ALL_ROWS = -1  # instead of a feature or group: the number of rows
LINEAR_PART = -1  # instead of the second group: the first one's linear parts


@dataclass(frozen=True)
class ExplainTask(WorkerTask):
    """Explain arrays of vectors: for ``with_structs``."""

    model: Broadcast  # FMWeights
    names: Broadcast  # FeatureNames
    reader: FeatureReader
    num_pairs: int
    num_linear: int | None

    @property
    def features_col(self) -> str:
        """Name of the column that it reads."""
        return self.reader.features_col

    def run(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield an array of explanations for each array of vectors."""
        weights: FMWeights = self.model.load()
        for column in columns:
            rows, bad = self.reader.read(column, weights.feature_dim)
            parts = explain(
                rows, weights.table, weights.bias, features=weights.features,
                num_pairs=self.num_pairs, num_linear=self.num_linear,
            )  # fmt: skip
            yield self._to_struct_array(rows, parts, weights.bias, bad)

    def _to_struct_array(
        self, rows: CsrBatch, parts: Explanations, bias: float, bad: NDArray[np.bool_]
    ) -> pa.StructArray:
        names = self.names.load()
        feature = rows.indices[parts.linear_entries]
        linear = pa.StructArray.from_arrays(
            [
                pa.array(feature),
                names.of_features(feature),
                pa.array(rows.values[parts.linear_entries]),
                pa.array(parts.linear),
            ],
            names=LINEAR.names,
        )
        first, second = (rows.indices[parts.pair_entries[:, i]] for i in (0, 1))
        pairs = pa.StructArray.from_arrays(
            [
                pa.array(first), names.of_features(first),
                pa.array(second), names.of_features(second),
                pa.array(parts.pairs),
            ],
            names=PAIR.names,
        )  # fmt: skip
        return pa.StructArray.from_arrays(
            [
                with_bad_rows(parts.margin, bad),
                pa.array(np.where(bad, 0.0, bias)),
                lists_with_bad_rows(np.diff(parts.linear_starts), linear, bad),
                with_bad_rows(parts.other_linear, bad),
                lists_with_bad_rows(np.diff(parts.pair_starts), pairs, bad),
                with_bad_rows(parts.other_pairs, bad),
            ],
            names=EXPLANATION.names,
            mask=pa.array(bad),
        )


@dataclass(frozen=True)
class FeatureSumsTask(WorkerTask):
    """Add up what each feature contributes in a partition: for ``mapInArrow``."""

    model: Broadcast  # FMWeights
    reader: FeatureReader

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield a row of FEATURE_SUMS for each feature seen, and one for all rows."""
        weights: FMWeights = self.model.load()
        effects = FeatureEffects(weights.table, weights.features)
        n_rows = 0
        for batch in batches:
            rows, _ = self.reader.read(batch.column(0), weights.feature_dim)
            effects.add(rows)
            n_rows += rows.n_rows
        seen = np.flatnonzero(effects.counts)
        ids = seen if weights.features is None else weights.features[seen]
        sums = np.vstack([np.zeros((1, 3)), effects.sums[seen]])
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(np.concatenate([[ALL_ROWS], ids]), pa.int32()),
                pa.array(np.concatenate([[n_rows], effects.counts[seen]]), pa.int64()),
                *(pa.array(column) for column in sums.T.copy()),
            ],
            names=FEATURE_SUMS.names,
        )


@dataclass(frozen=True)
class GroupSumsTask(WorkerTask):
    """Add up what pairs of groups contribute in a partition: for ``mapInArrow``."""

    model: Broadcast  # FMWeights
    reader: FeatureReader
    group_of: Broadcast  # group of each row of the table, -1 for none
    n_groups: int

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield rows of GROUP_SUMS: pairs, linear parts, and one for all rows."""
        weights: FMWeights = self.model.load()
        effects = GroupEffects(
            weights.table, self.group_of.load(), self.n_groups, features=weights.features
        )
        n_rows = 0
        for batch in batches:
            rows, _ = self.reader.read(batch.column(0), weights.feature_dim)
            effects.add(rows)
            n_rows += rows.n_rows
        first, second = np.nonzero(effects.pairs)
        groups = np.arange(self.n_groups)
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(np.concatenate([[ALL_ROWS], groups, first]), pa.int32()),
                pa.array(
                    np.concatenate([[ALL_ROWS], np.full(len(groups), LINEAR_PART), second]),
                    pa.int32(),
                ),
                pa.array(np.concatenate([[n_rows], effects.linear, effects.pairs[first, second]])),
            ],
            names=GROUP_SUMS.names,
        )


def feature_names(column: StructField) -> dict[int, str]:
    """Return the names that the column's ml_attr metadata give to features, by id."""
    attributes = column.metadata.get("ml_attr", {}).get("attrs", {})
    named = {
        int(attribute["idx"]): str(attribute["name"])
        for group in attributes.values()
        for attribute in group
        if "idx" in attribute and attribute.get("name")
    }
    return dict(sorted(named.items()))


@dataclass(frozen=True)
class FeatureNames:
    """Names by feature id, in the form that tasks look them up in."""

    ids: NDArray[np.int32]  # sorted
    names: pa.Array  # of strings

    @classmethod
    def of(cls, named: Mapping[int, str]) -> FeatureNames:
        """Build the table of a mapping."""
        ids = sorted(named)
        return cls(np.array(ids, np.int32), pa.array([named[j] for j in ids], pa.string()))

    def of_features(self, features: NDArray[np.int32]) -> pa.Array:
        """Return the name of each feature, null where it has none."""
        if len(self.ids) == 0:
            return pa.nulls(len(features), pa.string())
        index = np.searchsorted(self.ids, features)
        index[index == len(self.ids)] = 0
        return self.names.take(pa.array(index, mask=self.ids[index] != features))
