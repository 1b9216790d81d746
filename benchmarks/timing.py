"""Repeated times and how they are shown: the median, and the spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median of some figures, with the least and the most of them."""
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def row(*cells: object) -> None:
    """Print a line of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*names: str) -> None:
    """Print the head of a Markdown table."""
    row(*names)
    print("| --- " * len(names) + "|", flush=True)
