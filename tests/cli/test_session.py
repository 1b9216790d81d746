"""Finding Java, reading session flags, and the session of a platform."""

from __future__ import annotations

import argparse

import pytest

from spark_fm.cli.errors import UsageError
from spark_fm.cli.session import _local_defaults, _settings, check_java, java_version, spark_session
from spark_fm.errors import SparkFMError


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_392"', 8),
        ('openjdk version "21" 2023-09-19', 21),
        ("something else", None),
    ],
)
def test_java_versions_old_and_new_are_read(text, version):
    assert java_version(text) == version


def test_a_java_that_is_not_there_is_told_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SparkFMError, match=r"none in JAVA_HOME=.*Install one .*openjdk"):
        check_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SparkFMError, match="none in the PATH"):
        check_java()


def test_an_old_java_is_refused(monkeypatch, tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'java version \"11.0.2\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SparkFMError, match="is Java 11"):
        check_java()


def test_conf_is_key_and_value():
    assert _settings(argparse.Namespace(conf=["a.b=c=d"])) == {"a.b": "c=d"}
    with pytest.raises(UsageError, match=r"--conf 'a\.b' is not KEY=VALUE"):
        _settings(argparse.Namespace(conf=["a.b"]))


def test_a_spark_of_our_own_has_the_quiet_daemon_unless_all_is_to_be_shown():
    name = "spark.python.daemon.module"
    assert _local_defaults(verbose=False, master="local[2]")[name] == "spark_fm.spark.daemon"
    assert name not in _local_defaults(verbose=True, master="local[2]")
    assert name not in _local_defaults(verbose=False, master="spark://elsewhere:7077")


@pytest.mark.spark
def test_on_databricks_the_session_is_the_platform_s_and_goes_on(spark, monkeypatch):
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    monkeypatch.setenv("JAVA_HOME", "/no/java")
    monkeypatch.setattr(type(spark), "getActiveSession", lambda: None)
    flags = argparse.Namespace(master=None, remote=None, conf=[], verbose=False)

    with spark_session(flags) as session:
        assert session is spark

    assert spark.range(3).count() == 3
