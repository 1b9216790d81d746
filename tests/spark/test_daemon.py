"""The daemon of a command's own Spark: silent where Spark hangs up, and only there."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys

import pytest

# A socket closed with this sends a reset, as one does whose data nobody has read.
RESET = struct.pack("ii", 1, 0)


def told_by(module: str, *, is_reset: bool) -> str:
    """Start a daemon, leave one of its workers, and return what was on stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", module, "pyspark.worker"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHON_WORKER_FACTORY_SECRET": "x"},
    ) as daemon:  # fmt: skip
        assert daemon.stdin
        assert daemon.stdout
        assert daemon.stderr
        (port,) = struct.unpack(">i", daemon.stdout.read(4))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            (worker,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
            ended = select.poll()
            ended.register(os.pidfd_open(worker), select.POLLIN)
            if is_reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            else:
                connection.shutdown(socket.SHUT_WR)  # in the middle of what the worker expects
                connection.recv(1)
        assert ended.poll(60_000)
        daemon.stdin.close()
        return daemon.stderr.read().decode()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells when a worker ends")
def test_a_worker_on_which_spark_hangs_up_is_silent_and_real_errors_are_told():
    assert "ConnectionResetError" in told_by("pyspark.daemon", is_reset=True)
    assert told_by("spark_fm.spark.daemon", is_reset=True) == ""
    assert "EOFError" in told_by("spark_fm.spark.daemon", is_reset=False)
