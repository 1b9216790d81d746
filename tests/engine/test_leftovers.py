"""What a training leaves in the driver's memory."""

from __future__ import annotations

import gc

import pytest

from tests.engine.builders import machine


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_frees_its_tables_without_waiting_for_the_cycle_collector(
    frame, workers, tmp_path
):
    trains = machine(numWorkers=workers, checkpointDir=str(tmp_path / "notes"))
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        trains.fit(frame)
        gc.collect()
        left = {type(kept) for kept in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()

    assert not [kind for kind in left if kind.__module__.startswith("spark_fm.")]
