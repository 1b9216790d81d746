"""Validation rows chosen by content."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.statistics import validation_rows
from tests.builders import random_batch

N_ROWS = 4000
MANY = random_batch(N_ROWS, 30, seed=1, lengths=(1, 8))


@given(st.permutations(range(60)), st.integers(0, 60), st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_choice_does_not_depend_on_row_order_or_partition(
    order: list[int], cut: int, seed: int
) -> None:
    rows = np.array(order)
    batch = MANY.take(np.arange(60))

    chosen = [validation_rows(batch.take(part), 0.3, seed) for part in (rows[:cut], rows[cut:])]

    np.testing.assert_array_equal(np.concatenate(chosen), validation_rows(batch, 0.3, seed)[rows])


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_about_the_given_share_is_chosen(seed: int, fraction: float) -> None:
    share = validation_rows(MANY, fraction, seed).mean()

    assert abs(share - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / N_ROWS)  # 4 sigma


@pytest.mark.parametrize("label", [0.0, 1.0, 3.5])
def test_rows_that_differ_in_one_id_are_chosen_independently(label: float) -> None:
    ids = np.arange(N_ROWS, dtype=np.int32)
    batch = CsrBatch.from_arrays(np.arange(N_ROWS + 1), ids, np.ones(N_ROWS, np.float32))
    batch.labels[:] = label

    chosen = validation_rows(batch, 0.5, 0)

    assert abs(chosen.mean() - 0.5) < 4 * np.sqrt(0.25 / N_ROWS)  # 4 sigma
    agree = (chosen[1:] == chosen[:-1]).mean()
    assert abs(agree - 0.5) < 4 * np.sqrt(0.25 / N_ROWS)


def test_nothing_is_chosen_at_fraction_zero_and_everything_at_one() -> None:
    assert not validation_rows(MANY, 0.0, 7).any()
    assert validation_rows(MANY, 1.0, 7).all()


def test_a_larger_fraction_keeps_the_rows_of_a_smaller_one() -> None:
    small, large = (validation_rows(MANY, fraction, 7) for fraction in (0.2, 0.4))

    assert (large | ~small).all()


def test_equal_rows_go_the_same_way_whatever_their_weight() -> None:
    twice = CsrBatch.concat([MANY, MANY])
    twice.weights[N_ROWS:] = 5

    chosen = validation_rows(twice, 0.3, 7)

    np.testing.assert_array_equal(chosen[:N_ROWS], chosen[N_ROWS:])


def test_label_id_and_value_each_take_part_in_the_choice() -> None:
    before = validation_rows(MANY, 0.5, 7)
    label = CsrBatch(MANY.indptr, MANY.indices, MANY.values, MANY.labels + 1, MANY.weights)
    index = CsrBatch(MANY.indptr, MANY.indices + 1, MANY.values, MANY.labels, MANY.weights)
    value = CsrBatch(MANY.indptr, MANY.indices, MANY.values * 2, MANY.labels, MANY.weights)

    for changed in (label, index, value):
        assert (validation_rows(changed, 0.5, 7) != before).mean() == pytest.approx(0.5, abs=0.04)


def test_another_seed_chooses_other_rows() -> None:
    one, other = (validation_rows(MANY, 0.5, seed) for seed in (7, 8))

    # Two fair coins a row: five sigma around one half.
    assert (one != other).mean() == pytest.approx(0.5, abs=0.04)


def test_a_batch_without_rows_chooses_none() -> None:
    assert validation_rows(MANY.take(np.empty(0, np.int64)), 0.5, 7).shape == (0,)
