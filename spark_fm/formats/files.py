"""Files and folders on any store: list, open, decompress, and write whole or not at all."""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import json
import os
import posixpath
import re
import stat
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import IO, Any, BinaryIO, cast
from urllib.parse import quote

import pyarrow.fs as pafs

from spark_fm.errors import InvalidDataError, InvalidParamError

STDIN = "-"
BYTE_ORDER_MARK = codecs.BOM_UTF8  # with which text of some editors begins
GZIP_BYTES = b"\x1f\x8b"
GZIP_SUFFIXES = (".gz", ".gzip")
# What reading damaged or cut gzip data raises.
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")
# Scheme and authority, the path, and what a URI asks of its store: ?endpoint_override=...&...
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:(?://[^/?]*)?)(.*?)(\?\w+=[^?]*)?", re.DOTALL)
# Where a file appears when its upload ends, there are no folders, and a move is a copy.
_OBJECT_STORES = {"s3", "s3a", "gcs", "gs", "abfs", "az", "oss", "oci", "memory"}
_UPLOADED_AT_ONCE = 2**26  # bytes
_MAGIC = re.compile(r"[*?\[{\\]")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that holds data."""

    path: str  # as messages show it: the local path, or scheme and path
    size: int  # bytes
    root: str  # the path that the caller gave, which names the store
    inner: str  # path in the store
    base: str = ""  # of the names below ``root``: that path in the store, or a glob's fixed folder

    @property
    def is_compressed(self) -> bool:
        """Whether its name is that of a gzip file, which cannot be read from the middle."""
        return self.path.endswith(GZIP_SUFFIXES)

    def open(self) -> BinaryIO:
        """Open the file for reading; it can seek where its store can."""
        store, _ = store_of(self.root)
        return cast(BinaryIO, store.open_input_file(self.inner))


def local_place(path: str) -> str | None:
    """Return where on this machine a path or a file: URI is; None for one of another store."""
    if path.startswith("file:"):
        return re.sub("^file:/*", "/", path)
    return None if _SCHEME.match(path) else os.path.abspath(path)


def store_of(path: str) -> tuple[Any, str]:
    """Return the file system of a path or URI, and the path in it.

    Paths are literal, those of URIs too: as for Spark, ``%20`` is no blank in them.
    """
    local = local_place(path)
    if local is not None:
        return pafs.LocalFileSystem(), local
    store_name, place, query = _uri_parts(path)
    uri = store_name.replace("s3a:", "s3:", 1) + quote(place) + query
    try:
        store, inner = pafs.FileSystem.from_uri(uri)
    except Exception as unknown:  # noqa: BLE001 - pyarrow raises whatever its store does
        try:
            import fsspec

            filesystem, inner = fsspec.core.url_to_fs(path)
            store = pafs.PyFileSystem(_literal_handler(filesystem))
        except Exception as err:  # noqa: BLE001 - as does fsspec
            raise InvalidDataError(
                f"No reader for {path!r}: {unknown}; {err}. Install the fsspec package of its "
                "store, or use a local, s3://, gs://, abfs:// or hdfs:// path."
            ) from None
    return store, inner


def path_in(folder: str, name: str) -> str:
    """Return the path of a file in a folder; what a URI asks of its store stays at the end."""
    if folder.startswith("file:") or not _SCHEME.match(folder):
        return posixpath.join(folder, name)
    store_name, place, query = _uri_parts(folder)
    return f"{store_name}{place.rstrip('/')}/{name}{query}"


def _uri_parts(uri: str) -> tuple[str, str, str]:
    match: Any = _URI.fullmatch(uri)  # all that has a scheme
    return match[1], match[2], match[3] or ""


def _literal_handler(filesystem: Any) -> Any:
    """Return what shows an fsspec store to pyarrow; the store itself moves and removes globs."""
    from fsspec import AbstractFileSystem

    class Handler(pafs.FSSpecHandler):
        def delete_file(self, path: str) -> None:
            self.fs.rm_file(path)

        def delete_dir(self, path: str) -> None:
            if not _MAGIC.search(path):
                super().delete_dir(path)
                return
            for inner in [*sorted(self.fs.find(path, withdirs=True), reverse=True), path]:
                if self.fs.isfile(inner):
                    self.fs.rm_file(inner)
                elif self.fs.isdir(inner):  # of some stores, not any more
                    self.fs.rmdir(inner)

        def move(self, src: str, dest: str) -> None:
            if type(self.fs).mv is AbstractFileSystem.mv:
                self.fs.cp_file(src, dest)
                self.fs.rm_file(src)
            else:
                self.fs.mv(src, dest)

    return Handler(filesystem)


def list_files(paths: Sequence[str], *, recursive: bool = False) -> list[DataFile]:
    """Return the data files of paths, sorted within each path; raise InvalidDataError for none.

    Paths are files, folders, globs (unless a file has that very name), or manifests
    (``*.manifest``: a JSON list of ``{"prefix": ...}`` and names). As in Spark, empty files
    and names that start with ``_`` or ``.`` are skipped, but not a file that is named itself.
    Globs are Spark's (``* ? [a-c] [^a] {a,b}``, and a backslash before what stands for
    itself), and ``**`` for any number of folders.
    """
    files: list[DataFile] = []
    for path in paths:
        place = _uri_parts(path)[1] if _SCHEME.match(path) else path
        if place.endswith((".manifest", ".manifest.txt")):
            files += list_files(_manifest(path))
        else:
            files += _files_at(path, recursive)
    return files


def files_in(folder: str) -> list[DataFile]:
    """Return the data files directly in a folder, sorted; its path is literal, never a glob."""
    store, inner = store_of(folder)
    info = store.get_file_info(inner.rstrip("/") or "/")
    if info.type != pafs.FileType.Directory:
        raise InvalidDataError(f"Path does not exist: {folder}")
    return _data_files(_inside(store, info.path, recursive=False), folder, inner, inner)


def folder_of_glob(inner: str) -> str | None:
    """Return the deepest folder that a glob names without wildcards; None for no glob."""
    magic = _MAGIC.search(inner)
    return (inner[: magic.start()].rsplit("/", 1)[0] or "/") if magic else None


def reaches(glob: str, inner: str) -> bool:
    """Return whether a glob reads a file: matches it, or its folder, and it is not hidden."""
    base, pattern = folder_of_glob(glob) or glob, glob_pattern(glob)
    names = inner.split("/")
    return any(
        pattern.fullmatch("/".join(names[:depth])) for depth in range(1, len(names) + 1)
    ) and not any(map(_is_hidden, inner[len(base) :].split("/")))


# What a glob is made of; the last kind is any other character.
_GLOB_TOKENS = re.compile(
    r"(?P<folders>(?:(?<=/)|^)\*\*(?:/|$))|(?P<escaped>\\.)|(?P<set>\[[!^]?(?:\][^\]/]*|[^\]/]+)\])"
    r"|(?P<any>\*+)|(?P<one>\?)|(?P<brace>[{},])|(?P<plain>.)",
    re.DOTALL,
)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return what matches the paths that a glob names; see `list_files`."""
    tokens = list(_GLOB_TOKENS.finditer(glob))
    braces = [token.group() for token in tokens if token.lastgroup == "brace"]
    depths = list(accumulate({"{": 1, "}": -1, ",": 0}[mark] for mark in braces))
    has_braces = bool(depths) and min(depths) >= 0 and depths[-1] == 0
    parts, depth = [], 0
    for token in tokens:
        kind, text = token.lastgroup, token.group()
        if kind == "folders":
            parts.append("(?:[^/]+/)*" if text.endswith("/") else ".+")
        elif kind == "escaped":
            parts.append(re.escape(text[1]))
        elif kind == "set":
            is_negated = text[1] in "!^" and len(text) > 3
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", text[2 if is_negated else 1 : -1])
            parts.append(f"(?!/)[^{body}]" if is_negated else f"[{body}]")
        elif kind == "any":
            parts.append("[^/]*")
        elif kind == "one":
            parts.append("[^/]")
        elif kind == "brace" and has_braces and (text != "," or depth):
            depth += {"{": 1, "}": -1, ",": 0}[text]
            parts.append({"{": "(?:", "}": ")", ",": "|"}[text])
        else:
            parts.append(re.escape(text))
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as err:
        raise InvalidDataError(
            f"The glob {glob!r} cannot be read: {err}. Put a backslash before what stands for "
            "itself."
        ) from None


def _files_at(path: str, recursive: bool) -> list[DataFile]:
    store, inner = store_of(path)
    info = store.get_file_info(inner.rstrip("/") or "/")
    base = folder_of_glob(inner)
    # If such a file exists, the characters belong to its name.
    if base is not None and info.type == pafs.FileType.NotFound:
        pattern = glob_pattern(inner)
        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        matches = [
            info for info in store.get_file_info(selector)
            if pattern.fullmatch(info.path)
            and not any(map(_is_hidden, info.path[len(base) :].split("/")))
        ]  # fmt: skip
        folders = [info.path for info in matches if info.type == pafs.FileType.Directory]
        files = [info for info in matches if info.is_file]
        for folder in folders:
            files += _inside(store, folder, recursive)
    else:
        if info.type == pafs.FileType.NotFound:
            raise InvalidDataError(f"Path does not exist: {path}")
        files = [info] if info.is_file else _inside(store, info.path, recursive)
        matches, base = [info], inner
    if not matches:
        raise InvalidDataError(f"Path does not exist: {path} (no file matches)")
    return _data_files(files, path, inner, base)


def _data_files(infos: list[Any], path: str, inner: str, base: str) -> list[DataFile]:
    prefix = _shown_prefix(path, inner)
    return [
        DataFile(prefix + info.path, info.size, path, info.path, base)
        for info in sorted({info.path: info for info in infos}.values(), key=_by_path)
        if info.size
    ]


def _shown_prefix(path: str, inner: str) -> str:
    """Return what messages show before the paths of a store."""
    if path.startswith("file:") or not _SCHEME.match(path) or _SCHEME.match(inner):
        return ""
    return path.split(":", 1)[0] + "://"


def _inside(store: Any, folder: str, recursive: bool) -> list[Any]:
    """Return the visible files of a folder."""
    selector = pafs.FileSelector(folder, recursive=recursive)
    start = len(folder.rstrip("/")) + 1
    return [
        info
        for info in store.get_file_info(selector)
        if info.is_file and not any(map(_is_hidden, info.path[start:].split("/")))
    ]


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _by_path(info: Any) -> str:
    return str(info.path)


def _manifest(path: str) -> list[str]:
    """Return the files that a SageMaker manifest names."""
    with open_file(path) as stream:
        text = stream.read()
    try:
        entries = json.loads(text)
        prefix, names = entries[0]["prefix"], entries[1:]
        if not all(isinstance(name, str) for name in [prefix, *names]):
            raise TypeError("not all entries are text")
    except (ValueError, TypeError, KeyError, IndexError) as err:
        raise InvalidDataError(
            f"{path} is no manifest ({err}): it holds a JSON list, first "
            '{"prefix": "..."}, then names.'
        ) from None
    store_name, place, query = _uri_parts(prefix) if _SCHEME.match(prefix) else ("", prefix, "")
    return [
        store_name + (posixpath.join(place, name) if place.endswith("/") else place + name) + query
        for name in names
    ]


def open_file(path: str) -> BinaryIO:
    """Open a file for reading; it can seek where its store can."""
    store, inner = store_of(path)
    return cast(BinaryIO, store.open_input_file(inner))


def open_plain_file(path: str) -> BinaryIO:
    """Open a regular file; raise InvalidDataError for folders, pipes and devices, which block."""
    try:
        if _SCHEME.match(path):
            return open_file(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidDataError(f"{path} is no file. Name a file.")
        return open(path, "rb")
    except (OSError, ValueError) as err:
        if isinstance(err, InvalidDataError):
            raise
        raise InvalidDataError(f"{path} cannot be opened: {err}.") from err


def is_stream(path: str) -> bool:
    """Return whether a path is standard input or a named pipe, which can be read only once."""
    if path == STDIN:
        return True
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def name_of(path: str) -> str:
    """Return what a stream is called in messages."""
    return "standard input" if path == STDIN else path


def open_stream(path: str, *, buffering: int = -1) -> BinaryIO:
    """Open standard input or a local path; closing it leaves standard input open."""
    return open(os.dup(sys.stdin.fileno()) if path == STDIN else path, "rb", buffering)


def unzipped(stream: IO[bytes]) -> BinaryIO:
    """Return the stream, or what it decompresses to when it starts like a gzip file."""
    if not hasattr(stream, "peek"):
        stream = io.BufferedReader(cast(Any, _Readable(stream)), 2**20)
    if stream.peek(2)[:2] == GZIP_BYTES:
        return cast(BinaryIO, _Gunzip(stream))
    return cast(BinaryIO, stream)


class _Gunzip:
    """Decompress a stream; all data before damage is returned before the error."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._file = gzip.GzipFile(fileobj=stream)
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end."""
        taken = bytearray()
        while len(taken) < size and self._error is None:
            try:
                part = self._file.read1(size - len(taken))
            except GZIP_ERRORS as err:
                self._error = err
                break
            if not part:
                break
            taken += part
        if not taken and self._error is not None:
            raise self._error
        return bytes(taken)


class _Readable(io.RawIOBase):
    """A file object of any kind behind the interface that buffering needs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        taken = self._stream.read(len(buffer))
        buffer[: len(taken)] = taken
        return len(taken)


def local_path(path: object, name: str) -> str:
    """Return a path as text, or raise if it is not a local path."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "://" in text:
        raise InvalidParamError(
            f"{name} must be a path of this machine, got {path!r}. For a remote place, write "
            f"to a local path and copy it there, or pass write_records an open file object."
        )
    return text


@contextmanager
def atomic_write(path: str, *, store: Any = None) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when the block ends without an error.

    ``path`` is local, or a path in ``store``, whose missing folders are made. An object is
    uploaded once, from a temporary file on this machine.
    """
    create: Any
    if store is None:
        create, move, delete = partial(open, mode="wb"), os.replace, os.unlink
        path = os.path.realpath(path)  # a link stays one, and its target gets the data
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "This is a folder; name a file in it", path)
        if not os.path.isdir(os.path.dirname(path)):
            raise FileNotFoundError(
                errno.ENOENT, "There is no such folder; make it first", os.path.dirname(path)
            )
        if os.path.exists(path) and not os.path.isfile(path):
            with create(path) as file:
                yield file  # a pipe or a device cannot be replaced
            return
    elif has_folders(store):
        make_folder(store, posixpath.dirname(path))
        create, move, delete = store.open_output_stream, store.move, store.delete_file
    else:
        with tempfile.TemporaryFile() as spool:
            yield cast(BinaryIO, spool)
            spool.seek(0)
            # In a thread, which no Ctrl-C ends: closing a cut stream would publish a cut object.
            with ThreadPoolExecutor(1) as uploader:
                uploader.submit(_upload, spool, store, path).result()
        return
    folder, name = posixpath.split(path)
    # In the same folder, since files move in one step within a file system only.
    temporary = posixpath.join(folder, temporary_prefix(name) + f"{uuid.uuid4().hex[:8]}.tmp")
    try:
        with create(temporary) as file:
            yield file
        move(temporary, path)
    except BaseException:
        with suppress(OSError):
            delete(temporary)
        raise


def _upload(source: IO[bytes], store: Any, path: str) -> None:
    with store.open_output_stream(path) as sink:
        while part := source.read(_UPLOADED_AT_ONCE):
            sink.write(part)
            sink.flush()  # waits for parts under way, each of which is a copy in memory


def make_folder(store: Any, folder: str) -> None:
    """Make a folder and those above it, where the store has folders."""
    if has_folders(store):
        store.create_dir(folder, recursive=True)


def has_folders(store: Any) -> bool:
    """Return whether a store has folders and renames, which object stores have not."""
    return _OBJECT_STORES.isdisjoint(re.findall(r"\w+", store.type_name))


def temporary_prefix(name: str) -> str:
    """Return what names of temporary files begin with that `atomic_write` makes for a file."""
    return f".{name[:60]}."  # no name grows beyond the 255 bytes that file systems allow
