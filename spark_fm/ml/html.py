"""What notebooks show of models, summaries and evaluations, quality first; driver only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WARNING = "border-left: 3px solid #ff7f0e; padding-left: 8px; margin: 6px 0"


def card(
    title: str,
    quality: str,
    facts: Mapping[str, object],
    *,
    warnings: Sequence[str] = (),
    advice: Mapping[str, str],
) -> str:
    """Return HTML of what an object is worth, what it is, and what to do with it next.

    Parameters
    ----------
    title, quality : str
        The first line and the one below it.
    facts : dict
        A table of names and values.
    warnings : list of str
        Shown before the facts.
    advice : dict of str to str
        Code to run next, and what it is for.
    """
    notes = "".join(f'<div style="{_WARNING}">{escape(text)}</div>' for text in warnings)
    cells = "".join(
        f'<tr><td style="text-align: left">{escape(name)}</td>'
        f'<td style="text-align: right">{escape(_shown(value))}</td></tr>'
        for name, value in facts.items()
    )
    steps = "".join(
        f"<li><code>{escape(code)}</code> {escape(purpose)}</li>"
        for code, purpose in advice.items()
    )
    return (
        f"<div><b>{escape(title)}</b><p>{escape(quality)}</p>{notes}"
        f"<table>{cells}</table><ul>{steps}</ul></div>"
    )


def against_constant(what: str, value: float, constant: float | None) -> str:
    """Return a loss in words, beside that of the best constant where there is one."""
    said = f"{what} {value:.4g}"
    if constant is None:
        return f"{said}."
    if not value < constant:
        return f"{said}: no better than a constant, {constant:.4g}."
    return f"{said}, {1 - value / constant:.0%} below that of a constant, {constant:.4g}."


def _shown(value: object) -> str:
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
