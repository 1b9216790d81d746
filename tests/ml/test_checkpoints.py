"""A killed training resumes from its checkpoint and ends with the same model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from benchmarks.datasets import a9a, to_frame
from spark_fm import FactorizationMachine, FactorizationMachineModel
from spark_fm.errors import CheckpointError, InvalidParamError
from spark_fm.training import callbacks, checkpoints, gibbs, single_task
from spark_fm.training.callbacks import EpochReport, Progress
from tests.conftest import MODE
from tests.ml.builders import fast_fm
from tests.s3 import BUCKET, S3

FILE = "training.spark-fm-checkpoint"
REFITTED = {"averagingsPerEpoch": 2, "refit": "always"}


class CrashError(Exception):
    """What stops a training in these tests."""


def assert_same_model(a: FactorizationMachineModel, b: FactorizationMachineModel) -> None:
    assert a.weights.bias == b.weights.bias
    np.testing.assert_array_equal(a.weights.table, b.weights.table)


@pytest.fixture
def one_epoch_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_task, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(single_task, "LONGEST_SECONDS", 0.0)


def crash_at(monkeypatch: pytest.MonkeyPatch, n_reports: int) -> None:
    """Let the training stop as it reports that many epochs, refits counted."""
    seen: list[int] = []
    log_epoch = Progress.__call__

    def logs_and_stops(self: Progress, report: EpochReport, of: str = "") -> None:
        log_epoch(self, report, of)
        seen.append(report.record.epoch)
        if len(seen) == n_reports:
            raise CrashError

    monkeypatch.setattr(Progress, "__call__", logs_and_stops)


@pytest.fixture(scope="module")
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def whole(
    train: DataFrame, workers: int, tmp_path_factory: pytest.TempPathFactory
) -> FactorizationMachineModel:
    """The model of a training that nobody stops."""
    fm = machine(tmp_path_factory.mktemp("other"), **REFITTED, numWorkers=workers)
    return fm.fit(train)


def machine(folder: Path | str, **changes: Any) -> FactorizationMachine:
    fixed = {"epochs": 10, "checkpointDir": str(folder), "validationFraction": 0.2, "patience": 0}
    return fast_fm(**{**fixed, **changes})


def crashed(
    fm: FactorizationMachine, train: DataFrame, monkeypatch: pytest.MonkeyPatch, n_reports: int
) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, n_reports)
        with pytest.raises(CrashError):
            fm.fit(train)


@pytest.mark.usefixtures("one_epoch_a_job")
@pytest.mark.parametrize(
    ("workers", "interval", "stop"),
    [(0, 1, 8), (0, 3, 13), (2, 3, 8), (2, 1, 13)],
    indirect=["workers"],
    ids=lambda value: {8: "in epoch 7", 13: "in the refit"}.get(value),
)
def test_a_training_stopped_anywhere_ends_with_the_same_model(
    train: DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: FactorizationMachineModel,
    interval: int,
    workers: int,
    stop: int,
) -> None:
    fm = machine(tmp_path, checkpointInterval=interval, **REFITTED, numWorkers=workers)
    crashed(fm, train, monkeypatch, stop)
    assert (tmp_path / FILE).is_file()

    resumed = fm.fit(train)

    assert_same_model(whole, resumed)
    assert resumed.summary.bestEpoch == whole.summary.bestEpoch
    for name in ("epoch", "trainLoss", "validation_logloss"):
        assert list(resumed.summary.history[name]) == list(whole.summary.history[name])
    assert not list(tmp_path.glob("*checkpoint*"))


@pytest.mark.parametrize("stop", [10, 50], ids=["in the pilot run", "in the refit"])
def test_chains_stopped_anywhere_end_with_the_same_model(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    params = {"solver": "gibbs", "epochs": 40, "keepPosterior": True, "refit": "always"}
    whole = machine("", **params).fit(train)
    fm = machine(tmp_path, **params)
    with monkeypatch.context() as patch:
        patch.setattr(gibbs, "FIRST_SECONDS", 0.0)  # every chain pauses after 24 sweeps
        patch.setattr(gibbs, "LONGEST_SECONDS", 0.0)
        crashed(fm, train, patch, stop)
    assert (tmp_path / FILE).is_file()
    shown: list[int] = []
    monkeypatch.setattr(
        Progress, "__call__", lambda self, report, of="": shown.append(report.record.epoch)
    )
    bars: list[int] = []
    bar = callbacks._bar
    monkeypatch.setattr(
        callbacks, "_bar", lambda epochs, what, n_shown: bars.append(n_shown) or bar(40, what, 0)
    )

    resumed = fm.fit(train)

    assert_same_model(whole, resumed)
    assert np.array_equal(
        *(m.posterior.predict(np.eye(20), return_std=True) for m in (whole, resumed))
    )
    for name in ("epoch", "trainLoss", "validation_logloss", "validationSampleLoss"):
        assert list(resumed.summary.history[name]) == list(whole.summary.history[name])
    assert bars == ([23, 0] if stop == 10 else [39, 23])  # so that each is full at its end
    assert shown[0] == (23 if stop == 10 else 39)  # the sweeps before are not made again
    assert not list(tmp_path.glob("*checkpoint*"))


@pytest.mark.usefixtures("one_epoch_a_job")
def test_epochs_behind_the_checkpoint_are_not_trained_again(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fm = machine(tmp_path, refit="never")
    crashed(fm, train, monkeypatch, 8)
    trained: list[int] = []
    monkeypatch.setattr(
        Progress, "__call__", lambda self, report, of="": trained.append(report.record.epoch)
    )

    fm.fit(train)

    assert trained[0] >= 6
    assert trained[-1] == 9


@pytest.mark.usefixtures("one_epoch_a_job")
def test_a_checkpoint_is_written_every_interval_and_replaced_whole(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = checkpoints.Checkpoint.write

    def spy(self: checkpoints.Checkpoint, training_state: Any) -> None:
        write(self, training_state)
        written.append(training_state.metadata["run"]["epoch"])
        assert [path.name for path in tmp_path.iterdir()] == [FILE]

    monkeypatch.setattr(checkpoints.Checkpoint, "write", spy)

    machine(tmp_path, epochs=6, checkpointInterval=2, refit="never").fit(train)

    assert written[:3] == [2, 4, 6]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_at_the_end_and_nothing_else_is(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fm = machine(tmp_path, epochs=2, refit="never")
    while_writing: set[Path] = set()
    chunks = checkpoints.to_chunks

    def spy(*args: Any) -> Any:
        while_writing.update(tmp_path.iterdir())
        return chunks(*args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "to_chunks", spy)
        fm.fit(train)
    assert not list(tmp_path.iterdir())
    left = (while_writing - {tmp_path / FILE}).pop()
    of_another = left.with_name(left.name.replace("training.", "training-0."))
    left.touch()
    of_another.touch()

    fm.fit(train)

    assert list(tmp_path.iterdir()) == [of_another]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factorsLr": 0.01}, r"factorsLr is 0\.2 there and 0\.01 here"),
        ({"epochs": 12}, "epochs is 10 there and 12 here"),
        ({"numFactors": 3}, "numFactors is 4 there and 3 here"),
        ({"validationFraction": 0.3}, "validationFraction is 0.2 there and 0.3 here"),
        ({"weightCol": "label"}, "weightCol is None there and 'label' here"),
        ({"solver": "gibbs"}, "solver is 'sgd' there and 'gibbs' here"),
        ({"validationMetric": "f1"}, "validationMetric is 'logloss' there and 'f1' here"),
    ],
)
def test_a_checkpoint_of_other_params_is_refused_by_name(
    train: DataFrame, stopped: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        machine(stopped, **changes).fit(train)

    assert FILE in str(caught.value)
    assert "remove" in str(caught.value)
    assert (stopped / FILE).is_file()


def test_a_checkpoint_of_other_rows_is_refused(train: DataFrame, stopped: Path) -> None:
    with pytest.raises(CheckpointError, match="the rows, or the partitions they come in, are oth"):
        machine(stopped).fit(train.limit(250))
    with pytest.raises(CheckpointError, match="the rows"):
        machine(stopped).fit(train.repartition(3))


def test_a_checkpoint_of_another_version_is_refused(
    train: DataFrame, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "__version__", "99.0")

    with pytest.raises(CheckpointError, match=r"wrote it, this is 99\.0"):
        machine(stopped).fit(train)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "text"])
def test_a_damaged_checkpoint_is_refused_by_name(
    train: DataFrame, stopped: Path, damage: str
) -> None:
    path = stopped / FILE
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "changed":
        content[len(content) * 3 // 4] ^= 0xFF
    else:
        content = bytearray(b"" if damage == "empty" else b"not a checkpoint")
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=f"{FILE} is a damaged checkpoint"):
        machine(stopped).fit(train)


@pytest.fixture(scope="module")
def checkpoint(train: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training that was stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single_task, "FIRST_SECONDS", 0.0)
        crashed(machine(folder), train, patch, 3)
    return folder / FILE


@pytest.fixture
def stopped(checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the checkpoint."""
    shutil.copy(checkpoint, tmp_path)
    return tmp_path


def test_models_of_a_grid_have_checkpoints_of_their_own(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fm = machine(tmp_path, numWorkers=2, epochs=4, refit="never")
    maps = [{fm.factorsLr: rate} for rate in (0.05, 0.1)]
    whole = [fm.copy({**chosen, fm.checkpointDir: ""}).fit(train) for chosen in maps]
    with monkeypatch.context() as patch:
        crash_at(patch, 5)
        with pytest.raises(CrashError):
            fm.fit(train, maps)
    assert len(list(tmp_path.glob("training-*checkpoint"))) == 2

    for one, other in zip(whole, fm.fit(train, maps), strict=True):
        assert_same_model(one, other)
    assert not list(tmp_path.glob("*checkpoint*"))


def test_a_resumed_training_keeps_the_partitions_it_began_with(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spark_fm.training import plan

    def two(*_: Any, **__: Any) -> int:
        return 2

    fm = machine(tmp_path, epochs=4, refit="never")
    with monkeypatch.context() as patch:
        patch.setattr(plan, "choose_partitions", two)
        whole = fm.fit(train)
        crashed(fm, train, monkeypatch, 2)

    resumed = fm.fit(train)

    assert_same_model(whole, resumed)
    assert resumed.summary.facts["numWorkers"] == 2


def test_the_interval_is_checked(train: DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InvalidParamError, match="checkpointInterval=0"):
        machine(tmp_path, checkpointInterval=0).fit(train)


def test_a_folder_that_cannot_be_written_to_is_named_before_training(
    train: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    reports: list[object] = []
    monkeypatch.setattr(Progress, "__call__", lambda *arguments, **_: reports.append(arguments))

    with pytest.raises(CheckpointError, match=r"checkpointDir='.*file/x' cannot be written to"):
        machine(in_the_way / "x").fit(train)

    assert not reports


def test_a_store_that_fsspec_knows_holds_checkpoints_too(
    train: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    fm = fast_fm(epochs=4, checkpointDir="memory://checkpoints/a", numWorkers=2)
    whole = fast_fm(epochs=4, numWorkers=2).fit(train)
    crashed(fm, train, monkeypatch, 2)
    assert store.ls("/checkpoints/a", detail=False) == [f"/checkpoints/a/{FILE}"]

    assert_same_model(whole, fm.fit(train))
    assert not store.find("/checkpoints/a")


@pytest.mark.usefixtures("one_epoch_a_job")
def test_a_checkpoint_in_s3_is_one_upload_each_and_options_of_the_uri_stay_behind_its_name(
    train: DataFrame, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    fm = fast_fm(epochs=4, refit="never", checkpointDir=f"s3://{BUCKET}/k[8]?{s3.query}")
    whole = fast_fm(epochs=4, refit="never").fit(train)

    crashed(fm, train, monkeypatch, 3)
    assert s3.keys() == [f"k[8]/{FILE}"]
    assert sum("?uploads" in request for request in s3.requests) == 2 + 1  # one is a trial
    assert not any(request.startswith("COPY") for request in s3.requests)
    assert sum(request.startswith("PUT") and request.endswith("/") for request in s3.requests) <= 1

    assert_same_model(whole, fm.fit(train))
    assert s3.keys() == []


@pytest.mark.usefixtures("one_epoch_a_job")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_that_s3_refuses_is_a_warning_and_written_at_the_next_interval(
    train: DataFrame,
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    workers: int,
) -> None:
    params = {"epochs": 7, "refit": "never", "numWorkers": workers}
    whole = fast_fm(**params).fit(train)
    fm = fast_fm(**params, checkpointDir=f"s3://{BUCKET}/p", checkpointInterval=2)
    uploads: list[str] = []

    def refuses_the_second(request: str) -> bool:
        if f"/{FILE}?uploads" in request:
            uploads.append(request)
        return len(uploads) == 2

    s3.fails = refuses_the_second
    crashed(fm, train, monkeypatch, 7)  # behind the third checkpoint, of six epochs

    (warning,) = [r.getMessage() for r in caplog.records if "was not written" in r.getMessage()]
    assert FILE in warning
    assert "after 4 epoch(s)" in warning
    caplog.clear()
    with caplog.at_level("INFO"):
        assert_same_model(whole, fm.fit(train))
    assert "after 6 epoch(s)" in caplog.text


@pytest.mark.usefixtures("one_epoch_a_job")
def test_a_folder_lost_in_training_costs_warnings_and_not_the_model(
    train: DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "checkpoints"
    log_epoch = Progress.__call__

    def loses_the_folder(self: Progress, report: EpochReport, of: str = "") -> None:
        log_epoch(self, report, of)
        if report.record.epoch == 2:
            shutil.rmtree(folder)
            folder.write_text("a file in its place")

    whole = machine("", epochs=5, refit="never").fit(train)
    monkeypatch.setattr(Progress, "__call__", loses_the_folder)

    assert_same_model(whole, machine(folder, epochs=5, refit="never").fit(train))
    assert caplog.text.count("was not written after") == 3
    assert caplog.text.count("could not be removed") == 1


def test_a_checkpoint_that_s3_does_not_delete_is_a_warning(
    train: DataFrame, s3: S3, caplog: pytest.LogCaptureFixture
) -> None:
    s3.fails = lambda request: (
        request.startswith("DELETE") and FILE in request and "/." not in request
    )

    fast_fm(epochs=2, refit="never", checkpointDir=f"s3://{BUCKET}/p").fit(train)

    assert "could not be removed" in caplog.text
    assert s3.keys() == [f"p/{FILE}"]


def test_a_store_that_cannot_be_reached_is_named_before_training(train: DataFrame, s3: S3) -> None:
    s3.fails = lambda request: True

    with pytest.raises(
        CheckpointError, match=r"s3://bucket/p/training\S+ cannot be read .*ACCESS_DENIED"
    ):
        fast_fm(epochs=2, checkpointDir=f"s3://{BUCKET}/p").fit(train)


SCRIPT = """
import json, logging, sys
from benchmarks.datasets import a9a, to_frame
from benchmarks.local import local_session
from tests.ml.test_checkpoints import facts_of, killed_machine

logging.basicConfig(format="%(message)s", stream=sys.stderr)
logging.getLogger("spark_fm").setLevel(logging.INFO)
spark = local_session("local[2]")
model = killed_machine(checkpointDir=sys.argv[1]).fit(to_frame(spark, a9a().train, 2))
print(json.dumps(facts_of(model)))
"""


def killed_machine(**params: Any) -> FactorizationMachine:
    return FactorizationMachine(
        numFactors=4, epochs=10, seed=3, patience=0, numWorkers=2, averagingsPerEpoch=1,
        refit="never", **params,
    )  # fmt: skip


def facts_of(model: FactorizationMachineModel) -> list[object]:
    return [model.bias, hashlib.sha256(model.weights.table.tobytes()).hexdigest()]


@pytest.mark.processes
@pytest.mark.skipif(MODE == "connect", reason="the processes of this test start Spark themselves")
def test_a_process_killed_in_epoch_7_is_taken_up_by_running_it_again(
    spark: SparkSession, tmp_path: Path
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT)]
    root = Path(__file__).resolve().parents[2]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")], cwd=root, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
        while "epoch 6, loss" not in log.read_text():  # the next one is the seventh from 0
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / "killed" / FILE).is_file()

    done = subprocess.run(
        [*command, str(tmp_path / "killed")], cwd=root, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert "epoch 0, loss" not in done.stderr
    assert not list((tmp_path / "killed").iterdir())
    whole = killed_machine().fit(to_frame(spark, a9a().train, 2))
    assert json.loads(done.stdout.splitlines()[-1]) == facts_of(whole)
