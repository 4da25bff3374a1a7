"""`results.csv`: one row per run with everything a spreadsheet or a script could want."""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from triptych.run.read import Run
from triptych.study.axes import all_keys, find_comparison_axes

SPLITS = ("test", "val", "train")
# {one of the last columns: the attribute of a run that it shows}
FACTS = {
    "steps": "steps",
    "parameters": "parameters",
    "weights": "weights",
    "device": "device",
    "host": "host",
    "commit": "commit",
    "dirty": "dirty",
    "started": "start_time",
    "data_fingerprint": "fingerprint",
    "data_changed": "data_changed",
}
# A spreadsheet would execute a cell with this first character as a formula. Numbers are safe.
FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?(inf|nan)")


def results_csv(runs: Sequence[Run], base: Path) -> str:
    """Return a row per run as CSV, its directory relative to `base`, figures in full precision.

    Columns: directory, sweep, status, seed, settings that were typed, chosen or that differ, each
    figure of test, val and train as `test/bpd`, `test/bpd_stderr`, `test/bpd_n`, each measure of
    samples as `samples/recall@guidance.scale=2`, then seconds, memory, calls a sample, parameters
    and origin. A text that a spreadsheet would take for a formula has an apostrophe in front.
    """
    base = base.resolve()
    rows = results(runs)
    for row, run in zip(rows, runs, strict=True):
        row["directory"] = os.path.relpath(run.dir.resolve(), base)
    columns = all_keys(rows) or ["directory"]
    return csv_text([columns, *([row.get(key) for key in columns] for row in rows)])


def results(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return a row per run with the columns of `results_csv`; a run may lack some."""
    axes = [axis.key for axis in find_comparison_axes(runs)[0]]
    return [_row(run, axes) for run in runs]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV, with an apostrophe before texts that spreadsheets take for formulas."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(map(_csv_value, row) for row in rows)
    return out.getvalue()


def _csv_value(value: object) -> str:
    """Return a value as text that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    if FORMULA.match(text) and not NUMBER.fullmatch(text):
        text = f"'{text}"
    return text.replace("\r", " ")


def _row(run: Run, axes: Sequence[str]) -> dict[str, object]:
    """Return a run's row of `results`; ``axes``: keys of settings that differ between the runs."""
    row: dict[str, object] = {
        "directory": str(run.dir), "sweep": run.sweep, "status": run.status, "seed": run.seed,
        "data": run.choices.get("data", run.overrides.get("data", "")),
    }  # fmt: skip
    shown = {*run.overrides, *run.choices, *axes}
    row |= {key: entry for key, entry in run.settings.items() if key in shown}
    for split in SPLITS:
        for key, estimate in getattr(run, split).items():
            name = f"{split}/{key}"
            row |= {name: estimate.mean, f"{name}_stderr": estimate.stderr, f"{name}_n": estimate.n}
            if estimate.groups:
                row[f"{name}_groups"] = estimate.groups
            if math.isfinite(estimate.draw_stderr):
                row[f"{name}_draw_stderr"] = estimate.draw_stderr
    if run.measured:
        for value, figures in zip(run.measured.values, run.measured.rows, strict=True):
            place = f"@{run.measured.key}={value:g}" if run.measured.key else ""
            row |= {f"samples/{name}{place}": mean for name, mean in figures.items()}
    row |= _prefixed_entries("seconds/", run.seconds) | _prefixed_entries("cost/", run.cost)
    row |= {name: getattr(run, attribute) for name, attribute in FACTS.items()}
    for split in ("val", "test"):
        row[f"{split}_items_in_train"] = f"{run.shared.get(split, 0):g}"
    return row | {"error": run.error}


def _prefixed_entries(prefix: str, figures: Mapping[str, float]) -> dict[str, object]:
    return {prefix + name: figure for name, figure in figures.items()}
