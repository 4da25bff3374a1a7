"""One row a finding: the published ratio of two settings, and the measured one with its interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from triptych.study.style import INK, MUTED, plain_ticks, styled, to_png

COLOURS = {
    "reproduced": "#009e73", "contradicted": "#d55e00", "cannot tell": MUTED, "not testable here": "#aab2be",
}  # fmt: skip
LOW, HIGH = 0.2, 5.0  # of the axis: a ratio beyond it is an arrow at its end


def claims_figure(entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Return a PNG of all findings that compare two positive figures; None where there are none."""
    rows = [
        (f"{entry['title']}: {claim['name']}", claim)
        for entry in entries
        for claim in entry["claims"]
        if claim["kind"] != "identity" and claim["ratio"] and claim["word"] in COLOURS
    ]
    if not rows:
        return None
    with styled():
        figure = Figure(figsize=(7.6, 0.9 + 0.19 * max(3, len(rows))), layout="constrained")
        figure.set_facecolor("white")
        ax = figure.subplots()
        ax.axvline(1, color=INK, linewidth=0.8)
        for y, (_, claim) in enumerate(rows):
            mean, low, high = (min(max(end, LOW), HIGH) for end in claim["ratio"])
            ink = COLOURS[claim["word"]]
            ax.plot([low, high], [y, y], color=ink, linewidth=2)
            marker = _marker(claim["ratio"][0], "s" if claim["is_tie"] else "o")
            ax.plot(mean, y, marker, color=ink, markersize=4.5)
            if ratio := claim["published_ratio"]:
                ax.plot(min(max(ratio, LOW), HIGH), y, _marker(ratio, "D"), color=INK,
                        markerfacecolor="none", markersize=4.5, markeredgewidth=0.9)  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlim(LOW * 0.95, HIGH * 1.05)
        plain_ticks(ax.xaxis)
        ax.set_xticks([0.2, 0.5, 1, 2, 5])
        ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(
            "ratio of the two settings that decide; arrows: beyond the axis\n"
            "as claimed: right of 1 (circles), near 1 (squares)"
        )
        words = [Line2D([], [], color=ink, marker="o", label=word) for word, ink in COLOURS.items()]
        words += [
            Line2D([], [], color=INK, marker="s", linestyle="", label="claimed to be the same"),
            Line2D([], [], color=INK, marker="D", markerfacecolor="none", linestyle="", label="published"),
        ]
        figure.legend(handles=words, loc="outside upper center", ncols=3, frameon=False, fontsize=7)
        return to_png(figure)


def _marker(ratio: float, inside: str) -> str:
    """Return the sign of a ratio: an arrow where it lies beyond the axis."""
    return ">" if ratio > HIGH else "<" if ratio < LOW else inside
