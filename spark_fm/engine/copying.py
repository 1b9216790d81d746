"""The same rows in several partitions, so that each task of a job has all; driver only."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_fm.engine.dealing import partition_keys


def copies(rows: DataFrame, number: int) -> DataFrame:
    """Return a frame whose partitions 0 to ``number - 1`` each hold all of a frame's rows.

    Notes
    -----
    Rows are written ``number`` times by a shuffle. A union of frames of one partition
    each would read them where they are, but Spark analyses it anew for each of them,
    and since 4.1 puts their rows into one partition (spark.sql.unionOutputPartitioning).
    """
    if number == 1:
        return rows.coalesce(1)
    keys = F.array(*(F.lit(key) for key in partition_keys(number)))
    return rows.withColumn("copy", F.explode(keys)).repartition(number, "copy").drop("copy")
