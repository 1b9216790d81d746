"""Arrow UDFs from generators over arrays; PySpark 4.0 has none and gets pandas UDFs.

Driver; what the functions call runs on executors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import GenericAlias
from typing import Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import DataType, StructType


def has_arrow_udf() -> bool:
    """Return whether this PySpark has Arrow UDFs (4.1 and later)."""
    return hasattr(F, "arrow_udf")


def arrow_function(
    name: str,
    function: Callable[[Iterator[Any]], Iterator[pa.Array]],
    returns: DataType,
    n_columns: int = 1,
) -> Any:
    """Return the UDF of a generator over arrays, or over tuples of ``n_columns`` of them."""

    def call(columns: Iterator[Any]) -> Iterator[pa.Array]:
        return function(columns)

    call.__name__ = name  # part of the name of a column without an alias
    _annotate(call, pa.Array, n_columns, pa.Array)
    functions: Any = F  # PySpark 4.0 has no such function
    return functions.arrow_udf(call, returnType=returns)


def pandas_function(
    name: str,
    function: Callable[[Iterator[Any]], Iterator[Any]],
    returns: DataType,
    n_columns: int = 1,
) -> Any:
    """Return the UDF of a generator over series, or over tuples of ``n_columns`` of them.

    It yields series, or frames for a struct. A struct comes as a frame of its fields.
    """

    def call(batches: Iterator[Any]) -> Iterator[Any]:
        return function(batches)

    result = pd.DataFrame if isinstance(returns, StructType) else pd.Series
    call.__name__ = name
    _annotate(call, pd.Series, n_columns, result)
    make: Any = pandas_udf  # its overloads know no such functions
    return make(call, returnType=returns)


def _annotate(call: Callable[..., Any], kind: type, n_columns: int, result: type) -> None:
    # PySpark reads the kinds of columns from the annotations and evaluates them: strings, as
    # written in this module, would not do.
    argument = kind if n_columns == 1 else GenericAlias(tuple, (kind,) * n_columns)
    call.__annotations__ = {
        call.__code__.co_varnames[0]: GenericAlias(Iterator, (argument,)),
        "return": GenericAlias(Iterator, (result,)),
    }
