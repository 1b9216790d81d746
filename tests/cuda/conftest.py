"""Without a GPU the tests run under Numba's simulator."""

from __future__ import annotations

import os

if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    import tests.cuda.simulator.sitecustomize  # noqa: F401 - its import prepares this process
