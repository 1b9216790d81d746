"""The worker's end of a shipment: objects inside a task that give a value back."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Protocol

from spark_fm.engine.local_files import read_value


class Handle(Protocol):
    """A value on its way; ``load`` returns it on a worker. Treat it as read-only."""

    def load(self) -> Any:
        """Return the value."""


class InlineHandle:
    """A value that travels inside the task's closure."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def load(self) -> Any:
        """Return the value."""
        return self._value


class BroadcastHandle:
    """A value in a Spark broadcast variable (Classic)."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def load(self) -> Any:
        """Return the value, unpickled once a worker process."""
        return self._variable.value


class FileHandle:
    """A value in a file of the one machine that driver and tasks share."""

    def __init__(self, path: str) -> None:
        self._path = path

    def load(self) -> Any:
        """Map the file and return the value; its arrays are read-only."""
        return read_value(Path(self._path))


class ArtifactHandle:
    """A value in a file artifact of the Spark session (Connect)."""

    def __init__(self, name: str) -> None:
        self._name = name

    def load(self) -> Any:
        """Read and return the value."""
        from pyspark import SparkFiles

        with open(SparkFiles.get(self._name), "rb") as file:
            # Written a moment ago by this session's driver and by nobody else.
            return pickle.load(file)
