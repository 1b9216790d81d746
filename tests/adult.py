"""UCI Adult as a table of raw columns, restored from a9a, its one-hot form.

a9a has the 14 attributes in the order of the original file, with numbers binned: exactly one
of an attribute's features is set, or none where the value is unknown.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import Rows

# Number of categories of each attribute; together the 123 features of a9a.
CATEGORIES = {
    "age": 5,
    "workclass": 8,
    "fnlwgt": 5,
    "education": 16,
    "education_num": 5,
    "marital_status": 7,
    "occupation": 14,
    "relationship": 6,
    "race": 5,
    "sex": 2,
    "capital_gain": 2,
    "capital_loss": 2,
    "hours_per_week": 5,
    "native_country": 41,
}


def adult_frame(spark: SparkSession, rows: Rows, n_partitions: int = 2) -> DataFrame:
    """Return ``label`` and a string column for each attribute, null where unknown."""
    columns: dict[str, pa.Array] = {"label": pa.array(rows.y)}
    first = 0
    for name, n_categories in CATEGORIES.items():
        flags = rows.X[:, first : first + n_categories].toarray()
        names = np.array([f"{name}-{number}" for number in range(1, n_categories + 1)])
        columns[name] = pa.array(names[flags.argmax(axis=1)], mask=~flags.any(axis=1))
        first += n_categories
    return spark.createDataFrame(pa.table(columns)).repartition(n_partitions)
