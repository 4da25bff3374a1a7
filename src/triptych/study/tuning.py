"""Tuning before a comparison: trials, chosen values, and the change of the verdict.

The trials read no test set and are in no comparison. The runs on fresh seeds are compared twice: with every
setting at the value that was best for all together ("equal settings"), and each at its own best.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.figure import Figure

from triptych.run.entries import UNITS
from triptych.run.read import Run
from triptych.study.axes import value_name
from triptych.study.formatting import format_number, listed
from triptych.study.style import GRID, INK, LineFigure, plain_log

EQUAL, BEST = "equal settings", "each at its best"
Point = tuple[str, ...]


@dataclass(frozen=True)
class Tuning:
    """What was tuned: keys, points as typed, validation bounds of the trials by setting, point and seed."""

    keys: tuple[str, ...]
    points: tuple[Point, ...]
    equal: Point
    best: Mapping[str, Point]
    bounds: Mapping[str, Mapping[Point, Mapping[int | None, float]]]
    measure: str

    @property
    def ordered(self) -> tuple[Point, ...]:
        """The points by size, where they are numbers of one key; else as typed."""
        numbers = {point: _number(point[0]) for point in self.points}
        if len(self.keys) > 1 or any(map(math.isnan, numbers.values())):
            return self.points
        return tuple(sorted(self.points, key=lambda point: numbers[point]))

    def mean(self, setting: str, point: Point) -> float:
        """Average validation bounds over the trials' seeds; NaN where there is none, or one not finite."""
        values = list(self.bounds.get(setting, {}).get(point, {}).values())
        return sum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan


def read_tuning(sweep: Mapping[str, Any], runs: Sequence[Run]) -> Tuning | None:
    """Return the tuning that ``sweep.json`` records, if it came to an end; None for other sweeps."""
    record = sweep.get("tuning")
    if not isinstance(record, Mapping) or not isinstance(record.get("best"), Mapping):
        return None
    try:
        points = tuple(tuple(map(str, point)) for point in record["points"])
        best = {str(s): tuple(map(str, point)) for s, point in record["best"].items()}
        keys, equal = tuple(map(str, record["keys"])), tuple(map(str, record["equal"]))
    except (KeyError, TypeError):
        return None
    if not points:
        return None
    bounds: dict[str, dict[Point, dict[int | None, float]]] = {s: {} for s in best}
    measure = ""
    for run in runs:
        setting, point = _setting(run, best), _point(run, keys)
        unit = next((u for u in UNITS if u in run.val), "")
        if is_trial(run) and setting is not None and point in points and unit:
            bounds[setting].setdefault(point, {})[run.seed] = run.val[unit].mean
            measure = measure or unit
    return Tuning(keys, points, equal, best, bounds, measure)


def is_trial(run: Run) -> bool:
    """Return whether a run is a trial of a tuning stage, which leaves out the test set."""
    return str(run.overrides.get("test", "")).lower() == "false"


def stages(runs: Sequence[Run], tuning: Tuning | None) -> list[tuple[str, list[Run]]]:
    """Return the groups of runs to compare: one, or two if a sweep tuned first."""
    rest = [run for run in runs if not is_trial(run)]
    if tuning is None:
        return [("", rest)]
    equal, best = [], []
    for run in rest:
        setting, point = _setting(run, tuning.best), _point(run, tuning.keys)
        # what was tuned is no setting here: it is part of the rule that the title names
        overrides, config = (
            {key: value for key, value in values.items() if key not in tuning.keys}
            for values in (run.overrides, run.config)
        )
        bare = replace(run, overrides=overrides, config=config)
        if setting is not None and point == tuning.equal:
            equal.append(bare)
        if setting is not None and point == tuning.best[setting]:
            best.append(bare)
    return [(BEST, best), (EQUAL, equal)]


def sentence(tuning: Tuning) -> str:
    """Describe what was tuned and chosen."""
    seeds = {seed for points in tuning.bounds.values() for by_seed in points.values() for seed in by_seed}
    trials = len(tuning.points) * len(seeds)
    own = "; ".join(f"{setting_label(s)}: {', '.join(_values(p))}" for s, p in tuning.best.items())
    ends = {tuning.ordered[0], tuning.ordered[-1]} if len(tuning.keys) == 1 else set()
    edge = [setting_label(s) for s, point in tuning.best.items() if point in ends]
    text = (
        f"{listed(list(tuning.keys))} was tuned by the validation bound, {trials} trials for each setting "
        f"({len(tuning.points)} values, {len(seeds)} seeds), on seeds that are in no comparison. Best for "
        f"all together: {', '.join(_values(tuning.equal))}. Own best: {own}."
    )
    if edge:
        text += f" At the edge of what was tried: {listed(edge)}; a wider range may help there."
    return text


def change(orders: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """Describe how tuning changes the ranking; ``orders``: (setting, test bound) per stage, best first."""
    if not all(orders.get(stage) for stage in (EQUAL, BEST)):
        return ""
    names = {stage: [name for name, _ in order] for stage, order in orders.items()}
    equal = dict(orders[EQUAL])
    moved = [
        f"{name} by {format_number(value - equal[name], sign=True)}"
        for name, value in orders[BEST]
        if name in equal and abs(equal[name] - value) > 5e-4
    ]
    text = f"From {EQUAL} to {BEST}, the order of the means "
    text += "stays the same" if names[EQUAL] == names[BEST] else f"becomes {', '.join(names[BEST])}"
    text += f"; {listed(moved)}." if moved else "; no mean moves by more than 0.0005."
    return text


def tuning_figure(tuning: Tuning, colours: Mapping[str, str]) -> Figure | None:
    """Return the validation bound of each setting at each value: dots are seeds, a ring is its choice."""
    if len(tuning.points) < 2:
        return None
    points = tuning.ordered
    numeric = [_number(point[0]) for point in points]
    log = len(tuning.keys) == 1 and all(v > 0 for v in numeric)
    at = dict(zip(points, numeric if log else [float(i) for i in range(len(numeric))], strict=True))
    inks = {setting_label(s): colours.get(setting_label(s), INK) for s in tuning.best}
    lines = LineFigure(inks, inks)
    shown: list[float] = []
    for setting, chosen in tuning.best.items():
        label = setting_label(setting)
        means = [tuning.mean(setting, point) for point in points]
        lines.line(label, list(at.values()), means, marker="o", markersize=3)
        for point, seeds in tuning.bounds.get(setting, {}).items():
            values = [v for v in seeds.values() if math.isfinite(v)]
            dots: dict[str, Any] = {"s": 9, "color": inks[label], "alpha": 0.5, "linewidth": 0}
            lines.ax.scatter([at[point]] * len(values), values, **dots)
        lines.ring(label, (tuning.mean(setting, chosen), at[chosen]))
        shown += filter(math.isfinite, means)
    if not shown:
        return None
    lines.ax.axvline(at[tuning.equal], color=GRID, linewidth=5, zorder=0)
    lines.frame(shown)
    ticks = [plain_log(v) for v in at.values()] if log else [", ".join(_values(p)) for p in points]
    lines.ticks(list(at.values()), ticks, log)
    return lines.finish(", ".join(tuning.keys), f"validation bound, {UNITS.get(tuning.measure, '')}")


def setting_label(setting: str) -> str:
    """Name such a cell as the report does: "x0 / cosine" of "objective=x0,schedule=cosine"."""
    return " / ".join(value_name(key, text) for key, text in _parts(setting).items())


def _parts(setting: str) -> dict[str, str]:
    """Return {key: value} of a setting's name; a list's commas are no ends of its value."""
    return dict(part.split("=", 1) for part in re.split(r",(?=[^,=\[\]{}]+=)", setting) if "=" in part)


def _setting(run: Run, known: Mapping[str, Point]) -> str | None:
    for setting in known:
        if all(run.overrides.get(k, run.choices.get(k)) == v for k, v in _parts(setting).items()):
            return setting
    return None


def _point(run: Run, keys: Sequence[str]) -> Point:
    return tuple(f"{key}={run.overrides.get(key, '')}" for key in keys)


def _values(point: Point) -> list[str]:
    return [part.split("=", 1)[-1] for part in point]


def _number(text: str) -> float:
    try:
        return float(text.split("=", 1)[-1])
    except ValueError:
        return math.nan
