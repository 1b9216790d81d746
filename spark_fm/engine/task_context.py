"""Where a task runs; workers only."""

from __future__ import annotations

from pyspark import TaskContext


def partition_number() -> int:
    """Return the number of this task's partition, 0 outside tasks."""
    context = TaskContext.get()
    return context.partitionId() if context is not None else 0
