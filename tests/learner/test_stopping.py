"""When to give up, and which epoch was best."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from spark_fm.learner.training import EarlyStopping


def watch(stopping: EarlyStopping, values: list[float]) -> list[bool]:
    return [stopping.observe(epoch, value) for epoch, value in enumerate(values)]


@pytest.mark.parametrize(
    ("larger_is_better", "values"),
    [(False, [3.0, 2.0, 2.5, 1.0, 1.5]), (True, [1.0, 2.0, 1.5, 3.0, 2.5])],
)
def test_the_best_epoch_follows_the_direction_of_the_metric(
    larger_is_better: bool, values: list[float]
) -> None:
    stopping = EarlyStopping(larger_is_better, patience=2, tol=0.0)

    improved = watch(stopping, values)

    assert improved == [True, True, False, True, False]
    assert (stopping.best_epoch, stopping.best_value) == (3, values[3])
    assert not stopping.should_stop


def test_patience_epochs_without_improvement_stop() -> None:
    stopping = EarlyStopping(False, patience=2, tol=0.0)

    watch(stopping, [1.0, 1.1])
    early = stopping.should_stop
    stopping.observe(2, 1.0)

    assert not early
    assert stopping.should_stop


def test_patience_zero_never_stops() -> None:
    stopping = EarlyStopping(False, patience=0, tol=0.0)

    watch(stopping, [1.0] * 50)

    assert not stopping.should_stop


@pytest.mark.parametrize(("value", "enough"), [(0.97, False), (0.94, True)])
def test_an_improvement_below_tol_uses_up_patience_and_is_kept(value: float, enough: bool) -> None:
    stopping = EarlyStopping(False, patience=1, tol=0.05)

    assert watch(stopping, [1.0, value]) == [True, True]
    assert stopping.best_epoch == 1
    assert stopping.should_stop is not enough


def test_tol_is_relative_to_the_size_of_a_negative_metric_too() -> None:
    stopping = EarlyStopping(True, patience=3, tol=0.1)

    watch(stopping, [-10.0, -9.5, -8.9])

    assert stopping.waited == 0
    watch(stopping, [-8.5])
    assert stopping.waited == 1


def test_nan_is_never_an_improvement() -> None:
    stopping = EarlyStopping(False, patience=2, tol=0.0)

    assert watch(stopping, [math.nan, 1.0, math.nan, 0.5]) == [False, True, False, True]
    assert stopping.best_epoch == 3


def test_nan_alone_uses_up_patience() -> None:
    stopping = EarlyStopping(False, patience=2, tol=0.0)

    watch(stopping, [math.nan, math.nan])

    assert stopping.should_stop
    assert stopping.best_epoch == -1


def test_state_travels_as_plain_data() -> None:
    stopping = EarlyStopping(True, patience=2, tol=0.01)
    watch(stopping, [0.5, 0.7, 0.6])

    again = EarlyStopping(**asdict(stopping))

    assert again == stopping
    assert again.observe(3, 0.7) == stopping.observe(3, 0.7)
