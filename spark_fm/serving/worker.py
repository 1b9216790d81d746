"""One process that answers requests: uvicorn with the application."""

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
from spark_fm.serving.settings import MIB, SIGNALS, ServeSettings, current_name

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
CHECK_SECONDS = 0.2  # between two checks which version to serve


def serve(settings: ServeSettings, shared: Path, listener: socket.socket) -> None:
    """Answer requests until a signal to stop, and until those in flight are answered."""
    # How often a thread that decodes a large body yields the interpreter to the event loop.
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
        configuration = uvicorn.Config(
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
        server = uvicorn.Server(configuration)
        await _load_current(service, shared)  # before it listens, if there is one already
        following = asyncio.create_task(_follow_current(service, shared, server))
        # When the loop runs this, uvicorn has set its handlers: it does so before it awaits.
        asyncio.get_running_loop().call_soon(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
        try:
            await server.serve(sockets=[listener])
        finally:
            following.cancel()


async def _follow_current(service: Service, shared: Path, server: uvicorn.Server) -> None:
    """Serve the current version, and stop when the supervisor has died."""
    supervisor = multiprocessing.parent_process()
    last_error = ""
    while supervisor is not None and os.getppid() == supervisor.pid:
        try:
            await _load_current(service, shared)
        except Exception as err:  # without this task the worker would never end
            text = f"{type(err).__name__}: {err}"
            if text != last_error:  # not five times a second
                log.exception("a new version cannot be served, the old one stays: %s", text)
            last_error = text
        await asyncio.sleep(CHECK_SECONDS)
    log.warning("the supervisor has died: this worker stops")
    server.should_exit = True


async def _load_current(service: Service, shared: Path) -> None:
    """Map the current version unless it is the one being served."""
    old, name = service.model, current_name(shared)
    if name is None or (old is not None and old.name == name):
        return
    loop = asyncio.get_running_loop()
    try:
        new = await loop.run_in_executor(None, _open_warm, shared, name)
    except OSError as err:  # just replaced: the next check finds the newer one
        log.info("version %s cannot be opened yet: %s", name, err)
        return
    service.model = new  # requests in flight keep the one that they started with
    service.metrics.serves(new.digest, new.version)


def _open_warm(shared: Path, name: str) -> ServedModel:
    """Map a version and compile or load everything that its requests need."""
    model = open_model(shared, name)
    warm_up(model)
    # These objects stay. Unfrozen, each full collection would traverse the hundreds of
    # thousands that Numba leaves: half of the time of parsing a large JSON body.
    gc.collect()
    gc.freeze()
    return model
