"""What counts as another version of a model, and as none."""

from __future__ import annotations

import os
import shutil

import pytest

from spark_fm.serving import supervisor
from spark_fm.serving.supervisor import resolve_model, signature
from tests.builders import planted_weights
from tests.serving.servers import save_model


def weights(seed):
    return planted_weights(5, 2, seed=seed)


def test_an_overwritten_model_changes_and_an_untouched_one_does_not(tmp_path):
    path = save_model(tmp_path / "m", weights(1))
    first = signature(path)
    again = signature(path)
    shutil.rmtree(path)
    missing = signature(path)
    save_model(path, weights(2))
    assert first == again
    assert missing is None
    assert signature(path) not in (first, None)


def test_a_repointed_link_changes(tmp_path):
    link = tmp_path / "current"
    for name in "ab":
        save_model(tmp_path / name, weights(1))
    link.symlink_to("a")
    before = signature(str(link))
    (tmp_path / "next").symlink_to("b")
    os.replace(tmp_path / "next", link)
    assert signature(str(link)) != before


def test_of_a_folder_of_models_the_one_saved_last_is_meant(tmp_path):
    for number, name in enumerate(["z", "a"]):
        path = save_model(tmp_path / name, weights(1))
        for file in (tmp_path / name / "metadata").iterdir():
            os.utime(file, (number, number))
    (tmp_path / "notes").mkdir()
    assert resolve_model(str(tmp_path)) == path


def test_a_version_that_is_deleted_during_a_look_is_passed_over(tmp_path, monkeypatch):
    for name in ("v1", "v2"):
        save_model(tmp_path / name, weights(1))
    read = supervisor._files

    def files_then_gone(folder):
        yield from read(folder)
        if folder.name == "v2":
            shutil.rmtree(folder, ignore_errors=True)

    monkeypatch.setattr(supervisor, "_files", files_then_gone)
    signature(str(tmp_path))
    assert resolve_model(str(tmp_path)) == str(tmp_path / "v1")


@pytest.mark.parametrize("name", ["data", "metadata"])
def test_a_save_in_progress_is_no_version(tmp_path, name):
    path = tmp_path / "m"
    (path / "data").mkdir(parents=True)
    (path / "metadata" / "_temporary").mkdir(parents=True)
    (path / name / "_SUCCESS").touch()
    (path / name / ".part-00000.crc").touch()
    assert signature(str(path)) is None


@pytest.mark.parametrize("path", ["nowhere", "s3://bucket/model"])
def test_what_is_not_there_or_elsewhere_has_no_signature(path):
    assert resolve_model(path) == path
    assert signature(path) is None
