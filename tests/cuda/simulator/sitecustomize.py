"""Make Numba's CUDA simulator fit for many threads, in every process that finds this first.

The simulator runs a thread of the process for each of a GPU's. Those that wait for each
other are polled meanwhile, so they take turns often; and the first alone makes a block's
shared array, for which the simulator looks before it makes one: two at once would get two.
"""

from __future__ import annotations

import os
import sys
import threading


def prepare() -> None:
    """Change this process."""
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    sys.setswitchinterval(2e-5)
    lock, usual = threading.Lock(), FakeCUDAShared.array

    def array(self: object, shape: object, dtype: object) -> object:
        with lock:
            return usual(self, shape, dtype)

    FakeCUDAShared.array = array


if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    prepare()
