"""`results.csv`: one row per run with everything a spreadsheet or a script could want."""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from triptych.run.read import Run
from triptych.study.axes import find_axes

# what a spreadsheet takes for a formula when a cell begins with it; numbers are numbers
FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-?(inf|nan)")


def results_csv(runs: Sequence[Run], base: Path) -> str:
    """Write a row per run, its directory relative to `base`, as CSV: figures in full precision, "" for none.

    Columns: directory, sweep, status, seed, settings that were typed, were chosen or differ, each figure of
    test, val and train as `test/bpd`, `test/bpd_stderr`, `test/bpd_n`, each measure of samples as
    `samples/recall@guidance.scale=2`, then seconds, memory, calls a sample, parameters and origin. A text
    that a spreadsheet would take for a formula has an apostrophe in front.
    """
    base = base.resolve()
    rows = results(runs)
    for row, run in zip(rows, runs, strict=True):
        row["directory"] = os.path.relpath(run.dir.resolve(), base)
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["directory"]
    return csv_text([columns, *([row.get(key) for key in columns] for row in rows)])


def results(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return a row per run, values as they are; columns of `results_csv`, of which a run may lack some."""
    axes = [axis.key for axis in find_axes(runs)[0]]
    return [_row(run, axes) for run in runs]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV, an apostrophe in front of what a spreadsheet would take for a formula."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(map(_plain, row) for row in rows)
    return out.getvalue()


def _plain(value: object) -> str:
    text = "" if value is None else str(value)
    quote = "'" if FORMULA.match(text) and not NUMBER.fullmatch(text) else ""
    return quote + text.replace("\r", " ")


def _row(run: Run, axes: Sequence[str]) -> dict[str, object]:
    row: dict[str, object] = {"directory": str(run.dir), "sweep": run.sweep, "status": run.status}
    row |= {"seed": run.seed, "data": run.choices.get("data", run.overrides.get("data", ""))}
    shown = {*run.overrides, *run.choices, *axes}
    row |= {key: entry for key, entry in run.settings.items() if key in shown}
    for split in ("test", "val", "train"):
        for key, estimate in getattr(run, split).items():
            row[f"{split}/{key}"] = estimate.mean
            row[f"{split}/{key}_stderr"] = estimate.stderr
            row[f"{split}/{key}_n"] = estimate.n
            if math.isfinite(estimate.draw_stderr):
                row[f"{split}/{key}_draw_stderr"] = estimate.draw_stderr
    if run.measured:
        for at, entry in zip(run.measured.values, run.measured.rows, strict=True):
            where = f"@{run.measured.key}={at:g}" if run.measured.key else ""
            row |= {f"samples/{name}{where}": mean for name, mean in entry.items()}
    row |= {f"seconds/{key}": value for key, value in run.seconds.items()}
    row |= {f"cost/{key}": value for key, value in run.cost.items()}
    facts = ("steps", "parameters", "weights", "device", "host", "commit", "dirty")
    row |= {name: getattr(run, name) for name in facts}
    row["started"] = run.began
    row |= {"data_fingerprint": run.fingerprint, "sources": run.sources}
    row["changed"] = "; ".join([*(["data"] if run.data_changed else []), *run.code_changes])
    return row | {"error": run.error}
