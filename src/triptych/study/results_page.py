"""`docs/results.md`: every paper's claims as finished sweeps found them, and which were not run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triptych.config.describe import read_yaml
from triptych.config.folders import folders
from triptych.config.paper import deciding
from triptych.files import read_json_or_none
from triptych.study.markdown import published_table, safe
from triptych.study.story import Story, tell
from triptych.study.words import count, duration, listed

HEAD = """# Published claims, measured

Written by `triptych-report --results FILE DIR...` from finished sweeps, never typed; `make papers` runs what
is missing and renews its table; a paper whose sweep is not at hand keeps the table it had.
[papers.md](papers.md) says what the words mean and how a paper is added.
Figures are of small runs on small data: what is contradicted here is contradicted at this scale, and no more.
"""
LINE = re.compile(r"^\| \[(?P<title>[^]\n]+)\]\(#[^)\n]*\) \|.*$", re.MULTILINE)


def find_papers(roots: Iterable[Path]) -> list[Path]:
    """The sweeps of papers at or beneath ``roots``, by name."""
    found = {file.parent.resolve(): file for root in roots for file in sorted(Path(root).rglob("sweep.json"))}
    return sorted(
        (
            place
            for place, file in found.items()
            if isinstance((read_json_or_none(file) or {}).get("paper"), dict)
        ),
        key=lambda place: place.name,
    )


def files() -> dict[str, dict[str, Any]]:
    """{name: the node ``paper``} of each file in ``configs/paper``, the clone's and trusted packages'."""
    every = (file for folder in folders() for file in sorted((folder / "paper").glob("*.yaml")))
    return {file.stem: read_yaml(file).get("paper") or {} for file in every}


class Entry(NamedTuple):
    """A paper that was run: its line in the summary, and its section."""

    line: str
    section: str


def results_page(roots: Sequence[Path], before: str = "") -> str:
    """The page of the sweeps beneath ``roots``; other papers keep what the page ``before`` has of them."""
    known = files()
    stories = [story for place in find_papers(roots) if (story := tell([place])).published]
    entries = kept(before) | {_title(story): Entry(_line(story), _section(story, known)) for story in stories}
    missing = {name: node for name, node in known.items() if name not in entries}
    titles = sorted(entries)
    lines = [
        HEAD,
        "| paper | from | reproduced | contradicted | cannot tell | |",
        "|---|---|---:|---:|---:|---|",
        *(entries[title].line for title in titles),
        *(_missing(name, node) for name, node in missing.items()),
        "",
        *(entries[title].section for title in titles),
    ]
    return "\n".join(lines).rstrip() + "\n"


def kept(page: str) -> dict[str, Entry]:
    """{title: entry} of a page that `results_page` wrote."""
    lines = {found["title"]: found[0] for found in LINE.finditer(page)}
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    titled = {section.partition("\n")[0]: f"## {section.rstrip()}\n" for section in sections}
    return {title: Entry(lines[safe(title)], text) for title, text in titled.items() if safe(title) in lines}


def _line(story: Story) -> str:
    found = story.published
    assert found is not None
    counts = " | ".join(f"**{n}**" if n else "0" for n in found.tally.values())
    source = safe(f"{found.paper.cite}, {found.paper.where}")
    return (
        f"| [{safe(_title(story))}](#{_anchor(story)}) | {source} | {counts} | {safe(story.banner or '')} |"
    )


def _missing(name: str, node: Mapping[str, Any]) -> str:
    source = safe(f"{node.get('cite', '')}, {node.get('where', '')}")
    return f"| `{name}` | {source} | | | | not run yet; about {node.get('minutes', 0):g} min on two cores |"


def _section(story: Story, known: Mapping[str, Mapping[str, Any]]) -> str:
    found = story.published
    assert found is not None
    arxiv = f" (arXiv:{found.paper.arxiv})" if found.paper.arxiv else ""
    lines = [f"## {_title(story)}", "", f"{safe(found.paper.cite + arxiv)}: {safe(found.paper.where)}.", ""]
    lines += published_table(found)
    now = known.get(found.paper.name)
    before = deciding(found.node.get("claims") or {}, found.scale)
    if now is not None and deciding(now.get("claims") or {}, found.scale) != before:
        lines += ["The file's claims have changed since; these are those that the sweep recorded.", ""]
    scale = f" scale={found.scale}" if found.scale != "small" else ""
    command = f"`triptych-train -m paper={found.paper.name}{scale}`"
    return "\n".join([*lines, f"<sub>{command}: {safe(_origin(story))}</sub>", ""])


def _origin(story: Story) -> str:
    """Commit, machine, date and cost of the runs."""
    assert story.published is not None
    runs = story.runs
    commits = sorted({run.commit[:10] + ("*" if run.dirty else "") for run in runs if run.commit})
    dates = sorted({run.started[:10] for run in runs if run.started})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "an unknown date"
    seconds = sum(sum(run.seconds.values()) for run in runs)
    told = [
        f"{count(len(runs), 'run')}, {duration(seconds)} of fitting and testing",
        f"commit {listed(commits) or 'unknown'}",
        story.published.machine or "machine unknown",
        when,
    ]
    changed = " (*: with uncommitted changes)" if any("*" in commit for commit in commits) else ""
    return "; ".join(told) + changed + "."


def _title(story: Story) -> str:
    found = story.published
    assert found is not None
    return found.paper.name + (f", scale={found.scale}" if found.scale != "small" else "")


def _anchor(story: Story) -> str:
    kept = "".join(c for c in _title(story).lower() if c.isalnum() or c in "-_ ")
    return kept.replace(" ", "-")
