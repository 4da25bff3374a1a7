"""Figures of lines: error by noise level, the bound over training and two settings, effective weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from triptych.run.parsing import Curve, to_float
from triptych.run.read import Run
from triptych.study.axes import Axis, value
from triptych.study.cells import Cell, Comparison
from triptych.study.figures import Colours
from triptych.study.style import INK, PAPER, LineFigure, log_axis, mark, short

GAMMA = "γ = −log SNR   (left: clean, right: noise)"
THIN = 400  # seeds whose lines stay distinct
LEAST = 2 / 3  # of all combinations, that make a grid
WIDE = 8.0  # largest over smallest value, from which on an axis is logarithmic
Line = tuple[np.ndarray, np.ndarray, Run]  # steps, or seconds, and values of a run
MeanCurve = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # gamma, mean over seeds, standard error


def noise_levels(comparison: Comparison, colours: Colours) -> Figure | None:
    """Mean squared error of the noise estimate per dimension, by noise level, on the test set."""
    curves = _means(comparison, "noise_levels")
    return _by_noise_level(curves, colours, "squared error of ε, per dimension") if curves else None


def weights(comparison: Comparison, colours: Colours) -> Figure | None:
    """Return weight each objective puts on the noise error, by noise level; only where cells differ in it."""
    curves: dict[str, MeanCurve] = {}
    for cell in comparison.cells:
        if curve := next((run.weighting for run in cell.runs.values() if run.weighting), None):
            curves[cell.label] = np.array(curve.gamma), np.array(curve.value), None
    shapes = [value for _, value, _ in curves.values()]
    if all(s.shape == shapes[0].shape and np.allclose(s, shapes[0], 1e-3) for s in shapes):
        return None
    gamma = next(iter(curves.values()))[0]
    level = gamma, np.ones_like(gamma)
    return _by_noise_level(curves, colours, "weight on the error of ε, ELBO = 1", level)


def _by_noise_level(
    curves: Mapping[str, MeanCurve],
    colours: Colours,
    ylabel: str,
    dashed: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Return a line a cell with the band of its error on a log axis, and a dashed line to compare with."""
    lines = LineFigure(curves, colours)
    if dashed:
        lines.ax.plot(*dashed, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    for label, (gamma, mean, error) in curves.items():
        shown = np.where(mean > 0, mean, np.nan)
        lines.line(label, gamma, shown, marker=True, markersize=3)
        if error is not None:
            low, high = np.maximum(shown - error, shown * 0.05), shown + error
            lines.ax.fill_between(gamma, low, high, color=colours[label], alpha=0.18, linewidth=0)
    log_axis(lines.ax, np.concatenate([value for _, value, _ in curves.values()]))
    lines.ax.margins(x=0.02)
    return lines.finish(GAMMA, ylabel)


def training_time(comparison: Comparison, colours: Colours) -> Figure | None:
    """Return validation bound over seconds of training: thin lines are seeds, the thick one their mean."""
    return training(comparison, colours, over_seconds=True)


def training(comparison: Comparison, colours: Colours, over_seconds: bool = False) -> Figure | None:
    """Return the validation bound over training steps: thin lines are seeds, the thick one their mean."""
    bound = f"val/{comparison.measure}"
    lines: dict[str, list[Line]] = {}
    for cell in comparison.cells:
        for run in cell.runs.values():
            columns = run.histories((bound, "time"))
            steps, history = columns.get(bound, ([], []))
            seconds = dict(zip(*columns.get("time", ([], [])), strict=True))
            at = np.array([seconds.get(step, math.nan) for step in steps] if over_seconds else steps)
            if len(steps) > 1 and np.isfinite(at).all():
                lines.setdefault(cell.label, []).append((at, np.array(history), run))
    if not lines:
        return None
    drawn = LineFigure(lines, colours)
    thin = sum(map(len, lines.values())) <= THIN
    for label, seeds in lines.items():
        places = np.unique(np.concatenate([at for at, *_ in seeds]))
        first, end = max(at[0] for at, *_ in seeds), min(at[-1] for at, *_ in seeds)
        places = places[(places >= first) & (places <= end)]
        if len(seeds) > 1 and (thin or not places.size):
            for at, values, run in seeds:
                drawn.ax.plot(at, values, color=colours[label], linewidth=0.7, alpha=0.45, gid=mark(run))
        if places.size:
            mean = np.mean([np.interp(places, at, values) for at, values, _ in seeds], axis=0)
            only = mark(seeds[0][2]) if len(seeds) == 1 else None
            drawn.line(label, places, mean, linewidth=2, gid=only)
        else:  # no moment that all seeds share: the legend names the thin lines
            drawn.line(label, [], [], linewidth=0.7)
            drawn.ends[label] = float(np.mean([values[-1] for _, values, _ in seeds]))
    # the first value says how a random network does: it would flatten everything that follows
    far = comparison.bounds.far
    near = [seeds for label, seeds in lines.items() if label not in far] or [*lines.values()]
    known = [values for seeds in near for _, values, _ in seeds]
    values, last = np.concatenate(known), [one[-1] for one in known]
    top = max(float(np.quantile(values, 0.85)), max(last) + 0.3 * (max(last) - min(last)))
    low, top = float(values.min()), min(top, float(values.max()))
    pad = 0.05 * (top - low) or 1e-3
    drawn.ax.set_ylim(low - pad, top + pad)
    drawn.ax.margins(x=0.02)
    along = "seconds of training" if over_seconds else "training step"
    return drawn.finish(along, f"validation bound, {comparison.unit}")


def posterior_mean_error(comparison: Comparison, colours: Colours) -> Figure | None:
    """Squared error of the posterior mean against the true one, per dimension, by noise level."""
    means = _means(comparison, "tweedie")
    # an oracle's error is rounding, decades below everything: it would flatten the others
    means = {label: (*curve[:2], None) for label, curve in means.items() if np.max(curve[1]) > 1e-8}
    if not means:
        return None
    spread = next(run.posterior for run in comparison.runs if run.posterior)
    dashed = np.array(spread.gamma), np.array(spread.value)
    return _by_noise_level(means, colours, "squared error, per dimension", dashed)


def _means(comparison: Comparison, of: str) -> dict[str, MeanCurve]:
    seeds = {c.label: [curve for r in c.runs.values() if (curve := getattr(r, of))] for c in comparison.cells}
    return {label: curve for label, curves in seeds.items() if (curve := mean_over_seeds(curves))}


def mean_over_seeds(seeds: Sequence[Curve]) -> MeanCurve | None:
    """Return gamma, the curves' mean and its standard error (None for one curve); None without curves.

    Levels that differ by seed (learned endpoints) are read at common ones, linearly between logarithms.
    """
    if not seeds:
        return None
    gamma = np.array(seeds[0].gamma)
    if any(curve.gamma != seeds[0].gamma for curve in seeds):
        low, high = max(min(c.gamma) for c in seeds), min(max(c.gamma) for c in seeds)
        if low >= high:  # no level that all have
            return None
        gamma = np.linspace(low, high, len(gamma))
    values = np.array([_read_at(gamma, curve) for curve in seeds])
    error = values.std(axis=0, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else None
    return gamma, values.mean(axis=0), error


def _read_at(gamma: np.ndarray, curve: Curve) -> np.ndarray:
    order = np.argsort(curve.gamma)
    at, value = np.array(curve.gamma)[order], np.array(curve.value)[order]
    if (value > 0).all():
        return np.exp(np.interp(gamma, at, np.log(value)))
    return np.interp(gamma, at, value)


@dataclass(frozen=True)
class Crossing:
    """Cells by (value of `lines`, value of `along`), which are in the order in which they are drawn.

    `numbers`: `along`'s values as numbers, ascending; None where some are not numbers.
    """

    lines: Axis
    along: Axis
    cells: Mapping[tuple[str, str], Cell]
    numbers: tuple[float, ...] | None


def crossing(comparison: Comparison) -> Crossing | None:
    """Return the grid that two crossed settings make; None where they make none, or one of many holes."""
    if len(comparison.axes) != 2:
        return None
    first, second = comparison.axes
    along = max((first, second), key=lambda a: (_numbers(a) is not None, len(a.values), a is second))
    lines = first if along is second else second
    cells = {}
    for cell in comparison.cells:
        run = next(iter(cell.runs.values()))
        cells[value(run, lines.key), value(run, along.key)] = cell
    # a value that only refused or diverged runs have takes no room
    lines, along = (
        Axis(axis.key, tuple(v for v in axis.values if any(key[i] == v for key in cells)))
        for i, axis in enumerate((lines, along))
    )
    if len(cells) < max(4, LEAST * len(lines.values) * len(along.values)):
        return None
    numbers = _numbers(along)
    if numbers:
        along = Axis(along.key, tuple(sorted(along.values, key=float)))
    return Crossing(lines, along, cells, numbers)


def _numbers(axis: Axis) -> tuple[float, ...] | None:
    numbers = sorted(map(to_float, axis.values))
    return tuple(numbers) if all(map(math.isfinite, numbers)) else None


HOW = (
    "Each line is one {lines}, along {along}: the mean of the seeds, which are the dots, with its standard "
    "error. A ring marks each line's lowest mean. Lower is better; lines are cut where the frame ends."
)


def crossing_figure(comparison: Comparison, colours: Mapping[str, str]) -> Figure | None:
    """Return the test bound along one setting, a line for each value of the other."""
    crossed = crossing(comparison)
    if crossed is None:
        return None
    at = dict(zip(crossed.along.values, crossed.numbers or range(len(crossed.along.values)), strict=True))
    cells_of = {
        name: {value: cell for value in at if (cell := crossed.cells.get((name, value)))}
        for name in crossed.lines.values
    }
    inks = {name: colours[next(iter(cells.values())).label] for name, cells in cells_of.items()}
    lines = LineFigure(crossed.lines.values, inks)
    for name, cells in cells_of.items():
        x, means = [float(at[key]) for key in cells], [cell.bound.mean for cell in cells.values()]
        ink, errors = inks[name], [cell.bound.stderr for cell in cells.values()]
        lines.line(name, x, means)
        lines.ax.errorbar(x, means, errors, color=ink, fmt="none", elinewidth=1.1, capsize=2.5)
        for place, cell in zip(x, cells.values(), strict=True):
            for seed, bound in cell.values().items():
                lines.ax.plot(place, bound, "o", markersize=3, color=ink, alpha=0.5, markeredgewidth=0,
                              gid=mark(cell.runs[seed]))  # fmt: skip
        lowest, place = min(zip(means, x, strict=True))
        lines.ax.scatter([place], [lowest], s=70, facecolor=PAPER, edgecolor=ink, linewidth=1.8, zorder=3)
    # one that is far above the median flattens no other
    shown = sorted(cell.bound.mean for cell in crossed.cells.values())
    low, top = shown[0], min(shown[-1], shown[0] + 4 * (shown[len(shown) // 2] - shown[0]) + 1e-3)
    lines.ax.set_ylim(low - 0.08 * (top - low), top + 0.08 * (top - low))
    numbers = crossed.numbers
    ticks = [f"{float(key):g}" if numbers else short(key, 14) for key in at]
    apart_by_factors = numbers is not None and numbers[0] > 0 and numbers[-1] / numbers[0] >= WIDE
    lines.ticks(list(map(float, at.values())), ticks, apart_by_factors)
    return lines.finish(crossed.along.key, f"test bound, {comparison.unit}")
