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
from spark_fm.learner.predict import sigmoid
from spark_fm.learner.spec import LossName
from spark_fm.learner.topk import best_candidates, sums_and_own
from spark_fm.scoring.columns import FeatureReader
from spark_fm.spark.broadcast import Broadcast
from spark_fm.spark.worker import check_version, freeze_loaded_modules

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
class ContextTask:
    """Make context vectors ``[s, 1]`` and constants ``w0 + own``: for ``struct_column``.

    Parameters
    ----------
    version : str
    model : Handle
        ``(table, bias, features, feature_dim)``.
    reader : FeatureReader
    taken : Handle or None
        Sorted features of candidates, which no context may have.
    """

    version: str
    model: Broadcast
    reader: FeatureReader
    taken: Broadcast | None

    @property
    def features_col(self) -> str:
        """Name of the column that it reads."""
        return self.reader.features_col

    def __call__(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield an array of VECTORS for each array of feature vectors."""
        check_version(self.version)
        table, bias, features, feature_dim = self.model.load()
        taken = None if self.taken is None else self.taken.load()
        for column in columns:
            rows, bad = self.reader.read(column, feature_dim)
            if taken is not None:
                _check_disjoint(rows, taken)
            sums, own = sums_and_own(rows, table, features=features)
            vectors = np.hstack([sums, np.ones((rows.n_rows, 1), np.float32)])
            nothing = pa.array([[]] * len(bad), pa.list_(pa.int32()))
            yield _structs(vectors, bias + own, nothing, bad)
        freeze_loaded_modules()


@dataclass(frozen=True)
class CandidateTask:
    """Make candidate vectors ``[s, own]``: for ``struct_column``.

    With them come the model's features that a row has and no earlier row of the task had.

    Parameters
    ----------
    version : str
    model : Handle
        ``(table, bias, features, feature_dim)``.
    reader : FeatureReader
    """

    version: str
    model: Broadcast
    reader: FeatureReader

    @property
    def features_col(self) -> str:
        """Name of the column that it reads."""
        return self.reader.features_col

    def __call__(self, columns: Iterator[pa.Array]) -> Iterator[pa.StructArray]:
        """Yield an array of VECTORS for each array of feature vectors."""
        check_version(self.version)
        table, _, features, feature_dim = self.model.load()
        known: NDArray[np.int32] = np.empty(0, np.int32)
        for column in columns:
            rows, bad = self.reader.read(column, feature_dim)
            sums, own = sums_and_own(rows, table, features=features)
            vectors = np.hstack([sums, own[:, None].astype(np.float32)])
            new = np.setdiff1d(rows.indices, known)
            if features is not None:
                new = np.intersect1d(new, features)
            known = np.union1d(known, new)
            # All with the first good row: whose they are does not matter.
            starts = np.zeros(len(bad) + 1, np.int32)
            starts[1 + np.flatnonzero(~bad)[:1]] = len(new)
            starts = np.maximum.accumulate(starts)
            lists = pa.ListArray.from_arrays(pa.array(starts), pa.array(new, pa.int32()))
            yield _structs(vectors, np.zeros(rows.n_rows), lists, bad)
        freeze_loaded_modules()


def _check_disjoint(rows: CsrBatch, taken: NDArray[np.int32]) -> None:
    if not len(taken):
        return
    places = np.minimum(np.searchsorted(taken, rows.indices), len(taken) - 1)
    shared = rows.indices[taken[places] == rows.indices]
    if len(shared):
        raise InvalidDataError(
            f"feature {shared[0]} is in a context and in a candidate, so their values would add "
            "up and the score would not split into a part of each. Leave the feature out of one "
            "of the two DataFrames."
        )


def _structs(
    vectors: NDArray[np.float32], constants: NDArray[np.float64], features: pa.Array,
    bad: NDArray[np.bool_],
) -> pa.StructArray:  # fmt: skip
    lengths = np.where(bad, 0, vectors.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    whole = np.zeros(len(bad))
    whole[~bad] = constants
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel())),
        pa.array(whole),
        features,
    ]
    return pa.StructArray.from_arrays(columns, names=VECTORS.names, mask=pa.array(bad))


@dataclass(frozen=True)
class Candidates:
    """Candidates in the order of their ids, which decides between equal scores.

    Parameters
    ----------
    ids : pyarrow.Array of n int32, int64 or string
        Strings in the order of their UTF-8 bytes, as Spark sorts them.
    vectors : ndarray of shape (n, k + 1), float32
    """

    ids: pa.Array
    vectors: NDArray[np.float32]

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
    """Rank candidates for contexts.

    Parameters
    ----------
    version : str
    k : int
        Candidates a context.
    loss : {"logistic", "squared"}
    schema : pyarrow.Schema
        Of the result: context, candidate, margin, score, rank.
    """

    version: str
    k: int
    loss: LossName
    schema: pa.Schema

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
        ranks = np.arange(best.places.shape[1])
        is_found = ranks < best.counts[:, None]
        constants = contexts.column("constant").to_numpy(zero_copy_only=False)
        margin = (best.products + constants[:, None])[is_found]
        owners = np.repeat(np.arange(len(best.counts)), best.counts)
        ids = contexts.column(CONTEXT)
        ids = pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids
        columns = [
            ids.take(pa.array(owners)),
            candidates.ids.take(pa.array(best.places[is_found])),
            pa.array(margin),
            pa.array(sigmoid(margin) if self.loss == "logistic" else margin),
            pa.array(np.broadcast_to(ranks + 1, is_found.shape)[is_found].astype(np.int32)),
        ]
        columns = [c.cast(f.type) for c, f in zip(columns, self.schema, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _hidden(
    seen: pa.Array | pa.ChunkedArray, ids: pa.Array
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and rows of the candidates that each context has seen."""
    seen = seen.combine_chunks() if isinstance(seen, pa.ChunkedArray) else seen
    lengths = np.asarray(seen.value_lengths().fill_null(0)).astype(np.int64)
    found = pc.index_in(seen.flatten().cast(ids.type), value_set=ids)
    is_candidate = np.asarray(found.is_valid())
    owners = np.repeat(np.arange(len(lengths)), lengths)[is_candidate]
    places = np.asarray(found.drop_null()).astype(np.int64)
    order = np.lexsort((places, owners))
    counts = np.bincount(owners, minlength=len(lengths))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), places[order]


@dataclass(frozen=True)
class RankAllTask:
    """Rank all candidates, which come with the task: for ``mapInArrow`` over contexts.

    Parameters
    ----------
    ranking : RankTask
    candidates : Handle
        Candidates.
    """

    ranking: RankTask
    candidates: Broadcast

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the best candidates of the contexts."""
        check_version(self.ranking.version)
        candidates = self.candidates.load()
        step = max(1, RANKED_ROWS // self.ranking.k)
        for batch in batches:
            for start in range(0, batch.num_rows, step):
                yield self.ranking.rank(batch.slice(start, step), candidates)
        freeze_loaded_modules()


@dataclass(frozen=True)
class RankGroupTask:
    """Rank a group of candidates for a group of contexts: for ``cogroup``.

    Parameters
    ----------
    ranking : RankTask
    """

    ranking: RankTask

    def __call__(self, contexts: pa.Table, candidates: pa.Table) -> pa.Table:
        """Return the best candidates of this group."""
        check_version(self.ranking.version)
        ranked = self.ranking.rank(contexts, Candidates.of(candidates))
        freeze_loaded_modules()
        return pa.Table.from_batches([ranked])
