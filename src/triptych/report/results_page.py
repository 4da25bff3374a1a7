"""`docs/results.md`: every paper's claims as finished sweeps found them, and which were not run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.config.describe import read
from triptych.config.folders import folders
from triptych.config.paper import deciding
from triptych.report.markdown import published_table, safe
from triptych.report.story import Story, tell
from triptych.report.words import count, duration, listed
from triptych.runs.plain import load

HEAD = """# Published claims, measured

Written by `triptych-report --results FILE DIR...` from finished sweeps, never typed; `make papers` runs what
is missing and writes it anew. [papers.md](papers.md) says what the words mean and how a paper is added.
Figures are of small runs on small data: what is contradicted here is contradicted at this scale, and no more.
"""


def find_papers(roots: Iterable[Path]) -> list[Path]:
    """The sweeps of papers at or beneath ``roots``, by name."""
    found = {file.parent.resolve(): file for root in roots for file in sorted(Path(root).rglob("sweep.json"))}
    return sorted(
        (place for place, file in found.items() if isinstance((load(file) or {}).get("paper"), dict)),
        key=lambda place: place.name,
    )


def files() -> dict[str, dict[str, Any]]:
    """{name: the node ``paper``} of each file in ``configs/paper``, the clone's and trusted packages'."""
    every = (file for folder in folders() for file in sorted((folder / "paper").glob("*.yaml")))
    return {file.stem: read(file).get("paper") or {} for file in every}


def results_page(roots: Sequence[Path]) -> str:
    """The page of the sweeps beneath ``roots``."""
    known = files()
    stories = [story for place in find_papers(roots) if (story := tell([place])).published]
    run = {story.published.paper.name for story in stories if story.published}
    missing = {name: node for name, node in known.items() if name not in run}
    lines = [HEAD, *_summary(stories, missing)]
    for story in stories:
        lines += _section(story, known)
    return "\n".join(lines).rstrip() + "\n"


def _summary(stories: Sequence[Story], missing: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| paper | from | reproduced | contradicted | cannot tell | |", "|---|---|---:|---:|---:|---|"]
    for story in stories:
        found = story.published
        assert found is not None
        counts = " | ".join(f"**{n}**" if n else "0" for n in found.tally.values())
        state = safe(story.banner or "")
        source = safe(f"{found.paper.cite}, {found.paper.where}")
        lines.append(f"| [{safe(_title(story))}](#{_anchor(story)}) | {source} | {counts} | {state} |")
    for name, node in missing.items():
        source = safe(f"{node.get('cite', '')}, {node.get('where', '')}")
        cost = f"not run yet; about {node.get('minutes', 0):g} min on two cores"
        lines.append(f"| `{name}` | {source} | | | | {cost} |")
    return [*lines, ""]


def _section(story: Story, known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = story.published
    assert found is not None
    arxiv = f" (arXiv:{found.paper.arxiv})" if found.paper.arxiv else ""
    lines = [f"## {_title(story)}", "", f"{safe(found.paper.cite + arxiv)}: {safe(found.paper.where)}.", ""]
    lines += published_table(found)
    now = known.get(found.paper.name)
    if now is not None and deciding(now.get("claims") or {}) != deciding(found.node.get("claims") or {}):
        lines += ["The file's claims have changed since; these are those that the sweep recorded.", ""]
    scale = f" scale={found.scale}" if found.scale != "small" else ""
    command = f"`triptych-train -m paper={found.paper.name}{scale}`"
    return [*lines, f"<sub>{command}: {safe(_origin(story))}</sub>", ""]


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
