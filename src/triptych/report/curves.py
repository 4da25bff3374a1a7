"""One line per cell: error by noise level, ratio to the best, the bound over training, effective weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from triptych.report.compare import Cell, Comparison
from triptych.report.figures import Colours
from triptych.report.style import (
    INK,
    LINES,
    MARKERS,
    PALETTE,
    axes,
    end_labels,
    inches,
    plain_log,
    short,
    shortened,
)

WIDTH, HEIGHT = 5.2, 3.5
GAMMA = "γ = −log SNR   (left: clean, right: noise)"


def noise_levels(comparison: Comparison, colours: Colours) -> Figure | None:
    """Mean squared error of the noise estimate per dimension, by noise level, on the test set."""
    curves = {cell.label: curve for cell in comparison.cells if (curve := _mean_curve(cell)) is not None}
    if not curves:
        return None
    figure, ax = _axes(curves)
    for label, (gamma, mean, error) in curves.items():
        mean = np.where(mean > 0, mean, np.nan)
        _line(ax, gamma, mean, label, colours)
        if np.isfinite(error).any():
            lower = np.maximum(mean - error, mean * 0.05)
            ax.fill_between(gamma, lower, mean + error, color=colours[label], alpha=0.18, linewidth=0)
    _log(ax, [mean for _, mean, _ in curves.values()])
    ax.set_xlabel(GAMMA)
    ax.set_ylabel("squared error of ε, per dimension")
    _name_lines(ax, {label: mean for label, (_, mean, _) in curves.items()}, colours)
    return figure


def ratio_to_best(comparison: Comparison, colours: Colours) -> Figure | None:
    """Each noise level's contribution to the bound as a multiple of the best cell's, mean over seeds."""
    curves = {cell.label: curve for cell in comparison.cells if (curve := _mean_curve(cell)) is not None}
    best = comparison.cells[0].label if comparison.cells else ""
    if best not in curves or len(curves) < 2:
        return None
    gamma, reference, _ = curves[best]
    ratios = {}
    for label, (other, mean, _) in curves.items():
        # levels are the same within a sweep; another grid is read at the best one's levels where they overlap
        at = np.interp(gamma, other, mean, left=math.nan, right=math.nan)
        ratios[label] = np.divide(at, reference, out=np.full_like(at, math.nan), where=reference > 0)
    figure, ax = _axes(ratios)
    for label, ratio in ratios.items():
        _line(ax, gamma, ratio, label, colours)
    _log(ax, ratios.values())
    ax.set_xlabel(GAMMA)
    ax.set_ylabel(f"contribution, × {short(best, 22)}")
    _name_lines(ax, ratios, colours)
    return figure


def training(comparison: Comparison, colours: Colours) -> Figure | None:
    """The validation bound over training steps: thin lines are seeds, the thick one their mean."""
    column = f"val/{comparison.measure}"
    lines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for cell in comparison.cells:
        read = [run.history(column) for run in cell.runs.values()]
        kept = [(np.array(steps), np.array(values)) for steps, values in read if len(steps) > 1]
        if kept:
            lines[cell.label] = kept
    if not lines:
        return None
    figure, ax = axes(7.2, 3.7, 0.62, inches(list(shortened(list(lines)).values())) + 0.45)
    ends = {}
    for label, seeds in lines.items():
        if len(seeds) > 1:
            for steps, values in seeds:
                ax.plot(steps, values, color=colours[label], linewidth=0.7, alpha=0.45)
        steps = np.unique(np.concatenate([steps for steps, _ in seeds]))
        steps = steps[steps <= min(s[-1] for s, _ in seeds)]
        mean = np.mean([np.interp(steps, s, v) for s, v in seeds], axis=0)
        ax.plot(steps, mean, color=colours[label], linewidth=2, linestyle=_style(label, colours))
        ends[label] = mean
    # the first value says how a random network does: it would flatten everything that follows
    values = np.concatenate([v for seeds in lines.values() for _, v in seeds])
    last = [v[-1] for seeds in lines.values() for _, v in seeds]
    top = max(float(np.quantile(values, 0.85)), max(last) + 0.3 * (max(last) - min(last)))
    low, top = float(values.min()), min(top, float(values.max()))
    pad = 0.05 * (top - low) or 1e-3
    ax.set_ylim(low - pad, top + pad)
    ax.set_xlabel("training step")
    ax.set_ylabel(f"validation bound, {comparison.unit}")
    _name_lines(ax, ends, colours)
    return figure


def weights(comparison: Comparison, colours: Colours) -> Figure | None:
    """The weight each objective puts on the noise error, by noise level; only where cells differ in it."""
    curves = {}
    for cell in comparison.cells:
        found = next((run.weighting for run in cell.runs.values() if run.weighting), None)
        if found:
            curves[cell.label] = (np.array(found.gamma), np.array(found.value))
    shapes = list(curves.values())
    if not shapes or all(
        s[1].shape == shapes[0][1].shape and np.allclose(s[1], shapes[0][1], 1e-3) for s in shapes
    ):
        return None
    figure, ax = _axes(curves)
    ax.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    for label, (gamma, value) in curves.items():
        _line(ax, gamma, np.where(value > 0, value, np.nan), label, colours)
    _log(ax, [value for _, value in shapes])
    ax.set_xlabel(GAMMA)
    ax.set_ylabel("weight on the error of ε, ELBO = 1")
    _name_lines(ax, {label: value for label, (_, value) in curves.items()}, colours)
    return figure


def _mean_curve(cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """gamma, mean over seeds, and its standard error (NaN for one seed), over seeds with the same levels."""
    found = [run.noise_levels for run in cell.runs.values() if run.noise_levels]
    found = [curve for curve in found if curve.gamma == found[0].gamma]
    if not found:
        return None
    values = np.array([curve.value for curve in found])
    error = (
        values.std(axis=0, ddof=1) / math.sqrt(len(found))
        if len(found) > 1
        else np.full(values.shape[1], np.nan)
    )
    return np.array(found[0].gamma), values.mean(axis=0), error


def _axes(labels: Iterable[str]) -> tuple[Figure, Axes]:
    right = inches(list(shortened(list(labels)).values())) + 0.35
    return axes(WIDTH + max(0.0, right - 1.2), HEIGHT, 0.74, right)


def _style(label: str, colours: Colours) -> Any:
    return LINES[list(colours).index(label) // len(PALETTE) % len(LINES)]


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, label: str, colours: Colours) -> None:
    marker = MARKERS[list(colours).index(label) % len(MARKERS)]
    ax.plot(
        x,
        y,
        color=colours[label],
        linewidth=1.6,
        linestyle=_style(label, colours),
        marker=marker,
        markersize=3,
    )


def _log(ax: Axes, values: Iterable[Any]) -> None:
    """A log axis with plain numbers, and numbers between the decades where there are few decades."""
    ax.set_yscale("log")
    every = np.concatenate([np.asarray(v, dtype=float) for v in values])
    every = every[np.isfinite(every) & (every > 0)]
    decades = math.log10(every.max() / every.min()) if every.size else 1.0
    subs: tuple[float, ...] = (1, 1.1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    if decades > 0.3:
        subs = (1,) if decades > 2 else (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 5, 7)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(plain_log))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _name_lines(ax: Axes, lines: dict[str, np.ndarray], colours: Colours) -> None:
    """Each line's name at its last finite value."""
    ends = {label: values[np.isfinite(values)] for label, values in lines.items()}
    short_names = shortened(list(lines))
    names = [(float(v[-1]), short_names[label], colours[label]) for label, v in ends.items() if v.size]
    ax.margins(x=0.02)
    ax.set_xlim(ax.get_xlim())
    ax.set_ylim(ax.get_ylim())
    end_labels(ax, names)
