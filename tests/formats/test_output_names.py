"""Where outputs go: names below what was given, and never where the next run would read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_fm.errors import InvalidDataError
from spark_fm.formats.batch_transform import Transform, plan
from spark_fm.formats.files import folder_of_glob, list_files, reaches
from spark_fm.formats.requests import JSONLINES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files at three depths."""
    for name in ("a.jsonl", "b.jsonl", "x/c.jsonl", "x/y/d.jsonl", "z/c.jsonl"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path


def targets(folder: Path, *inputs: str, output: str = "out", overwrite: bool = False) -> list[str]:
    job = Transform(JSONLINES, JSONLINES, str(folder / output))
    works = plan([str(folder / each) for each in inputs], job, overwrite=overwrite)
    return sorted(work.target for work in works)


def test_names_are_kept_below_a_folder_or_the_fixed_part_of_a_glob(folder):
    everything = ["a.jsonl.out", "b.jsonl.out", "x/c.jsonl.out", "x/y/d.jsonl.out", "z/c.jsonl.out"]

    assert targets(folder, "in") == targets(folder, "in/*") == everything
    assert targets(folder, "i*") == [f"in/{name}" for name in everything]
    assert targets(folder, "in/*.jsonl") == everything[:2]
    assert targets(folder, "in/[xz]/*.jsonl") == ["x/c.jsonl.out", "z/c.jsonl.out"]
    assert targets(folder, "in/x/*") == ["c.jsonl.out", "y/d.jsonl.out"]
    assert targets(folder, "in/x/c.jsonl", "in/a.jsonl") == ["a.jsonl.out", "c.jsonl.out"]


@pytest.mark.parametrize("name", ["k[8]", "k{8}", "k\\8", "k*"])
def test_a_folder_that_is_named_like_a_glob_is_itself(folder, name):
    (folder / "in").rename(folder / name)

    assert targets(folder, f"{name}/x") == ["c.jsonl.out", "y/d.jsonl.out"]
    assert targets(folder, f"{name}/a.jsonl") == ["a.jsonl.out"]
    with pytest.raises(InvalidDataError, match="Choose a folder outside"):
        targets(folder, name, output=f"{name}/out")


@pytest.mark.parametrize(
    ("root", "output"),
    [
        ("in", "in"), ("in", "in/out"), ("in/", "in/x/out"), ("in/*", "in"), ("in/*", "in/out"),
        ("in/*", "in/x/y/out"), ("in/?", "in/x"), ("i*", "in/out"), ("in/*/*", "in/out"),
        ("in/a.jsonl*", "in"), ("in/[xz]", "in/z/out"), ("*", "out"), ("in/./*", "in/x/../out"),
    ],
)  # fmt: skip
def test_an_output_that_the_next_run_would_read_is_refused(folder, root, output):
    for overwrite in (False, True):
        with pytest.raises(InvalidDataError, match=r"lies in the input .* Choose a folder outside"):
            targets(folder, root, output=output, overwrite=overwrite)


def test_an_output_in_the_folder_of_another_input_is_refused(folder):
    with pytest.raises(InvalidDataError, match="lies in the input"):
        targets(folder, "in/a.jsonl", "in/x/*", output="in/x/out")


@pytest.mark.parametrize(
    ("root", "output"),
    [
        ("in/*.jsonl", "in"), ("in/*.jsonl", "in/out"), ("in/*", "in2"), ("in/*", "in/_out"),
        ("in/x*", "in/out"), ("in/a.jsonl", "in"), ("in/x/*", "in"), ("in", "in-out"),
    ],
)  # fmt: skip
def test_an_output_that_a_glob_passes_over_is_allowed(folder, root, output):
    written = targets(folder, root, output=output)
    for name in written:
        path = folder / output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    assert targets(folder, root, output=output, overwrite=True) == written


NAMES = st.lists(st.sampled_from(["a", "b", "_a", "ab", ".b"]), min_size=1, max_size=3)
PARTS = st.lists(st.sampled_from(["a", "*", "?", "[^b]", "{a,_a}", "**"]), min_size=1, max_size=3)


@given(st.lists(NAMES, min_size=1, max_size=6), PARTS)
def test_a_glob_reaches_the_files_that_are_listed(tmp_path_factory, files, parts):
    root = tmp_path_factory.mktemp("tree")
    for names in files:
        path = root.joinpath(*names, "file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    glob = f"{root}/" + "/".join([*parts, "*"])
    there = [str(path) for path in root.rglob("file")]

    try:
        listed = {file.inner for file in list_files([glob], recursive=True)}
    except InvalidDataError:
        listed = set()

    assert {path for path in there if reaches(glob, path)} == listed
    fixed = folder_of_glob(glob)
    assert fixed is not None
    assert glob.startswith(fixed + "/")
    assert not any(mark in fixed for mark in "*?[{")
