"""Feature counts and ranges against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_fm.learner import statistics
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.statistics import FeatureCounter, FeatureCounts, unscaled_features
from tests.builders import random_batch


def batch_with(indices: list[int], values: list[float] | None = None) -> CsrBatch:
    xs = np.ones(len(indices), np.float32) if values is None else np.array(values, np.float32)
    return CsrBatch.from_arrays(np.arange(len(indices) + 1), np.array(indices, np.int32), xs)


def counted(batches: list[tuple[list[int], bool]]) -> FeatureCounts:
    counter = FeatureCounter()
    for indices, validation in batches:
        counter.add(batch_with(indices), validation=validation)
    return counter.counts()


def assert_counts(seen: FeatureCounts, train: list[int], validation: list[int]) -> None:
    ids = sorted({*train, *validation})
    assert seen.ids.tolist() == ids
    assert seen.train.tolist() == [train.count(j) for j in ids]
    assert seen.validation.tolist() == [validation.count(j) for j in ids]
    assert (seen.ids.dtype, seen.train.dtype) == (np.int32, np.int64)


BATCHES = st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=6), st.booleans()), max_size=25)


@given(BATCHES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_counts_equal_numpys_on_both_sides_of_the_dense_limit(
    batches: list[tuple[list[int], bool]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "DENSE_IDS", 20)

        seen = counted(batches)

    train = [j for indices, validation in batches for j in indices if not validation]
    held_out = [j for indices, validation in batches for j in indices if validation]
    assert_counts(seen, train, held_out)


def test_ids_up_to_the_last_of_a_spark_vector_are_counted() -> None:
    high = [2**24, 2**31 - 2]

    seen = counted([([0, 3], False), ([3, *high], False), (high[1:], True)])

    assert_counts(seen, [0, 3, 3, *high], high[1:])


def test_nothing_counted_gives_empty_counts() -> None:
    assert_counts(counted([([], False)]), [], [])


@given(st.lists(BATCHES, max_size=4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_merged_counts_are_those_of_all_rows_together(
    parts: list[list[tuple[list[int], bool]]],
) -> None:
    merged = FeatureCounts.merge([counted(part) for part in parts])

    whole = counted([batch for part in parts for batch in part])
    np.testing.assert_array_equal(merged.ids, whole.ids)
    np.testing.assert_array_equal(merged.train, whole.train)
    np.testing.assert_array_equal(merged.validation, whole.validation)


def test_magnitudes_are_the_median_size_and_the_largest_features() -> None:
    batch = random_batch(300, 50, seed=1)
    counter = FeatureCounter()
    counter.add(batch, validation=False)

    median, ranges = counter.value_ranges()

    size = np.zeros(50)
    np.maximum.at(size, batch.indices, np.abs(batch.values))
    assert median == pytest.approx(np.quantile(size[size > 0], 0.5, method="lower"))
    assert {j for j, _, _ in ranges} == set(np.argsort(size)[-statistics.CANDIDATES :].tolist())
    for j, low, high in ranges:
        of_j = batch.values[batch.indices == j]
        assert (low, high) == (float(of_j.min()), float(of_j.max()))


def test_an_unused_counter_has_no_magnitudes() -> None:
    assert FeatureCounter().value_ranges() == (0.0, [])


def test_dwarfing_features_name_the_feature_and_its_whole_range() -> None:
    first, second = FeatureCounter(), FeatureCounter()
    first.add(batch_with([0, 1, 2, 7, 7], [1, 1, 0.5, 40, -3e4]), validation=False)
    second.add(batch_with([0, 1, 2, 7, 9], [1, 1, 0.5, 5e5, 1e3]), validation=True)

    found = unscaled_features([first.value_ranges(), second.value_ranges()])

    assert found == [(7, -3e4, 5e5), (9, 1e3, 1e3)]


@pytest.mark.parametrize(("value", "found"), [(100.0, []), (101.0, [(3, 101.0, 101.0)])])
def test_features_up_to_a_hundred_times_the_median_pass(
    value: float, found: list[tuple[int, float, float]]
) -> None:
    counter = FeatureCounter()
    counter.add(batch_with([0, 1, 2, 3], [1, 1, -1, value]), validation=False)

    assert unscaled_features([counter.value_ranges()]) == found


def test_rows_without_entries_do_not_make_features_dwarf_others() -> None:
    counter = FeatureCounter()
    counter.add(batch_with([0, 1, 2], [1, 2, 1]), validation=False)

    assert unscaled_features([(0.0, []), counter.value_ranges(), (0.0, [])]) == []
    assert unscaled_features([]) == []


def test_a_hashed_id_beside_raw_columns_does_not_hide_the_dwarfing_one() -> None:
    counter = FeatureCounter()
    counter.add(batch_with([0, 1, 2, 7, 2**24 + 5], [1, 1, 0.5, 4e5, 1]), validation=False)

    assert unscaled_features([counter.value_ranges()]) == [(7, 4e5, 4e5)]


def test_of_two_features_one_may_dwarf_the_other() -> None:
    counter = FeatureCounter()
    counter.add(batch_with([0, 1, 1], [1, 1e6, 2e6]), validation=False)

    assert unscaled_features([counter.value_ranges()]) == [(1, 1e6, 2e6)]
