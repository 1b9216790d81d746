"""The private folder of a server: how supervisor, loader and workers find each other's files.

Imports nothing large: the supervisor stays small.
"""

from __future__ import annotations

import os
from pathlib import Path

METRICS = "metrics"  # folder of prometheus_client
SERVING = "serving"  # folder: which model each worker serves, a file each
STATUS = "status.json"  # what the supervisor counts
CURRENT = "current"  # names the version to serve


def current_name(shared: Path) -> str | None:
    """Return the name of the version to serve, None before there is one."""
    try:
        return (shared / CURRENT).read_text()
    except FileNotFoundError:
        return None


def version_name(number: int) -> str:
    """Return the folder's name of the so manieth version; names sort by number."""
    return f"version-{number:09d}"


def versions(shared: Path) -> list[Path]:
    """Return the folders of all versions, oldest first."""
    return sorted(shared.glob("version-*"))


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that readers see the old text or the new."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
