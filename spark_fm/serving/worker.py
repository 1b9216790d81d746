"""One process that answers requests: uvicorn with the application; workers."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn

from spark_fm.serving.app import Service, make_app
from spark_fm.serving.batching import Admission, Batcher
from spark_fm.serving.http import timeout_protocol
from spark_fm.serving.metrics import Metrics
from spark_fm.serving.models import ServedModel, open_model, warm_up
from spark_fm.serving.processes import SIGNALS
from spark_fm.serving.settings import MIB, ServeSettings, current_name

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
LOOK_SECONDS = 0.2  # between two looks at which version to serve


def serve(settings: ServeSettings, shared: Path, listener: socket.socket) -> None:
    """Answer requests until told to stop; ends when those in flight are answered.

    Parameters
    ----------
    settings : ServeSettings
    shared : Path
        The server's private folder.
    listener : socket
        Listens already, and is shared by all workers.
    """
    # A thread that decodes a large body hands the interpreter to the event loop this often.
    sys.setswitchinterval(SWITCH_SECONDS)
    asyncio.run(_serve(settings, shared, listener))


async def _serve(settings: ServeSettings, shared: Path, listener: socket.socket) -> None:
    metrics = Metrics(shared)
    with (
        ThreadPoolExecutor(settings.threads, "codec") as codecs,
        ThreadPoolExecutor(1, "scorer") as scorer,
    ):
        service = Service(
            settings=settings,
            metrics=metrics,
            codecs=codecs,
            batcher=Batcher(scorer, metrics.on_call),
            admission=Admission(settings.max_requests, settings.max_held_mb * MIB),
        )
        server = uvicorn.Server(_configuration(settings, service))
        await _take_current(service, shared)  # before it listens, if there is one already
        following = asyncio.create_task(_follow(service, shared, server))
        # As soon as the loop runs uvicorn's handlers stand: they are set before it awaits.
        asyncio.get_running_loop().call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
        try:
            await server.serve(sockets=[listener])
        finally:
            following.cancel()


def _configuration(settings: ServeSettings, service: Service) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(service),
        http=timeout_protocol(settings.head_seconds, settings.body_seconds),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=settings.access_log,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(settings.idle_seconds)),
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
    )


async def _follow(service: Service, shared: Path, server: uvicorn.Server) -> None:
    """Serve the version that is current, and stop when the supervisor has gone."""
    supervisor = multiprocessing.parent_process()
    told = ""
    while supervisor is not None and os.getppid() == supervisor.pid:
        try:
            await _take_current(service, shared)
        except Exception as err:  # without this task the worker would never end
            text = f"{type(err).__name__}: {err}"
            if text != told:  # not five times a second
                log.exception("another version cannot be served, the old one goes on: %s", text)
            told = text
        await asyncio.sleep(LOOK_SECONDS)
    log.warning("the supervisor has gone: this worker stops")
    server.should_exit = True


async def _take_current(service: Service, shared: Path) -> None:
    """Map the current version if there is another one than is served."""
    old, name = service.model, current_name(shared)
    if name is None or (old is not None and old.name == name):
        return
    loop = asyncio.get_running_loop()
    try:
        new = await loop.run_in_executor(None, _ready_model, shared, name)
    except OSError as err:  # replaced at this moment: the next look finds the newer one
        log.info("version %s cannot be opened yet: %s", name, err)
        return
    service.model = new  # requests in flight keep the one that they began with
    service.metrics.serves(new.digest, new.version)


def _ready_model(shared: Path, name: str) -> ServedModel:
    """Map a version and compile or load all that its requests need."""
    model = open_model(shared, name)
    warm_up(model)
    # What is there now stays. Unfrozen, each full collection would go through the hundreds of
    # thousands of objects that Numba leaves: half of the time of parsing a large JSON body.
    gc.collect()
    gc.freeze()
    return model
