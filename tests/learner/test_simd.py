"""Vector operations of compiled code, against NumPy."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from spark_fm.learner.simd import (
    WIDTH,
    clipped,
    load,
    load_at,
    local_floats,
    prefetch,
    prefetch_at,
    root,
    spread,
    store,
    store_at,
    total,
)

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="NUMBA_DISABLE_JIT leaves nothing to compile"
)


@pytest.fixture
def table():
    return np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)


def test_arithmetic_is_that_of_float32_in_every_lane(table):
    @numba.njit
    def compute(table):
        a, b = load(table, 0, 1), load(table, 1, 3)
        store(table, 2, 2, (a + b) * a / (b - spread(0.5)))

    a, b = table[0, 1:9].copy(), table[1, 3:11].copy()
    expected = table.copy()
    expected[2, 2:10] = (a + b) * a / (b - np.float32(0.5))

    compute(table)

    np.testing.assert_allclose(table, expected, rtol=1e-6)
    untouched = np.r_[0:2, 10:20]
    np.testing.assert_array_equal(table[2, untouched], expected[2, untouched])


def test_sums_and_roots(table):
    @numba.njit
    def compute(table):
        store(table, 1, 0, root(load(table, 0, 0)))
        return total(load(table, 0, 0))

    table[0] = np.abs(table[0])

    assert compute(table) == pytest.approx(float(table[0, :WIDTH].sum()), rel=1e-6)
    np.testing.assert_allclose(table[1, :WIDTH], np.sqrt(table[0, :WIDTH]), rtol=1e-6)


def test_clipping_bounds_both_sides_and_keeps_nan_and_infinite_bounds():
    @numba.njit
    def clip(numbers, bound):
        store_at(numbers, 0, clipped(load_at(numbers, 0), spread(np.float32(bound))))

    numbers = np.array([-9, -1, -0.5, 0, 0.5, 1, 9, np.nan], np.float32)
    wide = numbers.copy()
    clip(wide, np.inf)
    clip(numbers, 1)

    assert wide.tolist()[:-1] == [-9, -1, -0.5, 0, 0.5, 1, 9]
    assert numbers.tolist()[:-1] == [-1, -1, -0.5, 0, 0.5, 1, 1]
    assert np.isnan([wide[-1], numbers[-1]]).all()


def test_local_arrays_are_there_for_any_size_and_apart():
    @numba.njit
    def fill(n):
        one, two, none = local_floats(12), local_floats(3), local_floats(0)
        none[0] = 1
        for i in range(12):
            one[i] = n + i
        for i in range(3):
            two[i] = -n
        return one.sum(), two.sum(), len(one), len(two)

    assert fill(2) == (90, -6, 12, 3)


def test_prefetching_changes_nothing_and_does_not_mind_where(table):
    @numba.njit
    def ask(table, row, i):
        prefetch(table, i, 0)
        prefetch_at(row, i)

    before = table.copy()
    for i in (0, 2, 10**9):
        ask(table, table[0], i)

    np.testing.assert_array_equal(table, before)
