"""Forks Python workers as PySpark's daemon does, without telling that Spark has hung up on one.

Once a task fails, Spark closes the sockets of those that it no longer needs, and PySpark prints
the BrokenPipeError of each. For ``spark.python.daemon.module`` of a Spark that is ours alone.
"""

from __future__ import annotations

import sys
import traceback
from types import SimpleNamespace
from typing import Any

from pyspark import daemon

HUNG_UP = (BrokenPipeError, ConnectionResetError)


def _print_exc(*args: Any, **kwargs: Any) -> None:
    if not isinstance(sys.exc_info()[1], HUNG_UP):
        traceback.print_exc(*args, **kwargs)


def _print(*args: Any, **kwargs: Any) -> None:
    if not isinstance(sys.exc_info()[1], HUNG_UP):
        print(*args, **kwargs)  # noqa: T201 - in place of PySpark's own


def quieten() -> None:
    """Let PySpark's daemon print all errors but those of a socket that Spark has closed."""
    quiet = SimpleNamespace(print_exc=_print_exc, format_exc=traceback.format_exc)
    vars(daemon).update(traceback=quiet, print=_print)


if __name__ == "__main__":
    quieten()
    daemon.manager()
