"""Tuning before a comparison: trials, which read no test set, and the values that were chosen.

The runs on fresh seeds are compared twice: at what was best for all together, and each at its own best.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from triptych.run.parsing import to_float
from triptych.run.read import Run
from triptych.study.axes import value_name
from triptych.study.formatting import listed

EQUAL, BEST = "equal settings", "each at its best"
Point = tuple[str, ...]


@dataclass(frozen=True)
class Tuning:
    """What was tuned: keys, points as typed, the best for all settings and for each, number of seeds."""

    keys: tuple[str, ...]
    points: tuple[Point, ...]
    equal: Point
    best: Mapping[str, Point]
    seeds: int


def read_tuning(sweep: Mapping[str, Any]) -> Tuning | None:
    """Return the tuning that ``sweep.json`` records, if it came to an end; None for other sweeps."""
    record: Any = sweep.get("tuning")
    try:
        points = tuple(tuple(map(str, point)) for point in record["points"])
        best = {str(setting): tuple(map(str, point)) for setting, point in record["best"].items()}
        keys, equal = tuple(map(str, record["keys"])), tuple(map(str, record["equal"]))
        tuning = Tuning(keys, points, equal, best, len(record["seeds"]))
    except (KeyError, TypeError, AttributeError):
        return None
    return tuning if points and all(len(point) == len(keys) > 0 for point in points) else None


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
        typed = {**run.choices, **run.overrides}.items()
        setting = next((setting for setting in tuning.best if _parts(setting).items() <= typed), None)
        point = tuple(f"{key}={run.overrides.get(key, '')}" for key in tuning.keys)
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
    trials = len(tuning.points) * tuning.seeds
    own = "; ".join(f"{setting_label(s)}: {', '.join(_values(p))}" for s, p in tuning.best.items())
    ordered = sorted(tuning.points, key=lambda point: to_float(_values(point)[0]))  # NaN keeps the order
    ends = (ordered[0], ordered[-1]) if len(tuning.keys) == 1 else ()
    edge = [setting_label(s) for s, point in tuning.best.items() if point in ends]
    text = (
        f"{listed(list(tuning.keys))} was tuned by the validation bound, {trials} trials for each setting "
        f"({len(tuning.points)} values, {tuning.seeds} seeds), on seeds that are in no comparison. Best for "
        f"all together: {', '.join(_values(tuning.equal))}. Own best: {own}."
    )
    if edge:
        text += f" At the edge of what was tried: {listed(edge)}; a wider range may help there."
    return text


def setting_label(setting: str) -> str:
    """Name such a cell as the report does: "x0 / cosine" of "objective=x0,schedule=cosine"."""
    return " / ".join(value_name(key, text) for key, text in _parts(setting).items())


def _parts(setting: str) -> dict[str, str]:
    """Return {key: value} of a setting's name; a list's commas are no ends of its value."""
    return dict(part.split("=", 1) for part in re.split(r",(?=[^,=\[\]{}]+=)", setting) if "=" in part)


def _values(point: Point) -> list[str]:
    return [part.split("=", 1)[-1] for part in point]
