"""Checked options of a read by the data source; driver and executors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spark_fm.errors import InvalidParamError, did_you_mean

log = logging.getLogger(__name__)

MODES = ("FAILFAST", "DROPMALFORMED", "PERMISSIVE")
SPLIT_BYTES = 2**25
FEATURE_DIM = ("featureDim", "numFeatures")  # the second as in AWS's source and Spark's libsvm
COMPRESSIONS = ("none", "uncompressed", "gzip")
READ_OPTIONS = (
    "path", "paths", *FEATURE_DIM, "mode", "columnNameOfCorruptRecord", "includeUid",
    "includeMetadata", "includeFileName", "splitBytes", "maxRecordBytes", "recursiveFileLookup",
    "pathGlobFilter", "maxFilesPerTrigger", "compression",
)  # fmt: skip
_EXTRA_COLUMNS = {"includeUid": "uid", "includeMetadata": "metadata", "includeFileName": "fileName"}


@dataclass(frozen=True, slots=True)
class AskedColumn:
    """A column of a query."""

    name: str  # as the data source calls it
    asked: str  # as the query does
    nullable: bool = True


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
    name_glob: str  # of the files in a folder; may be empty
    max_files: int
    columns: tuple[AskedColumn, ...] = ()  # of the query; by default all

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Columns after label and features."""
        corrupt = (self.corrupt_column,) if self.mode == "PERMISSIVE" else ()
        return self.extra + corrupt

    @property
    def asked_columns(self) -> tuple[AskedColumn, ...]:
        """Columns of the query, in its order."""
        names = ("label", "features", *self.extra_columns)
        return self.columns or tuple(AskedColumn(name, name) for name in names)

    @classmethod
    def of(cls, options: Any) -> ReadOptions:
        """Check Spark's options, whose names are in any case."""
        mode = str(options.get("mode", MODES[0])).upper()
        if mode not in MODES:
            raise InvalidParamError(f"mode={options['mode']!r} is not one of {', '.join(MODES)}.")
        compression(options)  # a legal one; files are decompressed by their content
        return cls(
            paths=_paths(options),
            feature_dim=_whole(options, FEATURE_DIM, 0, lowest=1, highest=2**31 - 1),
            mode=mode,
            corrupt_column=options.get("columnNameOfCorruptRecord", "_corrupt_record"),
            extra=tuple(c for name, c in _EXTRA_COLUMNS.items() if _flag(options, name)),
            split_bytes=_whole(options, "splitBytes", SPLIT_BYTES, lowest=2**10, highest=2**40),
            max_record_bytes=_whole(options, "maxRecordBytes", 2**26, lowest=1, highest=2**29 - 1),
            recursive=_flag(options, "recursiveFileLookup"),
            name_glob=options.get("pathGlobFilter", ""),
            max_files=_whole(options, "maxFilesPerTrigger", 0, lowest=1, highest=2**31 - 1),
        )


def _paths(options: Any) -> tuple[str, ...]:
    """Return one path, or the list that Spark passes as JSON."""
    if options.get("paths"):
        return tuple(json.loads(options["paths"]))
    return (options["path"],) if options.get("path") else ()


def option(options: Any, names: tuple[str, ...]) -> tuple[str, Any]:
    """Return the name and value of an option with several names; None without a value."""
    given = {name: options.get(name) for name in names if options.get(name) is not None}
    if len(set(given.values())) > 1:
        shown = " and ".join(f"{name}={value!r}" for name, value in given.items())
        raise InvalidParamError(f"{shown} are one option and contradict each other. Keep one.")
    return next(iter(given.items()), (names[0], None))


def compression(options: Any) -> bool:
    """Return whether files are to be compressed."""
    text = str(options.get("compression", COMPRESSIONS[0]))
    if text.lower() not in COMPRESSIONS:
        raise InvalidParamError(f"compression={text!r} is not one of {', '.join(COMPRESSIONS)}.")
    return text.lower() == "gzip"


def warn_of_unknown(options: Iterable[str], known: tuple[str, ...], action: str) -> None:
    """Log a warning of each option that has no effect on a read or a write."""
    for name in options:
        if name.lower() not in map(str.lower, known):
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}."
            log.warning("The option %s has no effect when records are %s; %s", name, action, hint)


def _whole(
    options: Any, names: str | tuple[str, ...], default: int, *, lowest: int, highest: int
) -> int:
    name, text = option(options, (names,) if isinstance(names, str) else names)
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
