"""Collect the report's data for its script, as JSON: runs with curves and origin, and all pairs.

All of it is text and numbers that are ready to be shown: the script computes no statistic.
"""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_05UP, Context
from pathlib import Path
from typing import Any

from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.directory import RunDirectory
from triptych.run.parsing import UNITS, natural_key
from triptych.run.provenance_file import Provenance
from triptych.run.read import Run
from triptych.study.axes import all_keys
from triptych.study.comparison import Comparison
from triptych.study.formatting import duration, plus_minus
from triptych.study.study import Study
from triptych.study.style import run_gid
from triptych.study.tables import difference_entries

# Roles of the keys by which runs cannot be grouped: paths.
PATH_ROLES = {Role.PATH, Role.OUTPUT}
CURVES = 16  # maximum number of curves per run
TEXT = 240  # maximum number of characters of a value
# Keys of a sweep's command that one run of it does not need.
OF_SWEEP = ("name", "hparams_search", "until", "max_seeds", "equal_within")
POINTS = 12_000  # maximum number of points of each curve, over all runs
FEWEST = 24  # minimum number of points of a run's curve
# The page rounds once more, to the digits that it shows. ROUND_05UP leaves no last digit 0 or 5
# that is not exact, so that rounding twice gives the same as rounding the recorded value once.
FIVE_DIGITS = Context(prec=5, rounding=ROUND_05UP)


def as_json(study: Study, where: Mapping[Path, str]) -> str:
    """Serialise `details` as JSON, escaped so that no text in it ends the page's script element."""
    text = json.dumps(details(study, where), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def details(study: Study, where: Mapping[Path, str]) -> dict[str, Any]:
    """Collect the page's details: runs and each comparison's cells, in the order of their tables.

    `where`: {run's directory: its path relative to the report}, by which the page names the run.
    """
    properties = list(map(_properties, study.runs))
    keys = _differing_properties(study.runs, properties)
    own = [{key: values[key] for key in keys if key in values} for values in properties]
    places = {run.dir: place for place, run in enumerate(study.runs)}
    # {index of a run: its section and cell}; the last one if it is compared twice.
    homes: dict[int, dict[str, Any]] = {}
    sections = []
    for number, comparison in enumerate(study.comparisons):
        cells = []
        for cell in comparison.all_cells:
            runs = [places[run.dir] for run in (*cell.runs.values(), *cell.others)]
            far = cell.label in comparison.bounds.outlying_cells
            homes |= {run: {"section": number, "cell": cell.label, "far": far} for run in runs}
            together = _values_by_property([own[run] for run in runs])
            cells.append({"label": cell.label, "runs": runs, "own": together})
        sections.append({"cells": cells, "against": _pair_verdicts(comparison)})
    points = max(FEWEST, POINTS // max(len(study.runs), 1) // CURVES)
    rows = []
    for place, run in enumerate(study.runs):
        row: dict[str, Any] = {"section": None, "cell": "", "far": False} | homes.get(place, {})
        row["far"] |= run.status == "diverged"
        row |= {
            "name": where[run.dir],
            "own": {key: truncate(text) for key, text in own[place].items()},
        }
        rows.append(row | _run_details(run, points, bool(study.tuned)))
    return {"running": study.has_open_runs, "runs": rows, "keys": keys, "sections": sections}


def _values_by_property(runs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return {property: its distinct values in these runs, in one text}."""
    together = {}
    for key in all_keys(runs):
        texts = dict.fromkeys(properties[key] for properties in runs if key in properties)
        together[key] = truncate(", ".join(texts))
    return together


def _pair_verdicts(comparison: Comparison) -> list[list[tuple[str, str, str]]]:
    """Return (difference, corrected p, verdict): a list for each reference cell, with all cells."""
    count = len(comparison.ranked)
    if count < 2:
        return []
    pairs = []
    for reference in range(count):
        rows = [difference_entries(comparison, reference, place) for place in range(count)]
        pairs.append([(row["difference"].text, row["p"].text, verdict) for row, verdict in rows])
    return pairs


def _properties(run: Run) -> dict[str, str]:
    """Return the properties by which runs can be grouped: all settings, and facts of the run."""
    facts = {"status": run.status, "sweep": run.sweep, "device": run.device, "host": run.host}
    facts |= {"commit": run.commit[:10], **run.all_settings}
    facts["seed"] = "" if run.seed is None else str(run.seed)
    return {key: value for key, value in facts.items() if value}


def _differing_properties(
    runs: Sequence[Run], properties: Sequence[Mapping[str, str]]
) -> list[str]:
    """Return the properties that differ between runs or that a run with a configuration lacks."""
    differing = []
    pairs = [*zip(runs, properties, strict=True)]
    for key in all_keys(properties):
        # Skip runs without a configuration, as their missing keys mean nothing.
        known = {values.get(key, "") for run, values in pairs if run.config}
        known |= {values[key] for values in properties if key in values}
        if len(known) > 1 and role(key) not in PATH_ROLES:
            differing.append(key)
    return sorted(differing, key=lambda key: (key.count("."), natural_key(key)))


def _run_details(run: Run, max_points: int, sweep_is_tuned: bool) -> dict[str, Any]:
    """Collect all that the page shows of a run, with at most ``max_points`` of each curve."""
    bound = f"{plus_minus(run.test[run.measure])} {UNITS[run.measure]}" if run.measure else ""
    provenance = RunDirectory(run.dir).readable_provenance
    return {
        "mark": run_gid(run),
        "status": run.status,
        "error": truncate(run.error),
        "bound": bound,
        "facts": _run_facts(run),
        "curves": _curves(run, max_points),
        "again": rerun_command(provenance, sweep_is_tuned),
        "provenance": _provenance(run, provenance),
    }


def truncate(text: str) -> str:
    """Cut a text to the length at which the page shows a value."""
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _run_facts(run: Run) -> list[tuple[str, str]]:
    """Return names and texts of a run's facts."""
    facts = []
    if run.progress:
        progress = run.progress
        steps = f"step {progress.step} of {progress.max_steps or '?'}"
        facts.append(("stage", f"{progress.stage}, {steps}"))
    for name, count in (("steps", run.steps), ("parameters", run.parameters)):
        if count is not None:
            facts.append((name, f"{count:,}"))
    facts += [(f"{stage} took", duration(seconds)) for stage, seconds in run.seconds.items()]
    facts.append(("weights", run.weights))
    return _nonempty_facts(facts)


def _nonempty_facts(facts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the facts that have a text, with long texts cut."""
    return [(name, truncate(text)) for name, text in facts if text]


def _curves(run: Run, max_points: int) -> list[dict[str, Any]]:
    """Return curves of metrics.csv, the validation bound first, and the error by noise level."""
    histories = run.histories()
    clock = dict(zip(*histories.pop("time", ([], [])), strict=True))
    columns = {}
    for name, (steps, values) in histories.items():
        # Leave out columns that are constant.
        if name.startswith(("val/", "train/")) and len({*values}) > 1:
            columns[name] = (steps, values)
    bounds = [f"val/{unit}" for unit in UNITS]
    if columns.keys() & bounds:
        columns.pop("val/bound", None)  # It repeats the curve of the bound in its own unit.
    curves = []
    for name in sorted(columns, key=lambda name: name not in bounds)[:CURVES]:
        thinned = _thin_curve(*columns[name], max_points)
        seconds = [_round_to_five_digits(clock.get(step, math.nan)) for step in thinned["x"]]
        if not all(map(math.isfinite, seconds)):
            seconds = []
        measure = name.partition("/")[2]
        unit = next((unit for key, unit in UNITS.items() if measure.startswith(key)), "")
        head = {"name": name, "of": "training step", "unit": unit, "seconds": seconds}
        curves.append(head | thinned)
    levels = run.noise_levels
    if levels:
        curve: dict[str, Any] = {"name": "squared error of ε by noise level", "of": "γ = −log SNR"}
        curve |= {"unit": "per dimension", "log": min(levels.value) > 0}
        curves.append(curve | _thin_curve(levels.gamma, levels.value, max_points))
    return curves


def _thin_curve(x: Sequence[float], y: Sequence[float], max_points: int) -> dict[str, Any]:
    """Thin a curve to every k-th point and the last one; `every` is k."""
    every = max(1, math.ceil(len(x) / max_points))
    places = [*range(0, len(x) - 1, every), len(x) - 1]
    finite = [place for place in places if math.isfinite(y[place])]
    return {
        "every": every,
        "x": [_round_to_five_digits(x[place]) for place in finite],
        "y": [_round_to_five_digits(y[place]) for place in finite],
    }


def _round_to_five_digits(x: float) -> float:
    return x if isinstance(x, int) else float(FIVE_DIGITS.create_decimal_from_float(x))


def rerun_command(provenance: Provenance, sweep_is_tuned: bool) -> str:
    """Return the command that repeats a run, with values that its sweep tuned; "" if unknown."""
    if "overrides" not in provenance.record:
        return ""
    words = [word for word in provenance.overrides if word.partition("=")[0] not in OF_SWEEP]
    if any(word.startswith(("ablation=", "paper=")) for word in words):
        # Use another name, as with the sweep's own name the command would find the finished run.
        words = ["-m", "name=again", *words]
        if sweep_is_tuned:
            words.append("hydra.sweeper.tune=null")
    return shlex.join(["triptych-train", *words])


def _provenance(run: Run, provenance: Provenance) -> list[tuple[str, str]]:
    """Return names and texts of a run's provenance."""
    changes = ", with uncommitted changes" if run.dirty else ""
    shared = provenance.shared.items()
    leaks = "".join(f"; {n} {name} items are also in train" for name, n in shared)
    changed = ", changed on the way" if run.data_changed else ""
    facts = [
        ("directory", run.dir.name),
        ("command", " ".join(run.command)),
        ("commit", (run.commit or "not recorded") + changes),
        ("started", run.start_time),
        ("host", run.host),
        ("device", run.device),
        ("data", f"{provenance.description}{leaks}" if provenance.description else ""),
        ("data fingerprint", f"{run.fingerprint}{changed}" if run.fingerprint else ""),
    ]
    return _nonempty_facts(facts)
