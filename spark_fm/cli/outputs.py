"""What commands write: checks before the work, JSON, lines on a terminal; no Spark."""

from __future__ import annotations

import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from spark_fm.cli.errors import UsageError
from spark_fm.errors import SparkFMError


def check_output_file(path: str, *, overwrite: bool) -> None:
    """Raise UsageError unless ``--output`` may be written as a local file."""
    if os.path.exists(path) and not overwrite:
        raise UsageError(f"--output {path} exists; give another name, or --overwrite.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UsageError(f"--output {path}: there is no such folder; make it first.")


def check_local_folder(flag: str, path: str, folder: Path) -> None:
    """Raise UsageError unless files can be written to the folder."""
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{flag} {path}: {folder} is not a folder that can be written to.")


def check_installed(what: str, *modules: str, extra: str) -> None:
    """Raise SparkFMError without the optional modules that ``what`` needs."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise SparkFMError(
            f"{what} needs {' and '.join(missing)}: pip install 'spark-fm[{extra}]'."
        )


def to_json_safe(value: Any) -> Any:
    """Return the value with null for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(name): to_json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value


def write_line(line: str, stream: TextIO) -> None:
    """Write a line, above a progress bar where one is drawn."""
    tqdm: Any = sys.modules.get("tqdm")
    if tqdm is not None:
        tqdm.tqdm.write(line, file=stream)
        stream.flush()
    else:
        print(line, file=stream, flush=True)
