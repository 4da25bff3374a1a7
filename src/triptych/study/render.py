"""Write the report, `report.html` (one file, no network) and `results.csv`, and the index of a log directory.

Each file appears whole or not at all, so an open page never shows half a report.
"""

import base64
import errno
import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from triptych.files import load_object, printable
from triptych.run.directory import write_atomic
from triptych.run.parsing import to_int
from triptych.run.read import Run, read_runs
from triptych.study import formatting
from triptych.study.details import as_json
from triptych.study.panels import colours, draw_panels, headline_panels, sample_pictures
from triptych.study.results import results_csv
from triptych.study.study import Study, read_study
from triptych.study.style import PALETTE, to_svg
from triptych.study.tables import measure_rows, table_columns, table_rows, table_title
from triptych.study.verdict import footnote

SHOWN = 3  # reasons of a sweep's failures


@dataclass(frozen=True)
class Report:
    """Where the report was written, and what it says."""

    html: Path
    csv: Path
    story: Study


def write_report(root: Path, *others: Path, equal_within: float | None = None) -> Report:
    """Compare all runs beneath `root` and write the report into it; with `others` as `joint_report.html`.

    `equal_within`: by default what `root/sweep.json` says. May be called while a sweep goes on. StorageError
    or OSError: `root` cannot be written.
    """
    root = Path(root)
    if not root.is_dir():  # deleted while its runs were at work: it would be made again, without them
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    story = read_study([root, *others], equal_within)
    palette = colours(story.hues)
    joint = "joint_" if others else ""  # beside the root's own, which stays
    report = Report(root / f"{joint}report.html", root / f"{joint}results.csv", story)
    write_atomic(report.csv, printable(results_csv(story.runs, root)))
    write_atomic(report.html, printable(render_page(story, palette)))
    return report


def page_template(name: str) -> Template:
    """Return a template of the pages, with the figures' colours of both themes."""
    room = Environment(
        loader=PackageLoader("triptych.study", "page"), autoescape=not name.endswith(".md.j2"),
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    room.filters["markdown"] = markdown
    themes = {"light": list(PALETTE), "dark": list(PALETTE.values())}
    css = {theme: "".join(f"--c{i}:{c};" for i, c in enumerate(list_)) for theme, list_ in themes.items()}
    return room.get_template(name, globals={"css": css})


def markdown(text: str) -> str:
    """Escape text for markdown and HTML, on one line."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", text).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def script_source(script: str) -> str:
    """Return a script's source in the page's CSP, its digest: no other script runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def render_page(story: Study, palette: dict[str, str]) -> str:
    """Return the HTML page."""
    script = page_template("page.js.j2").render()
    sections = (  # each is drawn when the page comes to it, as figures take much memory
        {
            "index": i,
            "comparison": comparison,
            "places": {cell.label: k for k, cell in enumerate((*comparison.cells, *comparison.pending))},
            "verdict": verdict,
            "headline": headline_panels(comparison, palette),
            "drawn": table_title(comparison),
            "columns": table_columns(comparison),
            "rows": table_rows(comparison),
            "footnote": footnote(comparison),
            "panels": draw_panels(comparison, palette),
            "pictures": sample_pictures(comparison),
            "measures": measure_rows(comparison),
        }
        for i, (comparison, verdict) in enumerate(zip(story.comparisons, story.verdicts, strict=True))
    )
    names = {colour: f"var(--c{i}, {colour})" for i, colour in enumerate(PALETTE)}
    base = story.roots[0].resolve()  # each run's directory as a reader at the report finds it
    where = {run.dir: os.path.relpath(run.dir.resolve(), base) for run in story.runs}
    where = {run: base.name if at == "." else at for run, at in where.items()}  # a single run's report
    return page_template("report.html.j2").render(
        story=story, sections=sections, palette={label: names[c] for label, c in palette.items()},
        formatting=formatting, where=where, to_svg=to_svg,
        details=as_json(story, where), script=script, script_source=script_source(script),
    )  # fmt: skip


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
    search = page_template("index.js").render()
    page = page_template("index.html.j2").render(
        title=root.resolve().name, rows=sorted(rows, key=lambda row: row[:2], reverse=True),
        search=search, script_source=script_source(search),
    )  # fmt: skip
    write_atomic(root / "index.html", printable(page))
    return root / "index.html"
