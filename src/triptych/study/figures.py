"""Figures with one row per cell: bounds, and paired differences to the best.

Each function takes a comparison and a colour per label; it returns a figure, or None where there is
nothing to show. Rows are in the order of the table, the best on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.study.cells import Cell, Comparison
from triptych.study.formatting import BASELINES, format_number, plus_minus
from triptych.study.style import GRID, INK, MUTED, PAPER, SIZE, WIDTH, axes, mark, short
from triptych.study.tables import against

ROW = 0.46  # inches
Colours = Mapping[str, str]


def headline(comparison: Comparison, colours: Colours) -> Figure | None:
    """Test bound: each seed a dot, the mean a bar; what simpler models need is marked."""
    cells = comparison.cells
    if not cells:
        return None
    marks = _references(comparison)
    figure, ax = _rows(cells, [plus_minus(cell.bound) for cell in cells], 0.12 + 0.17 * len(marks))
    values = [v for cell in cells for v in cell.values().values()]
    low, high = _frame(values, [])
    for line, (name, at) in enumerate(marks):
        near = low - 0.5 * (high - low) <= at <= high + 0.5 * (high - low)
        arrow = ("", "") if near else ("← ", "") if at < low else ("", " →")
        text = f"{arrow[0]}{name} {format_number(at)}{arrow[1]}"
        ax.annotate(
            text, (1, 1), (0, 4 + 12 * line), "axes fraction", "offset points", color=MUTED, ha="right"
        )
        if near:
            ax.axvline(at, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
            low, high = min(low, at), max(high, at)
    for y, cell in enumerate(cells):
        ink, seeds = colours[cell.label], cell.values()
        if len(seeds) > 1:
            ax.plot([cell.bound.mean] * 2, [y - 0.2, y + 0.2], color=ink, linewidth=2.2)
        for seed, value in seeds.items():
            ax.plot(value, y, "o", markersize=5.1, color=ink, markeredgecolor=PAPER, clip_on=False,
                    markeredgewidth=0.7, zorder=3, gid=mark(cell.runs[seed]))  # fmt: skip
    ax.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    ax.set_xlabel(f"test bound, {comparison.unit} (lower is better)")
    return figure


def forest(comparison: Comparison, colours: Colours) -> Figure | None:
    """Paired difference to the best; a line without zero is a difference that the corrected test claims."""
    rivals = [(j, cell, comparison.claim(0, j)) for j, cell in enumerate(comparison.cells) if j]
    rivals = [rival for rival in rivals if rival[2].pair.n]
    if not rivals:
        return None
    pairs, spans = [claim.pair for *_, claim in rivals], [claim.interval for *_, claim in rivals]
    figure, ax = _rows([cell for _, cell, _ in rivals], [against(comparison, 0, j)[1] for j, *_ in rivals])
    rows = [f"{cell.label} {claim.text}" for _, cell, claim in rivals]
    figure.set_label(f"{figure.get_label()} With corrected intervals: {'; '.join(rows)}.")
    margin = comparison.rule.equal_within
    if margin is not None:
        ax.axvspan(-margin, margin, color=MUTED, alpha=0.15, linewidth=0)
    ax.axvline(0, color=INK, linewidth=1)
    low, high = _frame([0.0] + [pair.mean for pair in pairs], spans)
    for y, ((_, cell, claim), span) in enumerate(zip(rivals, spans, strict=True)):
        ink = colours[cell.label]
        if not math.isnan(span[0]):
            ax.plot(span, [y, y], color=ink, linewidth=1.8)
            ends = [end for end in span if low <= end <= high]
            ax.scatter(ends, [y] * len(ends), marker="|", s=42, color=ink, linewidth=1.8)
        fill = ink if claim.holds else PAPER
        ax.scatter([claim.pair.mean], [y], s=46, color=fill, edgecolor=ink, linewidth=1.6, zorder=3)
    ax.set_xlim(low, high)
    best = short(comparison.cells[0].label, 22)
    ax.set_xlabel(f"{comparison.unit} more than {best} (right of zero: worse)")
    return figure


def _rows(cells: Sequence[Cell], notes: Sequence[str], top: float = 0.12) -> tuple[Figure, Axes]:
    """Draw axes with a row for each cell: its name at the left, a note at the right; both are the label."""
    figure, ax = axes(WIDTH, top + 0.5 + ROW * (len(cells) + 0.3), 0.15, 0.15, top)
    figure.set_label("; ".join(f"{cell.label} {note}" for cell, note in zip(cells, notes, strict=True)) + ".")
    ax.set_ylim(len(cells) - 0.35, -0.65)
    ax.set_yticks([])
    ax.spines["left"].set_color(GRID)
    ax.locator_params(axis="x", nbins=5)
    back = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}  # no line runs through the words
    letters = int((WIDTH - 0.3) / (0.62 * SIZE / 72)) - max(map(len, notes), default=0)
    for y, (cell, note) in enumerate(zip(cells, notes, strict=True)):
        for x, text, side, weight in (
            (0, short(cell.label, letters), "left", "bold"),
            (1, note, "right", "normal"),
        ):
            if text:
                ax.text(x, y - 0.27, text, transform=ax.get_yaxis_transform(), va="bottom", ha=side,
                        fontweight=weight, bbox=back, zorder=2.5)  # fmt: skip
    return figure, ax


def _frame(points: Sequence[float], spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Choose limits that hold all points, and of each interval as much as leaves the points apart."""
    low, high = min(points), max(points)
    known = [span for span in spans if not math.isnan(span[0])]
    widths = sorted(end - start for start, end in known)
    usual = widths[len(widths) // 2] if widths else 0.0
    reach = max(1.2 * (high - low), usual, 1e-3 * max(abs(low), abs(high), 1e-6))
    low = max(min([low, *(start for start, _ in known)]), low - reach)
    high = min(max([high, *(end for _, end in known)]), high + reach)
    pad = 0.05 * (high - low) or 1e-3
    return low - pad, high + pad


def _references(comparison: Comparison) -> list[tuple[str, float]]:
    """Return what the next simpler model needs, and what is possible: nearest above and below."""
    recorded = (run.baselines for run in comparison.runs if run.baselines)
    known = next(recorded, {}) if comparison.measure == "bpd" else {}
    marks = [(head.partition(" ")[2], known[name]) for name, head in BASELINES.items() if name in known]
    truths = [cell.spread(part="entropy").mean for cell in comparison.cells if cell.spread(part="entropy").n]
    marks += [("entropy (best possible)", truth) for truth in truths[:1]]
    best = comparison.cells[0].bound.mean
    above = sorted((mark for mark in marks if mark[1] > best), key=lambda mark: mark[1])
    below = sorted((mark for mark in marks if mark[1] <= best), key=lambda mark: -mark[1])
    return above[:1] + below[:1]
