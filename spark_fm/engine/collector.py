"""Keep Python's garbage collector off the modules of a worker."""

from __future__ import annotations

import gc

# Objects that a task leaves behind without having loaded anything.
USUAL_OBJECTS = 20_000


def freeze_loaded_modules() -> None:
    """Exempt what a worker has loaded from garbage collection; called as a task ends.

    PySpark's workers collect fully after every task, which takes longer than a short task
    once Numba's hundreds of thousands of objects are there (50 to 100 ms against 1 ms).
    Frozen objects are still freed by their reference counts; only cycles among them stay.
    A worker does this once, or again when it has loaded much more.
    """
    if len(gc.get_objects()) > USUAL_OBJECTS:
        gc.collect()  # else cycles that are garbage already would stay for ever
        gc.freeze()
