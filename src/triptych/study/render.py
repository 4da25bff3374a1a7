"""Write the report, `report.html` (one file that loads no other) and `results.csv`, and an index.

Also print the results as a table in the terminal, and write figures (SVG, PDF, PNG) and tables
(CSV, LaTeX) for a paper. Each file appears whole or not at all, so an open page never shows half a
report.
"""

import base64
import errno
import hashlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from triptych.errors import Unreadable
from triptych.run.directory import write_atomic, write_together
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import SweepRecord
from triptych.study import formatting
from triptych.study.comparison import Comparison
from triptych.study.console import PlainConsole
from triptych.study.details import as_json
from triptych.study.footnotes import footnote
from triptych.study.panels import (
    assign_colours,
    draw_panels,
    headline_panels,
    known_figures,
    sample_pictures,
)
from triptych.study.published import PaperVerdicts
from triptych.study.results import csv_text, results_csv
from triptych.study.study import Study, read_study
from triptych.study.style import PALETTE, VARIABLES, css_dash, figure_style, to_svg
from triptych.study.tables import (
    DIFFERENCE,
    SEEDS,
    Column,
    TableRow,
    difference_rows,
    measure_rows,
    table_columns,
    table_rows,
    table_title,
)
from triptych.study.verdict import NAMED, Verdict
from triptych.terminal import escape_control_characters

# The largest widths of names and of other texts in a table, as a rule and in a narrow terminal
WIDE, NARROW = (40, 80), (12, 11)
SHOWN = 3  # maximum number of failure reasons per sweep in the index
# {verdict: its colour in the terminal}
WORDS = {"reproduced": "green", "holds": "green", "contradicted": "red", "fails": "red"}
# {number of a table's entry: suffix of its CSV column's heading}
NUMBERS = {"v": "", "e": ", standard error", "low": ", low", "high": ", high"}
# {character: its LaTeX}
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "−": "$-$", "∞": r"$\infty$", "–": "--", "×": r"$\times$", "<": "$<$", ">": "$>$", "|": "$|$",
    "ε": r"$\varepsilon$", "γ": r"$\gamma$", "²": "$^2$", "…": r"\dots{}",
} | {sign: "\\" + sign for sign in "&%$#_{}"}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """A written report: its path and its content."""

    html: Path
    csv: Path
    study: Study


def write_report(root: Path, *others: Path, equal_within: float | None = None) -> Report:
    """Compare all runs beneath `root` and write the report; with `others` as `joint_report.html`.

    `equal_within`: by default that of `root/sweep.json`. The sweep may still be running.
    StorageError or OSError: `root` cannot be written.
    """
    root = Path(root)
    # Do not create a directory that was deleted while its runs were running.
    if not root.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(root))
    study = read_study([root, *others], equal_within)
    palette = assign_colours(study.hues)
    report = Report(root / f"{study.prefix}report.html", root / f"{study.prefix}results.csv", study)
    table = results_csv(study.runs, root)
    page = render_page(study, palette)
    contents = {report.csv: table, report.html: page}
    write_together({path: escape_control_characters(text) for path, text in contents.items()})
    return report


def page_template(name: str) -> Template:
    """Return a template of the pages, with the figures' colours of both themes."""
    environment = Environment(
        loader=PackageLoader("triptych.study", "page"), autoescape=not name.endswith(".md.j2"),
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters["markdown"] = markdown
    css = {"light": _css_variables(PALETTE), "dark": _css_variables(PALETTE.values())}
    return environment.get_template(name, globals={"css": css})


def _css_variables(inks: Iterable[str]) -> str:
    """Return CSS that sets the variables --c0, --c1, ... to these colours."""
    return "".join(f"--c{i}:{ink};" for i, ink in enumerate(inks))


def markdown(text: str) -> str:
    """Escape text for markdown and HTML, on one line."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", text).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def _page(name: str, script: str, **values: Any) -> str:
    """Return an HTML page with its script inlined.

    The page's content security policy names the script's digest, so a browser executes no other
    script.
    """
    text = page_template(script).render()
    source = f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    return page_template(name).render(script=text, script_source=source, **values)


def render_page(study: Study, palette: dict[str, str]) -> str:
    """Return the report as HTML."""
    # Draw the figures of one section at a time, as they take much memory.
    judged = zip(study.comparisons, study.verdicts, strict=True)
    sections = (_section(i, c, v, palette) for i, (c, v) in enumerate(judged))
    where = _relative_run_names(study)
    return _page(
        "report.html.j2", "page.js.j2", study=study, sections=sections, formatting=formatting,
        where=where, to_svg=to_svg, details=as_json(study, where),
        palette={label: f"var(--{VARIABLES[ink]}, {ink})" for label, ink in palette.items()},
        dashes={label: css_dash(label, palette) for label in palette},
    )  # fmt: skip


def _section(
    index: int,
    comparison: Comparison,
    verdict: Verdict,
    palette: dict[str, str],
) -> dict[str, Any]:
    """Return what the page's template needs to show a comparison."""
    return {
        "index": index,
        "comparison": comparison,
        "verdict": verdict,
        "headline": headline_panels(comparison, palette),
        "drawn": table_title(comparison),
        "columns": table_columns(comparison),
        "rows": table_rows(comparison),
        "footnote": footnote(comparison),
        "panels": draw_panels(comparison, palette),
        "pictures": sample_pictures(comparison),
        "measures": measure_rows(comparison),
        "differences": difference_rows(comparison),
    }


def _relative_run_names(study: Study) -> dict[Path, str]:
    """Name each run by its directory relative to the report's; a single run by its own name."""
    base = study.roots[0].resolve()
    names = {}
    for run in study.runs:
        name = os.path.relpath(run.dir.resolve(), base)
        if name == ".":
            name = base.name
        names[run.dir] = name
    return names


def is_log_directory(directory: Path) -> bool:
    """Return whether a directory holds folders of sweeps or runs, as `logs` does."""
    known = (directory / name for name in ("sweeps", "runs"))
    return not (directory / "sweep.json").exists() and any(map(Path.is_dir, known))


def write_index(root: Path) -> Path:
    """Write `index.html`, which lists a log directory's sweeps, newest first; return its path."""
    runs_by_place: dict[Path, list[Run]] = {path.parent: [] for path in root.glob("*/*/sweep.json")}
    for run in read_runs(root):
        place = run.dir.parent if run.dir.parent in runs_by_place else run.dir
        runs_by_place.setdefault(place, []).append(run)
    rows = [_index_row(root, place, runs) for place, runs in runs_by_place.items()]
    rows.sort(key=lambda row: row[:2], reverse=True)
    page = _page("index.html.j2", "index.js", title=root.resolve().name, rows=rows)
    write_atomic(root / "index.html", escape_control_characters(page))
    return root / "index.html"


def _index_row(root: Path, folder: Path, runs: Sequence[Run]) -> tuple[Any, ...]:
    """Return a sweep's line of the index: age, name, start, report, runs by status, problems."""
    problems = [run.error for run in runs if run.error]
    try:
        expected = SweepRecord.read(folder).expected
    except Unreadable as error:
        problems.append(error.problem)
        expected = 0
    states: Counter[str] = Counter(run.status for run in runs)
    states += Counter({"not started": expected - len(runs)})  # adding drops counts below 1
    begun = [run for run in runs if run.started]
    first = min(begun, key=lambda run: run.age, default=Run(dir=folder, status="interrupted"))
    report = "report.html" if (folder / "report.html").is_file() else ""
    start = first.start_time[:16].replace("T", " ")
    name = os.path.relpath(folder, root)
    return first.age, name, start, report, states, Counter(problems).most_common(SHOWN)


def print_table(report: Report) -> None:
    """Print a report's tables and verdicts in the terminal."""
    console = PlainConsole(sys.stdout)
    study = report.study
    _print_text(console, study.banner, "yellow")
    for comparison in study.comparisons:
        console.print(_widest_fitting_table(study, comparison, console))
        for note in comparison.notes:
            _print_text(console, f"Note: {note}", "dim")
    for failure in study.failures:
        _print_text(console, f"{failure} (see {failure.runs[0].dir})", "red", wrap=False)
    _print_text(console, study.answer, "bold")
    if study.next_step:
        _print_text(console, str(study.next_step), wrap=False)
    if study.published:
        _print_published(console, study.published)
    _print_text(console, f"Report: {report.html}", wrap=False)


def _print_text(console: Console, text: str, style: str = "", wrap: bool = True) -> None:
    """Print a text, if there is one; paths and commands are not wrapped, so they can be copied."""
    if text:
        console.print(Text(text, style=style), soft_wrap=not wrap)


def _print_published(console: Console, published: PaperVerdicts) -> None:
    """Print the verdicts on a paper's claims."""
    _print_text(console, f"Published: {published.node['cite']}, {published.node['where']}")
    for judgement in published.judgements:
        _print_text(console, judgement.line, WORDS.get(judgement.word, ""), wrap=False)
    if published.changed:
        changed = "The claims or their seeds were changed after some of these runs had finished."
        _print_text(console, changed, "yellow")


def _widest_fitting_table(study: Study, comparison: Comparison, console: Console) -> Table:
    """Return the widest results table that fits the terminal; CSV and page have all columns.

    Names and words are narrow only where the differences to the best would not fit otherwise.
    """
    columns = [SEEDS, *table_columns(comparison)]
    options = console.options.update(max_width=10_000)
    for dispensable in sorted((column for column in columns if column.rank), key=lambda c: c.rank):
        letters, words = WIDE
        if dispensable.rank == DIFFERENCE.rank:
            letters, words = NARROW
        table = _table(study, comparison, columns, letters, words)
        spare = console.width - Measurement.get(console, options, table).maximum
        if spare >= 0:
            return _table(study, comparison, columns, letters + spare, words)
        columns.remove(dispensable)
    return _table(study, comparison, columns, *WIDE)


def _table(
    study: Study, comparison: Comparison, columns: Sequence[Column], letters: int, words: int
) -> Table:
    """Return the terminal's results table with these columns.

    ``letters``: the largest width of a setting's name; ``words``: that of other texts.
    """
    decides = table_title(comparison) or comparison.unit
    better = comparison.question.metric.better
    title = ", ".join(filter(None, (comparison.data, comparison.title, decides, better)))
    errors = "" if comparison.one_seed else "±: seeds alone"
    caption = "; ".join(filter(None, (errors, comparison.tested)))
    # Use plain Text, as rich would interpret markup in names.
    table = Table(
        title=Text(f"{study.title}: {title}"),
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        caption=caption, caption_justify="left",
    )  # fmt: skip
    letters = min(letters, WIDE[0])
    table.add_column(Text(comparison.subject), overflow="fold", max_width=letters)
    for column in columns:
        heading = Text(column.short or column.heading)
        if column.is_text:
            table.add_column(heading, max_width=words)
        else:
            table.add_column(heading, justify="right")
    for row, name in _named_rows(comparison, letters):
        texts = [Text(row.entry(column.key).text) for column in columns]
        style = "bold green" if row.best else ""
        table.add_row(Text(name), *texts, style=style)
    return table


def _named_rows(comparison: Comparison, letters: int) -> list[tuple[TableRow, str]]:
    """Return the rows that the terminal shows, with names of so many letters.

    Names are whole, so that they wrap, if two of them would be equal.
    """
    rows = table_rows(comparison)
    lost = [row for row in rows if row.verdict in ("diverged", "failed")]
    if len(lost) > NAMED:
        rows = [row for row in rows if row not in lost]  # a sentence below counts the others
    names = [formatting.shorten(row.label, letters) for row in rows]
    if len({*names}) < len(names):
        names = [row.label for row in rows]
    return [*zip(rows, names, strict=True)]


def write_figures(study: Study, out: Path) -> list[Path]:
    """Write figures and tables into `out`, with numbered names for several comparisons."""
    palette = assign_colours(study.hues)
    contents: dict[Path, str | bytes] = {}
    out.mkdir(parents=True, exist_ok=True)
    for place, comparison in enumerate(study.comparisons, 1):
        prefix = f"{place}-" if len(study.comparisons) > 1 else ""
        for name, figure in known_figures(comparison, palette).items():
            contents |= _figure_files(figure, out / f"{prefix}{name}")
        setting = Column("setting", comparison.subject, is_text=True)
        tables = {
            "results": ([SEEDS, *table_columns(comparison)], table_rows(comparison)),
            "measures": measure_rows(comparison),
            "differences": difference_rows(comparison),
        }
        for name, (columns, rows) in tables.items():
            if columns:
                contents |= _table_files([setting, *columns], rows, out / f"{prefix}{name}")
    write_together(contents)
    return [*contents]


def _figure_files(figure: Figure, stem: Path) -> dict[Path, bytes]:
    """Return a figure as {path: content}: SVG, PDF and PNG."""
    contents = {}
    # Omit the date, so that equal figures give equal files.
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}
    for ending, metadata in undated.items():
        data = io.BytesIO()
        with figure_style():
            figure.savefig(data, format=ending, dpi=300, metadata=metadata)
        contents[stem.with_name(f"{stem.name}.{ending}")] = data.getvalue()
    return contents


def _table_files(
    columns: Sequence[Column], rows: Sequence[TableRow], stem: Path
) -> dict[Path, str]:
    """Return a table as {path: content}: CSV and LaTeX."""
    texts = {"csv": to_csv(columns, rows), "tex": to_latex(columns, rows)}
    return {
        stem.with_name(f"{stem.name}.{ending}"): escape_control_characters(text)
        for ending, text in texts.items()
    }


def to_csv(columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
    """Return rows as CSV: figures in full precision, errors and intervals in separate columns."""
    table: list[list[object]] = [[] for _ in range(len(rows) + 1)]
    for column in columns:
        entries = [row.entry(column.key) for row in rows]
        known = {name for entry in entries for name in entry.numbers} | {"v"}
        for name in filter(known.__contains__, NUMBERS):
            table[0].append(column.heading + NUMBERS[name])
            for line, entry in zip(table[1:], entries, strict=True):
                text = entry.text if name == "v" else ""
                line.append(entry.numbers.get(name, text))
    return csv_text(table)


def to_latex(columns: Sequence[Column], rows: Sequence[TableRow]) -> str:
    """Return a booktabs table of the figures as the page shows them; the best row is bold."""
    sides = "".join("l" if column.is_text else "r" for column in columns)
    lines = ["% \\usepackage{booktabs}", rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
    lines += [_tex_row([column.heading for column in columns]), r"\midrule"]
    for row in rows:
        lines.append(_tex_row([row.entry(column.key).text for column in columns], row.best))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex_row(texts: Sequence[str], bold: bool = False) -> str:
    """Return one row of a LaTeX table."""
    return " & ".join(_escape_tex(text, bold) for text in texts) + r" \\"


def _escape_tex(text: str, bold: bool) -> str:
    """Escape a text for a cell of a LaTeX table."""
    safe = re.sub("|".join(map(re.escape, TEX)), lambda match: TEX[match[0]], text)
    if bold and safe:
        return rf"\textbf{{{safe}}}"
    # LaTeX would read a bracket at the start of a cell as an option of the previous line break.
    return f"{{}}{safe}" if safe.startswith("[") else safe
