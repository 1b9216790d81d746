"""What a training leaves in the driver's memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks.datasets import Rows, to_frame
from spark_fm import tune
from spark_fm.errors import TrainingDivergedError
from tests.training.builders import machine


@contextmanager
def kinds_left_to_the_collector(found: set[str]) -> Iterator[None]:
    """Add the classes of spark_fm whose instances the block leaves in cycles."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        kinds = {type(kept) for kept in gc.garbage}
        found |= {k.__name__ for k in kinds if str(k.__module__).startswith("spark_fm.")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_frees_its_tables_without_waiting_for_the_cycle_collector(
    frame, workers, tmp_path
):
    trains = machine(numWorkers=workers, checkpointDir=str(tmp_path / "notes"))
    left: set[str] = set()

    with kinds_left_to_the_collector(left):
        trains.fit(frame)

    assert not left


def test_models_that_diverge_free_their_tables_too(spark):
    rows = Rows(
        sp.csr_matrix(np.random.default_rng(0).uniform(1e30, 2e30, (300, 2))), np.arange(300) % 2.0
    )
    frame = to_frame(spark, rows)
    left: set[str] = set()

    with kinds_left_to_the_collector(left), suppress(TrainingDivergedError):
        tune(
            machine(numWorkers=2, validationFraction=0.3),
            frame,
            trials=2,
            space={"numFactors": [2, 3]},
            parallel=2,
        )

    assert not left & {"Parameters", "AveragingTrainer", "TrainingProgress", "TrainState"}
