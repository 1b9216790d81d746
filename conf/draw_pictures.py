"""Draw ``docs/pictures``: the table of ``docs/peers.md``, and the summary of a real training.

Run it as ``PYTHONPATH=. python conf/draw_pictures.py`` after either has changed.
"""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

from examples.session import local_session
from spark_fm import FactorizationMachine, datasets

DOCS = Path(__file__).resolve().parent.parent / "docs"
OURS, OTHERS = "tab:blue", "gray"


def peers() -> tuple[list[str], list[list[str]]]:
    """Return the table's header and rows."""
    text = (DOCS / "peers.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines]
    return header, rows


def draw_peers(path: Path) -> None:
    """Draw a panel for each set, a dot for each program that was measured."""
    header, rows = peers()
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
    draw_summary(DOCS / "pictures" / "summary.png")
