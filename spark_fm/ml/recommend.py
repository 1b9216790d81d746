"""``model.recommend`` and the vectors of contexts and candidates; driver only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DataType,
    DoubleType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from spark_fm._version import __version__
from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.learner.spec import require
from spark_fm.ml.base import FittedModel
from spark_fm.scoring.columns import force_row_input, struct_column
from spark_fm.scoring.ranking import (
    CANDIDATE,
    CONTEXT,
    SEEN,
    VECTORS,
    Candidates,
    CandidateTask,
    ContextTask,
    RankAllTask,
    RankGroupTask,
    RankTask,
)
from spark_fm.spark.broadcast import Broadcast, session_broadcast
from spark_fm.spark.schema import check_outputs, quoted
from spark_fm.spark.session import SparkCluster, tagged

SHIPPED_BYTES = 128 * 2**20  # candidate vectors that every task may hold
GROUP_BYTES = 64 * 2**20  # vectors of one group where larger sets are joined in groups
ID_BYTES = 16  # about what an id takes beside its vector
SECONDS_A_TASK = 1.0
MOST_TASKS_A_SLOT = 16
RANK = "rank"
INTEGERS = (IntegerType(), LongType())
ARROW_TYPES: dict[DataType, pa.DataType] = {
    IntegerType(): pa.int32(),
    LongType(): pa.int64(),
    StringType(): pa.string(),
}


@dataclass(frozen=True, slots=True)
class RecommendQuery:
    """What to recommend, and the caller's names of columns.

    Parameters
    ----------
    k : int
    context_col, candidate_col : str
    exclude : DataFrame or None
        Pairs that must not come up.
    """

    k: int
    context_col: str
    candidate_col: str
    exclude: DataFrame | None


class Recommending(FittedModel):
    """The methods of a model that find the best candidates for a context."""

    def recommend(
        self,
        contexts: DataFrame,
        candidates: DataFrame,
        k: int,
        *,
        contextCol: str,
        candidateCol: str,
        exclude: DataFrame | None = None,
    ) -> DataFrame:
        """Return for each context the k candidates with the highest scores, exactly.

        Parameters
        ----------
        contexts : DataFrame
            Ids and the features of a user or situation.
        candidates : DataFrame
            Ids and the features of an item. No feature may be in a context too.
        k : int
            Candidates a context (>= 1); fewer come back when there are fewer.
        contextCol, candidateCol : str
            Columns of ids: int, bigint or string, unique, not null.
        exclude : DataFrame, optional
            Pairs of both ids that must not come up; unknown ones and nulls do not matter.

        Returns
        -------
        DataFrame
            contextCol, candidateCol, scoreCol ("score" if it is unset) as ``transform`` gives
            for the sum of both vectors, and ``rank`` from 1. Equal scores rank by candidate
            id.

        Raises
        ------
        InvalidColumnError, InvalidParamError
            At once.
        InvalidDataError
            At once for null or repeated ids. When the result is used, and then as Spark's
            PythonException, for a feature in a context and in a candidate, and for rows that
            cannot be scored; handleInvalid "skip" and "keep" both leave these out.

        Notes
        -----
        Reads ids and candidates now, contexts when the result is used. O(nnz k) a row and about
        3 ns a pair at 16 factors. Up to 128 MiB, candidate vectors are sent to every task;
        more are joined in groups of 64 MiB. The formula is in docs/recommending.md.
        """
        return recommend(
            self, contexts, candidates, RecommendQuery(k, contextCol, candidateCol, exclude)
        )

    def context_vectors(
        self, contexts: DataFrame, *, vectorCol: str = "vector", constantCol: str = "constant"
    ) -> DataFrame:
        """Add the vector and constant of each context, for a maximum inner product index.

        Parameters
        ----------
        contexts : DataFrame
            With a features column.
        vectorCol, constantCol : str
            Columns to add: array<float> of numFactors + 1 numbers, and double.

        Returns
        -------
        DataFrame
            The margin of a context with a candidate is ``constant + <vector, vector>`` with
            the candidate's vector of ``candidate_vectors``; the constant does not change the
            order of a context's candidates.

        Notes
        -----
        Right only where contexts and candidates have no feature in common, which is not
        checked here.
        """
        return context_vectors(self, contexts, vectorCol, constantCol)

    def candidate_vectors(self, candidates: DataFrame, *, vectorCol: str = "vector") -> DataFrame:
        """Add the vector of each candidate, to be put into a maximum inner product index.

        Parameters
        ----------
        candidates : DataFrame
            With a features column.
        vectorCol : str
            Column to add: array<float> of numFactors + 1 numbers.

        Returns
        -------
        DataFrame
            See ``context_vectors``.
        """
        return candidate_vectors(self, candidates, vectorCol)


@dataclass(frozen=True, slots=True)
class ProblemSize:
    """How much there is to rank: rows of both sides, and numbers in a vector."""

    n_contexts: int
    n_candidates: int
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a vector with its id."""
        return 4 * self.width + ID_BYTES

    def n_tasks(self, slots: int) -> int:
        """Return how many tasks the products are worth; a pair takes 1 ns + 0.1 ns a number."""
        seconds = 1e-9 * (1 + 0.1 * self.width) * self.n_contexts * self.n_candidates
        if seconds <= SECONDS_A_TASK:
            return 1
        return slots * min(math.ceil(seconds / SECONDS_A_TASK / slots), MOST_TASKS_A_SLOT)


def recommend(
    model: FittedModel,
    contexts: DataFrame,
    candidates: DataFrame,
    question: RecommendQuery,
) -> DataFrame:
    """Do what ``Recommending.recommend`` says."""
    require(isinstance(question.k, Integral) and question.k >= 1, "k", question.k,
            "a whole number of at least 1")  # fmt: skip
    params = ("contextCol", "candidateCol", "scoreCol", "the column of ranks")
    names = (question.context_col, question.candidate_col, model.getScoreCol() or "score", RANK)
    check_outputs(StructType(), dict(zip(params, names, strict=True)))
    kinds = (
        _id_type(contexts, question.context_col, "contextCol"),
        _id_type(candidates, question.candidate_col, "candidateCol"),
    )
    seen = None if question.exclude is None else _seen(contexts, question, kinds)
    session = contexts.sparkSession
    cluster = SparkCluster.of(session)
    with tagged(session, "recommend"):
        extent = _extent(contexts, candidates, question, model.weights.k + 1)
        items = _vectors(candidates, question.candidate_col, CANDIDATE,
                         candidate_column(model, candidates))  # fmt: skip
        n_bytes = extent.n_candidates * extent.row_bytes
        is_small = n_bytes <= min(SHIPPED_BYTES, cluster.result_limit)
        table = items.toArrow() if is_small else None
        taken = _features(items.select("features").toArrow() if table is None else table)
    handle = session_broadcast(session, taken, n_bytes=taken.nbytes)
    asked = _vectors(contexts, question.context_col, CONTEXT,
                     context_column(model, contexts, taken=handle)).drop("features")  # fmt: skip
    if seen is not None:
        asked = asked.join(seen, CONTEXT, "left")
    schema, ranking = _ranking(model, question.k, kinds)
    n_tasks = extent.n_tasks(cluster.task_slots)
    if table is None:
        ranked = _in_groups(asked, items.drop("features"), (ranking, schema), extent, n_tasks)
    else:
        found = session_broadcast(session, Candidates.of(table), n_bytes=n_bytes)
        asked = asked.repartition(n_tasks, CONTEXT) if n_tasks > 1 else asked
        ranked = asked.mapInArrow(RankAllTask(ranking, found), schema)
    columns = (CONTEXT, CANDIDATE, "score", RANK)
    return ranked.select(*(F.col(c).alias(n) for c, n in zip(columns, names, strict=True)))


def _id_type(dataset: DataFrame, name: str, param: str) -> DataType:
    schema = dataset.schema
    if name not in schema.names:
        raise InvalidColumnError(
            f"{param}={name!r} is not a column of the DataFrame; there are "
            f"{', '.join(schema.names)}. Set {param}."
        )
    kind = schema[name].dataType
    if kind not in ARROW_TYPES:
        raise InvalidColumnError(
            f"{param}={name!r} has type {kind.simpleString()}; expected int, bigint or string. "
            "Cast it."
        )
    return kind


def _extent(
    contexts: DataFrame, candidates: DataFrame, question: RecommendQuery, width: int
) -> ProblemSize:
    """Count both sides in one job, and raise InvalidDataError for null or repeated ids."""
    counted: list[DataFrame] = []
    for dataset, name in ((contexts, question.context_col), (candidates, question.candidate_col)):
        n = len(counted)
        column = quoted(name)
        counts = (F.count("*"), F.count(column), F.count_distinct(column))
        counted.append(dataset.agg(*(c.alias(f"c{n}{i}") for i, c in enumerate(counts))))
    row = counted[0].crossJoin(counted[1]).collect()[0]
    for what, param, name, (n_rows, n_ids, n_distinct) in (
        ("contexts", "contextCol", question.context_col, row[:3]),
        ("candidates", "candidateCol", question.candidate_col, row[3:]),
    ):
        if n_ids < n_rows:
            raise InvalidDataError(
                f"{n_rows - n_ids} of {n_rows} {what} have no id: {param}={name!r} is null. Drop "
                "these rows or give them ids."
            )
        if n_distinct < n_rows:
            raise InvalidDataError(
                f"{n_rows} {what} have {n_distinct} different ids in {param}={name!r}; every id "
                f"may be there once. Call dropDuplicates([{name!r}])."
            )
    return ProblemSize(row[0], row[3], width)


def _vectors(dataset: DataFrame, name: str, alias: str, made: Column) -> DataFrame:
    """Return ids and the fields of VECTORS, without rows that cannot be scored."""
    both = force_row_input(dataset).select(quoted(name).alias(alias), made.alias("made"))
    # Not "made": PySpark 4.0 gives a struct of nulls for a null struct.
    return both.where(F.col("made.vector").isNotNull()).select(alias, "made.*")


def _features(table: pa.Table) -> NDArray[np.int32]:
    lists = table.column("features")
    return np.unique(np.concatenate([np.empty(0, np.int32), *map(_flat, lists.chunks)]))


def _flat(lists: pa.Array) -> NDArray[np.int32]:
    return np.asarray(lists.flatten())


def _seen(
    contexts: DataFrame, question: RecommendQuery, kinds: tuple[DataType, DataType]
) -> DataFrame:
    """Return for each context the candidates it has seen, as an array."""
    assert question.exclude is not None  # noqa: S101 - the caller's condition
    names = (question.context_col, question.candidate_col)
    columns = []
    for name, kind, param, alias in zip(
        names, kinds, ("contextCol", "candidateCol"), (CONTEXT, CANDIDATE), strict=True
    ):
        own = _id_type(question.exclude, name, param)
        if (own in INTEGERS) != (kind in INTEGERS):
            raise InvalidColumnError(
                f"exclude has {name!r} as {own.simpleString()}, but the ids are "
                f"{kind.simpleString()}. Cast it."
            )
        columns.append(quoted(name).cast(kind).alias(alias))
    pairs = question.exclude.select(*columns).dropna()
    # Pairs of contexts that nobody asks about are not grouped.
    asked = contexts.select(quoted(question.context_col).alias(CONTEXT))
    pairs = pairs.join(asked, CONTEXT, "left_semi")
    return pairs.groupBy(CONTEXT).agg(F.collect_set(CANDIDATE).alias(SEEN))


def _ranking(
    model: FittedModel, k: int, kinds: tuple[DataType, DataType]
) -> tuple[StructType, RankTask]:
    """Return the task, and the Spark schema of what it makes."""
    schema = StructType(
        [
            StructField(CONTEXT, kinds[0]),
            StructField(CANDIDATE, kinds[1]),
            StructField("margin", DoubleType()),
            StructField("score", DoubleType()),
            StructField(RANK, IntegerType()),
        ]
    )
    arrow = {**ARROW_TYPES, DoubleType(): pa.float64()}
    fields = [pa.field(field.name, arrow[field.dataType]) for field in schema]
    return schema, RankTask(__version__, k, model._loss, pa.schema(fields))


def _in_groups(
    asked: DataFrame,
    items: DataFrame,
    ranking: tuple[RankTask, StructType],
    extent: ProblemSize,
    n_tasks: int,
) -> DataFrame:
    """Rank groups of candidates for groups of contexts, then merge what each context got.

    A group of either side holds about GROUP_BYTES, whatever their number.
    """
    task, schema = ranking
    limit = GROUP_BYTES // extent.row_bytes
    n_right = max(1, math.ceil(extent.n_candidates / limit))
    n_left = max(1, math.ceil(extent.n_contexts / limit), math.ceil(n_tasks / n_right))
    left = _grouped(asked, CONTEXT, ("left", n_left), ("right", n_right))
    right = _grouped(items, CANDIDATE, ("right", n_right), ("left", n_left))

    # A function: PySpark counts the parameters of what it is given.
    def rank(contexts: pa.Table, candidates: pa.Table) -> pa.Table:
        return RankGroupTask(task)(contexts, candidates)

    keys = ("left", "right")
    parts = left.groupBy(*keys).cogroup(right.groupBy(*keys)).applyInArrow(rank, schema)
    order = Window.partitionBy(CONTEXT).orderBy(F.desc("margin"), CANDIDATE)
    merged = parts.drop(RANK).withColumn(RANK, F.row_number().over(order))
    return merged.where(F.col(RANK) <= task.k)


def _grouped(rows: DataFrame, key: str, own: tuple[str, int], others: tuple[str, int]) -> DataFrame:
    """Give each row one of its own groups, and a copy for each group of the other side."""
    (name, count), (other, copies) = own, others
    group = F.pmod(F.xxhash64(key), F.lit(count)).alias(name)
    copy = F.explode(F.sequence(F.lit(0), F.lit(copies - 1))).alias(other)
    return rows.select("*", group, copy)


def context_vectors(
    model: FittedModel, contexts: DataFrame, vector_col: str, constant_col: str
) -> DataFrame:
    """Do what ``Recommending.context_vectors`` says."""
    outputs = {"vectorCol": vector_col, "constantCol": constant_col}
    check_outputs(contexts.schema, outputs)
    made = context_column(model, contexts, taken=None)
    return _with_parts(model, contexts, made, {"vector": vector_col, "constant": constant_col})


def candidate_vectors(model: FittedModel, candidates: DataFrame, vector_col: str) -> DataFrame:
    """Do what ``Recommending.candidate_vectors`` says."""
    check_outputs(candidates.schema, {"vectorCol": vector_col})
    made = candidate_column(model, candidates)
    return _with_parts(model, candidates, made, {"vector": vector_col})


def context_column(model: FittedModel, contexts: DataFrame, *, taken: Broadcast | None) -> Column:
    """Return the column of VECTORS of contexts, none of which may have a ``taken`` feature."""
    reader = model._reader(contexts)
    handle = model._handle(contexts.sparkSession)
    kind = contexts.schema[reader.features_col].dataType
    return struct_column(ContextTask(__version__, handle, reader, taken), kind, VECTORS)


def candidate_column(model: FittedModel, candidates: DataFrame) -> Column:
    """Return the column of VECTORS of candidates."""
    reader = model._reader(candidates)
    handle = model._handle(candidates.sparkSession)
    kind = candidates.schema[reader.features_col].dataType
    return struct_column(CandidateTask(__version__, handle, reader), kind, VECTORS)


def _with_parts(
    model: FittedModel, dataset: DataFrame, made: Column, outputs: dict[str, str]
) -> DataFrame:
    whole = f"spark_fm_{uuid4().hex}"
    result = force_row_input(dataset).select("*", made.alias(whole))
    if model.getHandleInvalid() == "skip":
        result = result.where(F.col(whole)["vector"].isNotNull())
    parts = (F.col(whole)[part].alias(name) for part, name in outputs.items())
    return result.select("*", *parts).drop(whole)
