"""Archives from anyone: what is dangerous or damaged in them is refused, nothing is unpacked."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_fm.errors import InvalidDataError, ModelFormatError
from spark_fm.formats.models.archives import read_members


def anything(name: str) -> bool:
    return True


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> str:
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def tar_kind(kind: bytes, name: str = "x", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_of(path: Path, members: dict[str, bytes], mode: int = 0o100644) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return str(path)


def fails(path: str, message: str, max_bytes: int = 10**6) -> None:
    before = sorted(os.listdir(os.path.dirname(path)))
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_members(path, anything, max_bytes=max_bytes)
    assert path in str(caught.value)
    assert sorted(os.listdir(os.path.dirname(path))) == before


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_a_tar_are_read_by_their_plain_names(tmp_path: Path, mode: str) -> None:
    folder = tar_kind(tarfile.DIRTYPE, "./", "")
    files = [(tarfile.TarInfo("./a"), b"1"), (tarfile.TarInfo("b/c"), b""), (folder, b"")]

    path = tar_of(tmp_path / "x", *files, mode=mode)

    assert read_members(path, anything) == {"a": b"1", "b/c": b""}
    assert read_members(path, lambda name: name == "a") == {"a": b"1"}


def test_members_of_a_zip_and_files_of_a_folder_are_read(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", {"a": b"1" * 1000, "sub/b": b"2"})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"3")

    assert read_members(path, anything) == {"a": b"1" * 1000, "sub/b": b"2"}
    assert read_members(str(tmp_path / "folder"), anything) == {"a": b"3"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..", "a\\..\\..\\x", "\\x"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    fails(tar_of(tmp_path / "x.tar", (tarfile.TarInfo(name), b"1")), "leads out of the archive")
    fails(zip_of(tmp_path / "x.zip", {name: b"1"}), "leads out of the archive")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    fails(tar_of(tmp_path / "x.tar", (tar_kind(kind), b"")), "is a (link|device)")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_of_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    fails(zip_of(tmp_path / "x.zip", {"x": b"/etc/passwd"}, kind | 0o777), "is a (symbolic|device)")


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "params").symlink_to("/etc/passwd")

    with pytest.raises(ModelFormatError, match="link or device"):
        read_members(str(tmp_path / "folder"), anything)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    pair = [(tarfile.TarInfo(name), b"1") for name in ("x", "./x")]
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("x", b"1")
        archive.writestr("x", b"2")

    fails(tar_of(tmp_path / "x.tar", *pair), "is there twice")
    fails(str(tmp_path / "x.zip"), "is there twice")


def test_thousands_of_members_are_refused(tmp_path: Path) -> None:
    names = [str(i) for i in range(1001)]

    fails(tar_of(tmp_path / "x.tar", *[(tarfile.TarInfo(n), b"") for n in names]), "1,000 members")
    fails(zip_of(tmp_path / "x.zip", dict.fromkeys(names, b"")), "1,000 members")


def test_what_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    zeros = bytes(3 * 2**20)
    path = tar_of(tmp_path / "x.tar.gz", (tarfile.TarInfo("x"), zeros))
    zipped = zip_of(tmp_path / "x.zip", {"a": zeros[: 2**20], "b": zeros[: 2**20]})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(zeros)
    assert os.path.getsize(path) < 10_000

    fails(path, "unpacks to more than 1,000,000 bytes .*raise the limit")
    fails(zipped, "unpacks to more than 1,500,000 bytes", max_bytes=1_500_000)
    fails(str(tmp_path / "folder"), "unpacks to more than")
    assert len(read_members(path, anything, max_bytes=2**22)["x"]) == len(zeros)


def test_what_no_one_wants_and_headers_count_as_well(tmp_path: Path) -> None:
    extended = tarfile.TarInfo("x")
    extended.pax_headers = {"comment": "a" * (8 * 2**20)}
    path = tar_of(tmp_path / "x.tar.gz", (extended, b""))
    other = tar_of(tmp_path / "y.tar.gz", (tarfile.TarInfo("y"), bytes(8 * 2**20)))

    for bomb in (path, other):
        with pytest.raises(ModelFormatError, match="unpacks to more than"):
            read_members(bomb, lambda name: False, max_bytes=10**6)


def test_a_zip_with_a_long_list_of_members_is_refused_before_it_is_read(tmp_path: Path) -> None:
    entry = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
    )
    n, directory = 2**16, (entry + b"a") * 2**16
    zip64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, len(directory), 0
    ) + struct.pack("<4sLQL", b"PK\6\7", 0, len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    path = tmp_path / "x.zip"
    path.write_bytes(directory + zip64 + end)

    tracemalloc.start()
    fails(str(path), "its list of members has more than 1,048,576 bytes")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2**23  # the list in pieces would be 40 MB


def test_a_zip_with_a_comment_is_read(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", {"x": b"1"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"c" * (2**16 - 1)

    assert read_members(path, anything) == {"x": b"1"}


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zip_of(path, {"x": bytes(5000)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the size in the directory
    data[at : at + 4] = (50).to_bytes(4, "little")
    path.write_bytes(data)

    fails(str(path), "damaged archive")


def test_a_zip_that_points_before_its_beginning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zip_of(path, {"x": bytes(5000)})
    data = path.read_bytes()
    path.write_bytes(b"PK" + data[40:])  # what the directory points to is cut off

    fails(str(path), "damaged archive")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("x", b"1")

    fails(str(tmp_path / "x.zip"), "compression method")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "gz").write_bytes(gzip.compress(b"hello"))
    os.mkfifo(tmp_path / "pipe")

    fails(str(tmp_path / "text"), "neither a tar, tar.gz or zip .* 68 65 6c 6c 6f")
    fails(str(tmp_path / "empty"), "neither a tar")
    fails(str(tmp_path / "gz"), "damaged archive")
    for name, message in {"pipe": "is no file", "nothing": "cannot be opened"}.items():
        with pytest.raises(InvalidDataError, match=message):
            read_members(str(tmp_path / name), anything)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One archive of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    data = np.random.default_rng(1).bytes(100) + bytes(2000)
    tars = {
        mode: tar_of(folder / f"x{mode}", (tarfile.TarInfo("x"), data), mode=mode)
        for mode in ("w", "w:gz")
    }
    paths = {**tars, "zip": zip_of(folder / "x.zip", {"x": data})}
    return {kind: Path(path).read_bytes() for kind, path in paths.items()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["w", "w:gz", "zip"]), data=st.data())
def test_cut_and_changed_archives_are_read_or_refused(
    whole: dict[str, bytes], tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    content = bytearray(whole[kind])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    at, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 50))
    del content[at : at + length if data.draw(st.booleans()) else None]
    path = tmp_path / "archive"
    path.write_bytes(content)

    try:
        members = read_members(str(path), anything, max_bytes=10**6)
    except ModelFormatError:
        return
    assert sum(map(len, members.values())) <= 10**6
