"""`docs/results.md`: every paper's claims as finished sweeps found them, and which were not run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triptych.config.describe import read_yaml
from triptych.config.folders import folders
from triptych.files import load_object
from triptych.run.read import Run
from triptych.study.formatting import duration, listed, quantity
from triptych.study.markdown import published_table, safe
from triptych.study.papers.paper import decisive_keys
from triptych.study.papers.published import Judged
from triptych.study.study import Study, read_study

HEAD = """# Published claims, measured

Figures are of small runs on small data: a claim contradicted here is contradicted at this scale, and no more.
[papers.md](papers.md) explains the words. `make papers` runs what is missing and renews this page;
`triptych-report --results FILE DIR...` writes it from finished sweeps. A paper without one keeps its table.
"""
LINE = re.compile(r"^\| \[(?P<title>[^]\n]+)\]\(#[^)\n]*\) \|.*$", re.MULTILINE)


def find_papers(roots: Iterable[Path]) -> list[Path]:
    """The sweeps of papers at or beneath ``roots``, by name."""
    folders = {
        file.parent.resolve(): file for root in roots for file in sorted(Path(root).rglob("sweep.json"))
    }
    return sorted(
        (place for place, file in folders.items() if isinstance(load_object(file).get("paper"), dict)),
        key=lambda place: place.name,
    )


def files() -> dict[str, dict[str, Any]]:
    """{name: the node ``paper``} of each file in ``configs/paper``, the clone's and trusted packages'."""
    every = (file for folder in folders() for file in sorted((folder / "paper").glob("*.yaml")))
    return {file.stem: read_yaml(file).get("paper") or {} for file in every}


class PaperEntry(NamedTuple):
    """A paper that was run: its line in the summary, and its section."""

    line: str
    section: str


def results_page(roots: Sequence[Path], before: str = "") -> str:
    """The page of the sweeps beneath ``roots``; other papers keep what the page ``before`` has of them."""
    known = files()
    stories = [read_study([place]) for place in find_papers(roots)]
    entries = read_entries(before) | dict(_entry(s, s.published, known) for s in stories if s.published)
    missing = {name: node for name, node in known.items() if name not in entries}
    titles = sorted(entries)
    lines = [
        HEAD,
        "| paper | reproduced | contradicted | cannot tell | |",
        "|---|---:|---:|---:|---|",
        *(entries[title].line for title in titles),
        *(_missing(name, node) for name, node in missing.items()),
        "",
        *(entries[title].section for title in titles),
    ]
    return "\n".join(lines).rstrip() + "\n"


def read_entries(page: str) -> dict[str, PaperEntry]:
    """{title: entry} of a page that `results_page` wrote."""
    lines = {match["title"]: match[0] for match in LINE.finditer(page)}
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    titled = {section.partition("\n")[0]: f"## {section.rstrip()}\n" for section in sections}
    known = {title: text for title, text in titled.items() if safe(title) in lines}
    return {title: PaperEntry(lines[safe(title)], text) for title, text in known.items()}


def _missing(name: str, node: Mapping[str, Any]) -> str:
    return f"| `{name}` | | | | not run yet; about {node.get('minutes', 0):g} min on two cores |"


def _entry(story: Study, results: Judged, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, PaperEntry]:
    """A sweep's title, and what the page has of it."""
    paper, at_scale = results.paper, results.scale != "small"
    title = paper.name + (f", scale={results.scale}" if at_scale else "")
    anchor = "".join(c for c in title.lower() if c.isalnum() or c in "-_ ").replace(" ", "-")
    counts = " | ".join(f"**{n}**" if n else "0" for n in results.tally.values())
    line = f"| [{safe(title)}](#{anchor}) | {counts} | {safe(story.banner or '')} |"
    arxiv = f" (arXiv:{paper.arxiv})" if paper.arxiv else ""
    section = [f"## {title}", "", f"{safe(paper.cite + arxiv)}: {safe(paper.where)}.", ""]
    section += published_table(results)
    now = known.get(paper.name)
    before = decisive_keys(results.node.get("claims") or {}, results.scale)
    if now is not None and decisive_keys(now.get("claims") or {}, results.scale) != before:
        section += ["The file's claims have changed since; these are those that the sweep recorded.", ""]
    command = f"`triptych-train -m paper={paper.name}{f' scale={results.scale}' if at_scale else ''}`"
    section += [f"<sub>{command}: {safe(_origin(story.runs, results.machine))}</sub>", ""]
    return title, PaperEntry(line, "\n".join(section))


def _origin(runs: Sequence[Run], machine: str) -> str:
    """Commit, machine, date and cost of the runs."""
    commits = sorted({run.commit[:10] + ("*" if run.dirty else "") for run in runs if run.commit})
    dates = sorted({run.started[:10] for run in runs if run.started})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "an unknown date"
    seconds = sum(sum(run.seconds.values()) for run in runs)
    facts = [
        f"{quantity(len(runs), 'run')}, {duration(seconds)}",
        f"commit {listed(commits) or 'unknown'}",
        machine or "machine unknown",
        when,
    ]
    changed = " (*: with uncommitted changes)" if any("*" in commit for commit in commits) else ""
    return "; ".join(facts) + changed + "."
