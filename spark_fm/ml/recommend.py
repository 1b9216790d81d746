"""The best candidates for each context, and the vectors of both; driver only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, Window
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

from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.learner.spec import LossName, require
from spark_fm.ml.base import FittedModel
from spark_fm.scoring.columns import with_structs
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
from spark_fm.spark.schema import check_outputs, column_of, quoted
from spark_fm.spark.session import SparkCluster, tagged

BROADCAST_BYTES = 128 * 2**20  # candidate vectors that every task may hold
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


class RecommendMethods(FittedModel):
    """The methods of a model that rank candidates for contexts."""

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
            Ids and the features of an item, none of which may occur in a context.
        k : int
            Candidates per context (>= 1); fewer if there are not as many.
        contextCol, candidateCol : str
            Columns of ids: int, bigint or string, unique, not null.
        exclude : DataFrame, optional
            Pairs of both ids to leave out; unknown ids and nulls are ignored.

        Returns
        -------
        DataFrame
            contextCol, candidateCol, scoreCol ("score" if it is unset), the score that
            ``transform`` gives the sum of both vectors, and ``rank`` from 1. Ties rank by
            candidate id.

        Raises
        ------
        InvalidColumnError, InvalidParamError
            At once.
        InvalidDataError
            At once for null or repeated ids. When the result is used, and then as Spark's
            PythonException, for a feature in both a context and a candidate, and for rows
            that cannot be scored; handleInvalid "skip" and "keep" both leave these out.

        Notes
        -----
        Reads ids and candidates at once, contexts when the result is used. O(nnz k) per row
        and about 3 ns per pair at 16 factors. Up to 128 MiB of candidate vectors are sent to
        every task; more are joined in groups of 64 MiB. See docs/recommending.md.
        """
        require(isinstance(k, Integral) and k >= 1, "k", k, "a whole number of at least 1")
        params = ("contextCol", "candidateCol", "scoreCol", "the column of ranks")
        names = (contextCol, candidateCol, self.getScoreCol() or "score", RANK)
        check_outputs(contexts, dict(zip(params, names, strict=True)), beside=False)
        id_types = (
            _id_type(contexts, contextCol, "contextCol"),
            _id_type(candidates, candidateCol, "candidateCol"),
        )
        seen = None
        if exclude is not None:
            pairs = _excluded_pairs(exclude, (contextCol, candidateCol), id_types)
            # Pairs of contexts that nobody asks about are not grouped.
            asked = contexts.select(quoted(contextCol).alias(CONTEXT))
            pairs = pairs.join(asked, CONTEXT, "left_semi")
            seen = pairs.groupBy(CONTEXT).agg(F.collect_set(CANDIDATE).alias(SEEN))
        session = contexts.sparkSession
        cluster = SparkCluster.of(session)
        with tagged(session, "recommend"):
            n_contexts, n_candidates = _counts((contexts, contextCol), (candidates, candidateCol))
            size = ProblemSize(n_contexts, n_candidates, self.weights.k + 1)
            candidate_rows = _rows_with_vectors(
                self._with_candidates(candidates), candidateCol, CANDIDATE
            )
            n_bytes = size.n_candidates * size.row_bytes
            is_small = n_bytes <= min(BROADCAST_BYTES, cluster.result_limit)
            table = candidate_rows.toArrow() if is_small else None
            features = candidate_rows.select("features").toArrow() if table is None else table
            candidate_features = _distinct_features(features)
        shared_features = session_broadcast(
            session, candidate_features, n_bytes=candidate_features.nbytes
        )
        context_rows = _rows_with_vectors(
            self._with_contexts(contexts, shared_features), contextCol, CONTEXT
        ).drop("features")
        if seen is not None:
            context_rows = context_rows.join(seen, CONTEXT, "left")
        schema, task = _rank_task(self._loss, k, id_types)
        n_tasks = size.n_tasks(cluster.task_slots)
        if table is None:
            candidate_rows = candidate_rows.drop("features")
            ranked = _ranked_in_groups(context_rows, candidate_rows, (task, schema), size, n_tasks)
        else:
            shared = session_broadcast(session, Candidates.of(table), n_bytes=n_bytes)
            if n_tasks > 1:
                context_rows = context_rows.repartition(n_tasks, CONTEXT)
            ranked = context_rows.mapInArrow(RankAllTask(task, shared), schema)
        columns = (CONTEXT, CANDIDATE, "score", RANK)
        return ranked.select(*(F.col(c).alias(n) for c, n in zip(columns, names, strict=True)))

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
        Correct only if contexts and candidates have no feature in common, which is not
        checked here.
        """
        check_outputs(contexts, {"vectorCol": vectorCol, "constantCol": constantCol})
        made = self._with_contexts(contexts, candidate_features=None)
        return self._with_fields(made, {"vector": vectorCol, "constant": constantCol})

    def candidate_vectors(self, candidates: DataFrame, *, vectorCol: str = "vector") -> DataFrame:
        """Add the vector of each candidate, for a maximum inner product index.

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
        check_outputs(candidates, {"vectorCol": vectorCol})
        return self._with_fields(self._with_candidates(candidates), {"vector": vectorCol})

    def _with_contexts(
        self, contexts: DataFrame, candidate_features: Broadcast | None
    ) -> tuple[DataFrame, str]:
        """Add the struct VECTORS to contexts, which may have no feature of candidates."""
        reader = self._reader(contexts)
        weights = self._broadcast(contexts.sparkSession)
        task = ContextTask(weights, reader, candidate_features)
        return with_structs(contexts, task, VECTORS)

    def _with_candidates(self, candidates: DataFrame) -> tuple[DataFrame, str]:
        """Add the struct VECTORS to candidates."""
        reader = self._reader(candidates)
        weights = self._broadcast(candidates.sparkSession)
        return with_structs(candidates, CandidateTask(weights, reader), VECTORS)

    def _with_fields(self, made: tuple[DataFrame, str], names: dict[str, str]) -> DataFrame:
        """Return the named fields of a struct as columns in its place."""
        result, internal = made
        if self.getHandleInvalid() == "skip":
            result = result.where(F.col(internal)["vector"].isNotNull())
        columns = (F.col(internal)[part].alias(name) for part, name in names.items())
        return result.select("*", *columns).drop(internal)


@dataclass(frozen=True, slots=True)
class ProblemSize:
    """Number of rows to rank on both sides, and of numbers in a vector."""

    n_contexts: int
    n_candidates: int
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a vector with its id."""
        return 4 * self.width + ID_BYTES

    def n_tasks(self, slots: int) -> int:
        """Return how many tasks are worthwhile; a pair takes 1 ns + 0.1 ns per number."""
        seconds = 1e-9 * (1 + 0.1 * self.width) * self.n_contexts * self.n_candidates
        if seconds <= SECONDS_A_TASK:
            return 1
        return slots * min(math.ceil(seconds / SECONDS_A_TASK / slots), MOST_TASKS_A_SLOT)


def _id_type(dataset: DataFrame, name: str, param: str) -> DataType:
    kind = column_of(dataset, name, param).dataType
    if kind not in ARROW_TYPES:
        raise InvalidColumnError(
            f"{param}={name!r} has type {kind.simpleString()}; expected int, bigint or string. "
            "Cast it."
        )
    return kind


def _counts(*sides: tuple[DataFrame, str]) -> tuple[int, int]:
    """Count contexts and candidates in one job; raise InvalidDataError for bad ids."""
    counted = []
    for number, (dataset, name) in enumerate(sides):
        counts = (F.count("*"), F.count(quoted(name)), F.count_distinct(quoted(name)))
        counted.append(dataset.agg(*(c.alias(f"c{number}{i}") for i, c in enumerate(counts))))
    row = counted[0].crossJoin(counted[1]).collect()[0]
    for what, param, (_, name), (n_rows, n_ids, n_distinct) in (
        ("contexts", "contextCol", sides[0], row[:3]),
        ("candidates", "candidateCol", sides[1], row[3:]),
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
    return row[0], row[3]


def _rows_with_vectors(made: tuple[DataFrame, str], name: str, alias: str) -> DataFrame:
    """Return ids and the fields of VECTORS, without rows that cannot be scored."""
    dataset, parts = made
    rows = dataset.select(quoted(name).alias(alias), F.col(parts).alias("parts"))
    # Not "parts": PySpark 4.0 gives a struct of nulls for a null struct.
    return rows.where(F.col("parts.vector").isNotNull()).select(alias, "parts.*")


def _distinct_features(table: pa.Table) -> NDArray[np.int32]:
    chunks = table.column("features").chunks
    flat = [np.asarray(lists.flatten()) for lists in chunks]
    return np.unique(np.concatenate([np.empty(0, np.int32), *flat]))


def _excluded_pairs(
    exclude: DataFrame, names: tuple[str, str], id_types: tuple[DataType, DataType]
) -> DataFrame:
    """Return pairs of both ids, in the types of the contexts and candidates."""
    columns = []
    for name, id_type, param, alias in zip(
        names, id_types, ("contextCol", "candidateCol"), (CONTEXT, CANDIDATE), strict=True
    ):
        given = _id_type(exclude, name, param)
        if (given in INTEGERS) != (id_type in INTEGERS):
            raise InvalidColumnError(
                f"exclude has {name!r} as {given.simpleString()}, but the ids are "
                f"{id_type.simpleString()}. Cast it."
            )
        columns.append(quoted(name).cast(id_type).alias(alias))
    return exclude.select(*columns).dropna()


def _rank_task(
    loss: LossName, k: int, id_types: tuple[DataType, DataType]
) -> tuple[StructType, RankTask]:
    """Return the task and the schema of its rows."""
    schema = StructType(
        [
            StructField(CONTEXT, id_types[0]),
            StructField(CANDIDATE, id_types[1]),
            StructField("margin", DoubleType()),
            StructField("score", DoubleType()),
            StructField(RANK, IntegerType()),
        ]
    )
    arrow = {**ARROW_TYPES, DoubleType(): pa.float64()}
    fields = [pa.field(field.name, arrow[field.dataType]) for field in schema]
    return schema, RankTask(k, loss, pa.schema(fields))


def _ranked_in_groups(
    context_rows: DataFrame,
    candidate_rows: DataFrame,
    ranking: tuple[RankTask, StructType],
    size: ProblemSize,
    n_tasks: int,
) -> DataFrame:
    """Rank groups of candidates for groups of contexts, then merge the ranks of each context.

    A group of either side holds about GROUP_BYTES, whatever their number.
    """
    task, schema = ranking
    rank_group = RankGroupTask(task)  # made here: it carries the driver's version
    limit = GROUP_BYTES // size.row_bytes
    n_right = max(1, math.ceil(size.n_candidates / limit))
    n_left = max(1, math.ceil(size.n_contexts / limit), math.ceil(n_tasks / n_right))
    left = _grouped(context_rows, CONTEXT, ("left", n_left), ("right", n_right))
    right = _grouped(candidate_rows, CANDIDATE, ("right", n_right), ("left", n_left))

    # A function: PySpark counts the parameters of what it is given.
    def rank(contexts: pa.Table, candidates: pa.Table) -> pa.Table:
        return rank_group(contexts, candidates)

    keys = ("left", "right")
    parts = left.groupBy(*keys).cogroup(right.groupBy(*keys)).applyInArrow(rank, schema)
    order = Window.partitionBy(CONTEXT).orderBy(F.desc("margin"), CANDIDATE)
    merged = parts.drop(RANK).withColumn(RANK, F.row_number().over(order))
    return merged.where(F.col(RANK) <= task.k)


def _grouped(
    rows: DataFrame, key: str, groups: tuple[str, int], copies: tuple[str, int]
) -> DataFrame:
    """Assign each row to a group by its key, and copy it for each group of the other side."""
    (group_name, n_groups), (copy_name, n_copies) = groups, copies
    group = F.pmod(F.xxhash64(key), F.lit(n_groups)).alias(group_name)
    copy = F.explode(F.sequence(F.lit(0), F.lit(n_copies - 1))).alias(copy_name)
    return rows.select("*", group, copy)
