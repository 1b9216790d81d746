"""The rule that stops hopeless trials, on planted learning curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spark_fm.ml.tuning import FEWEST_RIVALS, GRACE_EPOCHS, should_prune

LONG = 30


def curve(end, speed, n_epochs=LONG):
    """A learning curve that falls from 0.7 towards ``end``."""
    return [end + (0.7 - end) * math.exp(-speed * epoch) for epoch in range(n_epochs)]


RIVALS = [curve(end, 0.3) for end in (0.50, 0.52, 0.54, 0.56, 0.58)]


def test_a_curve_above_the_median_is_hopeless_after_the_grace():
    costs = curve(0.65, 0.3)

    stopped = [n for n in range(1, LONG) if should_prune(costs[:n], RIVALS)]
    assert stopped[0] == GRACE_EPOCHS + 1


def test_a_curve_below_the_median_is_never_stopped():
    costs = curve(0.53, 0.3)

    assert not any(should_prune(costs[:n], RIVALS) for n in range(1, LONG + 1))


def test_a_trial_as_good_as_the_median_continues():
    assert not should_prune(RIVALS[2], RIVALS)


def test_the_best_so_far_counts_and_not_the_last_epoch():
    risen = [0.5, *[0.69] * 20]

    assert not should_prune(risen, RIVALS)


def test_rivals_that_ended_sooner_count_with_what_they_reached():
    short = [rival[:3] for rival in RIVALS]  # about 0.62 by then, and no better ever

    assert not should_prune(curve(0.6, 0.5), short)
    assert should_prune(curve(0.65, 0.5), short)


def test_too_few_rivals_stop_nothing():
    assert not should_prune([9.0] * LONG, RIVALS[: FEWEST_RIVALS - 1])
    assert should_prune([9.0] * LONG, RIVALS[:FEWEST_RIVALS])


def test_curves_without_a_number_are_the_worst():
    assert should_prune([math.inf] * LONG, RIVALS)
    assert not should_prune([math.inf] * LONG, [[math.inf] * LONG] * 3)


@pytest.mark.parametrize("seed", range(5))
def test_planted_searches_save_epochs_and_keep_their_best(seed):
    """Ends and speeds vary, noise of 0.003; the best is one of ordinary speed."""
    rng = np.random.default_rng(seed)
    curves = [
        np.array(curve(rng.uniform(0.5, 0.65), rng.uniform(0.1, 0.6))) + rng.normal(0, 0.003, LONG)
        for _ in range(40)
    ]
    curves[23] = np.array(curve(0.48, 0.3)) + rng.normal(0, 0.003, LONG)
    costs_so_far: list[list[float]] = []
    for first in range(0, 40, 4):
        rivals = list(costs_so_far)
        for costs in curves[first : first + 4]:
            ends = [n for n in range(1, LONG) if should_prune(list(costs[:n]), rivals)]
            costs_so_far.append(list(costs[: ends[0]] if ends else costs))

    assert sum(map(len, costs_so_far)) < 0.8 * 40 * LONG
    assert min(range(40), key=lambda i: min(costs_so_far[i])) == 23
