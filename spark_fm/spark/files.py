"""Folders on the file systems that Spark knows: replaced in one step, and read by literal paths.

Driver only. On Classic through Hadoop's file systems, as Spark itself; a Connect client has
none.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

from pyspark.sql import SparkSession

from spark_fm.errors import InvalidParamError, SparkFMError
from spark_fm.spark.session import is_connect

_GLOB = re.compile(r"[\[\]{}?*\\]")
_STORE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:(//[^/]*)?)?")


_UNKNOWN_STORE = re.compile(r"No FileSystem for scheme|ClassNotFoundException: Class \S*FileSystem")
_JARS = {
    "s3": "org.apache.hadoop:hadoop-aws, and write s3a:// in place of s3://",
    "s3a": "org.apache.hadoop:hadoop-aws",
    "gs": "com.google.cloud.bigdataoss:gcs-connector",
    "abfs": "org.apache.hadoop:hadoop-azure",
    "abfss": "org.apache.hadoop:hadoop-azure",
}


def check_store_known(path: str, err: Exception) -> None:
    """Raise InvalidParamError if ``err`` says that Spark has no file system for ``path``."""
    scheme = path.split(":", 1)[0]
    if not _UNKNOWN_STORE.search(str(err)) or scheme in ("models", "runs"):  # MLflow's, no store
        return
    jar = f" ({_JARS[scheme]})" if scheme in _JARS else ""
    raise InvalidParamError(
        f"path={path!r}: this Spark has no file system for {scheme}://. It reaches stores through "
        f"Hadoop's: start it with the package of that store in spark.jars.packages{jar}, or use a "
        "path that Spark reaches."
    ) from err


def literal(path: str) -> str:
    """Return the glob that a path matches alone, for Spark's readers."""
    return _GLOB.sub(r"\\\g<0>", path)


def replace_folder(session: SparkSession, path: str, write: Callable[[str], None]) -> None:
    """Replace ``path``, in any file system that Spark knows, by a folder that ``write`` writes.

    ``write`` takes the path to write to. The new folder is written beside the old one, which
    stays until the new one is complete. On Classic two renames then swap them. A Connect client
    cannot rename: there the folder is written beside, as proof that it can be written, the old
    one removed, and the folder written once more; a failure after that leaves the complete new
    folder beside, and the error names it.
    """
    store = _STORE.match(path)[0]  # type: ignore[index]  # matches nothing, too
    folder, name = posixpath.split(path[len(store) :].rstrip("/"))
    if not name:
        raise InvalidParamError(f"path={path!r} is the root of a file system; name a folder in it.")
    mark = uuid4().hex[:12]
    beside, old = (
        store + posixpath.join(folder, f".{name}.{mark}.{what}") for what in ("tmp", "old")
    )
    if is_connect(session):
        _write_twice(path, beside, write)
    else:
        _write_and_swap(session, path, beside, old, write)


def _write_and_swap(
    session: SparkSession, path: str, beside: str, old: str, write: Callable[[str], None]
) -> None:
    jvm: Any = session._jvm
    target = jvm.org.apache.hadoop.fs.Path(path)
    store = target.getFileSystem(session._jsparkSession.sessionState().newHadoopConf())
    new, aside = (jvm.org.apache.hadoop.fs.Path(each) for each in (beside, old))
    try:
        write(beside)
        replaces = store.exists(target)
        if replaces:
            _rename(store, target, aside)
        try:
            _rename(store, new, target)
        except BaseException:
            if replaces:
                _rename(store, aside, target)
            raise
    except BaseException:
        with suppress(Exception):  # it must not hide what went wrong
            store.delete(new, True)
        raise
    if replaces:
        store.delete(aside, True)


def _rename(store: Any, source: Any, target: Any) -> None:
    if not store.rename(source, target):
        raise SparkFMError(f"{source} could not be renamed to {target}.")


def _write_twice(path: str, beside: str, write: Callable[[str], None]) -> None:
    from pyspark.ml.connect.readwrite import RemoteMLWriter

    try:
        write(beside)
    except BaseException:
        with suppress(Exception):
            RemoteMLWriter.handleOverwrite(beside, True)
        raise
    RemoteMLWriter.handleOverwrite(path, True)
    try:
        write(path)
    except Exception as err:
        raise SparkFMError(
            f"path={path!r} could not be written after what was there had been removed: {err}. "
            f"The new folder is complete at {beside!r}: load it from there, or move it."
        ) from err
    RemoteMLWriter.handleOverwrite(beside, True)
