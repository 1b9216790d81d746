"""Where a model lies and whether it has changed; supervisor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

Signature = tuple[object, ...]


def resolve_model(path: str) -> str:
    """Return the model folder that a path stands for.

    Parameters
    ----------
    path : str
        A model folder; or a folder of such, of which the one saved last is meant; or a
        symbolic link to either. URIs are returned as they are.

    Returns
    -------
    str
        ``path`` itself when nothing is found there: whoever reads it says so.
    """
    if _written(Path(path)):
        return path
    try:
        folders = [entry for entry in Path(path).iterdir() if entry.is_dir()]
    except OSError:
        return path
    found = [(max(_written(folder)), folder.name) for folder in folders if _written(folder)]
    return os.path.join(path, max(found)[1]) if found else path


def signature(path: str) -> Signature | None:
    """Return what changes when another version is saved; None while there is none.

    Parameters
    ----------
    path : str
        As `resolve_model` takes it.

    Notes
    -----
    Names, sizes and times of the files, links followed; no content is read. A URI has no
    signature: a server of such a model reloads on SIGHUP.
    """
    folder = os.path.realpath(resolve_model(path))
    if not _written(Path(folder)):
        return None
    return (folder, *sorted(_files(Path(folder))))


def _written(folder: Path) -> list[int]:
    """Return the times of the metadata's files: they are written last, when all is there."""
    return [time for name, time, *_ in _files(folder) if name.startswith("metadata/")]


def _files(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, time, size and inode of each file; those being written are hidden."""
    for part in ("data", "metadata"):
        try:
            with os.scandir(folder / part) as entries:
                for entry in entries:
                    if entry.name[0] not in "_." and entry.is_file():
                        facts = entry.stat()
                        name = f"{part}/{entry.name}"
                        yield name, facts.st_mtime_ns, facts.st_size, facts.st_ino
        except OSError:  # not there, or replaced at this moment
            continue
