"""The simulator runs a thread of this process for each of a GPU's."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _quick_turns() -> Iterator[None]:
    """Let threads take turns often: those that wait for each other are polled meanwhile."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(autouse=True, scope="session")
def _one_shared_array() -> Iterator[None]:
    """Let the first thread alone make a block's shared array.

    The simulator looks for one and makes it when there is none: two threads at once get two.
    """
    from numba import config

    if not config.ENABLE_CUDASIM:
        yield
        return
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    lock, usual = threading.Lock(), FakeCUDAShared.array

    def array(self: object, shape: object, dtype: object) -> object:
        with lock:
            return usual(self, shape, dtype)

    FakeCUDAShared.array = array
    yield
    FakeCUDAShared.array = usual
