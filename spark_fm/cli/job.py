"""The files of a SageMaker training job: what a container finds and what it leaves; no Spark.

::

    <root>/input/config/hyperparameters.json     text by name
    <root>/input/config/inputdataconfig.json     channels
    <root>/input/config/resourceconfig.json      hosts
    <root>/input/data/<channel>/...              File and FastFile mode
    <root>/input/data/<channel>_<epoch>          Pipe mode
    <root>/model, <root>/output/data             what the job makes
    <root>/output/failure                        why it failed
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_fm.cli.failures import UsageError
from spark_fm.cli.sagemaker_log import HOST

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
