"""``spark-fm train`` without arguments: a SageMaker training container's job."""

from __future__ import annotations

import argparse
import json
import os
import re
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
from spark_fm.cli.evaluate import ChannelMetrics, tested
from spark_fm.cli.inputs import CHANNEL_FORMAT
from spark_fm.cli.params import kebab
from spark_fm.cli.sagemaker_log import HOST, SageMakerLog, SageMakerLogCallback, sagemaker_metrics
from spark_fm.cli.session import spark_session
from spark_fm.cli.training_io import training_rows, write_summary
from spark_fm.ml.estimator import FactorizationMachine
from spark_fm.ml.hyperparameters import HYPERPARAMETERS, param_name
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
    """Where a job's files lie.

    Parameters
    ----------
    root : Path
    """

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
        """File that says why the job failed."""
        return self.root / "output" / "failure"

    @property
    def checkpoints(self) -> Path:
        """Folder that is there when the job keeps checkpoints."""
        return self.root / "checkpoints"

    def write_failure(self, text: str) -> None:
        """Say why the job failed; the service shows the first 1,024 characters."""
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        self.failure.write_text(text, encoding="utf-8")

    def check_outputs(self, *, overwrite: bool) -> None:
        """Raise UsageError unless model and results can be written; forget an old failure."""
        for folder in (self.model, self.output_data):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as err:
                raise UsageError(f"{folder} cannot be made: {err.strerror}.") from err
            if not os.access(folder, os.W_OK):
                raise UsageError(f"{folder} cannot be written to.")
        self.failure.unlink(missing_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)  # of a job that was killed
        there = sorted(os.listdir(self.model))
        if there and not (overwrite and set(there) <= {"data", "metadata"}):
            raise UsageError(
                f"{self.model} holds {there[0]} already; empty it"
                + (" yourself." if overwrite else ", or replace a model there by --overwrite.")
            )

    def place_model(self) -> None:
        """Move the parts of the partial model to their place, the one that completes it last."""
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
        """Leave no model behind."""
        for name in ("metadata", "data"):
            with suppress(FileNotFoundError):
                shutil.rmtree(self.model / name)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What the configuration asks for.

    Parameters
    ----------
    hyperparameters : dict
        Text by name.
    train : tuple of str
        Files in the order of their names, or one named pipe.
    test : tuple of str or None
    host : str
    """

    hyperparameters: dict[str, Any]
    train: tuple[str, ...]
    test: tuple[str, ...] | None
    host: str

    @classmethod
    def read(cls, folder: JobFolder) -> TrainingJob:
        """Read and check the configuration, and find the channels' files.

        Raises
        ------
        UsageError
            For whatever is missing or cannot be used, by its name.
        """
        hyperparameters = _object(folder.config / "hyperparameters.json", is_needed=True)
        resources = _object(folder.config / "resourceconfig.json", is_needed=False)
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
        paths = {name: _paths(folder, name, about) for name, about in channels.items()}
        return cls(
            hyperparameters=hyperparameters,
            train=paths[TRAIN],
            test=paths.get(TEST),
            host=str(resources.get("current_host", HOST)),
        )


def _object(path: Path, *, is_needed: bool) -> dict[str, Any]:
    """Return what a JSON file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_needed:
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
    """Return the channels; those that lie there when no file tells of them."""
    path = folder.config / "inputdataconfig.json"
    if path.exists():
        return _object(path, is_needed=True)
    found: dict[str, Any] = {}
    for name in (TRAIN, TEST):
        if (folder.data / name).is_dir():
            found[name] = {}
        elif (folder.data / f"{name}_0").exists():
            found[name] = {"TrainingInputMode": _PIPE_MODE}
    return found


def _paths(folder: JobFolder, name: str, about: Any) -> tuple[str, ...]:
    """Return the files of a channel, or its pipe."""
    if not isinstance(about, dict):
        raise UsageError(f"inputdataconfig.json: channel {name} is not an object.")
    content_type = about.get("ContentType") or CONTENT_TYPE
    if str(content_type).split(";")[0].strip().lower() != CONTENT_TYPE:
        raise UsageError(
            f"channel {name} has the content type {content_type!r}; expected {CONTENT_TYPE}, which "
            "spark-fm convert makes of other files."
        )
    if str(about.get("RecordWrapperType") or "None").lower() != "none":
        raise UsageError(
            f"channel {name} has RecordWrapperType {about['RecordWrapperType']!r}; expected None, "
            "as the files are recordIO themselves."
        )
    mode = about.get("TrainingInputMode") or _FILE_MODES[0]
    if mode == _PIPE_MODE:
        # The epochs' pipes all bring the same; training keeps what the first one brought.
        pipe = folder.data / f"{name}_0"
        if not pipe.exists():
            raise UsageError(f"channel {name}: the pipe {pipe} does not exist.")
        return (str(pipe),)
    if mode not in _FILE_MODES:
        raise UsageError(
            f"channel {name} has TrainingInputMode {mode!r}; expected File, FastFile or Pipe."
        )
    return _files(folder.data / name, name)


def _files(top: Path, name: str) -> tuple[str, ...]:
    """Return a channel's data files at any depth, in the order of their names."""
    if not top.is_dir():
        raise UsageError(f"channel {name}: the folder {top} does not exist.")
    found = []
    for folder, inner, files in os.walk(top):
        inner[:] = [entry for entry in inner if not _is_hidden(entry)]
        found += [Path(folder) / file for file in files if not _is_passed_over(file)]
    for path in found:
        if not path.exists():
            raise UsageError(f"channel {name}: {path} is a link to nothing. Remove it.")
    kept = sorted(path.as_posix() for path in found if path.stat().st_size)
    if not kept:
        raise UsageError(f"channel {name}: {top} holds no data.")
    return tuple(kept)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _is_passed_over(name: str) -> bool:
    return _is_hidden(name) or name.endswith((".manifest", ".manifest.txt"))


# What a job says in its configuration, and so not on the command line.
_SAID_BY_THE_JOB = (
    "input", "train", "test", "format", "model", "validation", "num_features", "hyperparameters",
    "params", "assignments", "summary", "plot",
)  # fmt: skip
_GIB = 2**30


def is_container_call(args: argparse.Namespace) -> bool:
    """Tell whether to train as a container does: told so, or told nothing in such a place.

    Raises
    ------
    UsageError
        For ``--root`` beside flags that the job's configuration stands for.
    """
    given = [
        name for name, value in vars(args).items()
        if value is not None and value != [] and _is_said_by_the_job(name)
    ]  # fmt: skip
    if args.root is None:
        return not given and JobFolder(ROOT).config.is_dir()
    if given:
        raise UsageError(
            f"{_flag(given[0])} and --root exclude each other: the job's own configuration says "
            "what to train on, and how."
        )
    return True


def _is_said_by_the_job(name: str) -> bool:
    return name in _SAID_BY_THE_JOB or name.startswith("param_")


def _flag(name: str) -> str:
    if name == "assignments":
        return "--set"
    return "--" + kebab(name.removeprefix("param_")).replace("_", "-")


def train_in_container(args: argparse.Namespace) -> None:
    """Train as the job's files say; a failure is written down and exits with 1.

    A job that is stopped (SIGTERM) ends well if its model is there; otherwise it fails.
    """
    folder = JobFolder(Path(args.root) if args.root is not None else ROOT)
    is_saved: list[bool] = []
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
    """Return what a failure file says: whose mistake it was, and which."""
    code, text = explain(err)
    if was_interrupted():
        text = "the job was stopped before it had a model"
        if folder.checkpoints.is_dir():
            text += f"; with the checkpoints in {folder.checkpoints} another one goes on from here"
    for name in HYPERPARAMETERS:  # a job knows no Params
        text = re.sub(rf"\b{param_name(name)}\b", name, text)
    return f"{'ClientError' if code == USAGE else 'AlgorithmError'}: {text}"


def _train(args: argparse.Namespace, folder: JobFolder, is_saved: list[bool]) -> None:
    folder.check_outputs(overwrite=args.overwrite)
    job = TrainingJob.read(folder)
    estimator = FactorizationMachine.from_hyperparameters(job.hyperparameters)
    if folder.checkpoints.is_dir():
        estimator.setCheckpointDir(str(folder.checkpoints))
    log = SageMakerLog(job.host)
    _tell_job(log, job)
    telling = SageMakerLogCallback(
        log, epochs=estimator.getEpochs(), batch_size=estimator.getMiniBatchSize()
    )
    _suit_the_machine(args)
    with spark_session(args) as spark:
        if not is_local_master(spark):
            raise UsageError("a training container trains on its own cores: --master local[*].")
        inputs = argparse.Namespace(input=job.train, format=CHANNEL_FORMAT, validation=None)
        with telling.listening():
            with training_rows(spark, inputs, estimator, maps_minus_one=False) as rows:
                model: FactorizationMachineModel = estimator.fit(rows)
            telling.trained()
            started = time.time()
            with held_back():
                _save(model, folder)
                is_saved.append(True)
            telling.saved(str(folder.model), time.time() - started)
            result = None
            if job.test is not None:
                started = time.time()
                result = tested(spark, model, job.test, file_format=CHANNEL_FORMAT)
                telling.tested(result, time.time() - started)
    _write_results(model, result, folder)
    telling.ended()


def _tell_job(log: SageMakerLog, job: TrainingJob) -> None:
    name = os.environ.get("TRAINING_JOB_NAME")
    if name:
        log.note(f"Training job {name}")
    log.note(f"Hyperparameters: {json.dumps(job.hyperparameters, sort_keys=True)}")


def _save(model: FactorizationMachineModel, folder: JobFolder) -> None:
    try:
        write_local(model, str(folder.partial))
        folder.place_model()
    finally:
        shutil.rmtree(folder.partial, ignore_errors=True)


def _write_results(
    model: FactorizationMachineModel, result: ChannelMetrics | None, folder: JobFolder
) -> None:
    """Write what is known of the training, beside the model."""
    if model.summary is not None:
        write_summary(folder.output_data / "summary.json", model.summary)
    if result is not None:
        scores: dict[str, Any] = {"rows": result.rows, **sagemaker_metrics(result.metrics)}
        write_text(folder.output_data / "test.json", json.dumps(scores, indent=2) + "\n")


def _suit_the_machine(args: argparse.Namespace) -> None:
    """Give a Spark that this process starts half of the memory, and no network.

    The other half is for the Python process that trains and for the disk cache.
    """
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")  # a job may have no network at all
    memory = max(_GIB, memory_bytes() // 2) // 2**20
    chosen = {
        "spark.driver.memory": f"{memory}m",
        "spark.driver.maxResultSize": f"{memory}m",
        "spark.ui.enabled": "false",
    }
    said = {assignment.partition("=")[0] for assignment in args.conf}
    args.conf += [f"{key}={value}" for key, value in chosen.items() if key not in said]


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
