"""Make Numba's CUDA simulator fit for many threads, in every process that finds this first.

The simulator runs a thread of the process for each of a GPU's. Those that wait for each
other are polled meanwhile, so they take turns often.
"""

from __future__ import annotations

import os
import sys

if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    sys.setswitchinterval(2e-5)
