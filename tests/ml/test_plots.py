"""Plots as files."""

from __future__ import annotations

from pathlib import Path

from spark_fm.ml.plots import finish, new_figure


def test_a_plot_without_an_ending_is_a_png(tmp_path: Path) -> None:
    finish(new_figure()[0], str(tmp_path / "plot"))

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
