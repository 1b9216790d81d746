"""Check and select columns before any job runs; driver only."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DoubleType,
    FloatType,
    NumericType,
    StringType,
    StructType,
)

from spark_fm.errors import InvalidColumnError, InvalidDataError


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The caller's names of the columns, for messages and for the selection."""

    features: str
    label: str
    weight: str | None = None
    validation: str | None = None


def check_frame(dataset: object) -> None:
    """Raise InvalidDataError unless this is a DataFrame of Spark, Classic or Connect."""
    if not (hasattr(dataset, "sparkSession") and hasattr(dataset, "mapInArrow")):
        raise InvalidDataError(
            f"Got a {type(dataset).__module__}.{type(dataset).__name__}; expected a Spark "
            "DataFrame. Make one with spark.createDataFrame."
        )


def check_batch_frame(dataset: DataFrame, what: str) -> None:
    """Raise InvalidDataError too for a streaming DataFrame, which ``what`` cannot read."""
    check_frame(dataset)
    if dataset.isStreaming:
        raise InvalidDataError(
            f"{what} needs rows that come to an end; this is a streaming DataFrame, which "
            "model.transform alone takes. Read the data with spark.read."
        )


def check_features(schema: StructType, name: str) -> None:
    """Raise InvalidColumnError unless the column holds vectors or arrays of floats."""
    kind = _type_of(schema, name, "featuresCol")
    is_array = isinstance(kind, ArrayType) and isinstance(kind.elementType, (DoubleType, FloatType))
    if not isinstance(kind, VectorUDT) and not is_array:
        raise InvalidColumnError(
            f"featuresCol={name!r} has type {kind.simpleString()}; expected vector, array<double> "
            "or array<float>. Assemble it with VectorAssembler, or set featuresCol."
        )


def check_training_columns(schema: StructType, columns: ColumnNames) -> None:
    """Raise InvalidColumnError naming the first column that cannot be trained on."""
    check_features(schema, columns.features)
    check_number(schema, columns.label, "labelCol")
    if columns.weight is not None:
        check_number(schema, columns.weight, "weightCol")
    if columns.validation is not None:
        kind = _type_of(schema, columns.validation, "validationIndicatorCol")
        if not isinstance(kind, BooleanType):
            raise InvalidColumnError(
                f"validationIndicatorCol={columns.validation!r} has type {kind.simpleString()}; "
                "expected boolean, true for validation rows. Cast it, or use validationFraction."
            )


def check_outputs(schema: StructType, outputs: dict[str, str]) -> None:
    """Raise InvalidColumnError when an output would replace a column or another output.

    Parameters
    ----------
    schema : StructType
    outputs : dict of str to str
        Param name to column name.
    """
    # Spark resolves names without regard to case unless it is set otherwise.
    taken_already = {column.lower() for column in schema.names}
    taken: dict[str, str] = {}
    for param, name in outputs.items():
        if name.lower() in taken_already:
            raise InvalidColumnError(
                f"{param}={name!r} is a column of the input already. Set {param} to another name, "
                "or drop the column."
            )
        if name.lower() in taken:
            raise InvalidColumnError(
                f"{param} and {taken[name.lower()]} are both {name!r}. Give each output its own "
                "name."
            )
        taken[name.lower()] = param


def internal_rows(dataset: DataFrame, columns: ColumnNames) -> DataFrame:
    """Select the training columns under the internal names."""
    selected = [
        quoted(columns.features).alias("features"),
        quoted(columns.label).cast("double").alias("label"),
    ]
    # The source partition, from the plan: a task that recomputes it may have another number.
    selected.append(F.spark_partition_id().alias("source"))
    if columns.weight is not None:
        selected.append(quoted(columns.weight).cast("double").alias("weight"))
    if columns.validation is not None:
        selected.append(quoted(columns.validation).alias("validation"))
    return dataset.select(*selected)


def quoted(name: str) -> Column:
    """Return the column of exactly this name, dots and spaces included."""
    return F.col("`" + name.replace("`", "``") + "`")


def vector_size(schema: StructType, name: str) -> int | None:
    """Return the vectors' length as the column's ml_attr metadata declare it, or None.

    Only ``num_attrs`` declares it, as in Spark's ``AttributeGroup``: attributes listed
    without it need not be all.
    """
    attributes = schema[name].metadata.get("ml_attr")
    size = attributes.get("num_attrs") if isinstance(attributes, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def check_number(schema: StructType, name: str, param: str) -> None:
    """Raise InvalidColumnError unless the column, named by ``param``, holds numbers."""
    kind = _type_of(schema, name, param)
    if not isinstance(kind, (NumericType, BooleanType)):
        words = "Number its values by StringIndexer, cast" if kind == StringType() else "Cast"
        raise InvalidColumnError(
            f"{param}={name!r} has type {kind.simpleString()}; expected a number. {words} it, or "
            f"set {param}."
        )


def _type_of(schema: StructType, name: str, param: str) -> DataType:
    if name not in schema.names:
        raise InvalidColumnError(
            f"{param}={name!r} is not a column of the input; there are {', '.join(schema.names)}. "
            f"Set {param}."
        )
    return schema[name].dataType
