"""Draw line figures: error and weight by noise level, the bound over training or a setting."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from matplotlib.figure import Figure

from triptych.run.parsing import Curve, to_float
from triptych.run.read import Run
from triptych.study.axes import Axis, axis_value
from triptych.study.cells import Cell
from triptych.study.comparison import Comparison
from triptych.study.figures import Colours, limits_without_outliers
from triptych.study.formatting import shorten
from triptych.study.style import (
    INK,
    PAPER,
    LineFigure,
    explain,
    line_dash,
    log_axis,
    mark_beyond,
    run_gid,
)

GAMMA = "γ = −log SNR   (left: clean, right: noise)"
LEAST = 2 / 3  # minimum fraction of all combinations for a grid figure
WIDE = 8.0  # ratio of the largest to the smallest value from which an axis is logarithmic
# Gamma, mean over seeds and standard error.
MeanCurve = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def noise_levels(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw the mean squared error of the noise estimate per dimension, by noise level."""
    curves = _mean_curves(comparison, lambda run: run.noise_levels)
    return _draw_by_noise_level(curves, colours, "squared error of ε, per dimension")


def weights(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw each cell's weight on the noise error, by noise level; None if all are equal."""
    curves: dict[str, MeanCurve] = {}
    for cell in comparison.cells:
        first = next(filter(None, [run.weighting for run in cell.runs.values()]), None)
        if first:
            curves[cell.label] = (np.array(first.gamma), np.array(first.value), None)
    if not curves:
        return None
    gamma, shape, _ = next(iter(curves.values()))
    others = [other for _, other, _ in curves.values() if other.shape == shape.shape]
    if len(others) == len(curves) and np.allclose(others, shape, 1e-3):
        return None
    level = Curve(tuple(gamma), (1.0,) * len(gamma), ())
    return _draw_by_noise_level(curves, colours, "weight on the error of ε, ELBO = 1", level)


def posterior_mean_error(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw the distance of the model's posterior mean from the true one, by noise level."""
    curves = {}
    for label, (gamma, mean, _) in _mean_curves(comparison, lambda run: run.tweedie).items():
        # Leave out an oracle, whose error is only rounding: it would flatten all other curves.
        if np.max(mean) > 1e-8:
            curves[label] = (gamma, mean, None)
    spread = next((run.posterior for run in comparison.runs if run.posterior), None)
    figure = _draw_by_noise_level(curves, colours, "squared error, per dimension", spread)
    if figure and spread:
        explain(
            figure.axes[0],
            "The dashed line is the variance of the posterior itself, which no model can reduce.",
        )
    return figure


def _draw_by_noise_level(
    curves: Mapping[str, MeanCurve],
    colours: Colours,
    ylabel: str,
    dashed: Curve | None = None,
) -> Figure | None:
    """Draw a line for each cell with its error as a band, and ``dashed`` for reference."""
    if not curves:
        return None
    lines = LineFigure(curves, colours)
    if dashed:
        lines.ax.plot(dashed.gamma, dashed.value, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    for label, (gamma, mean, error) in curves.items():
        shown = np.where(mean > 0, mean, np.nan)
        lines.line(label, gamma, shown, marker=True, markersize=3)
        if error is not None:
            low = np.maximum(shown - error, shown * 0.05)
            high = shown + error
            lines.ax.fill_between(gamma, low, high, color=colours[label], alpha=0.18, linewidth=0)
            explain(lines.ax, "Bands are standard errors over seeds.")
    log_axis(lines.ax, np.concatenate([value for _, value, _ in curves.values()]))
    lines.ax.margins(x=0.02)
    return lines.finish(GAMMA, ylabel)


def _mean_curves(
    comparison: Comparison,
    curve_of: Callable[[Run], Curve | None],
) -> dict[str, MeanCurve]:
    """Return each cell's mean over seeds of a curve that runs recorded."""
    means = {}
    for cell in comparison.cells:
        mean = mean_over_seeds([*filter(None, map(curve_of, cell.runs.values()))])
        if mean:
            means[cell.label] = mean
    return means


def mean_over_seeds(seeds: Sequence[Curve]) -> MeanCurve | None:
    """Return gamma, the curves' mean and its standard error (None for one); None without curves.

    If the levels differ by seed (learned endpoints), curves are interpolated at common levels,
    linearly in the logarithm.
    """
    if not seeds:
        return None
    gamma = np.array(seeds[0].gamma)
    if len({curve.gamma for curve in seeds}) > 1:
        low = max(min(c.gamma) for c in seeds)
        high = min(max(c.gamma) for c in seeds)
        if low >= high:
            return None  # the seeds have no noise level in common
        gamma = np.linspace(low, high, len(gamma))
    values = np.array([_interpolate_curve(gamma, curve) for curve in seeds])
    error = values.std(axis=0, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else None
    return gamma, values.mean(axis=0), error


def _interpolate_curve(gamma: np.ndarray, curve: Curve) -> np.ndarray:
    """Interpolate a curve at the levels ``gamma``, by logarithms if all its values are positive."""
    order = np.argsort(curve.gamma)
    known = np.array(curve.gamma)[order]
    value = np.array(curve.value)[order]
    if (value > 0).all():
        return np.exp(np.interp(gamma, known, np.log(value)))
    return np.interp(gamma, known, value)


@dataclass(frozen=True)
class History:
    """A run's validation bound by training step; `x`: the horizontal axis, steps or seconds."""

    run: Run
    steps: np.ndarray
    x: np.ndarray
    values: np.ndarray


def training_time(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw the validation bound over seconds of training."""
    return _draw_training_curves(comparison, colours, "seconds of training", over_seconds=True)


def training(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw the validation bound over training steps."""
    return _draw_training_curves(comparison, colours, "training step")


def _histories(comparison: Comparison, over_seconds: bool) -> dict[str, list[History]]:
    """Read {cell's label: validation bounds of its runs}, of runs with two or more values."""
    bound = f"val/{comparison.measure}"
    histories: dict[str, list[History]] = {}
    for cell in comparison.cells:
        for run in cell.runs.values():
            columns = run.histories((bound, "time"))
            steps, values = columns.get(bound, ([], []))
            x = np.array(steps)
            if over_seconds:
                seconds = dict(zip(*columns.get("time", ([], [])), strict=True))
                x = np.array([seconds.get(step, math.nan) for step in steps])
            if len(x) > 1 and np.isfinite(x).all():
                history = History(run, np.array(steps), x, np.array(values))
                histories.setdefault(cell.label, []).append(history)
    return histories


def _draw_training_curves(
    comparison: Comparison, colours: Colours, xlabel: str, over_seconds: bool = False
) -> Figure | None:
    """Draw each cell's validation bound over training steps, or over seconds."""
    histories = _histories(comparison, over_seconds)
    if not histories:
        return None
    lines = LineFigure(histories, colours)
    for label, seeds in histories.items():
        _draw_seeds(lines, label, seeds)
    low, top = _limits_of_late_values(comparison, histories)
    lines.ax.set_ylim(low, top)
    if lines.ax.dataLim.y1 > top:
        explain(lines.ax, "The axis is chosen for the later values; earlier ones lie above it.")
    shown = sum(map(len, histories.values()))
    runs = len(comparison.runs)
    if shown < runs:
        explain(lines.ax, f"{runs - shown} of {runs} runs lack two values and are not shown.")
    for label, seeds in histories.items():
        for seed in seeds:
            mark_beyond(lines.ax, seed.x[-1:], seed.values[-1:], colours[label])
    lines.ax.margins(x=0.02)
    return lines.finish(xlabel, f"validation bound, {comparison.unit}")


def _draw_seeds(lines: LineFigure, label: str, seeds: Sequence[History]) -> None:
    """Draw a cell's seeds as thin lines, and their mean over common steps as a thick one.

    The mean is taken at equal steps: its x is the mean of the seeds' steps or seconds there.
    """
    if len(seeds) == 1:
        (seed,) = seeds
        lines.line(label, seed.x, seed.values, linewidth=2, gid=run_gid(seed.run))
        return
    explain(lines.ax, "Thick lines are means over seeds at equal steps, thin lines are seeds.")
    for seed in seeds:
        lines.ax.plot(
            seed.x, seed.values,
            color=lines.colours[label], linestyle=line_dash(label, lines.colours),
            linewidth=0.7, alpha=0.45, gid=run_gid(seed.run),
        )  # fmt: skip
    start = max(seed.steps[0] for seed in seeds)
    end = min(seed.steps[-1] for seed in seeds)
    steps = np.unique(np.concatenate([seed.steps for seed in seeds]))
    steps = steps[(steps >= start) & (steps <= end)]
    if steps.size:
        x = np.mean([np.interp(steps, seed.steps, seed.x) for seed in seeds], axis=0)
        mean = np.mean([np.interp(steps, seed.steps, seed.values) for seed in seeds], axis=0)
        lines.line(label, x, mean, linewidth=2)


def _limits_of_late_values(
    comparison: Comparison,
    histories: Mapping[str, Sequence[History]],
) -> tuple[float, float]:
    """Return axis limits for the later values, which the high first values would flatten."""
    near = [
        seeds for label, seeds in histories.items() if label not in comparison.bounds.outlying_cells
    ]
    shown = [seed.values for seed in chain.from_iterable(near or histories.values())]
    values = np.concatenate(shown)
    last = [history[-1] for history in shown]
    top = max(float(np.quantile(values, 0.85)), max(last) + 0.3 * (max(last) - min(last)))
    low = float(values.min())
    top = min(top, float(values.max()))
    pad = 0.05 * (top - low) or 1e-3
    return low - pad, top + pad


@dataclass(frozen=True)
class Crossing:
    """A grid of two settings: its cells by (value of `lines`, value of `along`).

    `lines`: the setting with a line for each value. `along`: the setting of the horizontal axis;
    `numbers`: its values as ascending numbers, None if some are not numbers.
    """

    lines: Axis
    along: Axis
    cells: Mapping[tuple[str, str], Cell]
    numbers: tuple[float, ...] | None


def find_crossing(comparison: Comparison) -> Crossing | None:
    """Return the grid of two settings; None unless the axes are two and most cells have results."""
    if len(comparison.axes) != 2:
        return None
    # Draw an axis of numbers along x; if both or none have numbers, the axis with more values.
    lines, along = sorted(
        comparison.axes, key=lambda axis: (_numbers(axis) is not None, len(axis.values))
    )
    cells = {}
    for cell in comparison.cells:
        run = next(iter(cell.runs.values()))
        cells[axis_value(run, lines.key), axis_value(run, along.key)] = cell
    # Leave out values for which no run has a result.
    lines = _restrict_axis(lines, {key[0] for key in cells})
    along = _restrict_axis(along, {key[1] for key in cells})
    if len(cells) < max(4, LEAST * len(lines.values) * len(along.values)):
        return None
    numbers = _numbers(along)
    if numbers:
        along = Axis(along.key, tuple(sorted(along.values, key=float)))
    return Crossing(lines, along, cells, numbers)


def _restrict_axis(axis: Axis, values: Collection[str]) -> Axis:
    """Return an axis with only those of its values that are in ``values``."""
    return Axis(axis.key, tuple(value for value in axis.values if value in values))


def _numbers(axis: Axis) -> tuple[float, ...] | None:
    """Return an axis's values as ascending numbers; None if some are not numbers."""
    numbers = sorted(map(to_float, axis.values))
    return tuple(numbers) if all(map(math.isfinite, numbers)) else None


def lines_by_label(comparison: Comparison) -> dict[str, str]:
    """Return {cell's label: name of the line on which `crossing_figure` draws it}; {} if none."""
    crossed = find_crossing(comparison)
    if crossed is None:
        return {}
    return {cell.label: line for (line, _), cell in crossed.cells.items()}


HOW = (
    "Each line is one {lines}, over {along}. A ring marks the lowest mean of each line. Lower is "
    "better."
)


def crossing_figure(comparison: Comparison, colours: Colours) -> Figure | None:
    """Draw the test bound along one setting, a line for each value of the other."""
    crossed = find_crossing(comparison)
    if crossed is None:
        return None
    values = crossed.along.values
    places = dict(zip(values, crossed.numbers or map(float, range(len(values))), strict=True))
    labels = {line: cell.label for (line, _), cell in crossed.cells.items()}
    inks = {line: colours[labels[line]] for line in crossed.lines.values}
    lines = LineFigure(crossed.lines.values, inks)
    lines.ax.set_ylim(*limits_without_outliers(comparison.bounds))
    for name in crossed.lines.values:
        keys = [key for key in values if (name, key) in crossed.cells]
        _draw_line(lines, name, {places[key]: crossed.cells[name, key] for key in keys})
    if crossed.numbers is None:
        lines.ticks([*places.values()], [shorten(key, 14) for key in values], log=False)
    else:
        smallest = crossed.numbers[0]
        largest = crossed.numbers[-1]
        log = smallest > 0 and largest / smallest >= WIDE
        lines.ticks(crossed.numbers, [f"{float(key):g}" for key in values], log)
    return lines.finish(crossed.along.key, f"test bound, {comparison.unit}")


def _draw_line(lines: LineFigure, name: str, cells: Mapping[float, Cell]) -> None:
    """Draw cells' means with errors, a dot for each seed, and a ring around the lowest mean."""
    ink = lines.colours[name]
    x = [*cells]
    means = [cell.bound.mean for cell in cells.values()]
    errors = [cell.bound.stderr for cell in cells.values()]
    lines.line(name, x, means)
    lines.ax.errorbar(x, means, errors, color=ink, fmt="none", elinewidth=1.1, capsize=2.5)
    for place, cell in cells.items():
        if cell.bound.n > 1:
            explain(
                lines.ax,
                "Dots are seeds; the line connects their means, with standard errors.",
            )
        for seed, bound in cell.values().items():
            mark_beyond(lines.ax, [place], [bound], ink)
            # Dots are drawn above the ring, so that it hides no seed.
            lines.ax.plot(
                place, bound, "o", gid=run_gid(cell.runs[seed]), markersize=3, color=ink,
                alpha=0.5, markeredgewidth=0, zorder=4,
            )  # fmt: skip
    lowest, place = min(zip(means, x, strict=True))
    lines.ax.scatter(
        [place], [lowest], s=70, facecolor=PAPER, edgecolor=ink, linewidth=1.8, zorder=3
    )
