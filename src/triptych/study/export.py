"""A report's figures as SVG, PDF and PNG, its tables as CSV and LaTeX: for a paper."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from triptych.files import printable
from triptych.run.directory import write_atomic
from triptych.study.panels import colours, known_figures
from triptych.study.results import csv_text
from triptych.study.study import Study
from triptych.study.style import styled
from triptych.study.tables import TableRow, measure_rows, table_columns, table_rows

Column = tuple[str, str]  # key and heading
NUMBERS = {"v": "", "e": ", standard error", "low": ", low", "high": ", high"}
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "−": "$-$", "∞": r"$\infty$", "–": "--", "×": r"$\times$", "<": "$<$", ">": "$>$", "|": "$|$",
    "ε": r"$\varepsilon$", "γ": r"$\gamma$", "²": "$^2$", "…": r"\dots{}",
} | {sign: "\\" + sign for sign in "&%$#_{}"}  # fmt: skip


def write_figures(story: Study, out: Path) -> list[Path]:
    """Write into `out`, which is made; the files. Of several comparisons each has a number in its names."""
    palette, written = colours(story.hues), []
    out.mkdir(parents=True, exist_ok=True)
    for place, comparison in enumerate(story.comparisons, 1):
        prefix = f"{place}-" if len(story.comparisons) > 1 else ""
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
