"""Draw the ratios that decide published claims, as measured and, where possible, as published."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from triptych.study.style import INK, MUTED, figure_style, plain_ticks, to_png

COLOURS = {
    "reproduced": "#009e73",
    "contradicted": "#d55e00",
    "cannot tell": MUTED,
    "not testable here": "#aab2be",
}
HOLLOW: dict[str, Any] = {"marker": "D", "markerfacecolor": "none"}
Row = tuple[Mapping[str, Any], Mapping[str, Any]]  # a paper's result, and one of its claims
LOW, HIGH = 0.2, 5.0  # ends of the axis; an arrow shows a ratio beyond them


def claims_figure(sections: Mapping[str, Sequence[Row]]) -> bytes | None:
    """Return a PNG with the ratio that decides each claim; None if no claim has a ratio.

    ``sections``: {heading: (paper's result, claim) pairs}.
    """
    groups = {name: group for name, rows in sections.items() if (group := _drawable_claims(rows))}
    if not groups:
        return None
    # Each group has a heading, in a row of its own.
    n_rows = len(groups) + sum(map(len, groups.values()))
    with figure_style():
        figure = Figure(figsize=(7.6, 1.1 + 0.19 * max(3, n_rows)), layout="constrained")
        figure.set_facecolor("white")
        ax = figure.subplots()
        ax.axvline(1, color=INK, linewidth=0.8)
        y = 0
        labels: dict[int, str] = {}
        for name, group in groups.items():
            ax.axhline(y - 0.5, color=MUTED, linewidth=0.6)
            ax.text(LOW, y, name, fontsize=8, fontweight="bold", va="center")
            for label, claim in group:
                y += 1
                labels[y] = label
                _draw_claim(ax, y, claim)
            y += 1
        ax.set_xscale("log")
        ax.set_xlim(LOW * 0.95, HIGH * 1.05)
        plain_ticks(ax.xaxis)
        ax.set_xticks([0.2, 0.5, 1, 2, 5])
        ax.set_yticks(list(labels), list(labels.values()), fontsize=7)
        ax.set_ylim(n_rows - 0.4, -0.6)
        ax.set_xlabel(
            "ratio of the two decisive settings (an arrow points beyond the axis)\n"
            "reproduced: right of 1 (circles), or near 1 (squares)"
        )
        words = [Line2D([], [], color=ink, marker="o", label=word) for word, ink in COLOURS.items()]
        words += [
            Line2D([], [], color=INK, linestyle="", label="claimed to be the same", marker="s"),
            Line2D([], [], color=INK, linestyle="", label="published", **HOLLOW),
        ]
        figure.legend(handles=words, loc="outside upper center", ncols=3, frameon=False, fontsize=7)
        return to_png(figure)


def _drawable_claims(rows: Sequence[Row]) -> list[tuple[str, Any]]:
    """Return (label, claim) of the claims that have a ratio to draw, sorted by verdict."""
    drawn = []
    for entry, claim in rows:
        if claim["ratio"] and claim["word"] in COLOURS:
            drawn.append((f"{entry['title']}: {claim['name']}", claim))
    return sorted(drawn, key=lambda row: [*COLOURS].index(row[1]["word"]))


def _draw_claim(ax: Axes, y: float, claim: Mapping[str, Any]) -> None:
    """Draw the measured ratio of a claim with its interval, and the published one."""
    ink = COLOURS[claim["word"]]
    mean, low, high = np.clip(claim["ratio"], LOW, HIGH)
    ax.plot([low, high], [y, y], color=ink, linewidth=2)
    marker = "s" if claim["is_tie"] else "o"
    ax.plot(mean, y, _ratio_marker(claim["ratio"][0], marker), color=ink, markersize=4.5)
    ratio = claim["published_ratio"]
    if ratio:
        place = np.clip(ratio, LOW, HIGH)
        marker_style = HOLLOW | {"marker": _ratio_marker(ratio, "D")}
        ax.plot(place, y, color=INK, markersize=4.5, markeredgewidth=0.9, **marker_style)


def _ratio_marker(ratio: float, inside_marker: str) -> str:
    """Return the marker of a ratio: an arrow if the ratio lies beyond the axis."""
    if ratio > HIGH:
        return ">"
    if ratio < LOW:
        return "<"
    return inside_marker
