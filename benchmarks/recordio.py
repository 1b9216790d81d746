"""Speed of reading recordIO-protobuf: ``python -m benchmarks.recordio``.

Rows a second from bytes to arrays, against the protobuf library parsing each record and
``np.array`` of its values and keys; sparse rows of 2 and 40 non-zeros. Dense rows of 784
in MB/s against a copy of the same bytes. Both sides in one process, best of five.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np

from benchmarks.timing import compared
from spark_fm.formats.recordio.encode import encode_csr, encode_dense
from spark_fm.formats.recordio.reader import RecordReader
from spark_fm.formats.recordio.record_pb2 import Record


def best_seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest of several times."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def read_all(payload: bytes) -> int:
    """Read with the compiled reader; return the number of rows."""
    return sum(batch.n_rows for batch in RecordReader(io.BytesIO(payload)))


def parse_all(payload: bytes) -> int:
    """Parse every record with the protobuf library and make arrays of it."""
    n_rows, place, view = 0, 0, memoryview(payload)
    while place < len(payload):
        length = int.from_bytes(view[place + 4 : place + 8], "little")
        record = Record.FromString(view[place + 8 : place + 8 + length])
        tensor = record.features["values"].float32_tensor
        np.array(tensor.values, np.float32)
        np.array(tensor.keys, np.int64)
        place += 8 + length + (-length & 3)
        n_rows += 1
    return n_rows


def sparse_rows(n_rows: int, n_entries: int, n_features: int = 1_000_000) -> bytes:
    """Return framed records of random sparse rows."""
    rng = np.random.default_rng(n_entries)
    indices = np.sort(rng.integers(0, n_features, (n_rows, n_entries)), axis=1).astype(np.int32)
    return encode_csr(
        np.arange(0, n_rows * n_entries + 1, n_entries, dtype=np.int64), indices.ravel(),
        rng.random(indices.size, dtype=np.float32), n_features,
        rng.integers(0, 2, n_rows).astype(np.float32),
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    args = parser.parse_args()
    print("| rows | protobuf library | spark_fm | ratio | bar |")
    print("| --- | --- | --- | --- | --- |")
    for n_entries in (2, 40):
        n_rows = args.rows if n_entries == 2 else args.rows // 8
        payload = sparse_rows(n_rows, n_entries)
        slow = n_rows / best_seconds(lambda payload=payload: parse_all(payload), 2)
        fast = n_rows / best_seconds(lambda payload=payload: read_all(payload))
        print(
            f"| {n_entries} non-zeros | {slow:,.0f} rows/s | {fast:,.0f} rows/s "
            f"| {fast / slow:.1f} | 8 |"
        )
        what = f"recordIO against the protobuf library, {n_entries} non-zeros"
        compared(what, [fast / slow], ">= 8", moonshot=">= 25")
    X = np.random.default_rng(0).random((args.rows // 20, 784), dtype=np.float32)
    payload = encode_dense(X, np.zeros(len(X), np.float32))
    source = np.frombuffer(payload, np.uint8)
    copied = len(payload) / best_seconds(source.copy) / 1e6
    fast = len(payload) / best_seconds(lambda: read_all(payload)) / 1e6
    print(f"| 784 dense | copy: {copied:,.0f} MB/s | {fast:,.0f} MB/s | {fast / copied:.2f} | - |")


if __name__ == "__main__":
    main()
