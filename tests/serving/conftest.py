"""A small model, and one server with tight limits for all tests that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spark_fm.learner.weights import FMWeights
from tests.builders import planted_weights
from tests.serving.servers import Server, save_model, serving

WIDTH = 20
BODY_SECONDS = 3.0


@pytest.fixture(scope="session")
def weights() -> FMWeights:
    return planted_weights(WIDTH, 4, seed=1)


@pytest.fixture(scope="session")
def model(weights: FMWeights, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("served") / "model", weights, threshold=0.4)


@pytest.fixture(scope="session")
def server(model: str) -> Iterator[Server]:
    """One worker, so that its limits are those of the server."""
    flags = ["--max-payload-mb", "1", "--max-held-mb", "2", "--max-requests", "4"]
    flags += ["--body-seconds", str(BODY_SECONDS), "--head-seconds", "1"]
    with serving(Path(model), *flags) as running:
        yield running
