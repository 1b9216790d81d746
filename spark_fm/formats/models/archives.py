"""Members of untrusted archives: read in memory, under a limit, never unpacked.

Nothing is written to disk, so no name in an archive can lead anywhere. Names that try to,
links, devices, two members of one name, and more bytes than the limit are refused.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any, BinaryIO, cast

from spark_fm.errors import ModelFormatError, SparkFMError
from spark_fm.formats.files import GZIP_BYTES, GZIP_ERRORS, open_plain_file

MAX_BYTES = 4 * 2**30  # that the members of one layer may come to, uncompressed
MAX_MEMBERS = 1000
MAX_DIRECTORY_BYTES = 2**20  # of a zip's list of members, which takes ten times as much memory
ZIP_BYTES = b"PK"
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
BLOCK = 2**20

# Raised by the standard library for archives that are cut or damaged.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError, ValueError,
    OverflowError, NotImplementedError, RuntimeError, IndexError, KeyError, struct.error, OSError,
)  # fmt: skip


def read_members(
    path: str, selects: Callable[[str], bool], *, plain: tuple[bytes, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, bytes]:  # fmt: skip
    """Return the members of a tar, tar.gz or zip file, or of a folder, that are selected by name.

    A file that begins with the bytes of ``plain`` is no archive but itself the member that
    ``plain`` names. Raises ModelFormatError for any other file, a damaged archive, and refused
    members. Memory: the selected members, at most ``max_bytes``.
    """
    if os.path.isdir(path):
        return _of_folder(path, selects, max_bytes)
    with open_plain_file(path) as stream:
        head = stream.read(TAR_MAGIC_AT + len(TAR_MAGIC))
        stream.seek(0)
        if head.startswith(GZIP_BYTES):
            unzipped = cast(IO[bytes], gzip.GzipFile(fileobj=stream))
            return _of_tar(unzipped, selects, path, max_bytes)
        if head[TAR_MAGIC_AT:] == TAR_MAGIC:
            return _of_tar(stream, selects, path, max_bytes)
        if head.startswith(ZIP_BYTES):
            return read_zip(stream, selects, path, max_bytes=max_bytes)
        if plain is not None and head.startswith(plain[0]):
            if stream.seek(0, os.SEEK_END) > max_bytes:
                raise _too_large(path, plain[1], max_bytes)
            stream.seek(0)
            return {plain[1]: _whole(stream)}
    raise ModelFormatError(
        f"{path} is neither a tar, tar.gz or zip archive nor a folder: it begins with the bytes "
        f"{head[:8].hex(' ') or '(none)'}. Name the model.tar.gz that the training left."
    )


def read_zip(
    file: BinaryIO, selects: Callable[[str], bool], source: str, *, max_bytes: int = MAX_BYTES
) -> dict[str, bytes]:
    """Return the selected members of a zip file; see ``read_members``."""
    try:
        capped = _Capped(file, source)
        with zipfile.ZipFile(cast(IO[bytes], capped)) as archive:
            capped.is_opening = False
            members = archive.infolist()
            names = _Names(source)
            for member in members:
                names.add(member.filename, _zip_kind(member))
            found: dict[str, bytes] = {}
            left = max_bytes
            for member in members:
                if member.is_dir() or not selects(_plain(member.filename)):
                    continue
                if member.file_size > left:
                    raise _too_large(source, member.filename, max_bytes)
                with archive.open(member) as stream:
                    data = _whole(stream)
                if len(data) != member.file_size:
                    raise ValueError(f"{member.filename} ends early")
                left -= len(data)
                found[_plain(member.filename)] = data
            return found
    except SparkFMError:
        raise
    except _DAMAGE as err:
        raise _damaged(source, err) from err


class _Capped:
    """A zip file whose list of members, read at once on opening, is of a sane size."""

    def __init__(self, file: BinaryIO, source: str) -> None:
        self._file, self._source = file, source
        self.is_opening = True

    def read(self, size: int = -1) -> bytes:
        if not self.is_opening:
            return self._file.read(size)
        data = self._file.read(MAX_DIRECTORY_BYTES + 1 if size < 0 else size)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise ModelFormatError(
                f"{self._source} is refused: its list of members has more than "
                f"{MAX_DIRECTORY_BYTES:,} bytes. An artifact of a training holds a few members."
            )
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Names:
    """The names in an archive, checked one by one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._seen: set[str] = set()

    def add(self, name: str, kind: str) -> str:
        """Return the plain name; ``kind`` is "file", "folder", or what is refused."""
        plain = _plain(name)
        if kind not in ("file", "folder"):
            raise self._refused(name, f"is a {kind}; only plain files are read")
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise self._refused(name, "leads out of the archive")
        if plain in self._seen:
            raise self._refused(name, "is there twice")
        self._seen.add(plain)
        if len(self._seen) > MAX_MEMBERS:
            raise self._refused(name, f"is one of more than {MAX_MEMBERS:,} members")
        return plain

    def _refused(self, name: str, why: str) -> ModelFormatError:
        return ModelFormatError(
            f"{self._source} is refused: its member {name[:200]!r} {why}. An artifact of a "
            "training holds no such thing."
        )


class _Limited:
    """A stream that raises an error once it has returned more bytes than allowed."""

    def __init__(self, stream: IO[bytes], source: str, max_bytes: int) -> None:
        self._stream, self._source, self._max = stream, source, max_bytes
        # Headers and padding of an archive that is as large as allowed.
        self._left = max_bytes + MAX_MEMBERS * 4 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, BLOCK))
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._source, "", self._max)
        return data


def _of_tar(
    stream: IO[bytes], selects: Callable[[str], bool], source: str, max_bytes: int
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    names = _Names(source)
    limited = cast(Any, _Limited(stream, source, max_bytes))
    try:
        # As a stream, so that every byte comes by the limit once, headers included.
        with tarfile.open(fileobj=limited, mode="r|", bufsize=BLOCK) as archive:
            for member in archive:
                plain = names.add(member.name, _tar_kind(member))
                if member.isdir() or not selects(plain):
                    continue
                if member.size > max_bytes:
                    raise _too_large(source, member.name, max_bytes)
                content = archive.extractfile(member)
                data = b"" if content is None else _whole(content)
                if len(data) != member.size:
                    raise EOFError(f"{member.name} ends early")
                found[plain] = data
    except SparkFMError:
        raise
    except (*_DAMAGE, *GZIP_ERRORS) as err:
        raise _damaged(source, err) from err
    return found


def _of_folder(path: str, selects: Callable[[str], bool], max_bytes: int) -> dict[str, bytes]:
    """Read from a folder what someone has unpacked there; links are not followed."""
    found: dict[str, bytes] = {}
    left = max_bytes
    for name in sorted(os.listdir(path)):
        if not selects(name):
            continue
        inner = os.path.join(path, name)
        info = os.lstat(inner)
        if not stat.S_ISREG(info.st_mode):
            raise ModelFormatError(
                f"{inner} is a folder, link or device; only plain files are read. Put the file "
                "itself there."
            )
        if info.st_size > left:
            raise _too_large(path, name, max_bytes)
        with open(inner, "rb") as stream:
            found[name] = stream.read(info.st_size)
        left -= len(found[name])
    return found


def _whole(stream: IO[bytes]) -> bytes:
    """Return all that is left, which is in memory once: ``read`` would join chunks."""
    buffer = io.BytesIO()
    shutil.copyfileobj(stream, buffer, BLOCK)
    return buffer.getvalue()


def _zip_kind(member: zipfile.ZipInfo) -> str:
    mode = member.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "device"
    if member.flag_bits & 1:
        return "member under a password"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"member of compression method {member.compress_type}"
    return "folder" if member.is_dir() else "file"


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.isdir():
        return "folder"
    if member.issym() or member.islnk():
        return "link"
    return "file" if member.isreg() and not member.issparse() else "device or a sparse file"


def _plain(name: str) -> str:
    return os.path.normpath(name).replace(os.sep, "/")


def _too_large(source: str, name: str, max_bytes: int) -> ModelFormatError:
    what = f" (at {name[:200]!r})" if name else ""
    return ModelFormatError(
        f"{source} unpacks to more than {max_bytes:,} bytes{what}. If it can be trusted, raise "
        "the limit: maxBytes, or --max-bytes on the command line."
    )


def _damaged(source: str, err: Exception) -> ModelFormatError:
    lines = str(err).strip().splitlines()
    why = lines[0] if lines else type(err).__name__
    return ModelFormatError(f"{source} is a damaged archive: {why}. Copy it again.")
