"""What a worker does beside answering."""

from __future__ import annotations

import asyncio
import logging
import os
from types import SimpleNamespace

import pytest

from spark_fm.serving import worker


class Parent:
    """A supervisor that is there for five looks of its worker."""

    def __init__(self) -> None:
        self.looks = 0

    def parent_process(self) -> Parent:
        return self

    @property
    def pid(self) -> int:
        return os.getppid() if self.looks < 5 else -1


@pytest.fixture
def parent(monkeypatch) -> Parent:
    made = Parent()
    monkeypatch.setattr(worker, "multiprocessing", made)
    monkeypatch.setattr(worker, "CHECK_SECONDS", 0)
    return made


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError, MemoryError])
def test_a_version_that_cannot_be_taken_over_ends_neither_the_looks_nor_their_end(
    parent, monkeypatch, caplog, error
):
    async def fails(*_):
        parent.looks += 1
        raise error("broken")

    monkeypatch.setattr(worker, "_load_current", fails)
    server = SimpleNamespace(should_exit=False)
    with caplog.at_level(logging.INFO, "spark_fm"):
        asyncio.run(asyncio.wait_for(worker._follow_current(None, None, server), 30))
    assert parent.looks == 5
    assert server.should_exit
    assert caplog.text.count("the old one stays") == 1


def test_a_note_for_the_metrics_that_cannot_be_written_stops_no_worker(
    tmp_path, monkeypatch, caplog
):
    from spark_fm.serving.metrics import Metrics

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING, "spark_fm"):
        Metrics(tmp_path).serves("digest", "version")  # there is no folder for it
    assert "cannot be written for /metrics" in caplog.text
