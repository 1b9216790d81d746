"""Malformed requests, each of which a real server must answer with 4xx, and go on.

``python -m tests.serving.malformed --cases 500000`` starts a server on loopback and sends it
as many as asked for, over connections that are kept.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.builders import planted_weights
from tests.serving.bad_requests import LIMIT, WIDTH, Case, bad_request
from tests.serving.servers import Server, save_model, serving

SECONDS = 60.0
CONNECTIONS = 3  # of a process
GOOD = json.dumps({"instances": [{"features": [1.0] * WIDTH}]}).encode()
EVERY = 1000  # cases between two good requests


class Client:
    """One connection that is kept, and opened again when the server has closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = str(parts.hostname), int(parts.port or 80)
        self._connection: http.client.HTTPConnection | None = None

    def send(self, case: Case) -> tuple[int, bytes]:
        """Return status and body of the answer."""
        if case.raw:
            return self._send_raw(case.raw)
        for attempt in (0, 1):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self._address, timeout=SECONDS)
                attempt = 1
            try:
                return self._send_once(case)
            except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
                self._connection.close()
                self._connection = None
                if attempt:  # not a kept connection that had been idle for too long
                    raise
        raise AssertionError("unreachable")

    def _send_once(self, case: Case) -> tuple[int, bytes]:
        connection = self._connection
        assert connection is not None
        body: bytes | Iterator[bytes] = case.body
        if case.is_chunked:
            body = (case.body[place : place + 2**16] for place in range(0, len(case.body), 2**16))
        connection.request(
            case.method, case.path, body, case.headers, encode_chunked=case.is_chunked
        )
        answer = connection.getresponse()
        content = answer.read()
        if answer.will_close:
            connection.close()
        return answer.status, content

    def _send_raw(self, raw: bytes) -> tuple[int, bytes]:
        with socket.create_connection(self._address, timeout=SECONDS) as connection:
            connection.sendall(raw)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
        return int(status[1]) if status else 0, answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def check(client: Client, case: Case) -> None:
    """Send a malformed request; the answer is the right 4xx and says why."""
    status, content = client.send(case)
    shown = case.raw or case.body
    seen = f"{case.kind}: {status} {content[:300]!r} for {case.method} {case.path} "
    seen += f"{case.headers} {shown[:1500]!r}"
    assert status == case.status, seen
    if not case.raw and case.method != "HEAD":
        told = json.loads(content)
        assert told["status"] == status, seen
        assert isinstance(told["error"], str), seen
        assert told["error"], seen


def check_good(client: Client) -> None:
    """Send a sound request; it is answered."""
    status, content = client.send(Case("good", 200, GOOD))
    assert status == 200, content
    (prediction,) = json.loads(content)["predictions"]
    assert 0 < prediction["score"] < 1


def check_many(url: str, cases: Iterable[int], connections: int = CONNECTIONS) -> Counter[str]:
    """Check cases by number over some connections; return how many there were of each kind."""
    numbers, lock = iter(cases), threading.Lock()
    kinds: Counter[str] = Counter()
    failures: list[BaseException] = []

    def work() -> None:
        client = Client(url)
        try:
            while not failures:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                case = bad_request(random.Random(number))
                check(client, case)
                if number % EVERY == 0:
                    check_good(client)
                with lock:
                    kinds[case.kind] += 1
        except Exception as err:  # noqa: BLE001 - told by the thread that waits
            failures.append(err)
        finally:
            client.close()

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return kinds


def check_after(server: Server) -> None:
    """After all of it: no answer but 4xx and the good ones', no worker died, all is free."""
    page = server.get("/metrics").data.decode()
    statuses = set(re.findall(r'path="(?:/invocations|other)",status="(\d+)"', page))
    assert all(status == "200" or status[0] == "4" for status in statuses), statuses
    assert "spark_fm_worker_deaths_total 0.0" in page
    assert server.get("/health").json()["requests"] == 0


def private_mib(server: Server) -> float:
    """Return the memory of all processes of a server that is no file's and nobody else's."""
    total = 0
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            if os.getpgid(int(entry)) == server.process.pid:
                status = Path(f"/proc/{entry}/status").read_text()
                told = re.search(r"RssAnon:\s+(\d+) kB", status)
                total += int(told[1]) if told else 0  # one that has just ended has none
    return total / 1024


def main() -> None:
    """Run many cases and print how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="that send")
    parser.add_argument("--workers", type=int, default=2, help="of the server")
    args = parser.parse_args()
    first = args.seed * 1_000_000_007
    step = 10_000
    kinds: Counter[str] = Counter()
    flags = ["--workers", str(args.workers), "--max-payload-mb", str(LIMIT >> 20)]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(args.processes) as pool:
        path = save_model(f"{folder}/model", planted_weights(WIDTH, 4, seed=1))
        with serving(path, *flags) as server:
            started, before = time.perf_counter(), private_mib(server)
            done = 0
            while done < args.cases:
                stop = min(done + step, args.cases)
                parts = [
                    (server.url, range(first + done + part, first + stop, args.processes))
                    for part in range(args.processes)
                ]
                for counted in pool.starmap(check_many, parts):
                    kinds += counted
                done = stop
                seconds = time.perf_counter() - started
                print(
                    f"{done:,} cases, {done / seconds:,.0f}/s, server "
                    f"{before:.0f} -> {private_mib(server):.0f} MiB", flush=True,
                )  # fmt: skip
            check_after(server)
            check_many(server.url, range(first, first + EVERY))
            assert server.stop() == 0
    for kind, count in kinds.most_common():
        print(f"  {kind:<18} {count:>9,}")
    print(f"{kinds.total():,} malformed requests: each answered with its 4xx, nothing else")


if __name__ == "__main__":
    main()
