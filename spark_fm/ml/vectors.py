"""Contexts and candidates as vectors whose inner product is their score; driver only.

How a score splits into those is in ``learner.ranking``.
"""

from __future__ import annotations

from uuid import uuid4

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_fm._version import __version__
from spark_fm.ml.fitted import FittedModel
from spark_fm.scoring.columns import row_based, struct_column
from spark_fm.scoring.ranking import VECTORS, CandidateTask, ContextTask
from spark_fm.spark.broadcast import Handle
from spark_fm.spark.schema import check_outputs


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


def context_column(model: FittedModel, contexts: DataFrame, *, taken: Handle | None) -> Column:
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
    result = row_based(dataset).select("*", made.alias(whole))
    if model.getHandleInvalid() == "skip":
        result = result.where(F.col(whole)["vector"].isNotNull())
    parts = (F.col(whole)[part].alias(name) for part, name in outputs.items())
    return result.select("*", *parts).drop(whole)
