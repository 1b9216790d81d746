"""The Spark session of a command: the active one, or one that it starts and stops."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import SparkSession

import spark_fm
from spark_fm.cli.errors import UsageError, interruptible, was_interrupted
from spark_fm.errors import SparkFMError
from spark_fm.spark.session import is_connect, is_local_master, use_driver_interpreter

log = logging.getLogger(__name__)

OLDEST_JAVA = 17
DEFAULT_MASTER = "local[*,4]"  # a lost worker's task is retried, as on a cluster
_INSTALL_JAVA = (
    "Install one (Debian and Ubuntu: apt-get install openjdk-17-jre-headless; Fedora: dnf install "
    "java-17-openjdk-headless; macOS: brew install openjdk@17) or set JAVA_HOME to where it is."
)


def add_session_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose and set up the session."""
    group = parser.add_argument_group("Spark")
    where = group.add_mutually_exclusive_group()
    where.add_argument(
        "--master",
        help="Spark master, such as local[4]; default: spark-submit's, or "
        f"{DEFAULT_MASTER}: all cores, four attempts a task",
    )
    where.add_argument("--remote", help="Spark Connect server, such as sc://host:15002")
    group.add_argument(
        "--conf", metavar="KEY=VALUE", action="append", default=[],
        help="a Spark setting, such as spark.driver.memory=4g; may be repeated",
    )  # fmt: skip


@contextmanager
def spark_session(args: argparse.Namespace) -> Iterator[SparkSession]:
    """Yield the active session, or one that is started here and stopped after the block."""
    settings = _settings(args)
    active = SparkSession.getActiveSession()
    if active is None and "DATABRICKS_RUNTIME_VERSION" in os.environ:
        active = SparkSession.builder.getOrCreate()  # the platform's, Classic or Connect
    if active is not None:
        if args.master or args.remote or args.conf:
            log.warning("a Spark session is running: --master, --remote and --conf are not used")
        use_driver_interpreter(active)
        with interruptible():
            yield active
        return
    if not _needs_no_java(args):
        check_java()
    session = _start(args, settings)
    try:
        use_driver_interpreter(session)
        with interruptible():
            yield session
    finally:
        try:
            session.stop()
        except Exception:  # an interruption may have broken the connection to the JVM
            if not was_interrupted():
                raise


def _settings(args: argparse.Namespace) -> dict[str, str]:
    settings: dict[str, str] = {}
    for assignment in args.conf:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--conf {assignment!r} is not KEY=VALUE, such as spark.driver.memory=4g."
            )
        settings[key] = value
    return settings


def _start(args: argparse.Namespace, settings: dict[str, str]) -> SparkSession:
    builder = SparkSession.builder.appName("spark-fm")
    defaults: dict[str, str] = {}
    if not _is_remote(args.remote):
        defaults = _local_defaults(verbose=args.verbose, master=args.master)
    if args.remote is not None:
        builder = builder.remote(args.remote)
        if args.remote.startswith("local"):
            # The server starts the workers, and has no other way to know the interpreter.
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    elif args.master is not None or _starts_local_jvm(None):
        builder = builder.master(args.master or DEFAULT_MASTER)
    for key, value in (defaults | settings).items():
        builder = builder.config(key, value)
    session: SparkSession = builder.getOrCreate()
    if not is_connect(session) and not is_local_master(session):
        log.info("running on %s", session.conf.get("spark.master", "?"))
    return session


def _local_defaults(*, verbose: bool, master: str | None) -> dict[str, str]:
    """Return settings that silence Spark and let local workers import this package."""
    defaults = {"spark.ui.showConsoleProgress": "false"}
    quiet = Path(__file__).with_name("log4j2.properties")
    starts_jvm = _starts_local_jvm(master)
    if starts_jvm and not verbose and quiet.is_file():
        # Until the session has started, only this silences the JVM's warnings.
        defaults["spark.driver.extraJavaOptions"] = f"-Dlog4j2.configurationFile={quiet.as_uri()}"
    else:
        defaults["spark.log.level"] = "WARN" if verbose else "FATAL"
    if sys.platform == "linux":  # elsewhere temporary paths may be too long for a socket
        # TCP to a Python worker waits 40 ms a task for a delayed acknowledgement.
        defaults["spark.python.unix.domain.socket.enabled"] = "true"
    if starts_jvm and not verbose:
        defaults["spark.python.daemon.module"] = "spark_fm.spark.daemon"
    home = Path(spark_fm.__file__).parents[1]
    if starts_jvm and home.name not in ("site-packages", "dist-packages"):
        # A checkout or a zip: it is not on the path of the workers.
        defaults["spark.executorEnv.PYTHONPATH"] = str(home)
    return defaults


def _starts_local_jvm(master: str | None) -> bool:
    """Return whether this process will start a local Spark that nothing else configures."""
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        return False  # spark-submit did
    if master is not None:
        return master.startswith("local")
    return "SPARK_CONF_DIR" not in os.environ and "SPARK_HOME" not in os.environ


def _is_remote(remote: str | None) -> bool:
    return remote is not None and not remote.startswith("local")


def _needs_no_java(args: argparse.Namespace) -> bool:
    """Return whether the JVM runs elsewhere, or was started by spark-submit."""
    return (
        _is_remote(args.remote)
        or "PYSPARK_GATEWAY_PORT" in os.environ
        or (args.master is None and _is_remote(os.environ.get("SPARK_REMOTE")))
    )


def check_java() -> None:
    """Raise SparkFMError unless the Java that Spark will start is new enough."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    where = f"JAVA_HOME={home}" if home else "the PATH"
    if java is None or not Path(java).exists():
        raise SparkFMError(f"Spark needs Java {OLDEST_JAVA} or newer: none in {where}. " +
                           _INSTALL_JAVA)  # fmt: skip
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise SparkFMError(f"{java} cannot be run: {err}. {_INSTALL_JAVA}") from err
    version = java_version(done.stderr + done.stdout)
    if version is not None and version < OLDEST_JAVA:
        raise SparkFMError(
            f"Spark needs Java {OLDEST_JAVA} or newer: {java} is Java {version}. {_INSTALL_JAVA}"
        )


def java_version(text: str) -> int | None:
    """Return the major version that ``java -version`` printed, None without one."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else None
