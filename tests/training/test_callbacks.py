"""A listener ends the training of its own model, and of no other."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from spark_fm.learner import jit
from spark_fm.learner.training import EpochRecord
from spark_fm.spark.schema import internal_rows
from spark_fm.training import callbacks
from spark_fm.training.trainer import open_trainer
from tests.builders import train_spec
from tests.ml.builders import fast_fm, planted_frame

pytestmark = pytest.mark.spark


@pytest.mark.parametrize("workers", [1, 2])
def test_a_listener_that_says_no_ends_its_training_there(spark, workers):
    frame = planted_frame(spark, 300, seed=3)
    machine = fast_fm(epochs=4, validationFraction=0.2, patience=0, numWorkers=workers)
    request = machine._train_config(frame)
    heard = []

    def two_epochs(report):
        heard.append(report.record.epoch)
        return len(heard) < 2

    with open_trainer(internal_rows(frame, request.columns), request) as data:
        assert data.has_validation
        outcomes = data.train([request] * 2, callbacks=[two_epochs, None])

    lengths = [len(outcome.history) for outcome in outcomes]
    assert lengths[1] == 4
    # One task reports a stretch of epochs at once; many tasks are stopped at the epoch.
    assert lengths[0] == len(heard) == (2 if workers == 2 else 4)


def test_a_bar_is_for_a_kernel_and_not_for_a_program_that_loads_its_modules(monkeypatch):
    kernel = SimpleNamespace(kernel=object())
    for shell, drawn in ((None, False), (SimpleNamespace(), False), (kernel, True)):
        ipython = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "IPython", ipython)

        assert (callbacks._bar(1, "train", 0) is not None) == drawn


def test_a_fit_says_that_it_compiles_only_where_the_machine_keeps_no_kernel(
    spark, tmp_path, monkeypatch, caplog, capfd
):
    frame = planted_frame(spark, 100, seed=3)
    fast_fm(epochs=1).fit(frame)
    caplog.set_level(logging.INFO, "spark_fm")
    caplog.clear()

    fast_fm(epochs=1).fit(frame)
    assert "compiling" not in caplog.text

    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(callbacks, "_is_watched", lambda: True)
    monkeypatch.setattr(callbacks, "_bar", lambda *_: None)
    fast_fm(epochs=1).fit(frame)
    assert caplog.text.count("compiling kernels (once)") == 1
    assert "compiling kernels (once)" in capfd.readouterr().err  # without a log and an extra


@pytest.mark.parametrize(("seconds", "said"), [(0.2, False), (4.25, True)])
def test_an_epoch_says_what_compiling_took_of_it(seconds, said):
    record = EpochRecord(
        epoch=0, train_loss=0.5, validation=None, train_seconds=5.0, validate_seconds=0.0,
        compile_seconds=seconds, step_scale=1.0, n_rejected=0,
    )  # fmt: skip

    (report,) = callbacks.reports_of([record], 10, train_spec())

    assert ("4.2 s of it compiling kernels (once)" in report.text()) == said
