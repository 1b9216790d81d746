"""The merge of what partitions learned, against its float64 twin."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.criteo_shape import CriteoShape
from spark_fm.learner import averaging
from spark_fm.learner.averaging import AveragingRule, Delta, average_deltas, correction
from spark_fm.learner.csr import CsrBatch
from spark_fm.learner.epoch import RowOrder
from spark_fm.learner.kernels import train_inplace
from spark_fm.learner.spec import GroupHyperparameters, OptimizerName
from spark_fm.learner.state import Layout, TrainState, initial_state
from spark_fm.learner.training import Parameters, evaluate
from tests import oracle
from tests.builders import train_spec

# The merge works in float64 on differences of float32 values and rounds once: values up
# to 4 keep within two units of float32, 2 * 4 * 6e-8, rounded up.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def rule_for(optimizer: OptimizerName, n_partitions: int, **changes: float) -> AveragingRule:
    values = {"linear_lr": 0.05, "factors_lr": 0.1, "residual": 1.0} | changes
    return AveragingRule(Layout(3, optimizer), n_partitions, **values)


def start_of(n_features: int, layout: Layout, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 1, (n_features, layout.stride)).astype(np.float32)
    old[:, layout.k + 1 : layout.n_synced] = rng.uniform(0.5, 2, (n_features, layout.n_statistics))
    return old


def delta_from(old: np.ndarray, ids: list[int], layout: Layout, *, seed: int) -> Delta:
    rng = np.random.default_rng(seed)
    columns = old[ids, : layout.n_synced].copy()
    columns[:, : layout.k + 1] += rng.normal(0, 0.3, (len(ids), layout.k + 1))
    columns[:, layout.k + 1 :] += rng.uniform(0, 1, (len(ids), layout.n_statistics))
    n_updates = rng.integers(1, 40, len(ids)).astype(np.float32)
    return Delta(np.array(ids, np.int32), n_updates, columns)


def three_deltas(old: np.ndarray, layout: Layout) -> list[Delta]:
    touched = [[0, 1, 4, 5], [1, 2, 4], [1, 5, 7]]
    return [delta_from(old, ids, layout, seed=s) for s, ids in enumerate(touched)]


@pytest.mark.parametrize(
    ("residual", "row_length"), [(0.01, 1.0), (1.0, 12.0), (1.0, 39.0), (30.0, 150.0)]
)
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_merge_equals_its_twin(
    optimizer: OptimizerName, residual: float, row_length: float
) -> None:
    rule = rule_for(
        optimizer, 4, residual=residual, row_length=row_length
    )  # one of four partitions touched nothing
    old = start_of(8, rule.layout, seed=1)
    deltas = three_deltas(old, rule.layout)

    merged = average_deltas(old, 0, deltas, rule)

    expected = oracle.merge(old, deltas, rule)
    assert merged.ids.tolist() == sorted(expected) == [0, 1, 2, 4, 5, 7]
    for j, n_updates, columns in zip(merged.ids, merged.n_updates, merged.columns, strict=True):
        assert n_updates == expected[int(j)][0]
        np.testing.assert_allclose(columns, expected[int(j)][1], **CLOSE)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_merge_does_not_depend_on_how_many_features_it_takes_at_a_time(
    optimizer: OptimizerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = rule_for(optimizer, 3)
    old = start_of(40, rule.layout, seed=9)
    rng = np.random.default_rng(9)
    touched = [np.sort(rng.choice(40, 15, replace=False)).tolist() for _ in range(3)]
    deltas = [delta_from(old, ids, rule.layout, seed=s) for s, ids in enumerate(touched)]

    whole = average_deltas(old, 0, deltas, rule)
    for stretch in (1, 7, 40):
        monkeypatch.setattr(averaging, "STRETCH", stretch)
        merged = average_deltas(old, 0, deltas, rule)

        for found, expected in zip(merged.buffers(), whole.buffers(), strict=True):
            assert bytes(found) == bytes(expected)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_one_partition_keeps_exactly_its_own_values(optimizer: OptimizerName) -> None:
    rule = rule_for(optimizer, 1)
    old = start_of(400, rule.layout, seed=2)
    delta = delta_from(old, list(range(0, 400, 2)), rule.layout, seed=3)

    merged = average_deltas(old, 0, [delta], rule)

    np.testing.assert_array_equal(merged.columns, delta.columns)
    np.testing.assert_array_equal(merged.ids, delta.ids)
    np.testing.assert_array_equal(merged.n_updates, delta.n_updates)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_a_feature_of_one_partition_keeps_its_full_change(optimizer: OptimizerName) -> None:
    rule = rule_for(optimizer, 64)
    old = start_of(8, rule.layout, seed=4)
    deltas = [delta_from(old, [j], rule.layout, seed=j) for j in range(8)]

    merged = average_deltas(old, 0, deltas, rule)

    for j in range(8):
        np.testing.assert_allclose(merged.columns[j, :4], deltas[j].columns[0, :4], **CLOSE)


def test_moments_of_adam_are_averaged_over_all_partitions() -> None:
    rule = rule_for("adam", 8)
    old = start_of(8, rule.layout, seed=5)
    deltas = three_deltas(old, rule.layout)

    merged = average_deltas(old, 0, deltas, rule)

    place = merged.ids.tolist().index(1)  # in all three deltas
    grown = sum(d.columns[d.ids == 1][0, 4:12].astype(float) - old[1, 4:12] for d in deltas)
    np.testing.assert_allclose(merged.columns[place, 4:12], old[1, 4:12] + grown / 8, **CLOSE)


def test_sums_of_adagrad_grow_as_the_values_move() -> None:
    rule = rule_for("adagrad", 8)
    old = start_of(8, rule.layout, seed=5)
    deltas = three_deltas(old, rule.layout)

    merged = average_deltas(old, 0, deltas, rule)

    place = merged.ids.tolist().index(1)  # in all three deltas
    changed = sum(d.columns[d.ids == 1][0].astype(float) - old[1, :6] for d in deltas)
    shares = (merged.columns[place] - old[1, :6]) / changed
    # Rounding of float32 values near 1, 1e-7, over changes of 0.01 and more.
    np.testing.assert_allclose(shares[4], shares[0], rtol=1e-4)
    np.testing.assert_allclose(shares[5], shares[3], rtol=1e-4)


@given(st.integers(1, 1000), st.floats(1e-12, 1e6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_correction_lies_between_mean_and_sum(n_touching: int, progress: float) -> None:
    factor = correction(progress, n_touching)

    rounding = 1e-12  # of float64 exponentials
    assert 1 / n_touching - rounding <= factor <= 1 + rounding


def test_correction_tends_to_the_sum_for_tiny_and_the_mean_for_huge_progress() -> None:
    touching = np.array([1, 2, 8, 64], np.int32)

    tiny, zero, huge = ([correction(p, n) for n in touching] for p in (1e-9, 0.0, 1e6))

    np.testing.assert_allclose(tiny, 1.0, rtol=1e-8)  # differs from 1 by progress / 2
    np.testing.assert_allclose(zero, 1.0, rtol=1e-8)
    np.testing.assert_allclose(huge, 1 / touching, rtol=1e-12)  # float64


def test_correction_falls_as_progress_grows() -> None:
    progress = np.geomspace(1e-6, 1e3, 40)

    factors = [correction(p, 16) for p in progress]

    assert (np.diff(factors) <= 0).all()


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam"])
def test_merge_does_not_depend_on_how_ids_are_cut_in_ranges(optimizer: OptimizerName) -> None:
    rule = rule_for(optimizer, 4)
    old = start_of(8, rule.layout, seed=6)
    deltas = three_deltas(old, rule.layout)

    whole = average_deltas(old, 0, deltas, rule)

    for cuts in ([0, 8], [0, 3, 8], [0, 1, 2, 6, 8]):
        parts = [
            average_deltas(old[low:high], low, [within(d, low, high) for d in deltas], rule)
            for low, high in pairwise(cuts)
        ]
        np.testing.assert_array_equal(np.concatenate([p.ids for p in parts]), whole.ids)
        np.testing.assert_array_equal(np.concatenate([p.columns for p in parts]), whole.columns)
        np.testing.assert_array_equal(np.concatenate([p.n_updates for p in parts]), whole.n_updates)


def within(delta: Delta, low: int, high: int) -> Delta:
    keep = (delta.ids >= low) & (delta.ids < high)
    return Delta(delta.ids[keep], delta.n_updates[keep], delta.columns[keep])


def test_no_deltas_merge_to_no_change() -> None:
    rule = rule_for("adagrad", 2)

    merged = average_deltas(start_of(5, rule.layout, seed=7), 10, [], rule)

    assert (len(merged.ids), merged.columns.shape) == (0, (0, 6))


@given(
    st.integers(0, 5).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.int32, n, elements=st.integers(0, 2**31 - 2)),
            hnp.arrays(np.float32, n, elements=st.floats(width=32)),
            hnp.arrays(np.float32, (n, 4), elements=st.floats(width=32)),
        )
    )
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_bytes_give_back_the_delta_bit_for_bit(
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    delta = Delta(*arrays)

    payload = delta.to_bytes()

    for form in (payload, memoryview(payload)):
        again = Delta.from_bytes(form, 4)
        assert again.to_bytes() == payload
        assert again.columns.shape == delta.columns.shape
        np.testing.assert_array_equal(again.ids, delta.ids)


def test_the_delta_of_a_range_is_its_touched_features_alone() -> None:
    layout = Layout(3, "adagrad")
    state = TrainState.from_synced(
        layout, np.random.default_rng(4).normal(size=(9, 7)).astype(np.float32), np.zeros(4)
    )
    state.rows[[1, 4, 5, 8], layout.n_updates] = [2.0, 0.5, 1.0, 3.0]

    delta = Delta.of(state, 2, 8)

    np.testing.assert_array_equal(delta.ids, [4, 5])
    np.testing.assert_array_equal(delta.n_updates, np.float32([0.5, 1.0]))
    np.testing.assert_array_equal(delta.columns, state.rows[[4, 5], : layout.n_synced])
    assert len(Delta.of(state, 6, 8).ids) == 0


def test_deltas_read_from_bytes_merge_like_the_originals() -> None:
    rule = rule_for("adagrad", 3)
    old = start_of(8, rule.layout, seed=8)
    deltas = three_deltas(old, rule.layout)
    read = [Delta.from_bytes(delta.to_bytes(), rule.layout.n_synced) for delta in deltas]

    merged = average_deltas(old, 0, read, rule)

    np.testing.assert_array_equal(merged.columns, average_deltas(old, 0, deltas, rule).columns)


def test_partitions_of_long_rows_of_rare_features_end_where_one_does() -> None:
    shape = CriteoShape(n_features=20_000)
    train, test = (
        CsrBatch.from_matrix(rows.X, labels=rows.y)
        for rows, _ in (shape.rows(0, 8000), shape.rows(1, 4000))
    )
    spec = train_spec(
        k=4, bias=GroupHyperparameters(0.05, 0.0), linear=GroupHyperparameters(0.05, 0.005),
        factors=GroupHyperparameters(0.05, 0.012, "normal", init_sigma=0.02),
        decay_frequency_power=0.5,
    )  # fmt: skip

    def losses(n_partitions: int, n_rounds: int) -> list[float]:
        counts = np.bincount(train.indices, minlength=shape.n_features)
        state = initial_state(spec, counts, label_mean=float(train.labels.mean()))
        rule = AveragingRule(
            state.layout, n_partitions, 0.05, 0.05, row_length=train.nnz / train.n_rows
        )
        found = []
        for epoch in range(3):
            for number in range(n_rounds):
                old, deltas, bias = state.synced_columns(), [], []
                for partition in range(n_partitions):
                    first = partition * n_rounds + number
                    rows = train.take(np.arange(first, train.n_rows, n_partitions * n_rounds))
                    mine = TrainState.from_synced(state.layout, old, state.bias)
                    order = RowOrder(epoch, number, partition).order(spec, rows.n_rows)
                    train_inplace(mine, rows, order, spec=spec)
                    deltas.append(Delta.of(mine, 0, shape.n_features))
                    bias.append(mine.bias)
                merged = average_deltas(old, 0, deltas, rule)
                state.rows[merged.ids, : state.layout.n_synced] = merged.columns
                state.bias[:] = np.mean(bias, axis=0)
            parameters = Parameters.of(state)
            found.append(evaluate(parameters, test, spec).mean_loss())
        return found

    alone, apart = losses(1, 1), losses(8, 8)

    assert min(apart) < 1.02 * min(alone)
    assert max(apart) < 1.1 * max(alone)  # 4.1 if the gain were that of short rows
