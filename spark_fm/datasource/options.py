"""Checked options of a read by the data source; driver and executors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from spark_fm.errors import InvalidParamError

MODES = ("FAILFAST", "DROPMALFORMED", "PERMISSIVE")
SPLIT_BYTES = 2**25
_EXTRA_COLUMNS = {"includeUid": "uid", "includeMetadata": "metadata", "includeFileName": "fileName"}


@dataclass(frozen=True)
class ReadOptions:
    """Checked options of a read; see RecordIODataSource."""

    paths: tuple[str, ...]
    feature_dim: int
    mode: str
    corrupt_column: str
    extra: tuple[str, ...]
    split_bytes: int
    max_record_bytes: int
    recursive: bool
    max_files: int

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Columns after label and features."""
        corrupt = (self.corrupt_column,) if self.mode == "PERMISSIVE" else ()
        return self.extra + corrupt

    @classmethod
    def of(cls, options: Any) -> ReadOptions:
        """Check Spark's options, whose names are in any case."""
        mode = str(options.get("mode", MODES[0])).upper()
        if mode not in MODES:
            raise InvalidParamError(f"mode={options['mode']!r} is not one of {', '.join(MODES)}.")
        return cls(
            paths=_paths(options),
            feature_dim=_whole(options, "featureDim", 0, lowest=1, highest=2**31 - 1),
            mode=mode,
            corrupt_column=options.get("columnNameOfCorruptRecord", "_corrupt_record"),
            extra=tuple(c for name, c in _EXTRA_COLUMNS.items() if _flag(options, name)),
            split_bytes=_whole(options, "splitBytes", SPLIT_BYTES, lowest=2**10, highest=2**40),
            max_record_bytes=_whole(options, "maxRecordBytes", 2**26, lowest=1, highest=2**29 - 1),
            recursive=_flag(options, "recursiveFileLookup"),
            max_files=_whole(options, "maxFilesPerTrigger", 0, lowest=1, highest=2**31 - 1),
        )


def _paths(options: Any) -> tuple[str, ...]:
    """Return one path, or the list that Spark passes as JSON."""
    if options.get("paths"):
        return tuple(json.loads(options["paths"]))
    return (options["path"],) if options.get("path") else ()


def _whole(options: Any, name: str, default: int, *, lowest: int, highest: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not lowest <= number <= highest:
        raise InvalidParamError(
            f"{name}={text!r} is not a whole number from {lowest:,} to {highest:,}."
        )
    return number


def _flag(options: Any, name: str) -> bool:
    text = str(options.get(name, "false")).lower()
    if text not in ("true", "false"):
        raise InvalidParamError(f"{name}={options[name]!r} is neither true nor false.")
    return text == "true"
