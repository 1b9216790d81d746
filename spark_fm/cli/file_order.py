"""The rows of files in the order of those; driver only."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


def in_file_order(frame: DataFrame) -> DataFrame:
    """Return the rows in the order of (file name, place in the file), partitions included.

    Parameters
    ----------
    frame : DataFrame
        Read from text or Parquet files, with nothing done to it yet.

    Notes
    -----
    Spark puts the pieces of files together by their size. This sorts the rows, in a
    shuffle, for trainings that depend on the order.
    """
    keys = {
        "file_path": F.col("_metadata.file_path"),
        "file_start": F.col("_metadata.file_block_start"),
        "row_number": F.monotonically_increasing_id(),
    }
    keyed = frame.select("*", *(key.alias(f"spark_fm_{name}") for name, key in keys.items()))
    names = [f"spark_fm_{name}" for name in keys]
    return keyed.sort(*names).drop(*names)
