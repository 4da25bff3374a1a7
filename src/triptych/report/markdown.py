"""`report.md`: the answer, the table and the runs, as GitHub shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from triptych.report import measures
from triptych.report.curves import equal_time
from triptych.report.factorial import effects
from triptych.report.power import reach
from triptych.report.story import Story, columns, rows
from triptych.report.verdict import footnote
from triptych.report.words import DRAWN, MEASURED, count, duration


def markdown(story: Story, picture: str | None) -> str:
    """The report as markdown; `picture` is the headline figure's path, relative to the report."""
    lines = [f"# {_safe(story.title)}", "", f"*{_safe(story.question)}*", ""]
    if story.shared:
        lines += [f"All runs: {_safe(story.shared)}", ""]
    if story.banner:
        lines += [f"> {_safe(story.banner)}", ""]
    lines += [f"**{_safe(story.answer)}**", ""]
    if picture:
        shown = measures.title(story.comparisons[0]) or "test bound"
        lines += [f"![{shown[0].upper()}{shown[1:]} per setting, by seed]({picture})", ""]
    for line in story.tuned:
        lines += [_safe(line), ""]
    if len(story.comparisons) > 1 and not story.tuned:
        lines += [
            "Runs on different data or in different units stand in tables of their own: not comparable.",
            "",
        ]
    for comparison, said in zip(story.comparisons, story.verdicts, strict=True):
        heads = columns(comparison)
        what = measures.title(comparison)
        lines += [
            f"## {_safe(comparison.title or comparison.data or 'Results')}, {_safe(what or comparison.unit)}",
            "",
        ]
        if not what and (found := effects(comparison)):
            lines += [f"- {_safe(line)}" for line in found] + [""]
        body = [
            [row.label, row.seeds, *(row.texts.get(key, "") for key, _ in heads), row.verdict]
            for row in rows(comparison)
        ]
        lines += _table([comparison.subject, "seeds", *(head for _, head in heads), ""], body)
        lines += [f"- {_safe(line)}" for line in said.lines] + [""]
        lines += [f"- Note: {_safe(note)}" for note in comparison.notes] + [""]
        if not what and (told := equal_time(comparison)):
            lines += [_safe(told), ""]
        if found := reach(comparison):
            lines += [_safe(" ".join(found)), ""]
        lines += [DRAWN, ""] if what else []
        lines += [MEASURED[comparison.unit], "", f"<sub>{_safe(footnote(comparison))}</sub>", ""]
    lines += ["## Runs", ""]
    base = story.roots[0].resolve()
    lines += _table(
        ["run", "status", "fit", "device", "commit"],
        [
            [
                os.path.relpath(run.dir.resolve(), base),
                run.status,
                duration(run.seconds.get("fit", float("nan"))),
                run.device,
                run.commit[:10] + ("*" if run.dirty else ""),
            ]
            for run in story.runs
        ],
    )
    broken = [run for run in story.runs if run.error]
    if broken:
        lines += ["## Failed or diverged", ""]
        lines += [
            f"- {_safe(os.path.relpath(run.dir.resolve(), base))}: {_safe(run.error)}" for run in broken
        ] + [""]
    if story.command:
        lines += ["## Reproduce", "", *_fenced(story.command), ""]
    lines += [
        f"{count(len(story.runs), 'run')}; all figures in `results.csv`, all panels in `report.html`.",
        "",
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(head) - 2) + ["---"]
    return ["| " + " | ".join(map(_safe, row)) + " |" for row in (head, rule, *body)] + [""]


def _safe(text: str) -> str:
    """Text that markdown and GitHub's HTML show as it is, on one line."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", text).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def _fenced(text: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + "sh", text, fence]
