"""Repeated times and how they are shown: the median, and the spread; and against a bar."""

from __future__ import annotations

import json
import operator
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
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


RESULTS = "SPARK_FM_BENCHMARK_RESULTS"  # names a file that takes what is compared with bars
_RELATIONS = {">=": operator.ge, "<=": operator.le}


def compared(what: str, values: Sequence[float], bar: str, *, moonshot: str = "") -> str:
    """Return some figures and whether their median meets a bar such as ``<= 1.35``.

    They are also added to the file that the environment names, for ``python -m benchmarks``.
    """
    relation, limit = bar.split()
    met = bool(_RELATIONS[relation](float(np.median(values)), float(limit)))
    facts = {"what": what, "figure": spread(values), "bar": bar, "moonshot": moonshot, "met": met}
    if os.environ.get(RESULTS):
        with Path(os.environ[RESULTS]).open("a") as file:
            file.write(json.dumps(facts) + "\n")
    return f"{facts['figure']}; bar {bar}: {'met' if met else 'missed'}"


def row(*cells: object) -> None:
    """Print a line of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*names: str) -> None:
    """Print the head of a Markdown table."""
    row(*names)
    print("| --- " * len(names) + "|", flush=True)
