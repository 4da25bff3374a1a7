"""One row per cell: the headline, differences to the best, train against test.

Each function takes a comparison and a colour per label; it returns a figure, or None where there is
nothing to show. Rows are in the order of the table, the best on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform

from triptych.study.compare import Cell, Comparison
from triptych.study.formatting import BASELINES, difference, format_number, plus_minus
from triptych.study.style import GRID, INK, MUTED, PAPER, axes, inches, is_narrow, mark, short, shortened

WIDTH, ROW, TALL = 7.2, 0.36, 0.54  # inches; TALL: of a row with its name above it
Colours = Mapping[str, str]


def headline(comparison: Comparison, colours: Colours) -> Figure | None:
    """Each seed a dot, the mean a bar, the 95% interval a line; what simpler models need is marked."""
    cells = comparison.cells
    if not cells:
        return None
    figure, ax = _rows(comparison, [plus_minus(cell.bound) for cell in cells], top=0.42)
    # an interval over two or three seeds can be far wider than everything else: the frame follows the dots
    low, high = _frame([v for cell in cells for v in cell.values().values()], [cell.bound for cell in cells])
    low, high = _references(ax, comparison, low, high)
    for y, cell in enumerate(cells):
        ink, bound, values = colours[cell.label], cell.bound, cell.values()
        if bound.n > 1:
            ax.plot(
                [bound.low, bound.high], [y, y], color=ink, linewidth=5, alpha=0.28, solid_capstyle="butt"
            )
            ax.plot([bound.mean] * 2, [y - 0.26, y + 0.26], color=ink, linewidth=2.2)
        for k, (seed, value) in enumerate(values.items()):
            shift = 0.2 * (k - (len(values) - 1) / 2) / max(len(values) - 1, 1)
            ax.plot(value, y + shift, "o", markersize=5.1, color=ink, markeredgecolor=PAPER,
                    markeredgewidth=0.7, zorder=3, gid=mark(cell.runs[seed]))  # fmt: skip
    ax.set_xlim(low, high)
    ax.set_xlabel(f"test bound, {comparison.unit} (lower is better)")
    return figure


def forest(comparison: Comparison, colours: Colours) -> Figure | None:
    """Paired difference to the best with its 95% interval; filled only where the corrected test claims it."""
    rivals = [(cell, comparison.claim(0, j)) for j, cell in enumerate(comparison.cells) if j]
    rivals = [rival for rival in rivals if rival[1].pair.n]
    if not rivals:
        return None
    pairs = [claim.pair for _, claim in rivals]
    figure, ax = _rows(comparison, [difference(pair) for pair in pairs], [cell for cell, _ in rivals])
    margin = comparison.rule.equal_within
    if margin is not None:
        ax.axvspan(-margin, margin, color=MUTED, alpha=0.15, linewidth=0)
    ax.axvline(0, color=INK, linewidth=1)
    low, high = _frame([0.0] + [pair.mean for pair in pairs], pairs)
    for y, (cell, claim) in enumerate(rivals):
        ink, pair = colours[cell.label], claim.pair
        if not math.isnan(pair.low):
            ax.plot([pair.low, pair.high], [y, y], color=ink, linewidth=1.8)
            ends = [end for end in (pair.low, pair.high) if low <= end <= high]
            ax.scatter(ends, [y] * len(ends), marker="|", s=42, color=ink, linewidth=1.8)
        fill = ink if claim.holds else PAPER
        ax.scatter([pair.mean], [y], s=46, color=fill, edgecolor=ink, linewidth=1.6, zorder=3)
    ax.set_xlim(low, high)
    ax.set_xlabel(
        f"{comparison.unit} more than {short(comparison.cells[0].label, 22)} (right of zero: worse)"
    )
    return figure


def train_test(comparison: Comparison, colours: Colours) -> Figure | None:
    """The bound on as many training items (ring) and on the test set (disc), mean over seeds."""
    cells = [cell for cell in comparison.cells if cell.spread("train").n]
    if not cells:
        return None
    ends = [(cell.spread("train").mean, cell.bound.mean) for cell in cells]
    errors = [_over_items(cell) for cell in cells]
    notes = [
        f"{format_number(test - train, sign=True)} ± {format_number(error)}"
        for error, (train, test) in zip(errors, ends, strict=True)
    ]
    figure, ax = _rows(comparison, notes, cells, top=0.42)
    for y, (cell, error, (train, test)) in enumerate(zip(cells, errors, ends, strict=True)):
        ink = colours[cell.label]
        significant = math.isfinite(error) and abs(test - train) > 2 * error
        ax.plot([train, test], [y, y], color=ink, linewidth=2.4, alpha=0.4)
        if math.isfinite(error):  # where the test set's bound would lie if nothing had been memorised
            ax.plot([train - 2 * error, train + 2 * error], [y + 0.2] * 2, color=MUTED, linewidth=1.6)
        ax.scatter([train], [y], s=40, color=PAPER, edgecolor=ink, linewidth=1.6, zorder=3)
        ax.scatter(
            [test], [y], s=46, color=ink if significant else PAPER, edgecolor=ink, linewidth=1.6, zorder=3
        )
        ax.plot(test, y, "x", markersize=4, color=PAPER if significant else ink, zorder=4)
    ax.text(0, 1.02, "○ training\u2003⊗ test", transform=ax.transAxes, color=MUTED, va="bottom")
    place, side = (1.0, "right") if is_narrow() else (1.02, "left")
    ax.text(place, 1.02, "test − train", transform=ax.transAxes, color=MUTED, va="bottom", ha=side)
    ax.margins(x=0.06)
    ax.set_xlabel(f"bound, {comparison.unit}")
    return figure


def _over_items(cell: Cell) -> float:
    """Standard error of test minus train over items; seeds share these, so their number takes nothing off."""
    both = [
        math.hypot(run.train[cell.measure].stderr, run.test[cell.measure].stderr)
        for run in cell.runs.values()
        if cell.measure in run.train
    ]
    return sum(both) / len(both) if both else math.nan


def _rows(
    comparison: Comparison,
    notes: list[str],
    cells: list[Cell] | None = None,
    top: float = 0.12,
    room: float = 0.0,
) -> tuple[Figure, Axes]:
    """Axes with a named row per cell and a note at the end of each; on a phone both stand above the row."""
    shown = comparison.cells if cells is None else cells
    if is_narrow():
        names = [short(cell.label) for cell in shown]
        left, right, row = 0.15, 0.15 if any(notes) else room, TALL
    else:
        names = list(shortened([cell.label for cell in shown], 30).values())
        left, right, row = inches(names) + 0.16, max(room, inches([*notes, "x" * 11]) + 0.16), ROW
    width = WIDTH + max(0.0, left - 1.0)
    figure, ax = axes(width, top + 0.5 + row * (len(names) + 0.3), left, right, top)
    ax.set_ylim(len(names) - 0.35, -0.65)
    ax.set_yticks(range(len(names)), [] if is_narrow() else names)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_color(GRID)
    if is_narrow():
        ax.locator_params(axis="x", nbins=5)
    across = ax.get_yaxis_transform()
    for y, (name, note) in enumerate(zip(names, notes, strict=True)):
        if is_narrow():
            for x, text, side, weight in ((0.0, name, "left", "bold"), (1.0, note, "right", "normal")):
                back = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}  # no line runs through the words
                ax.text(x, y - 0.32, text, transform=across, va="bottom", ha=side, fontweight=weight,
                        bbox=back if text else None, zorder=2.5)  # fmt: skip
        else:
            ax.text(1.02, y, note, transform=across, va="center")
    return figure, ax


def _frame(points: list[float], intervals: list[Any]) -> tuple[float, float]:
    """Limits that hold all points, and of each interval as much as leaves the points apart."""
    low, high = min(points), max(points)
    widths = sorted(i.high - i.low for i in intervals if not math.isnan(i.low))
    usual = widths[len(widths) // 2] if widths else 0.0
    reach = max(1.2 * (high - low), usual, 1e-3 * max(abs(low), abs(high), 1e-6))
    ends = [end for i in intervals for end in (i.low, i.high) if not math.isnan(end)]
    low = max(min([low, *ends]), low - reach)
    high = min(max([high, *ends]), high + reach)
    pad = 0.05 * (high - low) or 1e-3
    return low - pad, high + pad


def _references(ax: Axes, comparison: Comparison, low: float, high: float) -> tuple[float, float]:
    """Mark what simpler models need; far ones are named at the edge, so that cells stay apart."""
    recorded = (run.baselines for run in comparison.runs if run.baselines)
    known = next(recorded, {}) if comparison.measure == "bpd" else {}
    marks = [(head.partition(" ")[2], known[name]) for name, head in BASELINES.items() if name in known]
    truths = [cell.spread(part="entropy").mean for cell in comparison.cells if cell.spread(part="entropy").n]
    if truths:
        marks.append(("entropy (best possible)", truths[0]))
    near = [mark for mark in marks if low - 0.5 * (high - low) <= mark[1] <= high + 0.5 * (high - low)]
    span = high - low
    low, high = (
        min([low, *(v - 0.04 * span for _, v in near)]),
        max([high, *(v + 0.04 * span for _, v in near)]),
    )
    for name, at in near:
        ax.axvline(at, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        side: Literal["left", "right"] = "right" if at > (low + high) / 2 else "left"
        _above(ax, at, 0, f"{name} {format_number(at)}", side, ax.get_xaxis_transform())
    far = sorted((mark for mark in marks if mark not in near), key=lambda mark: mark[1])
    right = [f"{name} {format_number(at)} →" for name, at in far if at > high]
    left = [f"← {name} {format_number(at)}" for name, at in far if at < low]
    for x, side, texts in ((1.0, "right", right), (0.0, "left", left)):
        if texts:
            _above(ax, x, int(bool(near)), "\u2003".join(texts), side, ax.transAxes)
    return low, high


def _above(
    ax: Axes, x: float, line: int, text: str, side: Literal["left", "right"], transform: Transform
) -> None:
    """Write over the axes, on the lower (0) or upper (1) line."""
    offset = (0, 4 + 13 * line)
    ax.annotate(text, (x, 1), offset, transform, "offset points", color=MUTED, ha=side, va="bottom")
