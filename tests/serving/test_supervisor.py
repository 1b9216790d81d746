"""What must not stop the process that all others depend on."""

from __future__ import annotations

import errno
import json
import logging

import pytest

from spark_fm.errors import ModelFormatError
from spark_fm.serving import supervisor
from spark_fm.serving.settings import STATUS, ServeSettings
from spark_fm.serving.supervisor import Supervisor, check_stage


@pytest.fixture
def supervising(tmp_path) -> Supervisor:
    """A supervisor that serves a model already, without its processes."""
    made = Supervisor(str(tmp_path / "model"), ServeSettings(reload_seconds=0.001))
    made._shared = tmp_path
    made._digest = "of the model that is served"
    made._must_reload = False
    return made


def broken(*_):
    raise ValueError("nobody thought of this")


def test_a_look_that_fails_is_told_and_the_next_one_is_made(supervising, monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "signature", broken)
    with caplog.at_level(logging.WARNING, "spark_fm"):
        supervising._check_model()
    assert "ValueError: nobody thought of this" in caplog.text
    looks = []
    monkeypatch.setattr(supervisor, "signature", lambda path: looks.append(path))
    supervising._check_at = 0.0
    supervising._check_model()
    assert len(looks) == 1


def test_a_version_whose_loading_could_not_begin_is_tried_again(supervising, monkeypatch):
    monkeypatch.setattr(supervisor, "signature", lambda path: ("one",))
    monkeypatch.setattr(supervising, "_start", broken)
    for _ in range(3):
        supervising._check_at = 0.0
        supervising._check_model()
    started = []
    monkeypatch.setattr(supervising, "_start", lambda *arguments: started.append(arguments))
    supervising._check_at = 0.0
    supervising._check_model()
    assert len(started) == 1


def test_before_there_is_a_model_a_look_that_fails_ends_the_start(supervising, monkeypatch):
    supervising._digest, supervising._must_reload = None, True
    monkeypatch.setattr(supervisor, "signature", broken)
    with pytest.raises(ValueError, match="nobody"):
        supervising._check_model()


def test_counts_that_cannot_be_written_are_told_and_written_with_the_next(
    supervising, monkeypatch, caplog
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "spark_fm"):
        patched.setattr(supervisor, "write_atomically", full)
        supervising._write_status(worker_deaths=1)
    assert "No space left" in caplog.text
    supervising._write_status(worker_deaths=1)
    assert json.loads((supervising._shared / STATUS).read_text())["worker_deaths"] == 2


@pytest.mark.parametrize("name", ["params", "x.params", "model_algo-1", "model.tar.gz"])
def test_a_folder_that_may_be_an_artifact_is_left_to_its_reader(tmp_path, name):
    (tmp_path / name).write_bytes(b"1")

    check_stage(str(tmp_path))


@pytest.mark.parametrize("path", ["s3://b/m", "file:/models/m", "hdfs:/models/m"])
def test_a_uri_is_left_to_its_reader(path):
    check_stage(path)


@pytest.mark.parametrize("name", ["", "gone"])
def test_a_folder_without_files_holds_no_model(tmp_path, name):
    with pytest.raises(ModelFormatError, match="holds no FactorizationMachineModel"):
        check_stage(str(tmp_path / name))
