"""Figures with one row per cell: bounds, paired differences to the best, measures of samples.

Each takes a comparison and a colour per label, and gives None where there is nothing to show.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.study import style
from triptych.study.cells import Comparison, MeasureTable
from triptych.study.formatting import format_number, plus_minus
from triptych.study.style import LineFigure, axes, log_axis, mark, plain_ticks, short
from triptych.study.tables import against

ROW, LETTER = 0.46, 0.62 * style.SIZE / 72  # inches
Colours = Mapping[str, str]


def headline(comparison: Comparison, colours: Colours) -> Figure | None:
    """Test bound: each seed a dot, the mean a bar."""
    return _measure_dots(comparison, comparison.bounds, colours) if comparison.cells else None


def forest(comparison: Comparison, colours: Colours) -> Figure | None:
    """Paired difference to the best; a line without zero is a difference that the corrected test claims."""
    rivals = [(j, cell, comparison.claim(0, j)) for j, cell in enumerate(comparison.cells) if j]
    rivals = [rival for rival in rivals if rival[2].pair.n]
    if not rivals:
        return None
    near = [claim for _, cell, claim in rivals if cell.label not in comparison.bounds.far]
    figure, ax = _rows({cell.label: against(comparison, 0, j)[1] for j, cell, _ in rivals})
    rows = [f"{cell.label} {claim.text}" for _, cell, claim in rivals]
    figure.set_label(f"{figure.get_label()} With corrected intervals: {'; '.join(rows)}.")
    margin = comparison.rule.equal_within
    if margin is not None:
        ax.axvspan(-margin, margin, color=style.MUTED, alpha=0.15, linewidth=0)
    ax.axvline(0, color=style.INK, linewidth=1)
    low, high = _frame([0.0] + [claim.pair.mean for claim in near], [claim.interval for claim in near])
    for y, (_, cell, claim) in enumerate(rivals):
        ink, half = colours[cell.label], claim.interval[1] - claim.pair.mean
        how: dict[str, Any] = {"color": ink, "markerfacecolor": ink if claim.holds else style.PAPER}
        ax.errorbar(claim.pair.mean, y, xerr=half, fmt="o", markersize=7, elinewidth=1.8, capsize=3, **how)
        if cell.label in comparison.bounds.far:
            _beyond(ax, y, format_number(claim.pair.mean, sign=True), side=1, **how)
    # room at the left for the labels, which would cover the zero line
    room = min(0.4, max(len(cell.label) for _, cell, _ in rivals) * LETTER / (style.WIDTH - 0.3) + 0.02)
    ax.set_xlim(min(low, -high * room / (1 - room)), high)
    best = short(comparison.cells[0].label, 22)
    ax.set_xlabel(f"{comparison.unit} more than {best} (right of zero: worse)")
    return figure


def measure_figure(known: MeasureTable) -> Callable[[Comparison, Colours], Figure]:
    """Return the figure of one measure: a line a cell over the key's values, or a dot a seed."""

    def figure(comparison: Comparison, colours: Colours) -> Figure:
        if known.key:
            return _measure_lines(known, colours)
        return _measure_dots(comparison, known, colours)

    figure.__name__ = known.metric.name
    what, better = known.metric.label, known.metric.better
    figure.__doc__ = f"{what[0].upper()}{what[1:]} of samples{', ' + better if better else ''}."
    return figure


def _measure_lines(known: MeasureTable, colours: Colours) -> Figure:
    lines = LineFigure(known.cells, colours)
    x = np.array(known.values)
    for label, seeds in known.cells.items():
        values = np.array(list(seeds.values()))
        lines.line(label, x, values.mean(axis=0), marker=True, markersize=4)
        if len(values) > 1:
            ends = values.min(axis=0), values.max(axis=0)
            lines.ax.vlines(x, *ends, color=colours[label], linewidth=1, alpha=0.6)
    _floor(lines.ax.axhspan, lines.ax.axhline, known)
    if known.key == "evaluations":
        _measure_axis(lines.ax, known)
        lines.ticks(x, [f"{v:g}" for v in x], log=True)
    elif known.far:
        near = (seeds.values() for label, seeds in known.cells.items() if label not in known.far)
        shown = [value for rows in near for row in rows for value in row]
        lines.ax.set_ylim(*_frame([*shown, *(known.floor or ())], []))
    along = "calls of the denoiser" if known.key == "evaluations" else known.key
    return lines.finish(along, known.metric.label)


def _measure_axis(ax: Axes, known: MeasureTable) -> None:
    """Set a log axis where values differ by factors, linear below the floor if some are zero or less."""
    rows = [value for seeds in known.cells.values() for value in seeds.values()]
    values = np.array([*itertools.chain(*rows), *(known.floor or ())])
    around = known.floor[2] if known.floor and known.floor[2] > 0 else 1e-3
    if np.nanmin(values) > 0:
        log_axis(ax, values)
    elif np.nanmax(values) > 10 * around:  # a power of ten lies between, beside zero
        ax.set_yscale("symlog", linthresh=around)
        ax.set_ylim(bottom=np.nanmin(values) - around / 10)
        plain_ticks(ax.yaxis)


def _measure_dots(comparison: Comparison, known: MeasureTable, colours: Colours) -> Figure:
    runs = {cell.label: cell.runs for cell in comparison.cells}
    figure, ax = _rows({label: plus_minus(spreads[0]) for label, spreads in known.spreads.items()})
    _floor(ax.axvspan, ax.axvline, known)
    for y, (label, seeds) in enumerate(known.cells.items()):
        side, ink = known.sign * (label in known.far), colours[label]
        if len(seeds) > 1 and not side:
            ax.plot([known.spreads[label][0].mean] * 2, [y - 0.2, y + 0.2], color=ink, linewidth=2.2)
        # at heights of their own no dot hides another
        heights = y + np.linspace(-0.12, 0.12, len(seeds)) if len(seeds) > 1 else [y]
        for height, (seed, (value, *_)) in zip(heights, seeds.items(), strict=True):
            gid = mark(runs[label][seed])
            if side:
                _beyond(ax, y, "", side, ink, gid=gid)  # the row has the value
            else:
                ax.plot(value, height, "o", markersize=5.1, color=ink, markeredgecolor=style.PAPER,
                        clip_on=False, markeredgewidth=0.7, zorder=3, gid=gid)  # fmt: skip
    near = [v[0] for label, seeds in known.cells.items() if label not in known.far for v in seeds.values()]
    ax.set_xlim(*_frame([*near, *(known.floor or ())], []))
    better = known.metric.better
    ax.set_xlabel(f"{known.metric.label}{f' ({better})' if better else ''}")
    return figure


def _floor(span: Callable[..., Any], line: Callable[..., Any], known: MeasureTable) -> None:
    if known.floor is not None:
        median, low, high = known.floor
        span(low, high, color=style.MUTED, alpha=0.18, linewidth=0)
        line(median, color=style.INK, linewidth=0.9, linestyle=(0, (3, 2)))


def _beyond(ax: Axes, y: int, text: str, side: int, color: str, **how: Any) -> None:
    """Draw an arrow with a text at the right edge (``side`` 1) or the left one (-1): the value is beyond."""
    at, way = ((side + 1) // 2, y), ax.get_yaxis_transform()
    ax.plot(*at, ">" if side > 0 else "<", color=color, markersize=6, transform=way, clip_on=False, **how)
    ax.annotate(text, at, (-8 * side, 0), way, "offset points", color=color, va="center",
                ha="right" if side > 0 else "left")  # fmt: skip


def _rows(notes: Mapping[str, str]) -> tuple[Figure, Axes]:
    """Draw axes with a row for each cell: its name at the left, a note at the right; both are the label."""
    figure, ax = axes(0.62 + ROW * (len(notes) + 0.3), 0.15, 0.15)
    figure.set_label("; ".join(f"{label} {note}" for label, note in notes.items()) + ".")
    ax.set_ylim(len(notes) - 0.35, -0.65)
    ax.set_yticks([])
    ax.spines["left"].set_color(style.GRID)
    ax.locator_params(axis="x", nbins=5)
    back = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 0.8}  # no line runs through the words
    letters = int((style.WIDTH - 0.3) / LETTER) - max(map(len, notes.values()), default=0)
    for y, (label, note) in enumerate(notes.items()):
        for x, text, side, weight in (
            (0, short(label, letters), "left", "bold"),
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
