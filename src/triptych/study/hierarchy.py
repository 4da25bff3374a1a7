"""The bound by number of steps; noise schedules and how noisy an estimate each of them makes."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from triptych.run.result import ScheduleCurve
from triptych.study.axes import value
from triptych.study.compare import Comparison
from triptych.study.figures import Colours
from triptych.study.statistics import spread
from triptych.study.style import (
    INK,
    MARKERS,
    MUTED,
    PAPER,
    LineFigure,
    axes,
    colour,
    inches,
    plain_ticks,
    shortened,
)

STEPS = "bound.steps"


def bound_by_steps(comparison: Comparison, colours: Colours) -> Figure | None:
    """The bound over the number of steps T, or its gap to the truth where that is known; both log."""
    part = "gap" if all(cell.spread(part="gap").n for cell in comparison.cells) else ""
    points_of: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for cell in comparison.cells:
        run = next(iter(cell.runs.values()))
        if (steps_text := value(run, STEPS)).isdigit():
            rest = [value(run, axis.key) for axis in comparison.axes if axis.key != STEPS]
            bound = cell.spread(part=part)
            error = bound.stderr if math.isfinite(bound.stderr) else 0.0
            points_of[" / ".join(rest) or "bound"].append((int(steps_text), bound.mean, error))
    if not any(len(points) > 1 for points in points_of.values()):
        return None
    lines = LineFigure(points_of, {label: colour(k) for k, label in enumerate(points_of)}, (7.2, 3.7), 0.74)
    for k, (label, points) in enumerate(points_of.items()):
        steps, values, errors = zip(*sorted(points), strict=True)
        how = {"color": colour(k), "marker": MARKERS[k % len(MARKERS)], "markersize": 4, "elinewidth": 1.1}
        lines.ax.errorbar(steps, values, errors, linewidth=1.8, **how)
        lines.end(label, values)
    lines.ax.set_xscale("log")
    if all(v > 0 for points in points_of.values() for _, v, _ in points):
        lines.ax.set_yscale("log")
        plain_ticks(lines.ax.yaxis)
    grid = sorted({step for points in points_of.values() for step, *_ in points})
    lines.ax.set_xticks(grid, [str(step) for step in grid])
    lines.ax.xaxis.set_minor_formatter(NullFormatter())
    return lines.finish(
        "steps T of the bound", f"{'gap to the truth' if part else 'test bound'}, {comparison.unit}"
    )


def schedules(comparison: Comparison, colours: Colours) -> Figure | None:
    """The noise schedule gamma(t) of each setting, first seed; only where they differ."""
    curves = _schedules(comparison)
    if len(set(curves.values())) < 2:
        return None
    lines = LineFigure(curves, colours, (5.2, 3.5), 0.8, 0.35)
    for label, curve in curves.items():
        lines.ax.plot(curve.t, curve.gamma, color=colours[label], linewidth=1.8)
    lines.ax.set_xlim(0, 1)
    # curves meet at their ends: each is named at half time's height, where they differ
    for label, curve in curves.items():
        height = float(np.interp(0.5, curve.t, curve.gamma))
        lines.ax.scatter([0.5], [height], s=18, color=colours[label], edgecolor=PAPER, zorder=3)
        lines.end(label, [height])
    return lines.finish("time t   (left: data, right: noise)", "γ = −log SNR")


def _schedules(comparison: Comparison) -> dict[str, ScheduleCurve]:
    """Of each setting's first run that recorded it."""
    curves = {
        c.label: next((r.schedule for r in c.runs.values() if r.schedule), None) for c in comparison.cells
    }
    return {label: curve for label, curve in curves.items() if curve}


def estimator_variance(comparison: Comparison, colours: Colours) -> Figure | None:
    """Variance of one draw of the diffusion term, nats² an item: what training sees as noise."""
    values_of = {
        cell.label: [run.variance for run in cell.runs.values() if math.isfinite(run.variance)]
        for cell in comparison.cells
    }
    spreads = {label: spread(values) for label, values in values_of.items() if values}
    if len(set(_schedules(comparison).values())) < 2 or len(spreads) < 2:
        return None
    rows = sorted(spreads.items(), key=lambda item: item[1].mean)
    names = shortened([label for label, _ in rows], 30)
    shown = [f"{s.mean:,.0f}" if 100 <= s.mean < 1e5 else f"{s.mean:.3g}" for _, s in rows]
    figure, ax = axes(7.2, 0.36 * len(rows) + 0.75, inches(names.values()) + 0.2, inches(shown) + 0.2)
    for y, (label, bar) in enumerate(rows):
        width, error = bar.mean, bar.stderr if math.isfinite(bar.stderr) else 0.0
        ax.barh(y, width, height=0.62, color=colours[label])
        if error:
            ax.plot([width - error, width + error], [y, y], color=INK, linewidth=1.2)
        ax.text(width + error, y, f" {shown[y]}", va="center", color=MUTED)
    ax.set_yticks(range(len(rows)), list(names.values()))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("variance of one draw, nats²")
    ax.grid(axis="y", visible=False)
    return figure
