import os

import numpy as np

from spark_fm.spark.broadcast import (
    read_bytes,
    read_value,
    shared_folder,
    write_buffers,
    write_value,
)


def test_a_value_comes_back_with_its_arrays_aligned_and_read_only(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(7, 3)).astype(np.float32)
    value = [(table, np.arange(4.0)), (np.empty((0, 2), np.float32), "text")]

    write_value(tmp_path / "value", value)
    (found, bias), (nothing, text) = read_value(tmp_path / "value")

    np.testing.assert_array_equal(found, table)
    np.testing.assert_array_equal(bias, np.arange(4.0))
    assert (nothing.shape, nothing.dtype, text) == ((0, 2), np.float32, "text")
    assert found.ctypes.data % 64 == 0
    assert not found.flags.writeable


def test_bytes_outlive_their_file(tmp_path):
    payload = os.urandom(10_000)
    halves = [memoryview(payload)[:5000], memoryview(payload)[5000:]]
    path = tmp_path / write_buffers(str(tmp_path), halves)

    found = read_bytes(path)
    path.unlink()

    assert found == payload


def test_a_shared_folder_is_private_and_goes_with_its_block():
    with shared_folder() as folder:
        write_buffers(str(folder), [memoryview(b"1")])
        assert folder.stat().st_mode & 0o077 == 0

    assert not folder.exists()
