"""What a failing store leaves behind when a job's files are put in place."""

from __future__ import annotations

import pyarrow.fs as pafs
import pytest

from spark_fm.datasource import writer as recordio_sink
from spark_fm.datasource.writer import PartFile, RecordIOWriter, WriteOptions


class FailingStore:
    """A local store whose n-th call of one kind fails."""

    def __init__(self, method, number, error=None):
        self._store, self._method, self._number = pafs.LocalFileSystem(), method, number
        self._error = error or OSError("the store is down")

    def __getattr__(self, name):
        if name == self._method:
            self._number -= 1
            if self._number == 0:
                raise self._error
        return getattr(self._store, name)


@pytest.fixture
def writer(tmp_path):
    writer = RecordIOWriter(WriteOptions(str(tmp_path), "features", None), overwrite=True)
    _, _, staging = writer._folders()
    pafs.LocalFileSystem().create_dir(staging)
    for i in range(3):
        (tmp_path / staging / f"part-{i}.pbr").write_bytes(b"new")
        (tmp_path / f"old-{i}.pbr").write_bytes(b"old")
    return writer


PARTS = [PartFile(f"part-{i}.pbr") for i in range(3)]
OLD = ["old-0.pbr", "old-1.pbr", "old-2.pbr"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("error", [OSError("the store is down"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_files(writer, tmp_path, monkeypatch, number, error):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_bytes(b"old")
    store = FailingStore("move", number, error)
    monkeypatch.setattr(recordio_sink, "store_of", lambda path: (store, path))

    with pytest.raises(type(error)):
        writer.commit(PARTS)

    assert names(tmp_path) == [*OLD, "sub"]
    assert names(tmp_path / "sub") == ["x"]


class ObjectStore(FailingStore):
    """One that cannot rename."""

    type_name = "s3"


@pytest.mark.parametrize(("method", "number"), [("move", 2), ("move", 3), ("delete_file", 1)])
def test_a_failure_before_anything_old_is_gone_takes_the_new_objects_back(
    writer, tmp_path, monkeypatch, method, number
):
    store = ObjectStore(method, number)
    monkeypatch.setattr(recordio_sink, "store_of", lambda path: (store, path))

    with pytest.raises(OSError, match="the store is down"):
        writer.commit(PARTS)

    assert names(tmp_path) == OLD


@pytest.mark.parametrize("error", [OSError("the store is down"), KeyboardInterrupt()])
def test_a_failure_while_old_objects_go_keeps_the_new_ones(writer, tmp_path, monkeypatch, error):
    store = ObjectStore("delete_file", 2, error)
    monkeypatch.setattr(recordio_sink, "store_of", lambda path: (store, path))

    with pytest.raises(type(error)):
        writer.commit(PARTS)

    assert [name for name in names(tmp_path) if name.startswith("part")] == [p.name for p in PARTS]
    assert "_SUCCESS" not in names(tmp_path)


def test_without_failures_only_the_new_files_are_there(writer, tmp_path):
    writer.commit(PARTS)

    assert names(tmp_path) == ["_SUCCESS", *[part.name for part in PARTS]]
