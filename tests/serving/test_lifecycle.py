"""Start, stop, reload, death of a worker, and the memory that workers share."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import urllib3

from spark_fm.formats.requests import RECORDIO_PROTOBUF, encode_request
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.weights import FMWeights
from spark_fm.serving.processes import SIGNALS, handle_signals
from tests.builders import planted_weights
from tests.serving.servers import Server, eventually, instances, save_model, serving
from tests.serving.test_server import begin

WIDTH = 300_000
K = 15
VERSIONS = [planted_weights(WIDTH, K, seed=seed) for seed in (1, 2)]
ROWS = CsrBatch.from_arrays(
    np.array([0, 3]), np.array([0, 7, WIDTH - 1], np.int32), np.ones(3, np.float32)
)
ASKED = json.dumps(
    {"instances": [{"data": {"features": {
        "keys": ROWS.indices.tolist(), "shape": [WIDTH], "values": [1, 1, 1]}}}]}
).encode()  # fmt: skip
EXPECTED = [float(weights.predict(ROWS, "squared")[0]) for weights in VERSIONS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model, and ``current``, a link to the first."""
    base = tmp_path_factory.mktemp("versions")
    for number, weights in enumerate(VERSIONS):
        save_model(base / f"v{number}", weights, kind="regressor")
    (base / "current").symlink_to("v0")
    return base


@pytest.fixture(scope="module")
def living(folder: Path) -> Iterator[Server]:
    """Two workers that look for a new model five times a second."""
    with serving(folder / "current", "--workers", "2", "--reload-seconds", "0.2") as server:
        yield server


def point(folder: Path, name: str) -> None:
    (folder / "next").symlink_to(name)
    os.replace(folder / "next", folder / "current")


def score(server: Server) -> float:
    answer = server.invoke(ASKED)
    assert answer.status == 200, answer.data
    return answer.json()["predictions"][0]["score"]


def served_by(server: Server) -> dict[int, str]:
    """Return the model's digest by worker, of those that some new connections meet."""
    found = {}
    for _ in range(8):
        with urllib3.PoolManager(retries=False) as pool:
            told = pool.request("GET", f"{server.url}/health").json()
            if told["model"] is not None:
                found[told["worker"]] = told["model"]["digest"]
    return found


def gauge(server: Server, name: str) -> float:
    page = server.get("/metrics").data.decode()
    return float(re.search(f"^{name} (.+)$", page, re.MULTILINE)[1])


def models_told(server: Server) -> dict[str, float]:
    """Return the workers by the digest of the model that they serve, as the metrics say."""
    page = server.get("/metrics").data.decode()
    found = re.findall(r'^spark_fm_model_workers\{digest="(\w+)",.*\} (.+)$', page, re.MULTILINE)
    return {digest: float(count) for digest, count in found}


def test_a_new_version_is_taken_over_without_a_failed_request(living, folder):
    eventually(lambda: score(living) == EXPECTED[0])
    before = gauge(living, "spark_fm_reloads_total")
    seen, may_end = [], threading.Event()

    def ask():
        while not may_end.is_set():
            seen.append(score(living))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        point(folder, "v1")
        eventually(lambda: gauge(living, "spark_fm_reloads_total") == before + 1)
        eventually(
            lambda: len(set(served_by(living).values())) == 1 and score(living) != EXPECTED[0]
        )
    finally:
        may_end.set()
        for thread in threads:
            thread.join()
        point(folder, "v0")
    assert set(seen) == set(EXPECTED)
    eventually(lambda: {score(living) for _ in range(8)} == {EXPECTED[0]})
    # Versions of the past are not told: the page would grow with each reload.
    eventually(lambda: models_told(living) == dict.fromkeys(served_by(living).values(), 2.0))


def test_a_broken_version_is_refused_and_told_and_the_old_goes_on(living, folder):
    eventually(lambda: score(living) == EXPECTED[0])
    broken = folder / "broken"
    shutil.copytree(folder / "v1", broken)
    data = broken / "data" / "part-00000.parquet"
    data.write_bytes(data.read_bytes()[:1000])
    before = gauge(living, "spark_fm_refused_reloads_total")
    try:
        point(folder, "broken")
        eventually(lambda: gauge(living, "spark_fm_refused_reloads_total") == before + 1)
        assert {score(living) for _ in range(10)} == {EXPECTED[0]}
        eventually(
            lambda: living.said("version of the model is refused, the old one stays: .*damage")
        )
    finally:
        point(folder, "v0")


def test_it_says_503_before_its_model_is_there_and_reads_it_again_on_sighup(folder, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folder / "v0", path)
    flags = ["--reload-seconds", "0"]
    with serving(path, *flags, wait=False, TMPDIR=str(tmp_path)) as server:
        first = server.invoke(ASKED)
        server.wait_until_ready()
        assert first.status == 503
        assert "Retry-After" in first.headers
        assert "being loaded" in first.json()["error"]
        assert score(server) == EXPECTED[0]
        shutil.rmtree(path)
        shutil.copytree(folder / "v1", path)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: score(server) == EXPECTED[1])
        (shared,) = tmp_path.glob("spark-fm-serve-*")
        eventually(lambda: len(list(shared.glob("version-*"))) == 1, "the old version's end")

        pid = server.worker()
        server.process.kill()
        server.process.wait()
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the worker's end")


def test_a_worker_that_dies_is_replaced(living):
    eventually(lambda: len(served_by(living)) == 2)
    before = gauge(living, "spark_fm_worker_deaths_total")
    (victim, *_) = served_by(living)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: living.said(f"worker {victim} died"))
    # Meanwhile the other one answers, but for what the dead one had accepted.
    eventually(lambda: len(served_by(living)) == 2, "two workers")
    assert victim not in served_by(living)
    assert gauge(living, "spark_fm_worker_deaths_total") == before + 1
    assert gauge(living, "spark_fm_workers") == 2
    assert list(models_told(living).values()) == [2.0]


def mapped(pid: int, ending: str) -> dict[str, int]:
    """Return the kB of the mappings of files with a name, by kind of memory."""
    found: dict[str, int] = {}
    is_one = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_one = line.endswith(ending)
        elif is_one and line.endswith(" kB"):
            name, size, _ = line.split()
            found[name.rstrip(":")] = found.get(name.rstrip(":"), 0) + int(size)
    return found


def test_workers_share_one_copy_of_the_model(living):
    """Once every worker has scored every feature, the table is in memory once."""
    X = np.ones((1, WIDTH), np.float32)
    body = encode_request(X, RECORDIO_PROTOBUF)
    touched: set[int] = set()

    def all_touched():
        with urllib3.PoolManager(maxsize=1, retries=False) as pool:
            pid = pool.request("GET", f"{living.url}/health").json()["worker"]
            if pid not in touched:
                headers = {"Content-Type": RECORDIO_PROTOBUF}
                answer = pool.request(
                    "POST", f"{living.url}/invocations", body=body, headers=headers
                )
                assert answer.status == 200, answer.data
                touched.add(pid)
        return len(touched) == 2

    eventually(all_touched)
    kinds = [mapped(pid, "table.npy") for pid in touched]
    size = WIDTH * (K + 1) * 4 / 1024
    for kind in kinds:
        assert kind["Rss"] >= size  # all of it is there for each worker
        assert kind["Private_Dirty"] == kind["Anonymous"] == 0
    assert sum(kind["Pss"] for kind in kinds) < 1.05 * size  # and once for both


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_before_it_stops_with_0_and_leaves_nothing(
    model, tmp_path, number
):
    body = instances(np.eye(20)[:1])
    with serving(model, "--workers", "2", TMPDIR=str(tmp_path)) as server:
        (shared,) = tmp_path.glob("spark-fm-serve-*")
        assert shared.stat().st_mode & 0o077 == 0
        slow = [begin(server, len(body), body[:10]) for _ in range(4)]
        parts = urlsplit(server.url)
        eventually(lambda: gauge(server, "spark_fm_requests_in_flight") >= 5)
        if number == signal.SIGINT:
            os.killpg(server.process.pid, number)  # as a terminal does
        else:
            server.process.send_signal(number)

        def is_refused():
            with socket.socket() as tried:
                return tried.connect_ex((parts.hostname, parts.port)) != 0

        eventually(is_refused)
        for client in slow:
            client.send(body[10:])
        assert [client.getresponse().status for client in slow] == [200] * 4
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log
    assert not list(tmp_path.iterdir())


def test_a_signal_to_stop_that_comes_while_a_worker_starts_is_kept():
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        handle_signals()
        assert signal.SIGTERM in signal.sigpending()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before:
            signal.signal(number, handler)


@pytest.mark.parametrize("moment", ["before a worker runs", "while others start"])
def test_it_stops_with_0_at_any_moment_of_its_start(model, moment):
    with serving(model, "--workers", "3", wait=moment != "before a worker runs") as server:
        assert server.stop() == 0
        assert "is killed" not in server.log  # none had to be forced after its grace
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "holds no FactorizationMachineModel"),
        (["MODEL", "--port", "99999"], "port=99999"),
        (["MODEL", "--host", "203.0.113.7"], "Cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(model, words, told, capfd):
    from spark_fm.cli.main import main

    words = [model if word == "MODEL" else word for word in words]
    code = main(["serve", *words, *([] if "--port" in words else ["--port", "0"])])
    err = capfd.readouterr().err
    assert code == 2
    assert told in err
    assert err.count("spark-fm: error:") == 1
    assert "Traceback" not in err


def test_the_model_of_a_regressor_has_no_labels(living):
    assert set(living.invoke(ASKED).json()["predictions"][0]) == {"score"}


def test_planted_versions_differ():
    assert isinstance(VERSIONS[0], FMWeights)
    assert EXPECTED[0] != EXPECTED[1]
