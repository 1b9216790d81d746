"""Files are listed and opened on stores of every kind."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress

import pytest

from spark_fm.errors import InvalidDataError
from spark_fm.formats.files import (
    _manifest,
    atomic_write,
    glob_pattern,
    list_files,
    local_place,
    open_file,
    store_of,
)


@pytest.fixture
def memory():
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.store.clear()
    for name, content in (("a.pbr", b"aa"), ("b.pbr", b"b"), ("_c", b"c"), ("empty", b"")):
        store.pipe_file(f"/data/{name}", content)
    return store


def test_files_of_an_fsspec_store_are_listed_and_opened_again(memory):
    found = list_files(["memory://data", "memory://data/b*"])

    assert [(file.path, file.size) for file in found] == [
        ("memory:///data/a.pbr", 2), ("memory:///data/b.pbr", 1), ("memory:///data/b.pbr", 1),
    ]  # fmt: skip
    with pickle.loads(pickle.dumps(found[0])).open() as stream:
        assert stream.read() == b"aa"
    with open_file("memory://data/b.pbr") as stream:
        assert stream.read() == b"b"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/a/b", "/a/b"), ("file:/a/b", "/a/b"), ("file:///a b", "/a b"), ("/a:/b", "/a:/b"),
        ("s3://a/b", None), ("s3a://a", None), ("hdfs:/a/b", None), ("memory://a", None),
    ],
)  # fmt: skip
def test_a_path_is_known_to_be_local_without_a_look_at_a_store(path, place):
    assert local_place(path) == place


@pytest.mark.parametrize(
    "uri",
    [
        "abfss://container@account.dfs.core.windows.net/folder",
        "s3://bucket/folder?region=eu-west-1&endpoint_override=localhost:1",
    ],
)
def test_a_listed_file_remembers_account_and_options_of_its_store(uri, monkeypatch):
    store, inner = store_of(uri)
    asked = []
    monkeypatch.setattr(
        "spark_fm.formats.files.store_of", lambda path: (asked.append(path), (store, inner))[1]
    )

    class Info:
        path, size, is_file, type, base_name = f"{inner}/a.pbr", 3, True, None, "a.pbr"

    class Store:
        def get_file_info(self, where):
            return Info()

        def open_input_file(self, where):
            return where

    store = Store()
    (file,) = list_files([uri])

    assert file.open() == f"{inner}/a.pbr"
    assert asked == [uri, uri]


def test_a_file_that_is_named_like_a_glob_is_itself(tmp_path):
    for name in ("part[1].pbr", "part1.pbr", "x*"):
        (tmp_path / name).write_bytes(b"1")

    for name in ("part[1].pbr", "x*"):
        assert [file.path for file in list_files([f"{tmp_path}/{name}"])] == [f"{tmp_path}/{name}"]
    assert len(list_files([f"{tmp_path}/part*"])) == 2


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("x[]", "x[]", True), ("x[!]", "x!", True), ("[^]a", "^a", True),
        ("[!-a]x", "1x", True), ("[!-a]x", "-x", False), ("[!a]x", "/x", False),
        ("[^a-c]", "d", True), ("[^a-c]", "b", False), (r"\{x{a,b}", "{xb", True),
        ("[{]{a,b}", "{a", True), ("a{b", "a{b", True), ("[]]", "]", True),
    ],
)  # fmt: skip
def test_a_glob_takes_for_itself_what_is_no_wildcard(glob, name, matches):
    assert bool(glob_pattern(glob).fullmatch(name)) == matches


def test_a_glob_that_cannot_be_read_is_named():
    with pytest.raises(InvalidDataError, match=r"The glob 'part-\[z-a\]\*' cannot be read"):
        glob_pattern("part-[z-a]*")


def test_files_of_a_manifest_keep_what_its_prefix_asks_of_the_store(tmp_path):
    manifest = tmp_path / "x.manifest"
    manifest.write_text('[{"prefix": "s3://b/p/?region=eu-west-1"}, "a", "c/d"]')

    assert _manifest(str(manifest)) == [
        "s3://b/p/a?region=eu-west-1", "s3://b/p/c/d?region=eu-west-1",
    ]  # fmt: skip


def test_a_glob_passes_hidden_folders_over(tmp_path):
    for folder in ("_temporary-1", "x"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.pbr").write_bytes(b"a")

    found = list_files([f"{tmp_path}/*/*"])

    assert [file.path for file in found] == [f"{tmp_path}/x/a.pbr"]


def test_an_unknown_store_and_a_missing_path_are_named(tmp_path):
    with pytest.raises(InvalidDataError, match="No reader for 'nope://x'"):
        list_files(["nope://x"])
    with pytest.raises(InvalidDataError, match=r"Path does not exist: .*nothing"):
        list_files([f"{tmp_path}/nothing"])


@pytest.mark.parametrize("of_store", [False, True])
def test_a_file_appears_under_its_name_only_when_it_is_complete(tmp_path, of_store):
    path = str(tmp_path / ("n" * 255))
    store = store_of(path)[0] if of_store else None

    with atomic_write(path, store=store) as file:
        file.write(b"old")
        assert not os.path.exists(path)
    with suppress(KeyboardInterrupt), atomic_write(path, store=store) as file:
        file.write(b"new")
        raise KeyboardInterrupt

    assert os.listdir(tmp_path) == ["n" * 255]
    with open(path, "rb") as file:
        assert file.read() == b"old"


def test_a_link_stays_a_link_and_its_target_gets_the_data(tmp_path):
    (tmp_path / "link").symlink_to("target")

    with atomic_write(str(tmp_path / "link")) as file:
        file.write(b"data")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"data"


def test_a_folder_and_a_file_in_a_missing_folder_cannot_be_written(tmp_path):
    with pytest.raises(IsADirectoryError), atomic_write(str(tmp_path)):
        pass
    with pytest.raises(FileNotFoundError), atomic_write(str(tmp_path / "missing" / "file")):
        pass
