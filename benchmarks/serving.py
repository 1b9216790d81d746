"""Load test of ``spark-fm serve``: ``python -m benchmarks.serving``.

Starts a server on loopback, sends it sparse requests over kept connections, and prints
latency, requests and instances a second for 1, 10 and 1000 instances a request, then the
memory, and how long a large request keeps small ones waiting. Clients and server share the
machine. Any answer but 200 is an error.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import scipy.sparse as sp

from spark_fm.formats.requests import CONTENT_TYPES, JSON, RECORDIO_PROTOBUF, encode_request
from spark_fm.formats.responses import decode_response
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from tests.builders import planted_weights
from tests.serving.malformed import private_mib
from tests.serving.servers import Server, save_model, serving

N_ENTRIES = 39  # of a row: Criteo's
MAX_REQUESTS = 200_000  # of one line of the table
SIZES = (1, 10, 1000)


@dataclass(frozen=True)
class Load:
    """Requests of one kind, from so many connections at once, for so long."""

    url: str
    content_type: str
    body: bytes
    connections: int
    seconds: float


def sparse_rows(n_rows: int, width: int) -> sp.csr_array:
    """Return random rows."""
    rng = np.random.default_rng(n_rows)
    indices = np.sort(rng.integers(0, width, (n_rows, N_ENTRIES)), axis=1)
    indptr = np.arange(0, n_rows * N_ENTRIES + 1, N_ENTRIES)
    rows = sp.csr_array((np.ones(indices.size, np.float32), indices.ravel(), indptr))
    rows.resize(n_rows, width)
    rows.sum_duplicates()
    return rows


def send(load: Load) -> list[float]:
    """Return the seconds that each request took."""
    parts = urlsplit(load.url)
    seconds: list[float] = []
    failures: list[BaseException] = []
    end = time.perf_counter() + load.seconds
    headers = {"Content-Type": load.content_type}

    def work() -> None:
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        try:
            while time.perf_counter() < end and len(seconds) < MAX_REQUESTS and not failures:
                started = time.perf_counter()
                connection.request("POST", "/invocations", load.body, headers)
                answer = connection.getresponse()
                content = answer.read()
                seconds.append(time.perf_counter() - started)
                if answer.status != 200:
                    raise RuntimeError(f"answered {answer.status}: {content[:300]!r}")
        except Exception as err:  # noqa: BLE001 - raised by the thread that waits
            failures.append(err)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(load.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return seconds


def check_scores(server: Server, weights: FMWeights) -> None:
    """Compare the answers with the model's own scores."""
    X = sparse_rows(50, weights.feature_dim)
    expected = weights.predict(CsrBatch.from_matrix(sp.csr_matrix(X)), "logistic")
    for content_type in CONTENT_TYPES:
        answer = server.invoke(encode_request(X, content_type), content_type)
        found = decode_response(answer.data, content_type).scores
        if not np.array_equal(found, expected):
            raise RuntimeError(f"wrong scores for {content_type}")


def print_table(server: Server, width: int, args: argparse.Namespace) -> int:
    """Print a line for each kind of request; return how many were answered."""
    print("| format | instances | connections | p50 ms | p99 ms | requests/s | instances/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    n_answered = 0
    # Processes, because one could not keep two workers busy.
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for content_type in (JSON, RECORDIO_PROTOBUF):
            for n_rows in SIZES:
                body = encode_request(sparse_rows(n_rows, width), content_type)
                for senders, connections in ((1, 1), (args.processes, args.connections)):
                    load = Load(server.url, content_type, body, connections, args.seconds)
                    started = time.perf_counter()
                    parts = pool.map(send, [load] * senders, chunksize=1)
                    elapsed = time.perf_counter() - started
                    took = np.concatenate([np.array(part) for part in parts]) * 1e3
                    n_answered += len(took)
                    rate = len(took) / elapsed
                    p50, p99 = np.percentile(took, [50, 99])
                    name = "JSON" if content_type == JSON else "recordIO"
                    print(
                        f"| {name} | {n_rows:,} | {senders * connections} | {p50:.2f} | {p99:.2f} "
                        f"| {rate:,.0f} | {rate * n_rows:,.0f} |", flush=True,
                    )  # fmt: skip
    return n_answered


def worst_ping(server: Server, content_type: str, body: bytes, repeats: int = 5) -> float:
    """Return the longest time that /ping took while large requests were answered."""
    is_done = threading.Event()
    longest = 0.0

    def ping() -> None:
        nonlocal longest
        while not is_done.is_set():
            started = time.perf_counter()
            server.get("/ping")
            longest = max(longest, time.perf_counter() - started)

    pinging = threading.Thread(target=ping)
    pinging.start()
    for _ in range(repeats):
        status = server.invoke(body, content_type).status
        if status != 200:
            raise RuntimeError(f"answered {status}")
    is_done.set()
    pinging.join()
    return longest


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each line")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="that send")
    parser.add_argument("--connections", type=int, default=16, help="of each of them")
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--factors", type=int, default=16)
    args = parser.parse_args()
    weights = planted_weights(args.features, args.factors, seed=1)
    model_mib = weights.table.nbytes / 2**20
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f} before; "
        f"{args.workers} workers; {args.features:,} features, k={args.factors}, "
        f"{model_mib:.0f} MiB; {N_ENTRIES} non-zeros a row\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(f"{folder}/model", weights)
        with serving(path, "--workers", str(args.workers)) as server:
            check_scores(server, weights)
            before = private_mib(server)
            n_answered = print_table(server, args.features, args)
            after = private_mib(server)
            print(f"\n{n_answered:,} requests, none failed")
            print(
                f"private memory of all processes: {before:.0f} -> {after:.0f} MiB, and "
                f"{model_mib:.0f} MiB for the model, which they share"
            )
        print("\n| large request | MiB | longest /ping beside it, ms |\n| --- | --- | --- |")
        with serving(path) as server:
            for content_type in CONTENT_TYPES:
                body = encode_request(sparse_rows(9_000, args.features), content_type)
                longest = worst_ping(server, content_type, body)
                print(f"| {content_type} | {len(body) / 2**20:.1f} | {longest * 1e3:.0f} |")


if __name__ == "__main__":
    main()
