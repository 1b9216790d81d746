import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.learner.csr import CsrBatch
from spark_fm.training import local_files
from spark_fm.training.local_files import remove_store
from spark_fm.training.shards import ShardStore


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two local folders, as Spark names them to its workers."""
    found = [tmp_path / "a", tmp_path / "b"]
    for folder in found:
        folder.mkdir()
    monkeypatch.setenv("SPARK_LOCAL_DIRS", ",".join(str(folder) for folder in found))
    return found


def some_rows(n_rows, seed=0, n_features=50):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, n_rows)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return CsrBatch(
        indptr,
        rng.integers(0, n_features, indptr[-1]).astype(np.int32),
        rng.normal(size=indptr[-1]).astype(np.float32),
        rng.integers(0, 2, n_rows).astype(np.float32),
        rng.random(n_rows).astype(np.float32),
    )


def write(store, name, shards):
    with store.writer(name) as writer:
        for rows in shards:
            writer.add(rows)
        return writer.finish()


def assert_same_rows(found, expected):
    for name in ("indptr", "indices", "values", "labels", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 99))
def test_what_is_written_is_read_back_bit_for_bit(tmp_path_factory, sizes, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_DIRS", str(tmp_path_factory.mktemp("local")))
        shards = [some_rows(size, seed + i) for i, size in enumerate(sizes)]
        store = ShardStore("fit", 3)
        assert write(store, "train-0", shards)

        found = store.shards("train-0")

        assert [(w.n_rows, w.nnz) for w in found] == [(w.n_rows, w.nnz) for w in shards]
        for shard, rows in zip(found, shards, strict=True):
            assert_same_rows(store.read(shard), rows)
            assert shard.n_features == (rows.indices.max() + 1 if rows.nnz else 0)


def test_partitions_sets_and_trainings_are_kept_apart(folders):
    rows = some_rows(5)
    write(ShardStore("fit", 0), "train-0", [rows])

    assert ShardStore("fit", 0).shards("train-0") is not None
    for key, partition, name in (("other", 0, "train-0"), ("fit", 2, "train-0"), ("fit", 0, "x")):
        assert ShardStore(key, partition).shards(name) is None


def test_a_set_that_is_not_whole_counts_as_missing(folders):
    store = ShardStore("fit", 0)
    write(store, "cut", [some_rows(5)])
    write(store, "gone", [some_rows(5)])
    [folder] = folders[0].iterdir()
    [cut], [gone] = folder.glob("0-cut-*.rows"), folder.glob("0-gone-*.rows")
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()

    assert store.shards("cut") is None
    assert store.shards("gone") is None


def test_a_set_that_fails_on_the_way_leaves_nothing(folders):
    store = ShardStore("fit", 0)

    def shards():
        yield some_rows(5)
        raise RuntimeError("the task is killed")

    with pytest.raises(RuntimeError):
        write(store, "train-0", shards())

    assert store.shards("train-0") is None
    assert not list(folders[0].rglob("*.rows"))


def test_a_disk_that_is_nearly_full_is_left_alone(folders, monkeypatch):
    monkeypatch.setattr(local_files, "FREE_FRACTION", 1.0)
    store = ShardStore("fit", 0)

    assert not write(store, "train-0", [some_rows(5)])
    assert store.shards("train-0") is None
    assert not list(folders[0].rglob("*.rows"))


def test_a_folder_that_cannot_be_written_does_not_stop_a_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path / "file"))

    assert not write(ShardStore("fit", 0), "train-0", [some_rows(5)])


def test_removing_a_training_leaves_the_others(folders):
    for key in ("one", "two"):
        for partition in (0, 1):
            write(ShardStore(key, partition), "train-0", [some_rows(5)])

    remove_store("one")

    left = {path.name for folder in folders for path in folder.iterdir()}
    assert left == {"spark_fm-two"}
