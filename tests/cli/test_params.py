"""Flags, --set and JSON files to Params, and what goes wrong on the way; no Spark."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spark_fm import FactorizationMachine
from spark_fm.cli.errors import UsageError
from spark_fm.cli.main import build_parser
from spark_fm.cli.params import collect_params
from spark_fm.cli.wording import kebab

NEEDED = ["train", "--input", "x", "--format", "libfm", "--model", "m"]


def collected(*words):
    args = build_parser([*NEEDED, *words]).parse_args([*NEEDED, *words])
    return collect_params(args, FactorizationMachine())


def test_every_param_has_a_flag():
    stage = FactorizationMachine()
    train = build_parser(NEEDED)._subparsers._group_actions[0].choices["train"]
    flags = {flag for action in train._actions for flag in action.option_strings}
    assert {f"--{kebab(param.name)}" for param in stage.params} <= flags


def test_flags_have_the_type_of_their_param():
    values = collected(
        "--num-factors", "8", "--factors-lr", "1", "--no-shuffle", "--optimizer", "adam"
    )  # fmt: skip
    assert values == {"numFactors": 8, "factorsLr": 1.0, "shuffle": False, "optimizer": "adam"}
    assert isinstance(values["factorsLr"], float)


def test_flags_win_over_set_and_set_over_the_file(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"numFactors": 1, "epochs": 1, "seed": 1, "clipGradient": null}')
    values = collected(
        "--params", str(path), "--set", "epochs=2", "--set", "numFactors=2", "--num-factors", "3"
    )  # fmt: skip
    assert values == {"numFactors": 3, "epochs": 2, "seed": 1}


def test_num_features_is_the_feature_dim():
    assert collected("--num-features", "9") == collected("--feature-dim", "9") == {"featureDim": 9}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"numFactor": 3}', "unknown parameter 'numFactor'; did you mean numFactors"),
        ('{"num_factors": 3}', "did you mean numFactors"),
        ('{"zzz": 3}', "known are adagradInit"),
        ('{"numFactors": "3"}', "numFactors='3' is not allowed: expected a whole number"),
        ('{"numFactors": 1.5}', "expected a whole number"),
        ('{"numFactors": true}', "expected a whole number"),
        ('{"shuffle": 1}', "shuffle=1 is not allowed: expected true or false"),
        ('{"tol": "small"}', "expected a number"),
        ("[1]", "holds a list; expected an object"),
        ("{", "is not JSON"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(reason)):
        collected("--params", str(path))


@pytest.mark.parametrize("word", ["numFactors", "numFactors=x", "shuffle=maybe", "none=1"])
def test_a_bad_assignment_is_refused(word):
    with pytest.raises(UsageError, match=word.split("=")[0]):
        collected("--set", word)


def test_the_example_file_is_accepted():
    path = Path(__file__).parents[2] / "conf" / "hyperparameters.json"
    FactorizationMachine(**collected("--params", str(path)))
    assert "numFactors" in json.loads(path.read_text())
