"""The README's example and the docstrings' examples run as printed."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_example_runs(spark, tmp_path, capsys):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    names: dict[str, object] = {}

    exec(code.replace("/tmp/fm-model", str(tmp_path / "model")), names)

    assert "predicted_label" in capsys.readouterr().out
    assert 0.5 < names["scores"][0] < 1


def test_the_estimator_s_example_prints_what_it_says(spark):
    from spark_fm.ml import estimator

    failures, tried = doctest.testmod(estimator, extraglobs={"spark": spark})

    assert tried > 0
    assert failures == 0


@pytest.mark.parametrize(
    "path",
    [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    ids=str,
)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
