"""Fixtures: Spark sessions, Classic and Connect, and the folder of real data."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.s3 import CREDENTIALS, S3, s3_server

# A first example compiles kernels: no example has a deadline.
settings.register_profile("spark_fm", deadline=None, derandomize=True)
settings.load_profile("spark_fm")

# Before any session starts: workers run this interpreter and import this checkout.
os.environ["PYSPARK_PYTHON"] = sys.executable
os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
# Of the JVMs, those of programs that tests start too: small queries take half of the CPU time
# where the optimising compiler is left out, and a test has no time to win it back. Nor has it
# where Spark's classes are verified: conf/archive_classes.py. A stale archive is passed over.
_CLASSES = Path(sys.prefix) / "spark-classes.jsa"
_ARCHIVE = f" -Xlog:disable -XX:SharedArchiveFile={_CLASSES}" if _CLASSES.is_file() else ""
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC" + _ARCHIVE)
# Images of containers often set it: then every program that tests start compiles its modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
_ROOT = str(Path(__file__).resolve().parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(
    part for part in (_ROOT, os.environ.get("PYTHONPATH")) if part
)

MODE = os.environ.get("SPARK_FM_TEST_MODE", "classic")

# Begun first where processes share the tests, so that none of them is left for the end.
LONGEST = (
    "test_checkpoints.py",
    "test_examples.py",
    "test_mlflow.py",
    "test_one_vs_rest.py",
    "test_quality.py",
    "test_recordio.py",
    "test_trainer.py",
)


# Stages whose tests are few of a folder's: docs/testing.md.
STAGES = ("cluster", "connect", "contract", "processes", "quality", "simulator", "large")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave unread what has no test of the one stage asked for: imports of all take seconds."""
    stage = config.option.markexpr
    is_other = (
        stage in STAGES
        and collection_path.match("test_*.py")
        and f"pytest.mark.{stage}" not in collection_path.read_text()
    )
    return is_other or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


def own_connect_port() -> int:
    """Return a free port, and let the clients of this process connect there.

    A local Connect server listens on 15002 and nowhere else, and its client asks there: two
    processes of tests at once would meet.
    """
    from pyspark.sql.connect.client import DefaultChannelBuilder

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    DefaultChannelBuilder.default_port = staticmethod(lambda: port)
    return port


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A local session that retries failed tasks: Classic, or Connect by the environment."""
    from pyspark.sql import SparkSession

    if MODE == "connect":
        port = own_connect_port()
        builder = SparkSession.builder.remote("local[2,3]")
        builder = builder.config("spark.connect.grpc.binding.port", str(port))
    else:
        builder = SparkSession.builder.master("local[2,3]")
    warehouse = tmp_path_factory.mktemp("warehouse")
    session = (
        builder.config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "4")
        .config("spark.driver.memory", "2g")
        .config("spark.python.unix.domain.socket.enabled", "true")  # 40 ms a task less
        .config("spark.python.daemon.module", "tests.worker_daemon")
        .config("spark.sql.warehouse.dir", str(warehouse))
        .config("spark.log.level", "FATAL")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of larger real sets; tests that need it are skipped without it."""
    folder = os.environ.get("SPARK_FM_DATA")
    if not folder:
        pytest.skip("SPARK_FM_DATA is not set: no folder of larger real sets")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"SPARK_FM_DATA={folder!r} is not a folder")
    return path


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An S3 server with an empty bucket, which the environment names."""
    with s3_server() as server:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": server.url}).items():
            monkeypatch.setenv(name, value)
        yield server
