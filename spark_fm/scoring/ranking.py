"""Tasks that turn features into vectors for inner products, and rank candidates by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql.types import ArrayType, DoubleType, FloatType, IntegerType, StructField, StructType

from spark_fm.errors import InvalidDataError
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.losses import LOSSES
from spark_fm.learner.spec import LossName
from spark_fm.learner.topk import best_candidates, factor_sums
from spark_fm.learner.weights import FMWeights
from spark_fm.scoring.columns import FeatureReader, lists_with_bad_rows, with_bad_rows
from spark_fm.spark.broadcast import Broadcast
from spark_fm.spark.worker import GroupTask, WorkerTask

VECTORS = StructType(
    [
        StructField("vector", ArrayType(FloatType())),
        StructField("constant", DoubleType()),
        StructField("features", ArrayType(IntegerType())),
    ]
)
CONTEXT, CANDIDATE, SEEN = "context", "candidate", "seen"  # names of columns inside jobs
RANKED_ROWS = 2**20  # of one record batch


@dataclass(frozen=True)
class ContextTask(WorkerTask):
    """Make context vectors ``[s, 1]`` and constants: for ``with_structs``.

    A constant is ``w0`` and the self interaction of the row.
    """

    model: Broadcast  # FMWeights
    reader: FeatureReader
    candidate_features: Broadcast | None  # sorted; no context may have one of them

    @property
    def features_col(self) -> str:
        """Name of the column that it reads."""
        return self.reader.features_col

    def run(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield an array of VECTORS for each array of feature vectors."""
        weights: FMWeights = self.model.load()
        forbidden = None if self.candidate_features is None else self.candidate_features.load()
        for column in columns:
            rows, bad = self.reader.read(column, weights.feature_dim)
            if forbidden is not None:
                _check_disjoint(rows, forbidden)
            sums, self_interaction = factor_sums(rows, weights.table, features=weights.features)
            vectors = np.hstack([sums, np.ones((rows.n_rows, 1), np.float32)])
            no_features = pa.array([[]] * len(bad), pa.list_(pa.int32()))
            yield _to_struct_array(vectors, weights.bias + self_interaction, no_features, bad)


@dataclass(frozen=True)
class CandidateTask(WorkerTask):
    """Make candidate vectors ``[s, self interaction]``: for ``with_structs``.

    With them come the model's features that a row has and no earlier row of the task had.
    """

    model: Broadcast  # FMWeights
    reader: FeatureReader

    @property
    def features_col(self) -> str:
        """Name of the column that it reads."""
        return self.reader.features_col

    def run(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield an array of VECTORS for each array of feature vectors."""
        weights: FMWeights = self.model.load()
        known: NDArray[np.int32] = np.empty(0, np.int32)
        for column in columns:
            rows, bad = self.reader.read(column, weights.feature_dim)
            sums, self_interaction = factor_sums(rows, weights.table, features=weights.features)
            vectors = np.hstack([sums, self_interaction[:, None].astype(np.float32)])
            new = np.setdiff1d(rows.indices, known)
            if weights.features is not None:
                new = np.intersect1d(new, weights.features)
            known = np.union1d(known, new)
            # All with the first good row: whose they are does not matter.
            lengths = np.where(np.arange(rows.n_rows) == 0, len(new), 0)
            lists = lists_with_bad_rows(lengths, pa.array(new, pa.int32()), bad)
            yield _to_struct_array(vectors, np.zeros(rows.n_rows), lists, bad)


def _check_disjoint(rows: CsrBatch, candidate_features: NDArray[np.int32]) -> None:
    if not len(candidate_features):
        return
    index = np.searchsorted(candidate_features, rows.indices)
    index = np.minimum(index, len(candidate_features) - 1)
    shared = rows.indices[candidate_features[index] == rows.indices]
    if len(shared):
        raise InvalidDataError(
            f"feature {shared[0]} is in a context and in a candidate, so their values would add "
            "up and the score would not split into a part of each. Leave the feature out of one "
            "of the two DataFrames."
        )


def _to_struct_array(
    vectors: NDArray[np.float32], constants: NDArray[np.float64], features: pa.Array,
    bad: NDArray[np.bool_],
) -> pa.StructArray:  # fmt: skip
    columns = [
        lists_with_bad_rows(vectors.shape[1], pa.array(vectors.ravel()), bad),
        with_bad_rows(constants, bad),
        features,
    ]
    return pa.StructArray.from_arrays(columns, names=VECTORS.names, mask=pa.array(bad))


@dataclass(frozen=True)
class Candidates:
    """Candidates in the order of their ids, which decides between equal scores."""

    ids: pa.Array  # int32, int64 or string in the order of UTF-8 bytes, as Spark sorts
    vectors: NDArray[np.float32]  # (n, k + 1)

    @classmethod
    def of(cls, table: pa.Table) -> Candidates:
        """Sort the columns ``candidate`` and ``vector`` of a table by id."""
        table = table.select([CANDIDATE, "vector"]).sort_by(CANDIDATE).combine_chunks()
        ids = pa.concat_arrays(table.column(CANDIDATE).chunks) if len(table) else None
        return cls(pa.array([]) if ids is None else ids, matrix(table.column("vector")))


def matrix(column: Any) -> NDArray[np.float32]:
    """Return equally long lists of floats as rows; shape (0, 0) when there are none."""
    if len(column) == 0:
        return np.zeros((0, 0), np.float32)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    flat = np.concatenate([np.asarray(chunk.flatten()) for chunk in chunks])
    return np.ascontiguousarray(flat.reshape(len(column), -1), np.float32)


@dataclass(frozen=True)
class RankTask:
    """Rank candidates for contexts."""

    k: int  # candidates per context
    loss: LossName
    schema: pa.Schema  # of the result: context, candidate, margin, score, rank

    def rank(self, contexts: pa.RecordBatch | pa.Table, candidates: Candidates) -> pa.RecordBatch:
        """Return the best k candidates of each context, best first.

        ``contexts`` has the columns context, vector, constant and, optionally, seen, a list of
        candidates to leave out.
        """
        if not contexts.num_rows or not len(candidates.ids):
            return pa.RecordBatch.from_pylist([], schema=self.schema)
        hidden = None
        if SEEN in contexts.schema.names:
            hidden = _hidden(contexts.column(SEEN), candidates.ids)
        best = best_candidates(
            matrix(contexts.column("vector")), candidates.vectors, self.k, hidden=hidden
        )
        ranks = np.arange(best.rows.shape[1])
        is_ranked = ranks < best.counts[:, None]
        constants = contexts.column("constant").to_numpy(zero_copy_only=False)
        margin = (best.products + constants[:, None])[is_ranked]
        owners = np.repeat(np.arange(len(best.counts)), best.counts)
        ids = contexts.column(CONTEXT)
        ids = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
        columns = [
            ids.take(pa.array(owners)),
            candidates.ids.take(pa.array(best.rows[is_ranked])),
            pa.array(margin),
            pa.array(LOSSES[self.loss].link(margin)),
            pa.array(np.broadcast_to(ranks + 1, is_ranked.shape)[is_ranked].astype(np.int32)),
        ]
        columns = [c.cast(f.type) for c, f in zip(columns, self.schema, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _hidden(
    seen: pa.Array | pa.ChunkedArray, ids: pa.Array
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and rows of the candidates that each context has seen."""
    seen = seen.combine_chunks() if isinstance(seen, pa.ChunkedArray) else seen
    lengths = np.asarray(seen.value_lengths().fill_null(0)).astype(np.int64)
    rows = pc.index_in(seen.flatten().cast(ids.type), value_set=ids)
    is_candidate = np.asarray(rows.is_valid())
    owners = np.repeat(np.arange(len(lengths)), lengths)[is_candidate]
    rows = np.asarray(rows.drop_null()).astype(np.int64)
    order = np.lexsort((rows, owners))
    counts = np.bincount(owners, minlength=len(lengths))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), rows[order]


@dataclass(frozen=True)
class RankAllTask(WorkerTask):
    """Rank all candidates, which come with the task: for ``mapInArrow`` over contexts."""

    ranking: RankTask
    candidates: Broadcast  # Candidates

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the best candidates of the contexts."""
        candidates = self.candidates.load()
        step = max(1, RANKED_ROWS // self.ranking.k)
        for batch in batches:
            for start in range(0, batch.num_rows, step):
                yield self.ranking.rank(batch.slice(start, step), candidates)


@dataclass(frozen=True)
class RankGroupTask(GroupTask):
    """Rank a group of candidates for a group of contexts: for ``cogroup``."""

    ranking: RankTask

    def run(self, *groups: pa.Table) -> pa.Table:
        """Return the best candidates of this group."""
        contexts, candidates = groups
        return pa.Table.from_batches([self.ranking.rank(contexts, Candidates.of(candidates))])
