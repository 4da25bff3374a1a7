"""Index page of a log directory: status of all sweeps and runs, and reasons of failures."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from triptych.files import load_object, printable
from triptych.run.directory import write_atomic
from triptych.run.parsing import to_int
from triptych.run.read import Run, read_runs
from triptych.study.render import page_template, script_source

SEARCH = """document.querySelector("input").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\\s+/);
  for (const row of document.querySelectorAll("tbody tr"))
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
});"""
SHOWN = 3  # reasons of a sweep's failures


def is_log(directory: Path) -> bool:
    """Return whether a directory holds folders of sweeps or runs, as `logs` does."""
    known = (directory / name for name in ("sweeps", "runs"))
    return not (directory / "sweep.json").exists() and any(map(Path.is_dir, known))


def write_index(root: Path) -> Path:
    """Write `index.html` into a log directory, newest first; return its path."""
    runs_of: dict[Path, list[Run]] = {path.parent: [] for path in root.glob("*/*/sweep.json")}
    for run in read_runs(root):
        runs_of.setdefault(run.dir.parent if run.dir.parent in runs_of else run.dir, []).append(run)
    rows = []
    for path, runs in runs_of.items():
        left = (to_int(load_object(path / "sweep.json").get("expected")) or 0) - len(runs)
        states = Counter(run.status for run in runs) + Counter({"not started": left})  # none below one
        errors = Counter(run.error for run in runs if run.error).most_common(SHOWN)
        started = min((run.started for run in runs if run.started), default="")[:16].replace("T", " ")
        report = "report.html" if (path / "report.html").is_file() else ""
        rows.append((started, os.path.relpath(path, root), report, states, errors))
    page = page_template("index.html.j2").render(
        title=root.resolve().name, rows=sorted(rows, key=lambda row: row[:2], reverse=True),
        search=SEARCH, script_source=script_source(SEARCH),
    )  # fmt: skip
    write_atomic(root / "index.html", printable(page))
    return root / "index.html"
