"""The same rows in several partitions: each task of one job has all of them; driver only."""

from __future__ import annotations

from functools import reduce

from pyspark.sql import DataFrame, SparkSession


class Copies:
    """Frames of one partition or more that each hold all rows of a small, cached frame.

    Parameters
    ----------
    rows : DataFrame
    session : SparkSession

    Notes
    -----
    Frames are put together by doubling and kept: Spark analyses each union anew, about
    10 ms a copy, and one union after the other would cost the square of their number.
    """

    def __init__(self, rows: DataFrame, session: SparkSession) -> None:
        self._session = session
        self._doubled = [rows.coalesce(1)]
        self._made = {1: self._doubled[0]}

    def of(self, number: int) -> DataFrame:
        """Return a frame of that many copies, the partitions 0 to ``number - 1``."""
        if number not in self._made:
            while 2 ** len(self._doubled) <= number:
                self._doubled.append(self._doubled[-1].union(self._doubled[-1]))
            parts = [
                self._doubled[power] for power in range(number.bit_length()) if number >> power & 1
            ]
            self._made[number] = self._kept_apart(reduce(DataFrame.union, parts))
        return self._made[number]

    def _kept_apart(self, copies: DataFrame) -> DataFrame:
        # Since 4.1 Spark puts the rows of a union of frames of a single partition into one
        # (spark.sql.unionOutputPartitioning), where the tasks would run one after the other.
        # These two have no rows, but Spark cannot know that: it would drop them again.
        empty = self._session.range(0, 2, 1, 2).where("id < 0").selectExpr(
            *(
                f"CAST(CAST(id AS STRING) AS {field.dataType.simpleString()}) AS `{field.name}`"
                for field in copies.schema
            )
        )  # fmt: skip
        return copies.union(empty)
