"""Data for the page's script: runs, their differences, and all pairs of settings.

All of it is text and numbers that are ready to be shown: the script chooses among them and computes no
statistic. It travels as JSON in the page itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.parsing import natural_key
from triptych.run.read import Run
from triptych.study import measures
from triptych.study.axes import all_settings
from triptych.study.cells import Cell, Comparison
from triptych.study.run_details import CURVES, cut, of_run
from triptych.study.study import Study
from triptych.study.tables import against

NOWHERE = {Role.PATH, Role.OUTPUT}  # where something lies is no property to group by
POINTS, FEWEST = 12_000, 24  # of each curve: as many as all runs share, and at least


def as_json(story: Study, where: Mapping[Path, str]) -> str:
    """Serialise `details` as JSON for a script element: no text in it ends the element."""
    text = json.dumps(details(story, where), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def details(story: Study, where: Mapping[Path, str]) -> dict[str, Any]:
    """Collect the page's details: runs in the order of its table, each comparison's cells in that of theirs.

    `where`: each run's directory as a reader at the report finds it, by which the page names it.
    """
    runs, flat = story.runs, [_flat(run) for run in story.runs]
    homes = _homes(story.comparisons)
    differ = _differing(flat, [values for run, values in zip(runs, flat, strict=True) if run.config])
    place = {run.dir: i for i, run in enumerate(runs)}
    points = max(FEWEST, POINTS // max(len(runs), 1) // CURVES)
    rows = []
    for run, values in zip(runs, flat, strict=True):
        section, label = homes.get(run.dir, (None, ""))
        own = {key: cut(values[key]) for key in differ if key in values}
        row = {"name": where[run.dir], "section": section, "cell": label, "own": own}
        rows.append(row | of_run(run, points))
    return {
        "running": bool(story.counts["running"]),
        "runs": rows,
        "keys": differ,
        "sections": [_section(c, place, flat, differ) for c in story.comparisons],
    }


# settings ---------------------------------------------------------------------------------------------


def _flat(run: Run) -> dict[str, str]:
    values = all_settings(run)
    if run.seed is not None:
        values["seed"] = str(run.seed)
    more = {"status": run.status, "sweep": run.sweep, "device": run.device, "host": run.host}
    more["commit"] = run.commit[:10]
    return {key: value for key, value in more.items() if value and key not in values} | values


def _differing(flat: Sequence[Mapping[str, str]], whole: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys of which some runs have another value, or none: typed ones and short ones first.

    `whole`: those whose configuration is known. What a refused run does not tell is no difference.
    """
    every = dict.fromkeys(key for one in flat for key in one)
    none = {key for key in every if any(key not in one for one in whole)}
    keys = [key for key in every if len({one[key] for one in flat if key in one}) + (key in none) > 1]
    return sorted(
        (key for key in keys if role(key) not in NOWHERE), key=lambda k: (k.count("."), natural_key(k))
    )


def _homes(comparisons: Sequence[Comparison]) -> dict[Path, tuple[int, str]]:
    """Return the comparison and the cell of each run; of a sweep that tuned first, the last stage's."""
    return {
        run.dir: (k, cell.label)
        for k, comparison in enumerate(comparisons)
        for cell in (*comparison.cells, *comparison.pending)
        for run in (*cell.runs.values(), *cell.others)
    }


# comparisons ------------------------------------------------------------------------------------------


def _section(
    comparison: Comparison, place: Mapping[Path, int], flat: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> dict[str, Any]:
    """Return the cells of a comparison and the differences of all pairs.

    `against`: by reference and cell, the difference, its corrected p and the verdict.
    """
    known = {"cells": [_cell(cell, place, flat, keys) for cell in (*comparison.cells, *comparison.pending)]}
    if measures.deciding(comparison) or len(comparison.cells) < 2:
        return known | {"against": []}
    places = range(len(comparison.cells))
    pairs = [[against(comparison, reference, i) for i in places] for reference in places]
    texts = [[(of["difference"].text, of["p"].text, verdict) for of, verdict in row] for row in pairs]
    return known | {"against": texts}


def _cell(
    cell: Cell, place: Mapping[Path, int], flat: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> dict[str, Any]:
    runs = [*cell.runs.values(), *cell.others]
    own = {}
    for key in keys:
        values = dict.fromkeys(v for run in runs if (v := flat[place[run.dir]].get(key)) is not None)
        if values:
            own[key] = cut(", ".join(values))
    return {"label": cell.label, "runs": [place[run.dir] for run in runs], "own": own}
