"""Folders of temporary files that say whose they are, and the removal of dead processes' ones.

A process that is killed removes nothing. Where Linux tells which processes live, a folder names its
owner, and whoever makes the next folder there removes those whose owner is gone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "spark_fm-"
OWNER = "owner"  # file in such a folder
# Where Spark's processes keep their files, below the folder that they are given.
_SPARKS_OWN = re.compile("(spark|executor|blockmgr)-.*")
_PLACES = ("", "blockmgr-*/", "spark-*/executor-*/blockmgr-*/")


def mark(folder: Path, process: int | None) -> None:
    """Name a process as the owner of a folder; one that is not known leaves it to no one."""
    owner = None if process is None else _identity(process)
    if owner is not None:
        (folder / OWNER).write_text(owner)


def executor_process() -> int | None:
    """Return the JVM that started this Python worker, by way of a daemon or not."""
    process = os.getpid()
    with suppress(OSError, ValueError, IndexError):
        while process > 1:
            name, fields = _stat(process)
            if name == "java":
                return process
            process = int(fields[1])
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes of this user left beside or below a folder of Spark's."""
    while _SPARKS_OWN.fullmatch(folder.name):
        folder = folder.parent
    for place in _PLACES:
        for left in _found(folder, f"{place}{PREFIX}*"):
            with suppress(OSError, ValueError):
                if _is_dead((left / OWNER).read_text()) and left.lstat().st_uid == os.getuid():
                    shutil.rmtree(left, ignore_errors=True)


def _found(folder: Path, pattern: str) -> Iterator[Path]:
    with suppress(OSError):
        yield from folder.glob(pattern)


def _is_dead(owner: str) -> bool:
    """Return whether a process is certainly gone: one of another machine or container is not."""
    *machine, _, process = owner.split(" ")
    return " ".join(machine) == _machine() and _identity(int(process)) != owner


def _identity(process: int) -> str | None:
    """Return what no other process has had since the machine started, or None without it."""
    with suppress(OSError, IndexError):
        _, fields = _stat(process)
        return f"{_machine()} {fields[19]} {process}"  # and when it started
    return None


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _stat(process: int) -> tuple[str, list[str]]:
    """Return the name of a process, and what follows it in proc(5)'s stat: state, parent, ..."""
    name, _, rest = Path(f"/proc/{process}/stat").read_text().partition("(")[2].rpartition(")")
    return name, rest.split()
