"""Real servers on loopback, and models for them; no Spark."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

from spark_fm.formats.models.native import (
    MODEL_CLASS,
    SCORING_DEFAULTS,
    model_arrays,
    model_metadata,
    write_model,
)
from spark_fm.learner.weights import FMWeights

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds; a condition that does not come true is a failure


def save_model(
    path: Path | str,
    weights: FMWeights,
    *,
    kind: str = "binary_classifier",
    threshold: float = 0.5,
    invalid: str = "error",
) -> str:
    """Write a model folder as Spark does, without Spark."""
    arrays = model_arrays(weights, None)
    metadata = {
        "class": MODEL_CLASS,
        "timestamp": 0,
        "sparkVersion": "4.0.0",
        "uid": "fm",
        "paramMap": {"predictorType": kind},
        "defaultParamMap": {**SCORING_DEFAULTS, "threshold": threshold, "handleInvalid": invalid},
        "spark_fm": model_metadata(weights, arrays, None),
    }
    write_model(str(path), json.dumps(metadata), arrays)
    return str(path)


def eventually(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Return a condition's value once it is true; fail when it never is."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true in {PATIENCE} s")


class Server:
    """A running ``spark-fm serve``; its log is read by a thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.pool = urllib3.PoolManager(maxsize=64, retries=False, timeout=PATIENCE)
        found = eventually(
            lambda: self.said(r"listening on (http://\S+),") or process.poll() is not None,
            "listening",
        )
        if found is True:
            raise AssertionError(f"the server ended: {self.log}")
        self.url = found[1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def said(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.log)

    def request(self, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        return self.pool.request(method, self.url + path, **more)

    def get(self, path: str) -> urllib3.BaseHTTPResponse:
        return self.request("GET", path)

    def invoke(
        self, body: Any, content_type: str | None = "application/json", **headers: str
    ) -> urllib3.BaseHTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type is not None:
            named["Content-Type"] = content_type
        return self.request("POST", "/invocations", body=body, headers=named)

    def wait_until_ready(self) -> Server:
        eventually(self._is_ready, f"the server's start: {self.log}")
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        return self.get("/ping").status == 200

    def worker(self) -> int:
        """Return the process that answers, of a server with one worker."""
        return int(self.get("/health").json()["worker"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextmanager
def serving(
    model: Path | str, *flags: str, wait: bool = True, **environment: str
) -> Iterator[Server]:
    """Run a server inside the block, on a free port of 127.0.0.1."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spark_fm.cli.main", "serve", str(model), "--port", "0", *flags],
        cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        server = Server(process)
        yield server.wait_until_ready() if wait else server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def instances(X: np.ndarray) -> bytes:
    """Return dense rows as a JSON request, by the standard library."""
    return json.dumps({"instances": [{"features": row} for row in X.tolist()]}).encode()


def sparse_instance(keys: list[int], values: list[float], width: int) -> dict[str, Any]:
    return {"data": {"features": {"keys": keys, "shape": [width], "values": values}}}
