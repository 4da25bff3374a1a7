"""The figure of two crossed settings: the bound along one, a line for each value of the other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from triptych.run.parsing import to_float
from triptych.study.axes import Axis, value
from triptych.study.cells import Cell, Comparison
from triptych.study.style import PAPER, LineFigure, mark, short

LEAST = 2 / 3  # of all combinations, that make a grid
WIDE = 8.0  # largest over smallest value, from which on an axis is logarithmic


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
