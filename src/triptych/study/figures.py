"""Figures with one row per cell: bounds, paired differences to the best, measures of samples.

Each function takes a comparison and a colour per label; it returns None if it has nothing to show.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.study import style
from triptych.study.cells import MeasureTable, PairTest
from triptych.study.comparison import Comparison
from triptych.study.formatting import common_decimals, format_number, plus_minus, shorten
from triptych.study.statistics import outlying_labels
from triptych.study.style import (
    ARROW,
    LineFigure,
    explain,
    log_axis,
    mark_beyond,
    new_axes,
    run_gid,
    side_beyond,
)
from triptych.study.tables import difference_entries

# Height of a row and width of a letter, in inches.
ROW, LETTER = 0.46, 0.62 * style.SIZE / 72
DOT: dict[str, Any] = {
    "markersize": 5.1,
    "markeredgecolor": style.PAPER,
    "markeredgewidth": 0.7,
    "clip_on": False,
    "zorder": 3,
}
FLOOR = (
    "The grey band is the range of true data: the same metric between two sets of them, its ends "
    "averaged over seeds. The dashed line is its median."
)
Colours = Mapping[str, str]


def headline(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw the test bound: each seed a dot, the mean a bar."""
    return _draw_measure_dots(comparison.bounds, comparison, colours) if comparison.cells else None


def forest(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw paired differences to the best; a filled dot is significant by the corrected test."""
    rivals = dict[str, PairTest]()
    verdicts = dict[str, str]()
    for place, cell in enumerate(comparison.ranked[1:], 1):
        claim = comparison.pair_test(0, place)
        if not math.isnan(claim.pair.mean):
            rivals[cell.label] = claim
            verdicts[cell.label] = difference_entries(comparison, 0, place)[1]
    if not rivals:
        return None
    figure, ax = _axes_with_rows(verdicts)
    intervals = "; ".join(f"{label} {claim.to_text()}" for label, claim in rivals.items())
    figure.set_label(f"{figure.get_label()} With intervals [95% together]: {intervals}.")
    margin = comparison.rule.equal_within
    if margin is not None:
        ax.axvspan(-margin, margin, color=style.MUTED, alpha=0.15, linewidth=0)
        explain(ax, "Differences within the grey band count as the same.")
    if comparison.rule.interim:
        explain(ax, "All dots are hollow, as runs are still to come.")
    ax.axvline(0, color=style.INK, linewidth=1)
    table = comparison.question
    values = {label: table.seed_values(label, -1).values() for label in table.cells}
    far = outlying_labels(values, table.sign)
    near = [claim for label, claim in rivals.items() if label not in far]
    means = [claim.pair.mean for claim in near]
    low, high = _axis_limits([0.0, *means], [claim.interval for claim in near])
    # Leave room for the labels at the left, so that they do not cover the zero line.
    room = min(0.4, max(map(len, rivals)) * LETTER / (style.WIDTH - 0.3) + 0.02)
    ax.set_xlim(min(low, -high * room / (1 - room)), high)
    for y, (label, claim) in enumerate(rivals.items()):
        _draw_difference(ax, y, claim, colours[label])
    _label_differences(ax, table, comparison.cells[0].label)
    return figure


def _label_differences(ax: Axes, table: MeasureTable, best: str) -> None:
    """Label an axis of differences to the best, and say on which side of zero is worse."""
    amount = shorten(table.metric.unit or table.metric.title)
    value = f" at {table.values[-1]:g}" if table.key else ""
    ax.set_xlabel(f"{amount} more than {shorten(best, 22)}{value}")
    explain(ax, f"{'Right' if table.sign > 0 else 'Left'} of zero is worse.")


def _draw_difference(ax: Axes, y: int, claim: PairTest, ink: str) -> None:
    """Draw a difference with its interval; the dot is filled if the difference is significant."""
    limits = ax.get_xlim()
    ax.plot(np.clip(claim.interval, *limits), [y, y], color=ink, linewidth=1.8)
    mean_side = side_beyond(limits, claim.pair.mean)
    for end in claim.interval:
        side = side_beyond(limits, end)
        if not side:
            ax.plot(end, y, "|", color=ink, markersize=6)
        elif side != mean_side:
            _draw_off_axis_arrow(ax, y, "", side, ink)
            explain(ax, "A line that ends in an arrow goes on beyond the axis.")
    if mean_side:
        _draw_off_axis_arrow(ax, y, format_number(claim.pair.mean, sign=True), mean_side, ink)
        explain(ax, "A number beside an arrow is a difference beyond the axis.")
        return
    face = ink if claim.is_significant else style.PAPER
    ax.plot(claim.pair.mean, y, "o", color=ink, markerfacecolor=face, markersize=7)


def measure_figure(table: MeasureTable) -> Callable[[Comparison, Colours], Figure]:
    """Return the function that draws a measure: lines over the key's values, or dots for seeds."""
    return partial(_draw_measure_lines if table.key else _draw_measure_dots, table)


def _draw_measure_lines(table: MeasureTable, comparison: Comparison, colours: Colours) -> Figure:
    """Draw each cell's mean of a measure as a line over the values of its key."""
    lines = LineFigure(table.cells, colours)
    x = np.array(table.values)
    if table.key != "evaluations" and table.outlying_cells:
        lines.ax.set_ylim(*limits_without_outliers(table))
    for label, seeds in table.cells.items():
        values = np.array(list(seeds.values()))
        lines.line(label, x, values.mean(axis=0), marker=True, markersize=4)
        if len(values) > 1:
            ends = values.min(axis=0), values.max(axis=0)
            lines.ax.vlines(x, *ends, color=colours[label], linewidth=1, alpha=0.6)
            explain(lines.ax, "Points are means over seeds, and upright lines span the seeds.")
        mark_beyond(lines.ax, np.tile(x, len(values)), values.ravel(), colours[label])
    _draw_floor(lines.ax, lines.ax.axhspan, lines.ax.axhline, table)
    if table.key != "evaluations":
        return lines.finish(table.key, table.metric.label)
    values = np.array(_values_of_cells(table, table.cells))
    if np.nanmin(values) > 0:
        log_axis(lines.ax, values)
    lines.ticks(x, [f"{v:g}" for v in x], log=True)
    return lines.finish("calls of the denoiser", table.metric.label)


def _values_of_cells(table: MeasureTable, labels: Iterable[str]) -> list[float]:
    """Return all figures of these cells, and those of true data."""
    rows = chain.from_iterable(table.cells[label].values() for label in labels)
    return [*chain.from_iterable(rows), *(table.floor or ())]


def limits_without_outliers(table: MeasureTable) -> tuple[float, float]:
    """Return axis limits that show all seeds, except those of outlying cells."""
    near = [label for label in table.cells if label not in table.outlying_cells]
    return _axis_limits(_values_of_cells(table, near), [])


def _draw_measure_dots(table: MeasureTable, comparison: Comparison, colours: Colours) -> Figure:
    """Draw a row for each cell, with a dot for each seed."""
    means = {label: spreads[0] for label, spreads in table.spreads.items()}
    decimals = common_decimals(mean.stderr for mean in means.values())
    notes = {label: plus_minus(mean, decimals) for label, mean in means.items()}
    figure, ax = _axes_with_rows(notes)
    limits = limits_without_outliers(table)
    ax.set_xlim(*limits)
    explain(ax, "Each dot is one seed.")
    _draw_floor(ax, ax.axvspan, ax.axvline, table)
    runs = {cell.label: cell.runs for cell in comparison.cells}
    for y, (label, seeds) in enumerate(table.cells.items()):
        heights: Any = [y]
        if len(seeds) > 1:
            mean = table.spreads[label][0].mean
            ax.plot([mean, mean], [y - 0.2, y + 0.2], color=colours[label], linewidth=2.2)
            explain(ax, "An upright bar is a setting's mean.")
            # Draw dots at different heights, so that none hides another.
            heights = y + np.linspace(-0.12, 0.12, len(seeds))
        for (seed, (value,)), height in zip(seeds.items(), heights, strict=True):
            gid = run_gid(runs[label][seed])
            side = side_beyond(limits, value)
            if side:
                # The label of the row has the value.
                _draw_off_axis_arrow(ax, height, "", side, colours[label], gid=gid)
                explain(ax, ARROW)
            else:
                ax.plot(value, height, "o", color=colours[label], gid=gid, **DOT)
    ax.set_xlabel(table.metric.ranked_label)
    return figure


def _draw_floor(
    ax: Axes, draw_span: Callable[..., Any], draw_line: Callable[..., Any], table: MeasureTable
) -> None:
    """Draw the range and the median of the measure between sets of true data, if recorded."""
    if table.floor is not None:
        median, low, high = table.floor
        draw_span(low, high, color=style.MUTED, alpha=0.18, linewidth=0)
        draw_line(median, color=style.INK, linewidth=0.9, linestyle=(0, (3, 2)))
        explain(ax, FLOOR)


def _draw_off_axis_arrow(
    ax: Axes, y: float, text: str, side: int, color: str, gid: str | None = None
) -> None:
    """Draw an arrow to a value beyond the right edge (``side`` 1) or the left one (-1)."""
    place = ((side + 1) // 2, y)
    transform = ax.get_yaxis_transform()
    arrow, align = (">", "right") if side > 0 else ("<", "left")
    ax.plot(*place, arrow, color=color, markersize=6, transform=transform, clip_on=False, gid=gid)
    shift = (-8 * side, 0)
    ax.annotate(text, place, shift, transform, "offset points", color=color, va="center", ha=align)


def _axes_with_rows(notes: Mapping[str, str]) -> tuple[Figure, Axes]:
    """Draw axes with a row for each cell: its name at the left, a note at the right."""
    figure, ax = new_axes(0.62 + ROW * (len(notes) + 0.3), 0.15, 0.15)
    figure.set_label("; ".join(f"{label} {note}" for label, note in notes.items()) + ".")
    ax.set_ylim(len(notes) - 0.35, -0.65)
    ax.set_yticks([])
    ax.spines["left"].set_color(style.GRID)
    ax.locator_params(axis="x", nbins=5)
    letters = int((style.WIDTH - 0.3) / LETTER) - max(map(len, notes.values()), default=0)
    # Give the text a background, so that no line crosses it.
    background = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 0.8}
    how: dict[str, Any] = {
        "va": "bottom", "bbox": background, "transform": ax.get_yaxis_transform(), "zorder": 2.5
    }  # fmt: skip
    for y, (label, note) in enumerate(notes.items()):
        height = y - 0.27
        ax.text(0, height, shorten(label, letters), ha="left", fontweight="bold", **how)
        ax.text(1, height, note, ha="right", **how)
    return figure, ax


def _axis_limits(
    points: Sequence[float], spans: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Choose axis limits that show all points; long intervals are cut, to keep points apart."""
    low = min(points)
    high = max(points)
    known = np.array([span for span in spans if not math.isnan(span[0])]).reshape(-1, 2)
    widths = sorted(known[:, 1] - known[:, 0])
    usual = widths[len(widths) // 2] if widths else 0.0
    reach = max(1.2 * (high - low), usual, 1e-3 * max(abs(low), abs(high), 1e-6))
    low = max(known[:, 0].min(initial=low), low - reach)
    high = min(known[:, 1].max(initial=high), high + reach)
    pad = 0.05 * (high - low) or 1e-3
    return float(low - pad), float(high + pad)
