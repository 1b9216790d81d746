"""Trials, their file, and the samplers that learn from them; no session."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from spark_fm.errors import CheckpointError
from spark_fm.ml.params import DEFAULTS
from spark_fm.ml.plots import plot_trials
from spark_fm.ml.search_space import SAMPLERS, SearchSpace
from spark_fm.ml.trials import (
    COMPLETE,
    DIVERGED,
    FILE_NAME,
    PRUNED,
    Trial,
    TrialsFile,
    best_trial,
    trials_frame,
)

SPACE = SearchSpace.around(DEFAULTS)
ABOUT = {"version": "1", "data": "d", "sampler": "random", "params": {"seed": 1, "tol": 0.1}}


def trial(number, curve, *, state=COMPLETE, larger=False, **params):
    places = {name: (0.1 + 0.17 * number) % 1 for name in SPACE.dimensions}
    params = params or SPACE.params(places)
    return Trial(number, params, places, state, larger, curve, {"logloss": 0.5}, 1.5)


TRIALS = [
    trial(0, [0.6, 0.5, 0.55]),
    trial(1, [0.7, math.nan], state=PRUNED),
    trial(2, [], state=DIVERGED),
    trial(3, [0.5, 0.4]),
]


def test_the_best_epoch_is_the_least_loss_or_the_largest_score():
    curve = [0.3, math.nan, 0.7, 0.7]

    assert (trial(0, curve).best_epoch, trial(0, curve).value) == (0, 0.3)
    larger = trial(0, curve, larger=True)
    assert (larger.best_epoch, larger.value) == (2, 0.7)


def test_the_best_trial_is_a_complete_one():
    assert best_trial(TRIALS) is TRIALS[3]
    assert best_trial([trial(0, [0.1], state=PRUNED), TRIALS[0]]) is TRIALS[0]
    assert best_trial([TRIALS[2]]) is None


def test_a_trial_comes_back_from_its_line():
    for one in TRIALS:
        again = Trial.from_json(one.to_json())
        assert again.to_json() == one.to_json()
        assert "NaN" not in one.to_json()
    assert math.isnan(Trial.from_json(TRIALS[1].to_json()).curve[1])


def test_the_table_has_a_row_a_trial_and_keeps_whole_numbers():
    table = trials_frame(TRIALS, "logloss").to_csv(index=False).splitlines()

    assert len(table) == 5
    assert table[0].startswith("number,state,epochs,bestEpoch,logloss,seconds,")
    assert table[3].startswith("2,diverged,0,,,1.5,")
    position = table[0].split(",").index("numFactors")
    assert [row.split(",")[position] for row in table[1:]] == [
        str(one.params["numFactors"]) for one in TRIALS
    ]


def test_a_file_gives_back_what_was_appended(tmp_path):
    file = TrialsFile(tmp_path / "new", ABOUT)
    file.append(TRIALS[:2])
    file.append(TRIALS[2:])

    again = TrialsFile(tmp_path / "new", ABOUT)
    assert [one.to_json() for one in again.trials] == [one.to_json() for one in TRIALS]


@pytest.mark.parametrize("kept", ["head", "trials"])
def test_a_line_that_a_crash_cut_off_is_forgotten(tmp_path, kept):
    file = TrialsFile(tmp_path, ABOUT)
    whole = file.path.read_text()
    if kept == "head":
        file.path.write_text(whole[:20])
    else:
        file.append(TRIALS[:1])
        with file.path.open("a") as cut:
            cut.write(TRIALS[1].to_json()[:50])
    again = TrialsFile(tmp_path, ABOUT)
    before = len(again.trials)
    again.append([TRIALS[before]])

    assert before == (0 if kept == "head" else 1)
    assert len(TrialsFile(tmp_path, ABOUT).trials) == before + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": "e"}, "the rows, or the partitions they come in, are others"),
        ({"sampler": "tpe"}, "sampler is 'random' there and 'tpe' here"),
        ({"params": {"seed": 2, "tol": 0.1}}, "params seed is 1 there and 2 here"),
    ],
)
def test_the_trials_of_another_search_are_refused(tmp_path, change, says):
    TrialsFile(tmp_path, ABOUT).append(TRIALS[:1])

    with pytest.raises(CheckpointError, match=says):
        TrialsFile(tmp_path, {**ABOUT, **change})


@pytest.mark.parametrize("damage", ["{}\n", "not json\n", '{"about": {}}\n{"number": 1}\n'])
def test_a_damaged_file_is_refused_by_its_path(tmp_path, damage):
    (tmp_path / FILE_NAME).write_text(damage)

    with pytest.raises(CheckpointError, match=r"trials\.jsonl is damaged"):
        TrialsFile(tmp_path, ABOUT)


def test_a_missing_trial_is_damage(tmp_path):
    TrialsFile(tmp_path, ABOUT).append([TRIALS[0], TRIALS[2]])

    with pytest.raises(CheckpointError, match="trials are missing or stand twice"):
        TrialsFile(tmp_path, ABOUT)


def sampled(sampler, numbers, earlier, seed=3):
    if sampler == "tpe":
        pytest.importorskip("optuna")
    return SAMPLERS[sampler](SPACE, seed, numbers, earlier)


def many_trials(n_trials, seed=0):
    """Trials whose loss is the distance of factorsWd's place from 0.8."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n_trials):
        places = {name: rng.random() for name in SPACE.dimensions}
        loss = abs(places["factorsWd"] - 0.8)
        found.append(Trial(number, SPACE.params(places), places, COMPLETE, False, [loss], {}, 1.0))
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n_earlier", [4, 16])
def test_a_proposal_does_not_depend_on_how_many_follow_it(sampler, n_earlier):
    earlier = many_trials(n_earlier)
    numbers = range(n_earlier, n_earlier + 4)

    assert sampled(sampler, numbers, earlier)[:2] == sampled(sampler, numbers[:2], earlier)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_seeds_propose_other_trials(sampler):
    first, second = (sampled(sampler, range(4), [], seed) for seed in (1, 2**40 + 1))

    assert first != second
    assert all(0 <= place <= 1 for places in first for place in places.values())


def test_tpe_goes_where_trials_were_good():
    places = sampled("tpe", range(40, 60), many_trials(40))
    random = sampled("random", range(40, 60), [])

    near, even = (np.mean([abs(p["factorsWd"] - 0.8) for p in found]) for found in (places, random))
    assert near < 0.6 * even


def test_tpe_takes_stopped_and_failed_trials_and_values_outside_the_space():
    outside = trial(4, [0.3], optimizer="adagrad", numFactors=5)
    outside.places.clear()

    assert len(sampled("tpe", range(16, 18), [*many_trials(12), *TRIALS, outside])) == 2


def test_tpe_without_optuna_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(ImportError, match=r"pip install 'spark-fm\[tune\]'"):
        SAMPLERS["tpe"](SPACE, 1, [0], [])


@pytest.mark.parametrize("larger", [False, True])
def test_the_picture_shows_every_hyperparameter(tmp_path, larger):
    shown = [trial(n, [0.4 + 0.01 * n], larger=larger) for n in range(6)]
    shown += [trial(6, [0.9], state=PRUNED, larger=larger), trial(7, [], state=DIVERGED,
                                                                   larger=larger)]  # fmt: skip
    figure = plot_trials(shown, SPACE, "f1", str(tmp_path / "trials.png"))

    titles = [axes.get_title() for axes in figure.axes]
    assert titles[1:] == list(SPACE.dimensions)
    assert ("higher is better" in titles[0]) == larger
    low, high = figure.axes[0].get_ylim()
    assert low < best_trial(shown).value < high
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")
