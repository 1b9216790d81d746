"""Start, watch, reload and stop the workers that share one model."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from spark_fm.errors import InvalidParamError, ModelFormatError, SparkFMError
from spark_fm.formats.models.stages import MODEL_CLASS, parse_metadata, unreadable_metadata
from spark_fm.serving.processes import run_loader, run_worker
from spark_fm.serving.settings import (
    METRICS,
    SERVING,
    SIGNALS,
    STATUS,
    ServeSettings,
    current_name,
    version_name,
    versions,
    write_atomically,
)

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
HEALTHY_SECONDS = 5.0  # a worker alive for this long has started
MAX_DELAY_SECONDS = 10.0
MAX_FAILED_STARTS = 5  # of a worker, while none has ever started
BACKLOG = 2048


@dataclass(slots=True)
class _Slot:
    """One worker's process, or when to start the next."""

    process: BaseProcess | None = None
    started: float = 0.0
    deaths: int = 0  # in a row, each soon after its start
    start_at: float = 0.0


class Supervisor:
    """Serves a model until SIGTERM or SIGINT; reloads it on SIGHUP and when it changes."""

    def __init__(self, model: str, settings: ServeSettings, *, log_level: str = "info") -> None:
        """Serve a model folder, a folder of such, a link to either, or a URI."""
        self._model = model
        self._settings = settings
        self._log_level = log_level
        self._context = multiprocessing.get_context("spawn")
        self._slots = [_Slot() for _ in range(settings.workers)]
        self._has_started = False
        self._is_stopping = False
        self._must_reload = True
        self._loader: tuple[BaseProcess, Connection] | None = None
        self._n_loads = 0
        self._check_at = 0.0
        self._seen: Signature | None = None  # at the last check
        self._tried: Signature | None = None  # of the version last loaded or refused
        self._digest: str | None = None
        self._status = {"worker_deaths": 0, "reloads": 0, "refused_reloads": 0}

    def run(self) -> None:
        """Serve until a signal to stop, which only the main thread receives.

        Raises InvalidParamError for an address that cannot be listened on, ModelFormatError
        for a first model that cannot be read, SparkFMError when no worker can be started.
        """
        settings = self._settings
        check_stage(self._model)
        listener = _listen(settings.host, settings.port)
        with (
            tempfile.TemporaryDirectory(prefix="spark-fm-serve-") as shared,
            _environment("PROMETHEUS_MULTIPROC_DIR", os.path.join(shared, METRICS)),
            self._handle_signals(),
        ):
            self._shared = Path(shared)
            for name in (METRICS, SERVING):
                (self._shared / name).mkdir(mode=0o700)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            log.info("listening on http://%s:%d, model %s", shown, port, self._model)
            try:
                while not self._is_stopping:
                    self._check_workers(listener)
                    self._check_model()
                    events: list[Any] = [
                        slot.process.sentinel for slot in self._slots if slot.process
                    ]
                    if self._loader is not None:
                        events.append(self._loader[1])
                    wait(events, timeout=TICK_SECONDS)
            finally:
                listener.close()
                self._stop()

    @contextmanager
    def _handle_signals(self) -> Iterator[None]:
        handlers = {
            signal.SIGTERM: self._on_stop, signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_reload,
        }  # fmt: skip
        before = {number: signal.signal(number, handlers[number]) for number in handlers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self._must_reload = True

    def _start(self, target: Any, *arguments: Any) -> BaseProcess:
        """Start a process that receives no signal before it has its handlers."""
        process = self._context.Process(target=target, args=arguments, daemon=True)
        # Started with the first process otherwise, it would let signals through again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process

    def _check_workers(self, listener: socket.socket) -> None:
        """Start workers that are missing or died."""
        now = time.monotonic()
        # One answers 503 until the first model is loaded. The others start when there is one:
        # a server that has answered 200 once must not answer 503 for another worker's sake.
        for slot in self._slots if self._digest else self._slots[:1]:
            if slot.process is not None and not slot.process.is_alive():
                self._on_worker_exit(slot, now)
            if slot.process is not None:
                if now - slot.started > HEALTHY_SECONDS:
                    slot.deaths, self._has_started = 0, True
            elif now >= slot.start_at:
                slot.process = self._start(
                    run_worker, self._settings, str(self._shared), listener, self._log_level
                )
                slot.started = now
                self._write_status()

    def _on_worker_exit(self, slot: _Slot, now: float) -> None:
        """Count the death of a worker, and schedule its successor."""
        from prometheus_client.multiprocess import mark_process_dead

        process = slot.process
        assert process is not None  # noqa: S101 - of the caller
        mark_process_dead(process.pid, str(self._shared / METRICS))
        (self._shared / SERVING / str(process.pid)).unlink(missing_ok=True)
        slot.deaths += 1
        if slot.deaths >= MAX_FAILED_STARTS and not self._has_started:
            raise SparkFMError(
                f"No worker can be started: {slot.deaths} ended at once, the last with exit code "
                f"{process.exitcode}. See what they wrote to stderr."
            )
        delay = 0.0 if slot.deaths == 1 else min(MAX_DELAY_SECONDS, 0.1 * 2**slot.deaths)
        log.warning(
            "worker %s died (exit code %s); a new one starts", process.pid, process.exitcode
        )
        slot.process, slot.start_at = None, now + delay
        self._write_status(worker_deaths=1)

    def _check_model(self) -> None:
        """Load a model when there is a new one, and poll the process that loads it."""
        if self._loader is not None:
            self._poll_loader()
            return
        try:
            self._check_for_update()
        except Exception as err:
            if self._digest is None:
                raise
            # Whatever is there, the model that is served stays; the next check tries again.
            log.warning("checking for a new version failed: %s: %s", type(err).__name__, err)

    def _check_for_update(self) -> None:
        """Load the model when asked to, or when another version was saved."""
        now = time.monotonic()
        if self._must_reload:
            self._must_reload = False
            self._load(signature(self._model))
        elif self._settings.reload_seconds and now >= self._check_at:
            self._check_at = now + self._settings.reload_seconds
            current, previous = signature(self._model), self._seen
            self._seen = current
            # Twice the same: nobody is writing there any more.
            if current is not None and current == previous and current != self._tried:
                self._load(current)

    def _load(self, version: Signature | None) -> None:
        self._n_loads += 1
        receiver, sender = self._context.Pipe(duplex=False)
        name = version_name(self._n_loads)
        path = resolve_model(self._model)
        process = self._start(
            run_loader, path, self._settings.predictor_type, str(self._shared), name, sender
        )
        sender.close()
        self._loader = (process, receiver)
        self._tried = version

    def _poll_loader(self) -> None:
        """Take over the result of the loading process, once there is one."""
        assert self._loader is not None  # noqa: S101 - of the caller
        process, connection = self._loader
        if not connection.poll():
            return
        try:
            digest, error = connection.recv()
        except EOFError:
            process.join()
            digest, error = None, f"reading it ended with exit code {process.exitcode}"
        process.join()
        connection.close()
        self._loader = None
        if error is not None and self._digest is None:
            raise ModelFormatError(error)
        if error is not None:
            log.warning("a new version of the model is refused, the old one stays: %s", error)
            self._write_status(refused_reloads=1)
        elif digest != self._digest:
            log.info("serving the model with digest %s", digest[:16])
            self._write_status(reloads=int(self._digest is not None))
            self._digest = digest
        self._prune_versions()

    def _prune_versions(self) -> None:
        """Remove all versions but the current one; what workers have mapped stays readable."""
        current = current_name(self._shared)
        for folder in versions(self._shared):
            if folder.name != current:  # older, or refused
                shutil.rmtree(folder, ignore_errors=True)

    def _write_status(self, **increments: int) -> None:
        """Count, and write the counts for the metrics."""
        for name, increment in increments.items():
            self._status[name] += increment
        workers = sum(slot.process is not None for slot in self._slots)
        try:
            write_atomically(self._shared / STATUS, json.dumps(self._status | {"workers": workers}))
        except OSError as err:  # a full disk: counts that lag behind stop no server
            log.warning("the counts for /metrics cannot be written: %s", err)

    def _stop(self) -> None:
        """Stop all processes; workers answer the requests in flight first."""
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.terminate()
        if self._loader is not None:
            self._loader[0].kill()
            processes.append(self._loader[0])
        log.info("stopping: requests in flight are answered first")
        deadline = time.monotonic() + self._settings.grace_seconds + 5
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                log.warning("process %s does not end and is killed", process.pid)
                process.kill()
                process.join()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; connections wait in it until workers accept them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as err:
        raise InvalidParamError(
            f"Cannot listen on {host}, port {port}: {err}. Choose another --host or --port."
        ) from err
    # Accepted connections inherit it. An answer is written as head and body; without this
    # the body waits for the client's delayed acknowledgement, 40 ms on Linux.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block, for the processes started there."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


Signature = tuple[object, ...]  # changes when another version is saved
# What SageMaker's training leaves, packed and unpacked.
SAGEMAKER_ARTIFACTS = ("model.tar.gz", "model_algo-1")


def resolve_model(path: str) -> str:
    """Return the model folder, or SageMaker's artifact, that a path stands for.

    That is a model folder, the one saved last in a folder of such, SageMaker's
    ``model.tar.gz`` or ``model_algo-1``, also in a folder, or what a symbolic link points to.
    Any other path, and a URI, is returned as it is: reading it raises the error.
    """
    if _metadata_times(Path(path)):
        return path
    try:
        folders = [entry for entry in Path(path).iterdir() if entry.is_dir()]
    except OSError:
        return path
    # Each folder is read once: the next time it may be gone.
    times = [(_metadata_times(folder), folder.name) for folder in folders]
    models = [(max(each), name) for each, name in times if each]
    if models:
        return os.path.join(path, max(models)[1])
    artifacts = [os.path.join(path, name) for name in SAGEMAKER_ARTIFACTS]
    return next(filter(os.path.isfile, artifacts), path)


def check_stage(path: str) -> None:
    """Raise ModelFormatError for a folder on this machine that holds another stage, or none."""
    folder = resolve_model(path)
    if _URI.match(folder) or os.path.isfile(folder) or _may_be_artifact(folder):
        return
    try:
        files = sorted(Path(folder, "metadata").iterdir())
        texts = [file.read_text("utf-8") for file in files if file.name[0] not in "_."]
    except OSError as err:
        raise unreadable_metadata(path, MODEL_CLASS, str(err)) from err
    except UnicodeDecodeError:  # compressed, or damaged: whoever reads the model knows
        return
    parse_metadata("".join(texts).splitlines(), folder, MODEL_CLASS)


_URI = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")


def _may_be_artifact(folder: str) -> bool:
    """Return whether a folder has files but no metadata, as what an artifact unpacks to."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return False
    return any(entry.is_file() for entry in entries) and not any(
        entry.name == "metadata" for entry in entries
    )


def signature(path: str) -> Signature | None:
    """Return what changes when another version is saved; None while there is none.

    That is names, sizes and times of the files, links followed; no content is read. A URI
    has no signature: a server of such a model reloads on SIGHUP.
    """
    folder = os.path.realpath(resolve_model(path))
    try:
        status = os.stat(folder)
    except OSError:
        return None
    if stat.S_ISREG(status.st_mode):
        return (folder, status.st_mtime_ns, status.st_size, status.st_ino)
    if not _metadata_times(Path(folder)):
        return None
    return (folder, *sorted(_files(Path(folder))))


def _metadata_times(folder: Path) -> list[int]:
    """Return the times of the metadata's files, which are written last; empty: no model."""
    return [time for name, time, *_ in _files(folder) if name.startswith("metadata/")]


def _files(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, time, size and inode of each file but the hidden ones, being written."""
    for part in ("data", "metadata"):
        try:
            with os.scandir(folder / part) as entries:
                for entry in entries:
                    if entry.name[0] not in "_." and entry.is_file():
                        status = entry.stat()
                        name = f"{part}/{entry.name}"
                        yield name, status.st_mtime_ns, status.st_size, status.st_ino
        except OSError:  # missing, or being replaced
            continue
