"""Where a model lies and whether it has changed; supervisor."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

Signature = tuple[object, ...]
# What SageMaker's training leaves, as it is and unpacked.
SAGEMAKER_ARTIFACTS = ("model.tar.gz", "model_algo-1")


def resolve_model(path: str) -> str:
    """Return the model folder, or SageMaker's artifact, that a path stands for.

    Parameters
    ----------
    path : str
        A model folder; or a folder of such, of which the one saved last is meant; or
        SageMaker's ``model.tar.gz`` or ``model_algo-1``, or a folder with one of them; or a
        symbolic link to any. URIs are returned as they are.

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
    # One look a folder: it may be gone at the next.
    looked = [(_written(folder), folder.name) for folder in folders]
    found = [(max(times), name) for times, name in looked if times]
    if found:
        return os.path.join(path, max(found)[1])
    artifacts = [os.path.join(path, name) for name in SAGEMAKER_ARTIFACTS]
    return next(filter(os.path.isfile, artifacts), path)


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
    try:
        facts = os.stat(folder)
    except OSError:
        return None
    if stat.S_ISREG(facts.st_mode):
        return (folder, facts.st_mtime_ns, facts.st_size, facts.st_ino)
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
