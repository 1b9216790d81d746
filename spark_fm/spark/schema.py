"""Check and select columns before any job runs; driver only."""

from __future__ import annotations

from dataclasses import dataclass

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
    StructField,
    UserDefinedType,
)

from spark_fm.errors import InvalidColumnError, InvalidDataError
from spark_fm.spark.session import setting


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


def find_column(dataset: DataFrame, name: str) -> StructField | None:
    """Return the column that Spark resolves this name to, or None.

    Case counts where ``spark.sql.caseSensitive`` is true.

    Raises
    ------
    InvalidColumnError
        For several such columns.
    """
    check_frame(dataset)
    fields = [field for field in dataset.schema.fields if field.name.lower() == name.lower()]
    if any(field.name != name for field in fields) and _is_case_sensitive(dataset):
        fields = [field for field in fields if field.name == name]
    if len(fields) > 1:
        raise InvalidColumnError(
            f"{name!r} stands for several columns: {', '.join(field.name for field in fields)}. "
            "Rename all but one, or set spark.sql.caseSensitive to true if they differ in case."
        )
    return fields[0] if fields else None


def column_of(dataset: DataFrame, name: str, param: str, *, advice: str = "Set") -> StructField:
    """Return the column that Spark resolves this name, a Param's value, to.

    ``advice`` stands before the name of the Param at the end of the message.

    Raises
    ------
    InvalidColumnError
        For none, or several.
    """
    field = find_column(dataset, name)
    if field is None:
        raise InvalidColumnError(
            f"{param}={name!r} is not a column of the input; there are "
            f"{', '.join(dataset.schema.names)}. {advice} {param}."
        )
    return field


def _is_case_sensitive(dataset: DataFrame) -> bool:
    return setting(dataset.sparkSession, "spark.sql.caseSensitive", "false").lower() == "true"


def is_vector(kind: DataType) -> bool:
    """Return whether this is the type of Spark's vectors, of spark.ml or of spark.mllib.

    Both are stored alike.
    """
    return isinstance(kind, UserDefinedType) and kind.scalaUDT() in (
        "org.apache.spark.ml.linalg.VectorUDT",
        "org.apache.spark.mllib.linalg.VectorUDT",
    )


def check_features(dataset: DataFrame, name: str) -> None:
    """Raise InvalidColumnError unless the column holds vectors or arrays of floats."""
    make = "Make it with FeatureHasher, or with VectorAssembler where all are numbers, or set"
    kind = column_of(dataset, name, "featuresCol", advice=make).dataType
    if isinstance(kind, ArrayType):
        is_allowed = isinstance(kind.elementType, (DoubleType, FloatType))
        advice = "Cast it to array<double>"  # VectorAssembler takes no arrays
    else:
        is_allowed = is_vector(kind)
        advice = "Make vectors with VectorAssembler, or with FeatureHasher from text"
    if not is_allowed:
        raise InvalidColumnError(
            f"featuresCol={name!r} has type {kind.simpleString()}; expected vector, array<double> "
            f"or array<float>. {advice}, or set featuresCol."
        )


def check_training_columns(dataset: DataFrame, columns: ColumnNames) -> None:
    """Raise InvalidColumnError naming the first column that cannot be trained on."""
    check_features(dataset, columns.features)
    check_number(dataset, columns.label, "labelCol")
    if columns.weight is not None:
        check_number(dataset, columns.weight, "weightCol")
    if columns.validation is not None:
        kind = column_of(dataset, columns.validation, "validationIndicatorCol").dataType
        if not isinstance(kind, BooleanType):
            raise InvalidColumnError(
                f"validationIndicatorCol={columns.validation!r} has type {kind.simpleString()}; "
                "expected boolean, true for validation rows. Cast it, or use validationFraction."
            )


def check_outputs(dataset: DataFrame, outputs: dict[str, str], *, beside: bool = True) -> None:
    """Raise InvalidColumnError when outputs would replace columns or another output.

    Parameters
    ----------
    dataset : DataFrame
    outputs : dict of str to str
        Param name to column name.
    beside : bool
        Whether the outputs stand beside the columns of ``dataset``.
    """
    check_frame(dataset)
    key = str if _is_case_sensitive(dataset) else str.lower
    columns = {key(column) for column in dataset.schema.names} if beside else set()
    taken: dict[str, str] = {}
    there = [param for param, name in outputs.items() if key(name) in columns]
    if there:
        seen = ", ".join(f"{param}={outputs[param]!r}" for param in there)
        what, advice = ("is a column", f"Set {there[0]} to another name, or drop the column.")
        if len(there) > 1:
            what, advice = ("are columns", "Set them to other names, or drop the columns.")
        raise InvalidColumnError(f"{seen} {what} of the input already. {advice}")
    for param, name in outputs.items():
        if key(name) in taken:
            raise InvalidColumnError(
                f"{param} and {taken[key(name)]} are both {name!r}. Give each output its own name."
            )
        taken[key(name)] = param


def internal_rows(dataset: DataFrame, columns: ColumnNames) -> DataFrame:
    """Select the training columns under the internal names."""
    selected = [
        without_metadata(columns.features, "features"),
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
    return F.col(quoted_name(name))


def without_metadata(name: str, alias: str) -> Column:
    """Return the column under another name, and without the names of its features.

    Spark copies metadata into every plan and its tasks: 100,000 names double the time of a fit.
    """
    return quoted(name).alias(alias, metadata={"ml_attr": {}})  # {} would leave what is there


def quoted_name(name: str) -> str:
    """Return the name as Spark parses it to exactly this one."""
    return "`" + name.replace("`", "``") + "`"


def vector_size(column: StructField) -> int | None:
    """Return the vectors' length as the column's ml_attr metadata declare it, or None.

    Only ``num_attrs`` declares it, as in Spark's ``AttributeGroup``: attributes listed
    without it need not be all.
    """
    attributes = column.metadata.get("ml_attr")
    size = attributes.get("num_attrs") if isinstance(attributes, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def check_number(dataset: DataFrame, name: str, param: str) -> None:
    """Raise InvalidColumnError unless the column, named by ``param``, holds numbers."""
    kind = column_of(dataset, name, param).dataType
    if not isinstance(kind, (NumericType, BooleanType)):
        words = "Number its values by StringIndexer, cast" if kind == StringType() else "Cast"
        raise InvalidColumnError(
            f"{param}={name!r} has type {kind.simpleString()}; expected a number. {words} it, or "
            f"set {param}."
        )
