"""Validation rows chosen by their features."""

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


def cells(n_cells: int, n_copies: int, share: float) -> CsrBatch:
    """Return rows that have one of few features each, in turn, and labels 0 or 1 at random."""
    n_rows = n_cells * n_copies
    ids = np.tile(np.arange(n_cells, dtype=np.int32), n_copies)
    batch = CsrBatch.from_arrays(np.arange(n_rows + 1), ids, np.ones(n_rows, np.float32))
    batch.labels[:] = np.random.default_rng(3).uniform(size=n_rows) < share
    return batch


@pytest.mark.parametrize("n_parts", [1, 20, 200])
def test_rows_of_equal_features_keep_their_share_of_labels_among_the_training_rows(
    n_parts: int,
) -> None:
    rows = cells(20, 1000, share=0.2)
    parts = np.array_split(np.arange(rows.n_rows), n_parts)

    chosen = np.concatenate([
        validation_rows(rows.take(part), 0.1, 7, number) for number, part in enumerate(parts)
    ])  # fmt: skip

    for cell in range(20):
        members = rows.indices == cell
        shares = [rows.labels[members & mask].mean() for mask in (~chosen, chosen) if mask.any()]
        # 900 and 100 rows: 4 sigma. By content, a label would be there with all rows or none.
        assert shares[0] == pytest.approx(0.2, abs=0.054)
        assert shares[1] == pytest.approx(0.2, abs=0.17)
    assert chosen.mean() == pytest.approx(0.1, abs=0.05)


def test_of_rows_in_parts_of_their_own_those_of_equal_features_go_the_same_way() -> None:
    rows = cells(20, 30, share=0.5)
    parts = np.arange(rows.n_rows).reshape(30, 20)

    chosen = [validation_rows(rows.take(part), 0.3, 7, number) for number, part in enumerate(parts)]

    assert all((mask == chosen[0]).all() for mask in chosen)


def test_which_of_equal_features_are_chosen_does_not_depend_on_their_order() -> None:
    rows = cells(10, 50, share=0.4)
    order = np.random.default_rng(1).permutation(rows.n_rows)

    one, other = (batch.take(np.flatnonzero(validation_rows(batch, 0.3, 7)))
                  for batch in (rows, rows.take(order)))  # fmt: skip

    def pairs(batch: CsrBatch) -> list[tuple[int, float]]:
        return sorted(zip(batch.indices.tolist(), batch.labels.tolist(), strict=True))

    assert pairs(one) == pairs(other)


def test_index_and_value_take_part_in_the_choice_and_the_label_does_not() -> None:
    before = validation_rows(MANY, 0.5, 7)
    label = CsrBatch(MANY.indptr, MANY.indices, MANY.values, MANY.labels + 1, MANY.weights)
    index = CsrBatch(MANY.indptr, MANY.indices + 1, MANY.values, MANY.labels, MANY.weights)
    value = CsrBatch(MANY.indptr, MANY.indices, MANY.values * 2, MANY.labels, MANY.weights)

    for changed in (index, value):
        assert (validation_rows(changed, 0.5, 7) != before).mean() == pytest.approx(0.5, abs=0.04)
    np.testing.assert_array_equal(validation_rows(label, 0.5, 7), before)


def test_another_seed_chooses_other_rows() -> None:
    one, other = (validation_rows(MANY, 0.5, seed) for seed in (7, 8))

    # Two fair coins a row: five sigma around one half.
    assert (one != other).mean() == pytest.approx(0.5, abs=0.04)


def test_a_batch_without_rows_chooses_none() -> None:
    assert validation_rows(MANY.take(np.empty(0, np.int64)), 0.5, 7).shape == (0,)
