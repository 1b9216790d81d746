"""Objects are written once and whole, and paths in stores are literal; a real S3 server."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spark_fm.formats.files import atomic_write, files_in, open_file, path_in, store_of
from spark_fm.formats.models.native import SavedModel, read_model, save_model
from spark_fm.learner.csr import CsrBatch
from spark_fm.loaded import load
from tests.formats.models import saved_model
from tests.s3 import BUCKET, S3

SPECIAL = ["k[8]", "k{8,9}", "k*", "k?", "k 8", "k%20", "k#8+", "k\\8", "ключ"]


def write(s3: S3, name: str, content: bytes) -> None:
    store, inner = store_of(f"s3://{BUCKET}/{name}")
    with atomic_write(inner, store=store) as file:
        file.write(content)


def read(s3: S3, name: str) -> bytes:
    with open_file(f"s3://{BUCKET}/{name}") as file:
        return file.read()


def test_an_object_is_one_upload_without_a_copy_or_a_new_mark_of_a_folder(s3: S3) -> None:
    for content in (b"first", b"second"):
        write(s3, "a/b/file", content)

    assert read(s3, "a/b/file") == b"second"
    verbs = [request.split()[0] for request in s3.requests]
    assert verbs.count("COPY") == verbs.count("DELETE") == 0
    assert sum("?uploads" in request for request in s3.requests) == 2
    assert s3.marks() == []
    assert s3.keys() == ["a/b/file"]


@pytest.mark.parametrize("part", ["?uploads", "partNumber=2", "POST /bucket/file?uploadId"])
def test_an_upload_that_fails_anywhere_leaves_the_object_before(s3: S3, part: str) -> None:
    write(s3, "file", b"whole")
    s3.fails = lambda request: part in request

    with pytest.raises(OSError, match="file"):
        write(s3, "file", bytes(12_000_000))

    s3.fails = lambda request: False
    assert read(s3, "file") == b"whole"


def test_a_block_that_fails_uploads_nothing(s3: S3) -> None:
    store, inner = store_of(f"s3://{BUCKET}/file")

    with suppress(KeyError), atomic_write(inner, store=store) as file:
        file.write(bytes(12_000_000))
        raise KeyError

    assert s3.keys() == []


def test_an_interrupt_while_an_object_is_uploaded_cuts_nothing(s3: S3) -> None:
    """A stream that is closed after an error publishes what it has."""
    content = bytes(12_000_000)

    def interrupts_once(request: str) -> bool:
        if "partNumber=1" in request:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    s3.fails = interrupts_once
    with pytest.raises(KeyboardInterrupt):
        write(s3, "file", content)

    assert s3.keys() in ([], ["file"])
    assert not s3.keys() or read(s3, "file") == content


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("scheme", ["s3", "s3a", "memory"])
def test_a_path_in_a_store_is_literal(s3: S3, scheme: str, name: str) -> None:
    """Beside it lies what it would match as a glob."""
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").store.clear()
    root = f"{scheme}://{BUCKET}"
    for folder in ("k8", "k9", "kx", name):
        store, inner = store_of(f"{root}/{folder}/file")
        with atomic_write(inner, store=store) as file:
            file.write(folder.encode())
    (found,) = files_in(f"{root}/{name}")
    with found.open() as stream:
        assert stream.read() == name.encode()

    store, inner = store_of(f"{root}/{name}/file")
    store.move(inner, f"{inner}.moved")
    with atomic_write(inner, store=store) as file:
        file.write(b"once more")
    store.delete_file(inner)
    assert [file.inner for file in files_in(f"{root}/{name}")] == [f"{inner}.moved"]
    store.delete_dir(os.path.dirname(inner))
    for folder in ("k8", "k9", "kx"):
        with open_file(f"{root}/{folder}/file") as stream:
            assert stream.read() == folder.encode()


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("s3://b/p?region=x&endpoint_override=http://h:1", "s3://b/p/f?region=x&endpoint_override=http://h:1"),
        ("s3://b/p/?region=x", "s3://b/p/f?region=x"),
        ("s3://b?region=x", "s3://b/f?region=x"),
        ("gs://b/p?scheme=http", "gs://b/p/f?scheme=http"),
        ("s3://b/k?8", "s3://b/k?8/f"),
        ("/tmp/k?a=b", "/tmp/k?a=b/f"),
        ("file:/tmp/k?a=b", "file:/tmp/k?a=b/f"),
        ("hdfs://h:1/p/", "hdfs://h:1/p/f"),
    ],
)  # fmt: skip
def test_what_a_uri_asks_of_its_store_stays_behind_the_path(folder: str, path: str) -> None:
    assert path_in(folder, "f") == path


@pytest.fixture
def models(tmp_path: Path) -> tuple[SavedModel, SavedModel]:
    old = read_model(saved_model(tmp_path))
    weights = replace(old.weights, table=old.weights.table + np.float32(1))
    return old, replace(old, weights=weights)


def assert_loads(path: str, model: SavedModel) -> None:
    np.testing.assert_array_equal(read_model(path).weights.table, model.weights.table)


@pytest.mark.parametrize("verb", ["COPY", "DELETE", "PUT"])
@pytest.mark.parametrize("count", range(4))
def test_a_model_in_a_store_stays_whatever_fails_once_as_it_is_replaced(
    s3: S3, models: tuple[SavedModel, SavedModel], verb: str, count: int
) -> None:
    path = f"s3://{BUCKET}/m"
    save_model(path, models[0])
    left = count

    def fails_once(request: str) -> bool:
        nonlocal left
        if request.startswith(verb):
            left -= 1
            return left == -1
        return False

    s3.fails = fails_once
    try:
        save_model(path, models[1], overwrite=True)
        kept = models[1]
    except OSError:
        kept = models[0]

    assert_loads(path, kept)


@pytest.mark.parametrize(
    "where", ["s3://{bucket}/m[1]?{query}", "s3://{bucket}/m?/?{query}", "memory://m[1]"]
)
def test_a_model_of_a_literal_path_with_options_is_replaced_and_leaves_nothing_else(
    s3: S3, models: tuple[SavedModel, SavedModel], where: str
) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.store.clear()
    path = where.format(bucket=BUCKET, query=s3.query)

    for model in models:
        save_model(path, model, overwrite=True)
        assert_loads(path, model)
        rows = np.eye(model.weights.feature_dim, dtype=np.float32)
        assert np.array_equal(load(path).predict(rows), model.predict(CsrBatch.from_matrix(rows)))

    assert len(s3.keys() + list(memory.store)) == 2
