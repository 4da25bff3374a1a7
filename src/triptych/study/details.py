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
from triptych.study.axes import all_settings
from triptych.study.cells import Comparison
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
    keys = _differing(flat, [values for run, values in zip(runs, flat, strict=True) if run.config])
    own = [{key: values[key] for key in keys if key in values} for values in flat]
    place = {run.dir: i for i, run in enumerate(runs)}
    homes: dict[int, tuple[int, str]] = {}  # of a sweep that tuned first, the last stage's
    sections = []
    for k, comparison in enumerate(story.comparisons):
        cells = []
        for cell in (*comparison.cells, *comparison.pending):
            at = [place[run.dir] for run in (*cell.runs.values(), *cell.others)]
            homes |= dict.fromkeys(at, (k, cell.label))
            values = {key: dict.fromkeys(own[i][key] for i in at if key in own[i]) for key in keys}
            shown = {key: cut(", ".join(several)) for key, several in values.items() if several}
            cells.append({"label": cell.label, "runs": at, "own": shown})
        sections.append({"cells": cells, "against": _against(comparison)})
    points = max(FEWEST, POINTS // max(len(runs), 1) // CURVES)
    rows = []
    for i, run in enumerate(runs):
        section, label = homes.get(i, (None, ""))
        row = {"name": where[run.dir], "section": section, "cell": label}
        rows.append(row | {"own": {key: cut(text) for key, text in own[i].items()}} | of_run(run, points))
    return {"running": bool(story.counts["running"]), "runs": rows, "keys": keys, "sections": sections}


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


def _against(comparison: Comparison) -> list[list[tuple[str, str, str]]]:
    """Return by reference and cell the difference, its corrected p and the verdict."""
    if comparison.deciding or len(comparison.cells) < 2:
        return []
    places = range(len(comparison.cells))
    pairs = [[against(comparison, reference, i) for i in places] for reference in places]
    return [[(of["difference"].text, of["p"].text, verdict) for of, verdict in row] for row in pairs]
