"""``spark-fm train`` without arguments: the job of a SageMaker training container."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_fm.cli.errors import (
    FAILED,
    USAGE,
    UsageError,
    explain,
    held_back,
    interruptible,
    was_interrupted,
)
from spark_fm.cli.evaluate import ChannelMetrics, evaluate_channel
from spark_fm.cli.inputs import CHANNEL_FORMAT
from spark_fm.cli.sagemaker_log import HOST, SageMakerLog, SageMakerLogCallback, sagemaker_metrics
from spark_fm.cli.session import spark_session
from spark_fm.cli.training_io import training_rows, write_summary
from spark_fm.cli.wording import Audience, kebab, speak_to
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.model import FactorizationMachineModel
from spark_fm.ml.persistence import write_local
from spark_fm.ml.trials import write_text
from spark_fm.spark.session import is_local_master

ROOT = Path("/opt/ml")
TRAIN, TEST = "train", "test"
CONTENT_TYPE = "application/x-recordio-protobuf"
_FILE_MODES, _PIPE_MODE = ("File", "FastFile"), "Pipe"


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The folders and files of a job."""

    root: Path

    @property
    def config(self) -> Path:
        """Folder of the configuration."""
        return self.root / "input" / "config"

    @property
    def data(self) -> Path:
        """Folder of the channels."""
        return self.root / "input" / "data"

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.root / "model"

    @property
    def partial(self) -> Path:
        """Folder of a model that is being written."""
        return self.model / ".partial"

    @property
    def output_data(self) -> Path:
        """Folder of other results."""
        return self.root / "output" / "data"

    @property
    def failure(self) -> Path:
        """File with the reason why the job failed."""
        return self.root / "output" / "failure"

    @property
    def checkpoints(self) -> Path:
        """Folder that exists when the job keeps checkpoints."""
        return self.root / "checkpoints"

    def write_failure(self, text: str) -> None:
        """Write why the job failed; the service shows the first 1,024 characters."""
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        self.failure.write_text(text, encoding="utf-8")

    def check_outputs(self, *, overwrite: bool) -> None:
        """Raise UsageError unless model and results can be written; remove an old failure."""
        for folder in (self.model, self.output_data):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as err:
                raise UsageError(f"{folder} cannot be made: {err.strerror}.") from err
            if not os.access(folder, os.W_OK):
                raise UsageError(f"{folder} cannot be written to.")
        self.failure.unlink(missing_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)  # of a job that was killed
        names = sorted(os.listdir(self.model))
        if names and not (overwrite and set(names) <= {"data", "metadata"}):
            raise UsageError(
                f"{self.model} holds {names[0]} already; empty it"
                + (" yourself." if overwrite else ", or replace a model there by --overwrite.")
            )

    def publish_model(self) -> None:
        """Move the parts of the partial model to the model's folder, metadata last."""
        old = self.partial / "old"
        old.mkdir()
        self._move(self.model, old)
        try:
            for name in ("data", "metadata"):
                os.replace(self.partial / name, self.model / name)
        except BaseException:
            self._move(old, self.model)
            raise

    @staticmethod
    def _move(source: Path, target: Path) -> None:
        for name in ("metadata", "data"):
            with suppress(FileNotFoundError):
                os.replace(source / name, target / name)

    def remove_model(self) -> None:
        for name in ("metadata", "data"):
            with suppress(FileNotFoundError):
                shutil.rmtree(self.model / name)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """The configuration of a job."""

    hyperparameters: dict[str, Any]  # text by name
    train: tuple[str, ...]  # files in the order of their names, or one named pipe
    test: tuple[str, ...] | None
    host: str

    @classmethod
    def read(cls, folder: JobFolder) -> TrainingJob:
        """Read and check the configuration, and list the channels' files."""
        hyperparameters = _json_object(folder.config / "hyperparameters.json", is_required=True)
        resources = _json_object(folder.config / "resourceconfig.json", is_required=False)
        hosts = resources.get("hosts", [])
        if not isinstance(hosts, list) or len(hosts) > 1:
            raise UsageError(
                f"resourceconfig.json lists the hosts {hosts}; this container trains on the cores "
                "of one. Ask for one instance, a larger one if need be, or run spark-fm train on a "
                "Spark cluster, which trains on many machines."
            )
        channels = _channels(folder)
        for name in channels:
            if name not in (TRAIN, TEST):
                raise UsageError(
                    f"inputdataconfig.json has the channel {name!r}; the channels are train, "
                    "which is needed, and test."
                )
        if TRAIN not in channels:
            raise UsageError("the channel train is missing in inputdataconfig.json.")
        paths = {name: _channel_paths(folder, name, config) for name, config in channels.items()}
        return cls(
            hyperparameters=hyperparameters,
            train=paths[TRAIN],
            test=paths.get(TEST),
            host=str(resources.get("current_host", HOST)),
        )


def _json_object(path: Path, *, is_required: bool) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())  # with or without a byte-order mark
    except FileNotFoundError:
        if is_required:
            raise UsageError(f"{path} is missing.") from None
        return {}
    except OSError as err:
        raise UsageError(f"{path} cannot be read: {err.strerror}.") from err
    except ValueError as err:
        raise UsageError(f"{path} is not JSON: {err}.") from err
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}; expected an object.")
    return content


def _channels(folder: JobFolder) -> dict[str, Any]:
    """Return the channels' configurations; without a file those of the folders and pipes."""
    path = folder.config / "inputdataconfig.json"
    if path.exists():
        return _json_object(path, is_required=True)
    channels: dict[str, Any] = {}
    for name in (TRAIN, TEST):
        if (folder.data / name).is_dir():
            channels[name] = {}
        elif (folder.data / f"{name}_0").exists():
            channels[name] = {"TrainingInputMode": _PIPE_MODE}
    return channels


def _channel_paths(folder: JobFolder, name: str, config: Any) -> tuple[str, ...]:
    """Return the files of a channel, or its pipe."""
    if not isinstance(config, dict):
        raise UsageError(f"inputdataconfig.json: channel {name} is not an object.")
    content_type = config.get("ContentType") or CONTENT_TYPE
    if str(content_type).split(";")[0].strip().lower() != CONTENT_TYPE:
        raise UsageError(
            f"channel {name} has the content type {content_type!r}; expected {CONTENT_TYPE}, which "
            "spark-fm convert makes of other files."
        )
    if str(config.get("RecordWrapperType") or "None").lower() != "none":
        raise UsageError(
            f"channel {name} has RecordWrapperType {config['RecordWrapperType']!r}; expected None, "
            "as the files are recordIO themselves."
        )
    mode = config.get("TrainingInputMode") or _FILE_MODES[0]
    if mode == _PIPE_MODE:
        # The pipes of all epochs carry the same rows; training keeps those of the first.
        pipe = folder.data / f"{name}_0"
        if not pipe.exists():
            raise UsageError(f"channel {name}: the pipe {pipe} does not exist.")
        return (str(pipe),)
    if mode not in _FILE_MODES:
        raise UsageError(
            f"channel {name} has TrainingInputMode {mode!r}; expected File, FastFile or Pipe."
        )
    return _channel_files(folder.data / name, name)


def _channel_files(top: Path, name: str) -> tuple[str, ...]:
    """Return a channel's data files at any depth, in the order of their names."""
    if not top.is_dir():
        raise UsageError(f"channel {name}: the folder {top} does not exist.")
    hidden = (".", "_")
    paths = []
    for folder, subfolders, files in os.walk(top):
        subfolders[:] = [entry for entry in subfolders if not entry.startswith(hidden)]
        for file in files:
            if not file.startswith(hidden) and not file.endswith((".manifest", ".manifest.txt")):
                paths.append(Path(folder) / file)
    for path in paths:
        if not path.exists():
            raise UsageError(f"channel {name}: {path} is a link to nothing. Remove it.")
    data_files = sorted(path.as_posix() for path in paths if path.stat().st_size)
    if not data_files:
        raise UsageError(f"channel {name}: {top} holds no data.")
    return tuple(data_files)


# Flags that a job's configuration replaces.
_CONFIGURED_BY_JOB = (
    "input", "train", "test", "format", "model", "validation", "num_features", "hyperparameters",
    "params", "assignments", "summary", "plot",
)  # fmt: skip
_GIB = 2**30


def is_container_call(args: argparse.Namespace) -> bool:
    """Return whether to train as a container does: with ``--root``, or in one without flags."""
    names = [
        name for name, value in vars(args).items()
        if value is not None and value != []
        and (name in _CONFIGURED_BY_JOB or name.startswith("param_"))
    ]  # fmt: skip
    if args.root is None:
        return not names and JobFolder(ROOT).config.is_dir()
    if names:
        name = "set" if names[0] == "assignments" else names[0].removeprefix("param_")
        raise UsageError(
            f"--{kebab(name).replace('_', '-')} and --root exclude each other: the job's own "
            "configuration says what to train on, and how."
        )
    return True


def train_in_container(args: argparse.Namespace) -> None:
    """Train as the job's files configure it; a failure is written to its file and exits with 1.

    A job that is stopped (SIGTERM) succeeds if its model is saved; otherwise it fails.
    """
    folder = JobFolder(Path(args.root) if args.root is not None else ROOT)
    is_saved: list[bool] = []
    speak_to(Audience.JOB)
    try:
        with interruptible():
            _train(args, folder, is_saved)
    except BaseException as err:
        if was_interrupted() and is_saved:
            SageMakerLog().note(f"Stopped. The model is in {folder.model}.", "WARNING")
            return
        if args.verbose:
            traceback.print_exc()
        if is_saved:
            folder.remove_model()
        text = failure_text(err, folder)
        SageMakerLog(stream=sys.stderr).note(text, "ERROR")
        folder.write_failure(text)
        raise SystemExit(FAILED) from err


def failure_text(err: BaseException, folder: JobFolder) -> str:
    """Return the content of a failure file: whose error it was, and which."""
    code, text = explain(err)
    if was_interrupted():
        text = "the job was stopped before it had a model"
        if folder.checkpoints.is_dir():
            text += f"; with the checkpoints in {folder.checkpoints} another one goes on from here"
    return f"{'ClientError' if code == USAGE else 'AlgorithmError'}: {text}"


def _train(args: argparse.Namespace, folder: JobFolder, is_saved: list[bool]) -> None:
    folder.check_outputs(overwrite=args.overwrite)
    job = TrainingJob.read(folder)
    estimator = FactorizationMachine.from_hyperparameters(job.hyperparameters)
    if folder.checkpoints.is_dir():
        estimator.setCheckpointDir(str(folder.checkpoints))
    log = SageMakerLog(job.host)
    job_name = os.environ.get("TRAINING_JOB_NAME")
    if job_name:
        log.note(f"Training job {job_name}")
    log.note(f"Hyperparameters: {json.dumps(job.hyperparameters, sort_keys=True)}")
    callback = SageMakerLogCallback(
        log, epochs=estimator.getEpochs(), batch_size=estimator.getMiniBatchSize()
    )
    _set_spark_defaults(args)
    with spark_session(args) as spark:
        if not is_local_master(spark):
            raise UsageError("a training container trains on its own cores: --master local[*].")
        inputs = argparse.Namespace(input=job.train, format=CHANNEL_FORMAT, validation=None)
        with callback.attached():
            with training_rows(spark, inputs, estimator, maps_signed_labels=False) as rows:
                model: FactorizationMachineModel = estimator.fit(rows)
            callback.on_fit_end()
            started = time.time()
            with held_back():
                _save(model, folder)
                is_saved.append(True)
            callback.on_save_end(str(folder.model), time.time() - started)
            test_metrics = None
            if job.test is not None:
                started = time.time()
                test_metrics = evaluate_channel(spark, model, job.test, file_format=CHANNEL_FORMAT)
                callback.on_test_end(test_metrics, time.time() - started)
    _write_results(model, test_metrics, folder)
    callback.on_end()


def _save(model: FactorizationMachineModel, folder: JobFolder) -> None:
    try:
        write_local(model, str(folder.partial))
        folder.publish_model()
    finally:
        shutil.rmtree(folder.partial, ignore_errors=True)


def _write_results(
    model: FactorizationMachineModel, test_metrics: ChannelMetrics | None, folder: JobFolder
) -> None:
    if model.summary is not None:
        write_summary(folder.output_data / "summary.json", model.summary)
    if test_metrics is not None:
        metrics = sagemaker_metrics(test_metrics.metrics)
        scores: dict[str, Any] = {"rows": test_metrics.rows, **metrics}
        write_text(folder.output_data / "test.json", json.dumps(scores, indent=2) + "\n")


def _set_spark_defaults(args: argparse.Namespace) -> None:
    """Give the Spark that this process starts half of the memory, and no network.

    The other half is for the Python process that trains and for the disk cache.
    """
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # a job may have no network at all
    memory = max(_GIB, memory_bytes() // 2) // 2**20
    defaults = {
        "spark.driver.memory": f"{memory}m",
        "spark.driver.maxResultSize": f"{memory}m",
        "spark.ui.enabled": "false",
    }
    names = {assignment.partition("=")[0] for assignment in args.conf}
    args.conf += [f"{key}={value}" for key, value in defaults.items() if key not in names]


def memory_bytes() -> int:
    """Return the memory of this container, or of the machine."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [machine]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)
