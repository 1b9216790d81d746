"""Curves of grouped scores, thinned without changing their shape."""

from __future__ import annotations

import json

import numpy as np
import pytest

from spark_fm.learner.metrics import ScoreGroups, areas, run_starts


def groups(n: int, *, share: float, seed: int) -> ScoreGroups:
    """Draw n rows, each a group, of which about ``share`` are positive."""
    rng = np.random.default_rng(seed)
    score = np.sort(rng.random(n) ** (1 / share - 1))[::-1]
    label = (rng.random(n) < score).astype(np.float64)
    weight = rng.choice([1.0, 2.0], n)
    return ScoreGroups(score, score, weight * label, weight * (1 - label))


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_two_hundred_points_draw_the_roc_of_ten_thousand(share: float) -> None:
    fine = groups(10_000, share=share, seed=1)

    thin = fine.thinned(200)

    assert len(thin.score) <= 200
    exact, coarse = fine.roc(), thin.roc()
    # Along FPR + TPR, which grows on vertical stretches too; 200 points are 0.01 apart.
    drawn = np.interp(exact["FPR"] + exact["TPR"], coarse["FPR"] + coarse["TPR"], coarse["TPR"])
    assert np.abs(drawn - exact["TPR"]).max() < 0.01
    assert areas(thin.score, thin.positive, thin.negative)[0] == pytest.approx(
        areas(fine.score, fine.positive, fine.negative)[0], abs=1e-3
    )


def test_points_of_a_thinned_curve_are_points_of_the_whole_one() -> None:
    fine = groups(500, share=0.3, seed=2)
    whole = {t: (f, r) for f, r, t in zip(*fine.roc().values(), strict=True)}

    thin = fine.thinned(40).roc()

    for fall_out, recall, threshold in zip(*thin.values(), strict=True):
        assert whole[threshold] == pytest.approx((fall_out, recall), rel=1e-12)  # float64 sums


def test_roc_and_precision_recall_follow_the_definition() -> None:
    made = ScoreGroups(
        np.array([0.9, 0.6, 0.2]), np.array([0.8, 0.5, 0.1]),
        positive=np.array([2.0, 1.0, 1.0]), negative=np.array([0.0, 1.0, 3.0]),
    )  # fmt: skip

    roc, pr = made.roc(), made.precision_recall()

    assert roc["FPR"].tolist() == [0.0, 0.0, 0.25, 1.0]
    assert roc["TPR"].tolist() == [0.0, 0.5, 0.75, 1.0]
    assert roc["threshold"].tolist() == [np.inf, 0.8, 0.5, 0.1]
    assert pr["recall"].tolist() == [0.5, 0.75, 1.0]
    assert pr["precision"].tolist() == [1.0, 0.75, 0.5]


def test_calibration_keeps_weights_and_weighted_means() -> None:
    fine = groups(1000, share=0.4, seed=3)

    found = fine.equal_weights(10).calibration()

    weight = fine.positive + fine.negative
    assert len(found["score"]) == 10
    assert (np.diff(found["score"]) > 0).all()
    assert found["weight"].sum() == weight.sum()
    assert found["weight"] == pytest.approx(weight.sum() / 10, rel=0.02)  # rows weigh 1 or 2
    assert (found["score"] * found["weight"]).sum() == pytest.approx((fine.score * weight).sum())
    assert (found["rate"] * found["weight"]).sum() == pytest.approx(fine.positive.sum())


def test_a_missing_class_gives_nan_and_no_error() -> None:
    made = ScoreGroups(*(np.array(c) for c in ([0.9, 0.1], [0.9, 0.1], [1.0, 1.0], [0.0, 0.0])))

    thin = made.thinned(5)

    assert np.isnan(thin.roc()["FPR"][1:]).all()
    assert thin.precision_recall()["precision"].tolist() == [1.0, 1.0]


def test_no_groups_give_no_points() -> None:
    none = ScoreGroups(*(np.empty(0) for _ in range(4)))

    assert len(none.thinned(5).precision_recall()["recall"]) == 0
    assert len(none.equal_weights(5).calibration()["score"]) == 0


def test_a_heavy_element_is_a_run_of_its_own() -> None:
    assert run_starts(np.array([1.0, 1.0, 100.0, 1.0, 1.0]), 4).tolist() == [0, 2, 3]


def test_groups_come_back_from_json() -> None:
    made = groups(30, share=0.5, seed=4)

    came = ScoreGroups.from_dict(json.loads(json.dumps(made.to_dict())))

    assert came.to_dict() == made.to_dict()
