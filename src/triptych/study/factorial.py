"""Two settings crossed: one drawn as lines, the other along the axis; main effects and interaction in words.

    y[a, b, s] = mu + A_a + B_b + (AB)_ab + S_s + e        a, b: values of the settings; s: seeds, as blocks

An effect is a difference of means over all values of the other setting, taken within each seed that has all
cells, so its interval is a paired Student-t's over seeds. The interaction is tested by
F = MS_AB / MS_rest with (a-1)(b-1) and (ab-1)(n-1) degrees of freedom, exact where every cell has the same
spread (Montgomery, Design and Analysis of Experiments, section 5.6: two factors, runs in blocks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy.special import fdtrc

from triptych.study.axes import Axis, value
from triptych.study.compare import Cell, Comparison
from triptych.study.formatting import format_number, interval, listed, p_value, plus_minus
from triptych.study.statistics import Spread, spread
from triptych.study.style import (
    LINES,
    LineFigure,
    mark,
    plain_log,
    short,
)

LEAST = 2 / 3  # of all combinations, that make a grid
WIDE = 8.0  # largest over smallest value, from which on an axis is logarithmic


@dataclass(frozen=True)
class Crossing:
    """Cells by (value of `lines`, value of `along`), in the order in which they are drawn.

    `numbers`: `along`'s values as numbers, ascending; None where some are none.
    """

    lines: Axis
    along: Axis
    cells: Mapping[tuple[str, str], Cell]
    numbers: tuple[float, ...] | None

    @property
    def logarithmic(self) -> bool:
        """Whether the numbers are apart by factors."""
        return bool(self.numbers) and self.numbers[0] > 0 and self.numbers[-1] / self.numbers[0] >= WIDE  # type: ignore[index]

    def line(self, name: str) -> dict[str, Cell]:
        """The cells of one value of `lines`, by those of `along`."""
        return {at: self.cells[name, at] for at in self.along.values if (name, at) in self.cells}


def crossing(comparison: Comparison) -> Crossing | None:
    """The grid that a comparison of two crossed settings is; None where it is none, or has too many holes."""
    if len(comparison.axes) != 2:
        return None
    first, second = comparison.axes
    numeric = {axis.key: numbers_of for axis in comparison.axes if (numbers_of := _numbers(axis))}
    along = max((first, second), key=lambda a: (a.key in numeric, len(a.values), a is second))
    lines = first if along is second else second
    cells = {}
    for cell in comparison.cells:
        run = next(iter(cell.runs.values()))
        cells[value(run, lines.key), value(run, along.key)] = cell
    if len(cells) < max(4, LEAST * len(lines.values) * len(along.values)):
        return None
    numbers = numeric.get(along.key)
    if numbers:
        along = Axis(along.key, tuple(sorted(along.values, key=float)))
    return Crossing(lines, along, cells, numbers)


def _numbers(axis: Axis) -> tuple[float, ...] | None:
    try:
        numbers = sorted(float(text) for text in axis.values)
    except ValueError:
        return None
    return tuple(numbers) if all(map(math.isfinite, numbers)) else None


# in words ---------------------------------------------------------------------------------------------


def effects(comparison: Comparison) -> list[str]:
    """Main effects of both settings with their intervals, and whether they interact; [] without a whole grid.

    None of it is among the claims that the report corrects for, and each sentence avoids their words.
    """
    crossed = crossing(comparison)
    table = None if crossed is None else _by_seed(crossed)
    if crossed is None or table is None:
        return []
    unit = comparison.unit
    sentences = [
        _main(crossed.lines, crossed.along, table.mean(2), unit),
        _main(crossed.along, crossed.lines, table.mean(1), unit),
        _where(crossed, table),
    ]
    if len(table) > 1:
        f, df, rest, p = interaction(table)
        p_text = "< 0.0001" if p < 1e-4 else f"= {p_value(p)}"
        sentences.append(
            f"Interaction of {crossed.lines.key} and {crossed.along.key}: F({df}, {rest}) = {f:.3g}, "
            f"p {p_text}, seeds as blocks, equal spread supposed; it is not among the corrected claims."
        )
    return sentences


def _by_seed(crossed: Crossing) -> np.ndarray | None:
    """Bounds (seeds, lines, along) of the seeds that all cells have; None without a seed, or a cell."""
    names = [(a, b) for a in crossed.lines.values for b in crossed.along.values]
    if any(name not in crossed.cells for name in names):
        return None
    values = [crossed.cells[name].values() for name in names]
    seeds = [seed for seed in values[0] if all(seed in v for v in values)]
    if not seeds:
        return None
    table = np.array([[v[seed] for v in values] for seed in seeds])
    return table.reshape(len(seeds), len(crossed.lines.values), len(crossed.along.values))


def _main(axis: Axis, other: Axis, means: np.ndarray, unit: str) -> str:
    """The order of an axis's values by means (seeds, values) over the other axis."""
    spreads = [spread(list(column)) for column in means.T]
    order = sorted(range(len(spreads)), key=lambda i: spreads[i].mean)
    best, rest = order[0], order[1:]
    named = [f"{axis.values[i]} {_more(spread(list(means[:, i] - means[:, best])))}" for i in rest[:4]]
    named += [f"{len(rest) - 4} others more"] if len(rest) > 4 else []
    return (
        f"Mean over {other.key}, by {axis.key}: {axis.values[best]} is lowest, {plus_minus(spreads[best])} "
        f"{unit}; {listed(named)}."
    )


def _more(difference: Spread) -> str:
    """ "+0.114 [0.102, 0.127]"."""
    ends = "" if math.isnan(difference.low) else f" {interval(difference.low, difference.high)}"
    return format_number(difference.mean, sign=True) + ends


def _where(crossed: Crossing, table: np.ndarray) -> str:
    """Which value of `along` is best for each value of `lines`, by the mean over seeds."""
    best = table.mean(0).argmin(1)
    named: dict[str, list[str]] = {}
    for name, i in zip(crossed.lines.values, best, strict=True):
        named.setdefault(crossed.along.values[i], []).append(name)
    if len(named) == 1:
        return f"The lowest mean is at {crossed.along.key}={next(iter(named))} for every {crossed.lines.key}."
    each = [f"{at} for {listed(names)}" for at, names in named.items()]
    return f"The {crossed.along.key} of the lowest mean differs: {'; '.join(each)}."


def interaction(table: np.ndarray) -> tuple[float, int, int, float]:
    """F, its degrees of freedom and p of no interaction, from bounds (seeds, a, b) of at least two seeds."""
    n, a, b = table.shape
    cells = table.mean(0)
    crossed = cells - cells.mean(1, keepdims=True) - cells.mean(0, keepdims=True) + cells.mean()
    rest = table - cells - table.mean((1, 2), keepdims=True) + cells.mean()
    df, df_rest = (a - 1) * (b - 1), (a * b - 1) * (n - 1)
    f = (n * (crossed**2).sum() / df) / ((rest**2).sum() / df_rest)
    return float(f), df, df_rest, float(fdtrc(df, df_rest, f))


# drawn ------------------------------------------------------------------------------------------------

HOW = (
    "Each line is one {lines}, along {along}: the mean of the seeds, which are the dots, with its standard "
    "error. A ring marks each line's lowest mean. Lower is better; lines are cut where the frame ends."
)


def crossing_figure(comparison: Comparison, colours: Mapping[str, str]) -> Figure | None:
    """The test bound along one setting, a line for each value of the other."""
    crossed = crossing(comparison)
    if crossed is None:
        return None
    at = dict(zip(crossed.along.values, crossed.numbers or range(len(crossed.along.values)), strict=True))
    cells_of = {name: cells for name in crossed.lines.values if (cells := crossed.line(name))}
    inks = {name: colours[next(iter(cells.values())).label] for name, cells in cells_of.items()}
    lines = LineFigure(crossed.lines.values, inks, (7.2, 3.8), 0.78)
    for i, (name, cells) in enumerate(cells_of.items()):
        x, bounds = [float(at[key]) for key in cells], [cell.bound for cell in cells.values()]
        means = [bound.mean for bound in bounds]
        errors = [0.0 if math.isnan(bound.stderr) else bound.stderr for bound in bounds]
        how = {"color": inks[name], "linewidth": 1.6, "linestyle": LINES[i // 12 % len(LINES)]}
        lines.ax.errorbar(x, means, errors, **how, capsize=2.5, elinewidth=1.1)
        for place, cell in zip(x, cells.values(), strict=True):
            for seed, bound in cell.values().items():
                lines.ax.plot(place, bound, "o", markersize=3, color=inks[name], alpha=0.5, markeredgewidth=0,
                              gid=mark(cell.runs[seed]))  # fmt: skip
        lines.ring(name, min(zip(means, x, strict=True)))
        lines.end(name, means)
    lines.frame([cell.bound.mean for cells in cells_of.values() for cell in cells.values()])
    ticks = [plain_log(float(key)) if crossed.numbers else short(key, 14) for key in at]
    lines.ticks(list(map(float, at.values())), ticks, crossed.logarithmic)
    return lines.finish(crossed.along.key, f"test bound, {comparison.unit}")
