"""Figures of the measures of samples: a line a cell over a key's values, or a dot a seed; the noise floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.config.metric import Metric
from triptych.study.cells import Comparison
from triptych.study.figures import Colours
from triptych.study.measures import MeasureTable, measure_table
from triptych.study.style import INK, MUTED, WIDTH, LineFigure, axes, inches, plain_ticks, shortened


def measure_figure(metric: Metric) -> Callable[[Comparison, Colours], Figure | None]:
    """Return the figure of one measure: a line a cell over the key's values, or a dot a seed."""

    def figure(comparison: Comparison, colours: Colours) -> Figure | None:
        known = measure_table(comparison.cells, metric.name)
        if known is None:
            return None
        return _lines(metric, known, colours) if known.key else _dots(metric, known, colours)

    figure.__name__ = metric.name
    what, better = metric.label, metric.better
    figure.__doc__ = f"{what[0].upper()}{what[1:]} of samples{', ' + better if better else ''}."
    return figure


def _lines(metric: Metric, known: MeasureTable, colours: Colours) -> Figure:
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
        _log(lines.ax, known)
        lines.ticks(x, [f"{v:g}" for v in x], log=True)
    return lines.finish("calls of the denoiser" if known.key == "evaluations" else known.key, metric.label)


def _log(ax: Axes, known: MeasureTable) -> None:
    """Set a log axis with plain numbers; linear below the floor for a measure that may be zero or less."""
    lowest = min(min(v) for seeds in known.cells.values() for v in seeds.values())
    if lowest > 0:
        ax.set_yscale("log")
    else:
        around = known.floor[2] if known.floor else 1e-3
        ax.set_yscale("symlog", linthresh=around)
        ax.set_ylim(bottom=lowest - around / 2)
    plain_ticks(ax.yaxis)


def _dots(metric: Metric, known: MeasureTable, colours: Colours) -> Figure:
    labels = list(known.cells)
    short_names = shortened(labels, 24)
    figure, ax = axes(WIDTH, 0.75 + 0.36 * len(labels), inches(short_names.values()) + 0.2, 0.3)
    for y, (label, seeds) in enumerate(known.cells.items()):
        values = [v[0] for v in seeds.values()]
        ax.scatter(values, [y] * len(values), s=26, color=colours[label], zorder=3)
        ax.plot([np.mean(values)] * 2, [y - 0.25, y + 0.25], color=colours[label], linewidth=2)
    _floor(ax.axvspan, ax.axvline, known)
    ax.set_yticks(range(len(labels)), [short_names[label] for label in labels])
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlabel(f"{metric.label}{f' ({metric.better})' if metric.better else ''}")
    return figure


def _floor(span: Callable[..., Any], line: Callable[..., Any], known: MeasureTable) -> None:
    if known.floor is not None:
        median, low, high = known.floor
        span(low, high, color=MUTED, alpha=0.18, linewidth=0)
        line(median, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
