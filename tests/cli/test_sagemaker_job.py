"""What a training container finds under its root, and what it makes of it; no Spark."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from spark_fm.cli.errors import UsageError
from spark_fm.cli.sagemaker_job import JobFolder, TrainingJob


def placed(root: Path, files: dict[str, object]) -> JobFolder:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return JobFolder(root)


HYPER = {"input/config/hyperparameters.json": {"feature_dim": "4"}}
CHANNELS = "input/config/inputdataconfig.json"
HOSTS = "input/config/resourceconfig.json"
RECORDS = "application/x-recordio-protobuf"
DATA = {"input/data/train/a.pbr": "x"}


def test_files_come_in_the_order_of_their_names_at_any_depth_and_others_are_passed_over(tmp_path):
    names = ["b.pbr", "a/z.pbr", "a/b/y.pbr", "B.pbr"]
    ignored = [".amazon.manifest", "part.manifest", "_SUCCESS", "_logs/x", ".tmp/x", "a/.crc"]
    files = {f"input/data/train/{name}": "x" for name in [*names, *ignored]}
    about = {CHANNELS: {"train": {"ContentType": RECORDS, "TrainingInputMode": "FastFile"}}}
    folder = placed(tmp_path, HYPER | about | files | {"input/data/train/empty.pbr": ""})

    job = TrainingJob.read(folder)

    top = tmp_path / "input" / "data" / "train"
    assert job.train == tuple(str(top / n) for n in ["B.pbr", "a/b/y.pbr", "a/z.pbr", "b.pbr"])
    assert job.test is None
    assert job.host == "algo-1"


def test_a_pipe_channel_is_the_pipe_of_epoch_0(tmp_path):
    about = {"train": {"TrainingInputMode": "Pipe"}, "test": {"TrainingInputMode": "Pipe"}}
    folder = placed(
        tmp_path, HYPER | {CHANNELS: about, HOSTS: {"current_host": "algo-7", "hosts": ["algo-7"]}}
    )
    folder.data.mkdir()
    for name in ("train_0", "train_1", "test_0"):
        os.mkfifo(folder.data / name)

    job = TrainingJob.read(folder)

    assert job.train == (str(folder.data / "train_0"),)
    assert job.test == (str(folder.data / "test_0"),)
    assert job.host == "algo-7"


def test_channels_are_what_lies_there_when_no_file_tells(tmp_path):
    job = TrainingJob.read(placed(tmp_path, HYPER | DATA | {"input/data/test_0": "y"}))

    assert [Path(p).name for p in job.train] == ["a.pbr"]
    assert job.test == (str(tmp_path / "input/data/test_0"),)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "hyperparameters.json is missing"),
        ({"input/config/hyperparameters.json": "{"}, "hyperparameters.json is not JSON"),
        ({"input/config/hyperparameters.json": "[]"}, "holds a list; expected an object"),
        (HYPER, "the channel train is missing"),
        (HYPER | {CHANNELS: {"test": {}}}, "the channel train is missing"),
        (HYPER | {CHANNELS: {"train": {}, "validation": {}}}, "the channel 'validation'"),
        (HYPER | {CHANNELS: {"train": []}}, "channel train is not an object"),
        (HYPER | {CHANNELS: {"train": {}}}, "input/data/train does not exist"),
        (HYPER | {"input/data/train/_SUCCESS": "x"}, "input/data/train holds no data"),
        (
            HYPER | DATA | {CHANNELS: {"train": {"ContentType": "text/csv"}}},
            "channel train has the content type 'text/csv'",
        ),
        (
            HYPER | DATA | {CHANNELS: {"train": {"RecordWrapperType": "RecordIO"}}},
            "RecordWrapperType 'RecordIO'",
        ),
        (
            HYPER | DATA | {CHANNELS: {"train": {"TrainingInputMode": "Fast"}}},
            "TrainingInputMode 'Fast'; expected File, FastFile or Pipe",
        ),
        (
            HYPER | DATA | {CHANNELS: {"train": {"TrainingInputMode": "Pipe"}}},
            "train_0 does not exist",
        ),
        (
            HYPER | DATA | {HOSTS: {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}},
            r"lists the hosts \['algo-1', 'algo-2'\].*Ask for one instance",
        ),
    ],
)
def test_what_a_job_cannot_use_is_named(tmp_path, files, reason):
    folder = placed(tmp_path, files)

    with pytest.raises(UsageError, match=reason):
        TrainingJob.read(folder)


def test_a_model_folder_that_is_not_empty_is_left_alone(tmp_path):
    folder = placed(tmp_path, {"model/mine": "x", "output/failure": "old"})

    for overwrite in (False, True):
        with pytest.raises(UsageError, match="model holds mine already"):
            folder.check_outputs(overwrite=overwrite)
    assert (folder.model / "mine").exists()
    assert not folder.failure.exists()


def test_a_model_is_replaced_on_request_and_remains_of_a_killed_job_go(tmp_path):
    old = {"model/data/part": "old", "model/metadata/part": "old", "model/.partial/data/x": "x"}
    folder = placed(tmp_path, old)

    with pytest.raises(UsageError, match="or replace a model there by --overwrite"):
        folder.check_outputs(overwrite=False)
    folder.check_outputs(overwrite=True)
    assert not folder.partial.exists()
    placed(tmp_path, {"model/.partial/data/part": "new", "model/.partial/metadata/part": "new"})
    folder.publish_model()

    assert (folder.model / "data" / "part").read_text() == "new"
    folder.remove_model()
    folder.remove_model()
    assert not (folder.model / "metadata").exists()
