"""A training's summary as a JSON file; driver only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from spark_fm.ml.summary import FMTrainingSummary
from spark_fm.ml.trials import write_text


def write_summary(path: Path, summary: FMTrainingSummary) -> None:
    """Write the summary; numbers that JSON has no word for become null."""
    content = json.dumps(_plain(summary.to_dict()), indent=2, allow_nan=False)
    write_text(path, content + "\n")


def _plain(value: Any) -> Any:
    """Return the value with null for what JSON has no word for."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
