"""The bound by number of steps, level and rung; schedules and how noisy an estimate each of them makes."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from triptych.run.entries import ScheduleCurve
from triptych.study.axes import value
from triptych.study.compare import Cell, Comparison
from triptych.study.figures import Colours
from triptych.study.statistics import Spread, spread
from triptych.study.style import (
    INK,
    MARKERS,
    MUTED,
    PAPER,
    axes,
    colour,
    end_labels,
    inches,
    plain_ticks,
    shortened,
)

STEPS, RUNG = "bound.steps", "setting"
KINDS = ("vae", "hvae", "latent", "vdm")
WIDTH = 5.2


def bound_by_steps(comparison: Comparison, colours: Colours) -> Figure | None:
    """The bound over the number of steps T, or its gap to the truth where that is known; both log."""
    part = "gap" if all(cell.spread(part="gap").n for cell in comparison.cells) else ""
    lines: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for cell in comparison.cells:
        run = next(iter(cell.runs.values()))
        steps_text = value(run, STEPS)
        if steps_text.isdigit():
            rest = [value(run, axis.key) for axis in comparison.axes if axis.key != STEPS]
            bound = cell.spread(part=part)
            error = bound.stderr if math.isfinite(bound.stderr) else 0.0
            lines[" / ".join(rest) or "bound"].append((int(steps_text), bound.mean, error))
    if not any(len(points) > 1 for points in lines.values()):
        return None
    names = shortened(list(lines))
    figure, ax = axes(7.2, 3.7, 0.74, inches(list(names.values())) + 0.45)
    ends = []
    for k, (label, points) in enumerate(lines.items()):
        steps, values, errors = zip(*sorted(points), strict=True)
        ink, shape = colour(k), MARKERS[k % len(MARKERS)]
        ax.errorbar(
            steps, values, errors, color=ink, linewidth=1.8, marker=shape, markersize=4, elinewidth=1.1
        )
        ends.append((values[-1], names[label], ink))
    ax.set_xscale("log")
    if all(v > 0 for points in lines.values() for _, v, _ in points):
        ax.set_yscale("log")
        plain_ticks(ax.yaxis)
    grid = sorted({step for points in lines.values() for step, *_ in points})
    ax.set_xticks(grid, [str(step) for step in grid])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("steps T of the bound")
    ax.set_ylabel(f"{'gap to the truth' if part else 'test bound'}, {comparison.unit}")
    end_labels(ax, ends)
    return figure


def schedules(comparison: Comparison, colours: Colours) -> Figure | None:
    """The noise schedule gamma(t) of each setting, first seed; only where they differ."""
    curves = _schedules(comparison)
    if len(set(curves.values())) < 2:
        return None
    names = shortened(list(curves))
    figure, ax = axes(WIDTH, 3.5, 0.8, inches(list(names.values())) + 0.35)
    for label, curve in curves.items():
        ax.plot(curve.t, curve.gamma, color=colours[label], linewidth=1.8)
    ax.set_xlabel("time t   (left: data, right: noise)")
    ax.set_ylabel("γ = −log SNR")
    ax.set_xlim(0, 1)
    # curves meet at their ends: each is named at half time's height, where they differ
    middle = {label: float(np.interp(0.5, c.t, c.gamma)) for label, c in curves.items()}
    for label, height in middle.items():
        ax.scatter([0.5], [height], s=18, color=colours[label], edgecolor=PAPER, zorder=3)
    end_labels(ax, [(h, names[label], colours[label]) for label, h in middle.items()])
    return figure


def _schedules(comparison: Comparison) -> dict[str, ScheduleCurve]:
    """Of each setting's first run that recorded it."""
    curves = {
        c.label: next((r.schedule for r in c.runs.values() if r.schedule), None) for c in comparison.cells
    }
    return {label: curve for label, curve in curves.items() if curve}


def estimator_variance(comparison: Comparison, colours: Colours) -> Figure | None:
    """Variance of one draw of the diffusion term, nats² an item: what training sees as noise."""
    if len(set(_schedules(comparison).values())) < 2:
        return None
    spreads = {}
    for cell in comparison.cells:
        values = [run.variance for run in cell.runs.values() if math.isfinite(run.variance)]
        if values:
            spreads[cell.label] = spread(values)
    if len(spreads) < 2:
        return None
    rows = dict(sorted(spreads.items(), key=lambda item: item[1].mean))
    return _bars(rows, colours, "variance of one draw, nats²")


def level_terms(comparison: Comparison, colours: Colours) -> Figure | None:
    """The bound's term of each learned latent, mean over seeds, from next to the data to the top."""
    lines = {cell.label: terms for cell in comparison.cells if (terms := _terms(cell))}
    if not lines:
        return None
    names = shortened(list(lines))
    figure, ax = axes(7.2, 3.7, 0.66, inches(list(names.values())) + 0.45)
    ax.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    for k, (label, terms) in enumerate(lines.items()):
        mark = MARKERS[k % len(MARKERS)]
        ax.plot(
            range(1, len(terms) + 1), terms, color=colours[label], linewidth=1.6, marker=mark, markersize=4
        )
    deepest = max(map(len, lines.values()))
    ax.set_xticks(range(1, deepest + 1))
    ax.set_xlim(0.8, deepest + 0.2)
    ax.set_xlabel("level   (1: next to the data)")
    ax.set_ylabel(f"term of the bound, {comparison.unit}")
    end_labels(ax, [(terms[-1], names[label], colours[label]) for label, terms in lines.items()])
    return figure


def ladder(comparison: Comparison, colours: Colours) -> Figure | None:
    """Test bound (disc), training bound (ring) and importance-weighted bound (bar; VAEs only) by rung."""
    if not any(axis.key == RUNG for axis in comparison.axes):
        return None
    cells = sorted((c for c in comparison.cells if _rung(c.label)[0] in KINDS), key=_place)
    if len(cells) < 2:
        return None
    figure, ax = axes(7.2, 3.7, 0.66, 0.2, bottom=0.9)
    top = 1.3 * float(np.median([cell.bound.mean for cell in cells]))  # few steps would flatten all others
    for x, cell in enumerate(cells):
        ink = colours[cell.label]
        test, train, weighted = (cell.spread(*which) for which in (("test",), ("train",), ("test", "iw")))
        if test.mean > top:
            ax.annotate(f"{test.mean:.2f}", (x, 0.99), xycoords=("data", "axes fraction"), color=ink,
                        ha="center", va="top", fontweight="bold")  # fmt: skip
            continue
        ax.plot([x, x], [train.mean, test.mean], color=ink, linewidth=1.2)
        for figure_of in (train, test):
            if math.isfinite(figure_of.stderr):
                ends = [figure_of.mean - figure_of.stderr, figure_of.mean + figure_of.stderr]
                ax.plot([x, x], ends, color=ink, linewidth=1.6, marker="_", markersize=6)
        ax.scatter([x], [train.mean], s=34, facecolor=PAPER, edgecolor=ink, linewidth=1.4, zorder=3)
        ax.scatter([x], [test.mean], s=34, color=ink, zorder=3)
        if weighted.n:
            ax.plot([x - 0.2, x + 0.2], [weighted.mean] * 2, color=INK, linewidth=1.6)
    ax.set_xticks(range(len(cells)), [cell.label for cell in cells], rotation=35, ha="right")
    ax.set_xlim(-0.6, len(cells) - 0.4)
    ax.margins(y=0.12)
    ax.set_ylabel(f"bound, {comparison.unit}")
    return figure


def _rung(label: str) -> tuple[str, float]:
    """The kind of model and its number of latents, infinite for the continuum (no number)."""
    kind, _, latents = label.partition("_")
    return kind, float(latents) if latents.isdigit() else math.inf


def _place(cell: Cell) -> tuple[int, float]:
    """On the ladder: fewer latents first, the continuum last."""
    kind, latents = _rung(cell.label)
    return KINDS.index(kind), latents


def _terms(cell: Cell) -> list[float]:
    """Mean term of level 1, 2, ... over seeds, as far as they were recorded."""
    terms: list[float] = []
    while (term := cell.spread(part=f"kl_{len(terms) + 1}")).n:
        terms.append(term.mean)
    return terms


def _bars(rows: dict[str, Spread], colours: Colours, xlabel: str) -> Figure:
    """A bar with its standard error over seeds, and its number, for each label."""
    names = shortened(list(rows), 30)
    shown = [f"{s.mean:,.0f}" if 100 <= s.mean < 1e5 else f"{s.mean:.3g}" for s in rows.values()]
    right = inches(shown) + 0.2
    figure, ax = axes(7.2, 0.36 * len(rows) + 0.75, inches(list(names.values())) + 0.2, right)
    for y, (label, bar) in enumerate(rows.items()):
        width, error = bar.mean, bar.stderr if math.isfinite(bar.stderr) else 0.0
        ax.barh(y, width, height=0.62, color=colours[label])
        if error:
            ax.plot([width - error, width + error], [y, y], color=INK, linewidth=1.2)
        ax.text(width + error, y, f" {shown[y]}", va="center", color=MUTED)
    ax.set_yticks(range(len(rows)), [names[label] for label in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel(xlabel)
    ax.grid(axis="y", visible=False)
    return figure
