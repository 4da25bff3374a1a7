"""One page over all sweeps and runs of a log directory: what ended, what failed and why, what is left."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
SHOWN = 3  # errors of a sweep


@dataclass(frozen=True)
class Group:
    """A sweep, or a run of its own: its directory, its runs, and how many there will be."""

    path: Path
    runs: Sequence[Run]
    expected: int

    @property
    def counts(self) -> Counter[str]:
        """How many runs have each status, those that have not begun as "not started"."""
        known = Counter(run.status for run in self.runs)
        missing = self.expected - len(self.runs)
        return known + Counter({"not started": missing} if missing > 0 else {})

    @property
    def errors(self) -> list[str]:
        """Each reason of a failure once, with how many runs it ended."""
        known = Counter(run.error for run in self.runs if run.error).most_common(SHOWN + 1)
        lines = [f"{n} × {error}" if n > 1 else error for error, n in known[:SHOWN]]
        return lines + ["and others"] * (len(known) > SHOWN)

    @property
    def started(self) -> str:
        """When its first run began, to the minute."""
        return min((run.started for run in self.runs if run.started), default="")[:16].replace("T", " ")


def is_log(directory: Path) -> bool:
    """Whether it holds sweeps or runs in folders of these names, as `logs` does, and is no sweep itself."""
    return not (directory / "sweep.json").exists() and any(
        (directory / name).is_dir() for name in ("sweeps", "runs")
    )


def write_index(root: Path) -> Path:
    """Write `index.html` into a log directory, the newest first; where it is."""
    runs_of: dict[Path, list[Run]] = {path.parent: [] for path in root.glob("*/*/sweep.json")}
    for run in read_runs(root):
        runs_of.setdefault(run.dir.parent if run.dir.parent in runs_of else run.dir, []).append(run)
    groups = [
        Group(path, runs, max(to_int(load_object(path / "sweep.json").get("expected")) or 0, len(runs)))
        for path, runs in runs_of.items()
    ]
    page = page_template("index.html.j2").render(
        groups=sorted(groups, key=lambda group: (group.started, group.path), reverse=True), search=SEARCH,
        script_source=script_source(SEARCH), title=root.resolve().name,
        where={group.path: os.path.relpath(group.path, root) for group in groups},
        reports={group.path for group in groups if (group.path / "report.html").is_file()},
    )  # fmt: skip
    write_atomic(root / "index.html", printable(page))
    return root / "index.html"
