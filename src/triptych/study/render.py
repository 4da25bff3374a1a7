"""Write the report, `report.html` (one file, no network) and `results.csv`, and the index of a log directory.

The result as a table in the terminal, for the end of a sweep; figures as SVG, PDF and PNG, tables as CSV and
LaTeX, for a paper. Each file appears whole or not at all, so an open page never shows half a report.
"""

import base64
import errno
import hashlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from triptych.errors import Unreadable
from triptych.run.directory import write_atomic
from triptych.run.parsing import PARTS
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import SweepRecord
from triptych.study import formatting
from triptych.study.console import PlainConsole
from triptych.study.details import as_json
from triptych.study.panels import colours, draw_panels, headline_panels, known_figures, sample_pictures
from triptych.study.results import csv_text, results_csv
from triptych.study.study import Study, read_study
from triptych.study.style import PALETTE, short, styled, to_svg
from triptych.study.tables import BESIDE, TableRow, measure_rows, table_columns, table_rows, table_title
from triptych.study.verdict import footnote
from triptych.terminal import printable

SHOWN = 3  # reasons of a sweep's failures
HEADS = {
    "bound": "test bound",
    "difference": "to best [interval]",
    "reconstruction": "recon.",
    "diffusion": "diff.",
}
WORDS = {"reproduced": "green", "holds": "green", "contradicted": "red", "fails": "red"}
# what a narrow terminal goes without, first to last
DISPENSABLE = ("p", *PARTS, *BESIDE, "difference")
Column = tuple[str, str]  # key and heading
NUMBERS = {"v": "", "e": ", standard error", "low": ", low", "high": ", high"}
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "−": "$-$", "∞": r"$\infty$", "–": "--", "×": r"$\times$", "<": "$<$", ">": "$>$", "|": "$|$",
    "ε": r"$\varepsilon$", "γ": r"$\gamma$", "²": "$^2$", "…": r"\dots{}",
} | {sign: "\\" + sign for sign in "&%$#_{}"}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Where the report was written, and what it says."""

    html: Path
    csv: Path
    study: Study


def write_report(root: Path, *others: Path, equal_within: float | None = None) -> Report:
    """Compare all runs beneath `root` and write the report into it; with `others` as `joint_report.html`.

    `equal_within`: by default what `root/sweep.json` says. May be called while a sweep goes on. StorageError
    or OSError: `root` cannot be written.
    """
    root = Path(root)
    if not root.is_dir():  # deleted while its runs were at work: it would be made again, without them
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    study = read_study([root, *others], equal_within)
    palette = colours(study.hues)
    joint = "joint_" if others else ""  # beside the root's own, which stays
    report = Report(root / f"{joint}report.html", root / f"{joint}results.csv", study)
    write_atomic(report.csv, printable(results_csv(study.runs, root)))
    write_atomic(report.html, render_page(study, palette))
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


def _page(name: str, script: str, **values: Any) -> str:
    """Return a page with its script, whose digest is the source in the page's CSP: no other script runs."""
    text = page_template(script).render()
    source = f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    return printable(page_template(name).render(script=text, script_source=source, **values))


def render_page(study: Study, palette: dict[str, str]) -> str:
    """Return the HTML page."""
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
        for i, (comparison, verdict) in enumerate(zip(study.comparisons, study.verdicts, strict=True))
    )
    names = {colour: f"var(--c{i}, {colour})" for i, colour in enumerate(PALETTE)}
    base = study.roots[0].resolve()  # each run's directory as a reader at the report finds it
    where = {run.dir: os.path.relpath(run.dir.resolve(), base) for run in study.runs}
    where = {run: base.name if at == "." else at for run, at in where.items()}  # a single run's report
    return _page(
        "report.html.j2", "page.js.j2", study=study, sections=sections, formatting=formatting, where=where,
        to_svg=to_svg, details=as_json(study, where), palette={k: names[c] for k, c in palette.items()},
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
        problems = [run.error for run in runs if run.error]
        sweep = SweepRecord()
        try:
            sweep = SweepRecord.read(path)
        except Unreadable as error:
            problems.append(error.problem)
        left = sweep.expected - len(runs)
        states = Counter(run.status for run in runs) + Counter({"not started": left})  # none below one
        errors = Counter(problems).most_common(SHOWN)
        begun = (run for run in runs if run.started)
        first = min(begun, key=lambda run: run.age, default=Run(dir=path, status="interrupted"))
        report = "report.html" if (path / "report.html").is_file() else ""
        shown = first.began[:16].replace("T", " ")
        rows.append((first.age, os.path.relpath(path, root), shown, report, states, errors))
    rows.sort(key=lambda row: row[:2], reverse=True)
    page = _page("index.html.j2", "index.js", title=root.resolve().name, rows=rows)
    write_atomic(root / "index.html", page)
    return root / "index.html"


def print_table(root: Path, console: Console | None = None, report: Report | None = None) -> None:
    """Print the results of the runs beneath `root`; `report` saves reading them again."""
    console = console or PlainConsole(sys.stdout)
    study = report.study if report else read_study([Path(root)])

    def say(text: str, style: str = "", wrap: bool = False) -> None:
        console.print(Text(text, style=style), soft_wrap=not wrap)

    if study.banner:
        say(study.banner, "yellow", wrap=True)
    for i, comparison in enumerate(study.comparisons):
        console.print(_fitting(study, i, console))
        for note in comparison.notes:
            say(f"Note: {note}", "dim", wrap=True)
    if len({(c.data, c.measure) for c in study.comparisons}) > 1:
        say("Different data or units: not comparable with each other.", "dim", wrap=True)
    for run in study.runs:
        if run.error:
            say(f"{run.status}: {run.dir}: {run.error}", "red")
    say(study.answer, "bold", wrap=True)
    if study.next_step:
        say(study.next_step)
    if claimed := study.published:
        say(f"Published: {claimed.node['cite']}, {claimed.node['where']}", wrap=True)
        for judgement in claimed.judgements:
            say(judgement.line, WORDS.get(judgement.word, ""))
        if claimed.changed:
            changed = "The claims or their seeds were changed after some of these runs had ended."
            say(changed, "yellow", wrap=True)
    page = report.html if report else Path(root) / "report.html"
    if page.exists():
        say(f"Report: {page}")  # a path broken over two lines cannot be clicked or copied


def _fitting(study: Study, i: int, console: Console) -> Table:
    """Return the widest of the tables that fit; CSV and page have all columns."""
    for leave in range(len(DISPENSABLE) + 1):
        table = _table(study, i, DISPENSABLE[:leave])
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            break
    return table


def _table(study: Study, i: int, without: tuple[str, ...]) -> Table:
    comparison = study.comparisons[i]
    # as plain Text throughout: names may hold what rich would read as markup
    better = comparison.question.metric.better
    what = table_title(comparison) or comparison.unit
    what = ", ".join(filter(None, (comparison.title, what)))
    rows = table_rows(comparison)
    several = any(len(cell.runs) > 1 for cell in comparison.cells)
    table = Table(
        title=Text(f"{study.title}: {comparison.data or 'all data'}, {what}, {better}"),
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        caption="; ".join(filter(None, ("±: seeds alone" * several, comparison.tested))) or None,
        caption_justify="left",
    )  # fmt: skip
    known = [(key, HEADS.get(key, head)) for key, head in table_columns(comparison)]
    heads = [(key, head) for key, head in [("seeds", "seeds"), *known] if key not in without]
    table.add_column(Text(comparison.subject), overflow="fold")
    for key, head in heads:
        table.add_column(Text(head), justify="left" if key in ("seeds", "verdict") else "right")
    for row in rows:
        style = "bold green" if row.best else "" if row.entries else "dim"
        texts = (Text(row.entry(key).text) for key, _ in heads)
        table.add_row(Text(short(row.label, 40)), *texts, style=style)
    return table


def write_figures(study: Study, out: Path) -> list[Path]:
    """Write into `out`, which is made; the files. Of several comparisons each has a number in its names."""
    palette, written = colours(study.hues), []
    out.mkdir(parents=True, exist_ok=True)
    for place, comparison in enumerate(study.comparisons, 1):
        prefix = f"{place}-" if len(study.comparisons) > 1 else ""
        for name, figure in known_figures(comparison, palette).items():
            for ending, date in (("svg", "Date"), ("pdf", "CreationDate"), ("png", "")):
                data = io.BytesIO()
                with styled():
                    figure.savefig(data, format=ending, dpi=300, metadata={date: None} if date else None)
                written.append(out / f"{prefix}{name}.{ending}")
                write_atomic(written[-1], data.getvalue())
        setting = "setting", comparison.subject
        results = [setting, ("seeds", "seeds"), *table_columns(comparison)]
        tables = {"results": (results, table_rows(comparison))}
        measured, rows = measure_rows(comparison)
        if measured:
            tables["measures"] = [setting, *measured], rows
        for name, (columns, rows) in tables.items():
            for ending, text in (("csv", to_csv(columns, rows)), ("tex", to_latex(columns, rows))):
                written.append(out / f"{prefix}{name}.{ending}")
                write_atomic(written[-1], printable(text))
    return written


def to_csv(columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
    """Write rows as CSV: figures in full precision, standard errors or intervals in columns of their own."""
    more = {
        key: [n for n in NUMBERS if n != "v" and any(n in row.entry(key).numbers for row in rows)]
        for key, _ in columns
    }
    table: list[list[object]] = [[head + NUMBERS[n] for key, head in columns for n in ("v", *more[key])]]
    for row in rows:
        shown = [(row.entry(key), n) for key, _ in columns for n in ("v", *more[key])]
        table.append([one.numbers.get(n, one.text if n == "v" else "") for one, n in shown])
    return csv_text(table)


def to_latex(columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
    """Return a booktabs table of the figures as the page shows them; the best row is bold."""
    lines = [[(head, False) for _, head in columns]]
    lines += [[(row.entry(key).text, row.best) for key, _ in columns] for row in rows]
    head, *body = [" & ".join(_tex(text, bold) for text, bold in line) + r" \\" for line in lines]
    sides = "".join("l" if key in ("setting", "seeds", "verdict") else "r" for key, _ in columns)
    begin = ["% \\usepackage{booktabs}", rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str, bold: bool) -> str:
    safe = re.sub("|".join(map(re.escape, TEX)), lambda match: TEX[match[0]], text)
    # a bracket at the start of a cell would be read as an option of the line before
    return rf"\textbf{{{safe}}}" if bold and safe else f"{{}}{safe}" if safe.startswith("[") else safe
