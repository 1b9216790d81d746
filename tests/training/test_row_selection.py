import numpy as np
import pyarrow as pa
import pytest

from spark_fm.errors import InvalidDataError
from spark_fm.training import local_files, shards
from spark_fm.training.local_files import remove_store
from spark_fm.training.packing import TRAIN, VALIDATION, encode
from spark_fm.training.shards import RowSelection, RowsMissingError, read_rows
from spark_fm.training.tasks import LISTED, WriteShardsTask
from tests.training.test_shards import assert_same_rows, some_rows

N_ROUNDS = 2
REQUESTS = (
    {}, {"validates": True}, {"train_on_all": True}, {"round_index": -1, "validates": True}
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    return tmp_path


@pytest.fixture(params=[2**30, 700], ids=["whole", "cut"])
def window_bytes(request, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", request.param)
    return request.param


def blocks():
    """Blocks of two sources, as (kind, round, source, seq, rows), in order."""
    return [
        (
            kind,
            round_index,
            source,
            seq,
            some_rows(12, 100 * round_index + 10 * source + seq + kind),
        )
        for round_index in range(N_ROUNDS)
        for kind in (TRAIN, VALIDATION)
        for source in range(2)
        for seq in range(3 if kind == TRAIN else 1)
    ]


def batches(chosen, with_payload=True):
    for kind, round_index, source, seq, rows in chosen:
        columns = {
            "kind": kind, "round": round_index, "source": source, "seq": seq,
            "n_rows": rows.n_rows, "nnz": rows.nnz,
        }  # fmt: skip
        batch = {name: [value] for name, value in columns.items()}
        if with_payload:
            batch |= {"payload": [encode(rows)], "file": [None], "start": [None]}
        yield pa.RecordBatch.from_pydict(batch)


def stored(given):
    task = WriteShardsTask(store="fit", n_rounds=N_ROUNDS)
    return list(task(batches(given)))


def selection(store, **changes):
    fields = {"round_index": 1, "train_on_all": False, "validates": False} | changes
    return RowSelection(n_rounds=N_ROUNDS, store=store, **fields)


def selected_by(selection):
    return [
        block for block in blocks()
        if (block[1] == selection.round_index and (selection.train_on_all or block[0] == TRAIN))
        or (selection.validates and block[0] == VALIDATION)
    ]  # fmt: skip


@pytest.mark.parametrize("changes", REQUESTS)
def test_files_and_blocks_give_the_same_windows(window_bytes, changes):
    listing = stored(reversed(blocks()))
    from_files, from_blocks = selection("fit", **changes), selection(None, **changes)
    given = selected_by(from_files)

    files = list(read_rows(from_files, batches(blocks(), with_payload=False), 50))
    direct = list(read_rows(from_blocks, batches(given), 50))

    assert all(batch.schema.names == list(LISTED) for batch in listing)
    for target in (TRAIN, VALIDATION):
        one, other = ([rows for t, rows in found if t == target] for found in (files, direct))
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_rows(a, b)
    assert sum(rows.n_rows for _, rows in files) == 12 * len(given)
    n_targets = len({target for target, _ in files})
    assert (len(files) == n_targets) == (window_bytes == 2**30)


def test_other_blocks_than_those_in_files_count_as_missing():
    stored(blocks()[:-1])
    request = selection("fit", validates=True)

    with pytest.raises(RowsMissingError, match="validation-0, validation-1"):
        list(read_rows(request, batches(blocks(), with_payload=False), 50))


def test_features_that_the_table_lacks_are_told_from_blocks():
    stored(blocks())
    request = selection("fit")
    given = selected_by(request)

    with pytest.raises(RowsMissingError):
        list(read_rows(request, batches(given, with_payload=False), 10))
    with pytest.raises(InvalidDataError, match="changed between two passes"):
        list(read_rows(selection(None), batches(given), 10))


def test_a_disk_without_room_gets_a_listing_and_no_files(folder, monkeypatch):
    monkeypatch.setattr(local_files, "FREE_FRACTION", 1.0)

    assert len(stored(blocks())) == len(blocks())

    assert not [path for path in folder.rglob("*") if path.is_file()]
    with pytest.raises(RowsMissingError):
        list(read_rows(selection("fit"), batches([], with_payload=False), 50))


def test_a_partition_without_rows_has_its_sets_all_the_same():
    stored([])
    np.testing.assert_equal(list(read_rows(selection("fit", validates=True), iter([]), 50)), [])
    remove_store("fit")
    with pytest.raises(RowsMissingError):
        list(read_rows(selection("fit"), iter([]), 50))
