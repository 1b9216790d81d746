"""The README's example and the docstrings' examples run as printed."""

from __future__ import annotations

import ast
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

    printed = capsys.readouterr().out
    assert 0.53 < float(re.search(r"constant: (0\.\d+)", printed)[1]) < 0.56
    loss = re.search(r"FMEvaluation\(16281 rows, logloss=(0\.\d+)", printed)
    assert 0.315 < float(loss[1]) < 0.325
    assert len(names["scores"]) == 5
    assert all(0 < score < 1 for score in names["scores"])


def test_the_readme_is_short_and_begins_with_what_to_run():
    text = (ROOT / "README.md").read_text()

    prose = re.sub(r"```.*?```|\]\([^)]*\)", "", text, flags=re.S)
    assert len(re.findall(r"\w+", prose)) < 800
    screen = text.splitlines()[:25]
    assert any(line.startswith("make demo") for line in screen)
    assert any(line.startswith("make test") for line in screen)


def test_pictures_are_there_and_small():
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / picture).stat().st_size < 200_000


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


def texts_of_the_code() -> list[str]:
    """Return every text that the package can say, with … for what is put in."""
    found = []
    for path in (ROOT / "spark_fm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_each_message_of_the_page_on_errors_is_still_one_of_the_code():
    text = (ROOT / "docs" / "errors.md").read_text()
    messages = re.findall(r"^> `(.+)`$", text, re.M)
    code = texts_of_the_code()

    assert len(messages) >= 25
    assert len(messages) == len(re.findall("^### ", text, re.M))
    for message in messages:
        pattern = re.compile(".*?".join(map(re.escape, message.split("…"))), re.S)
        assert any(pattern.search(said) for said in code), message
