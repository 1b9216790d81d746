"""Streaming with a limit of files a batch; needs PySpark 4.2, which passes a batch's start."""

from __future__ import annotations

from typing import Any

from pyspark.sql.streaming.datasource import (
    ReadAllAvailable,
    ReadLimit,
    ReadMaxFiles,
    SupportsTriggerAvailableNow,
)

from spark_fm.datasource.options import ReadOptions
from spark_fm.datasource.streaming import RecordIOStreamReader, digests_of, offset_of


class LimitedStreamReader(RecordIOStreamReader, SupportsTriggerAvailableNow):
    """Takes at most ``maxFilesPerTrigger`` files a batch; supports Trigger.AvailableNow."""

    def __init__(self, options: ReadOptions) -> None:
        super().__init__(options)
        self._available: list[bytes] | None = None

    # PySpark 4.2 calls it with a start and a limit, earlier versions call the base class.
    def latestOffset(  # type: ignore[override]  # noqa: N802 - Spark's name
        self, start: dict[str, Any], limit: ReadLimit
    ) -> dict[str, Any]:
        """Return the offset after all files, or after as many more as the limit allows."""
        seen = digests_of(start)
        known = self.files() if self._available is None else self._available
        fresh = [digest for digest in known if digest not in seen]
        if isinstance(limit, ReadMaxFiles):
            fresh = fresh[: limit.max_files]
        return offset_of([*seen, *fresh])

    def getDefaultReadLimit(self) -> ReadLimit:  # noqa: N802 - Spark's name
        """Return the limit of the option maxFilesPerTrigger."""
        most = self._options.max_files
        return ReadMaxFiles(most) if most else ReadAllAvailable()

    def prepareForTriggerAvailableNow(self) -> None:  # noqa: N802 - Spark's name
        """Read no files but those present now."""
        self._available = list(self.files())
