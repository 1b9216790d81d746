"""Draw ``docs/pictures``: tables of ``docs``, and the summary of a real training.

Run it as ``PYTHONPATH=. python conf/draw_pictures.py`` after any has changed.
"""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

from matplotlib.figure import Figure

from examples.session import local_session
from spark_fm import FactorizationMachine, datasets

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTES = "notes/2026-11-gibbs.md"
OURS, OTHERS = "tab:blue", "gray"


def table(page: str, first: str = "") -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the page's table whose header begins with ``first``."""
    lines = iter((DOCS / page).read_text().splitlines())
    header = next(line for line in lines if line.startswith(f"| {first}"))
    rows = [header, *takewhile(lambda line: line.startswith("|"), lines)]
    header_cells, _, *cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in rows]
    return header_cells, cells


def draw_peers(path: Path) -> None:
    """Draw a panel for each set, a dot for each program that was measured."""
    header, rows = table("peers.md")
    programs = header[3:]
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True)
    for axes, (name, k, loss, *cells) in zip(panels, rows, strict=True):
        losses = {n: float(cell) for n, cell in enumerate(cells) if cell != "-"}
        best, *_, worst = sorted(losses.values())
        # One far behind the others would hide how these differ: it stands at the edge.
        edge = min(worst, 3 * sorted(losses.values())[-2] - 2 * best)
        for n, value in losses.items():
            colour = OURS if programs[n].startswith("spark_fm") else OTHERS
            at = min(value, edge)
            axes.plot(at, n, ">" if value > edge else "o", c=colour)
            side = -1 if at > (best + edge) / 2 else 1
            axes.annotate(
                f"{value:.4g}", (at, n), (6 * side, 0), textcoords="offset points", va="center",
                ha="left" if side > 0 else "right", fontsize=8, c=colour,
            )  # fmt: skip
        axes.set_title(f"{name}\n{loss}, k = {k}", fontsize=9)
        axes.set_yticks(range(len(programs)), programs)
        axes.set_xticks([])
        axes.margins(x=0.12, y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.supxlabel("← better: loss on test rows", fontsize=9)
    figure.savefig(path, dpi=110)


def draw_bayesian(path: Path) -> None:
    """Draw what a posterior's mean gains by sweeps, and what its intervals hold."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    errors, coverage = figure.subplots(1, 2, width_ratios=(3, 2))
    (_, *names), rows = table(NOTES, "sweep or epoch")
    sweeps, *columns = ([float(cell) for cell in cells] for cells in zip(*rows, strict=True))
    colours = ("tab:green", OURS, OTHERS)
    for name, values, colour in zip(names, columns, colours, strict=True):
        errors.plot(sweeps, values, "o-", ms=3, c=colour, label=name)
    errors.set(title="ml100k, k = 8: RMSE of test rows", xlabel="sweep, or epoch of SGD",
               xscale="log", ylim=(0.905, 1.0))  # fmt: skip
    ticks = (1, 2, 5, 10, 20, 50, 100, 200)
    errors.set_xticks(ticks, map(str, ticks))
    errors.minorticks_off()
    (_, *names), rows = table(NOTES, "interval")
    nominal, *columns = ([float(cell.rstrip(" %")) for cell in cells]
                         for cells in zip(*rows, strict=True))  # fmt: skip
    coverage.plot([0, 100], [0, 100], ls="--", lw=1, c=OTHERS, label="as many as they should")
    for name, values, marker in zip(names, columns, ("o", "x"), strict=True):
        coverage.plot(nominal, values, marker, c=OURS, label=name)
    coverage.set(title="Test labels within an interval", xlabel="of the interval, %",
                 ylabel="found, %", aspect="equal")  # fmt: skip
    for axes in (errors, coverage):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def draw_summary(path: Path) -> None:
    """Train on UCI Adult and plot the summary."""
    spark = local_session()
    train, _ = datasets.a9a(spark)
    model = FactorizationMachine(numFactors=8, seed=1).fit(train)
    figure = model.summary.plot()
    figure.set_size_inches(9, 7)
    figure.savefig(path, dpi=80)
    spark.stop()


if __name__ == "__main__":
    draw_peers(DOCS / "pictures" / "peers.png")
    draw_bayesian(DOCS / "pictures" / "bayesian.png")
    draw_summary(DOCS / "pictures" / "summary.png")
