"""Spark's standalone master and workers as processes of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from pathlib import Path
from subprocess import DEVNULL
from types import TracebackType

import pyspark

PROGRAM = Path(pyspark.__file__).parent / "bin" / "spark-class"
NAMESPACE = ("unshare", "--map-root-user", "--mount")
OWN_FILES = 'mount -t tmpfs -o size=128m none "$0" && mkdir "$0"/local "$0"/tmp && exec "$@"'


class StandaloneCluster:
    """A master, and workers that come when they are told to; all end with the block.

    With ``own_files`` each worker, with its executors, has folders of its own: at the same paths
    and seen by no one else, in a mount namespace, where the system allows that to its users.
    """

    def __init__(self, *, own_files: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"spark://127.0.0.1:{self._port}"
        self._own_files = own_files
        self._running: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> StandaloneCluster:
        """Start the master."""
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        words = ["--host", "127.0.0.1", "--port", str(self._port), "--webui-port", "0"]
        self._start([str(PROGRAM), "org.apache.spark.deploy.master.Master", *words])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        """End all."""
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            process.wait()
        self._folder.cleanup()

    def files(self, number: int) -> Path:
        """Return the folder of a worker's own files, as this process sees it."""
        in_namespace = Path(f"/proc/{self.workers[number].pid}/root{self.folder}")
        return in_namespace if (in_namespace / "local").exists() else self.folder / _host(number)

    def start_worker(self, memory: str, *, cores: int = 1) -> None:
        """Start a worker, without waiting for it."""
        # Without files in common they are to Spark as machines with names of their own.
        host = _host(len(self.workers)) if self._own_files else "127.0.0.1"
        command = [
            str(PROGRAM), "org.apache.spark.deploy.worker.Worker", "--cores", str(cores),
            "--memory", memory, "--host", host, "--webui-port", "0",
            "--work-dir", str(self.folder / "work"), self.address,
        ]  # fmt: skip
        environment = dict(os.environ)
        if self._own_files:
            place = self.folder
            if _may_have_namespaces():
                command = [*NAMESPACE, "sh", "-c", OWN_FILES, str(place), *command]
            else:
                place = self.folder / host
                (place / "tmp").mkdir(parents=True)
            environment |= {
                "SPARK_LOCAL_DIRS": str(place / "local"), "SPARK_LOCAL_IP": host,
                "TMPDIR": str(place / "tmp"),
            }  # fmt: skip
        self.workers.append(self._start(command, environment))

    def _start(
        self, command: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=DEVNULL, stderr=DEVNULL, env=environment)
        self._running.append(process)
        return process


def _host(number: int) -> str:
    return f"127.0.0.{number + 2}"


def _may_have_namespaces() -> bool:
    try:
        subprocess.run([*NAMESPACE, "true"], check=True, stderr=DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
