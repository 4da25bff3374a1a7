"""Write `report.md`: verdict and tables in GitHub's markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from triptych.study import measures
from triptych.study.cells import Comparison
from triptych.study.formatting import DRAWN, MEASURED, quantity
from triptych.study.papers.published import Judged
from triptych.study.study import Study
from triptych.study.tables import Entry, measure_rows, table_columns, table_rows
from triptych.study.verdict import Verdict, footnote


def markdown(story: Study) -> str:
    """Return the report as markdown, without pictures: pasted into a pull request it has none beside it."""
    lines = [f"# {safe(story.title)}", "", f"*{safe(story.question)}*", ""]
    if story.shared:
        lines += [f"All runs: {safe(story.shared)}", ""]
    if story.banner:
        lines += [f"> {safe(story.banner)}", ""]
    if claimed := story.published:
        lines += ["## Published", "", *published_in_words(claimed)]
    lines += [f"**{safe(story.answer)}**", ""]
    if story.next_step:
        lines += [next_step(story), ""]
    if story.tuned:
        lines += [safe(story.tuned), ""]
    if len(story.comparisons) > 1 and not story.tuned:
        lines += [
            "Runs on different data or in different units stand in tables of their own: not comparable.",
            "",
        ]
    for comparison, answer_of in zip(story.comparisons, story.verdicts, strict=True):
        what = measures.title(comparison)
        lines += [
            f"## {safe(comparison.title or comparison.data or 'Results')}, {safe(what or comparison.unit)}",
            "",
        ]
        lines += comparison_in_words(comparison, answer_of)
        lines += [DRAWN, ""] if what else []
        lines += [MEASURED[comparison.unit], "", f"<sub>{safe(footnote(comparison))}</sub>", ""]
    base = story.roots[0].resolve()
    broken = [run for run in story.runs if run.error]
    if broken:
        lines += ["## Failed or diverged", ""]
        lines += [
            f"- {safe(os.path.relpath(run.dir.resolve(), base))}: {safe(run.error)}" for run in broken
        ] + [""]
    if story.command:
        lines += ["## Reproduce", "", *fenced(story.command), ""]
    kept = (
        "all figures in `results.csv`, all panels in `report.html`, the first in `report_files/headline.png`"
    )
    lines += [f"{quantity(len(story.runs), 'run')}; {kept}.", ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def comparison_in_words(comparison: Comparison, answer: Verdict) -> list[str]:
    """Return the table with paired differences and verdicts, the measures of samples, and notes."""
    heads = table_columns(comparison)
    body = [
        [row.label, row.seeds, *(row.entries.get(key, Entry()).text for key, _ in heads), row.verdict]
        for row in table_rows(comparison)
    ]
    lines = _table([comparison.subject, "seeds", *(head for _, head in heads), "verdict"], body)
    lines += ["", *(f"- {safe(line)}" for line in answer.lines), ""]
    heads, rows = measure_rows(comparison)
    if heads:
        body = [[row.label, *(row.entries.get(key, Entry()).text for key, _ in heads)] for row in rows]
        lines += _table([comparison.subject, *(head for _, head in heads)], body)
    return lines + [f"- Note: {safe(note)}" for note in comparison.notes] + [""]


def published_in_words(results: Judged) -> list[str]:
    """Return the paper, the tally of its claims, and their table."""
    whose = f"{safe(results.paper.cite)}, {safe(results.paper.where)}"
    rows = [
        (c.says, j.word, j.why, c.note, c.published, j.figures, c.metric, c.rule)
        for j, c in ((j, j.claim) for j in results.judgements)
    ]
    return [f"{whose}. **{safe(results.answer)}**", "", *claims_table(rows, results.changed)]


def claims_table(rows: Iterable[Sequence[Any]], changed: bool = False) -> list[str]:
    """Render rows of (claim, verdict, why, note, published, measured figures, metric, rule) as Markdown."""
    lines = ["| claim | verdict | published | measured | decided by |", "|---|---|---|---|---|"]
    for says, word, why, note, published, measured, metric, rule in rows:
        cells = [
            safe(says),
            f"**{word}**. {safe(' '.join(filter(None, (why, note))))}",
            "<br>".join(safe(f"{name}: {figure}") for name, figure in published) or "–",
            "<br>".join(safe(f"{name}: {figure}") for name, figure in measured),
            safe(f"{metric.replace('_', ' ')}; {rule}" if metric else rule),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [""]
    if changed:
        lines += ["The claims or their seeds were changed after some of these runs had ended.", ""]
    return lines


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(head) - 2) + ["---"]
    return ["| " + " | ".join(map(safe, row)) + " |" for row in (head, rule, *body)] + [""]


def next_step(story: Study) -> str:
    """Return the next command, to copy."""
    what, _, command = story.next_step.partition(": ")
    command = " ".join(command.split())
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence, space = "`" * (1 + longest), " " * (longest > 0)
    return f"{safe(what)}: {fence}{space}{command}{space}{fence}"


def safe(text: str) -> str:
    """Escape text for markdown and HTML, on one line."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", text).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def fenced(text: str) -> list[str]:
    """Put a command into a block of code whose fence it cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + "sh", text, fence]
