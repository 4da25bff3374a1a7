"""`docs/results.md`: the verdict on every published claim at a glance, and a page of details per paper.

The folder of the page's name has each paper's result as a page, and as JSON, which outlives its sweep.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.describe import read_yaml
from triptych.config.metric import measures_of, version_of
from triptych.config.source import folders
from triptych.errors import Unreadable, UserError
from triptych.files import read_record, walk
from triptych.run.directory import RunDirectory, log_line, write_atomic
from triptych.run.read import Run
from triptych.run.sweep_record import SweepRecord
from triptych.study.formatting import duration, listed, quantity
from triptych.study.papers.claim import Claim, MetricPoint
from triptych.study.papers.paper import decisive_keys, set_measures, settings_digest
from triptych.study.published import FINDINGS, Judgement
from triptych.study.render import page_template
from triptych.study.study import Study, read_study
from triptych.study.style import INK, MUTED, plain_ticks, styled, to_png

Entry = dict[str, Any]
# what a paper's page reads of its result, and of a claim in it
READ = {"name", "scale", "cite", "arxiv", "where", "origin", "changed", "decides", "differs"}
READ_OF_CLAIM = {
    *("name", "says", "kind", "source", "word", "rule", "metric", "note", "why", "quote", "otherwise"),
    *("measured", "claimed", "all_measured", "published_ratio", "all_published", "ratio", "is_tie"),
}
TITLE = "# Published claims, measured"  # as the template begins
AGAIN = "to run again"  # the claim or a measure has changed since
COLOURS = {
    "reproduced": "#009e73", "contradicted": "#d55e00", "cannot tell": MUTED, "not testable here": "#aab2be",
}  # fmt: skip
LOW, HIGH = 0.2, 5.0  # of the axis: a ratio beyond it is an arrow at its end


def find_papers(roots: Iterable[Path]) -> list[Path]:
    """Return the sweeps of papers at or beneath ``roots``."""
    places = (place for root in roots for place in sorted(folder for folder, _ in walk(root)))
    return [place for place in places if _is_papers_sweep(place)]


def _is_papers_sweep(place: Path) -> bool:
    try:
        return bool(SweepRecord.read(place).paper)
    except Unreadable as error:
        log_line(None, f"left out: {error}")
        return False


def read_papers(scale: str = "small") -> dict[str, Any]:
    """Read {name: node ``paper`` at a scale, with a digest of the rest}; trusted packages have some, too."""
    nodes: dict[str, Any] = {}
    for file in (file for folder in folders() for file in sorted((folder / "paper").glob("*.yaml"))):
        plain = read_yaml(file)
        node: Any = plain.get("paper") or {}
        with suppress(OmegaConfBaseException):  # what a file refers to beyond itself stays as it is written
            config = DictConfig(plain)
            if OmegaConf.is_dict(values := OmegaConf.select(config, f"hydra.sweeper.scales.{scale}")):
                set_measures(config, OmegaConf.to_container(values))  # type: ignore[arg-type]
            node = OmegaConf.to_container(config.paper, resolve=True)
        nodes[file.stem] = node | {"settings": settings_digest(plain, scale)}
    return nodes


def write_results(page: Path, roots: Sequence[Path]) -> None:
    """Write the page, its figure and each paper's page; papers whose sweeps are gone keep their result.

    UserError: ``page`` is another file; OSError, StorageError: a file cannot be written.
    """
    if page.is_file() and not page.read_bytes().startswith(TITLE.encode()):
        raise UserError(f"--results {page}: exists and is no page of results; choose another name")
    folder = page.with_suffix("")
    for place in find_papers(roots):
        if (study := read_study([place])).published:
            entry = paper_entry(study) | {"settings": SweepRecord.read(place).paper_settings or None}
            text = json.dumps(entry, indent=1, ensure_ascii=False)
            write_atomic(folder / Path(f"{entry['title']}.json").name, text + "\n")
    kept = read_entries(folder)
    known = {scale: read_papers(scale) for scale in {"small", *(entry["scale"] for entry in kept)}}
    entries = [entry | {"claims": current_claims(entry, known[entry["scale"]])} for entry in kept]
    for entry in entries:
        write_atomic(folder / f"{entry['title']}.md", page_template("paper.md.j2").render(entry=entry) + "\n")
    if figure := claims_figure(entries):
        write_atomic(folder / "claims.png", figure)
    write_atomic(page, results_page(entries, known["small"], folder.name, bool(figure)))


def read_entries(folder: Path) -> list[Entry]:
    """Return the papers' results that `write_results` left in a folder, by title; Unreadable: one is none."""
    entries = []
    for file in sorted(folder.glob("*.json")):
        entry = read_record(file) or {}
        claims = entry.get("claims")
        lacking = READ - entry.keys()
        for claim in claims if isinstance(claims, list) else [{}]:
            lacking |= READ_OF_CLAIM - {*claim}
        if lacking:
            raise Unreadable(f"{file}: no paper's result (it has no {min(lacking)})")
        entries.append(entry | {"title": file.stem})
    return entries


def paper_entry(study: Study) -> dict[str, Any]:
    """Return a finished sweep's result as plain data."""
    results, runs = study.published, study.runs
    assert results is not None
    node, seconds = results.node, sum(map(wall_seconds, runs))
    return {
        "title": results.name + (f"_{results.scale}" if results.scale != "small" else ""),
        "name": results.name, "cite": node["cite"], "arxiv": node.get("arxiv") or "",
        "where": node["where"], "scale": results.scale,
        "differs": node.get("differs") or [], "discarded_seeds": node.get("discarded_seeds") or [],
        "data": ", ".join(sorted({run.choices.get("data", "") for run in runs} - {""})),
        "steps": max((run.steps or 0 for run in runs), default=0),
        "seconds": round(seconds, 1), "whole": all("ended" in run for run in runs),
        "origin": _origin(runs, seconds, results.machine), "changed": results.changed,
        "decides": decisive_keys(node["claims"], results.scale),
        "claims": [_claim(judgement) for judgement in results.judgements],
        "versions": earliest_versions(runs),
    }  # fmt: skip


def earliest_versions(runs: Sequence[Run]) -> dict[str, int]:
    """Return the earliest version of each measure of these runs; 1 where a run recorded none."""
    earliest: dict[str, int] = {}
    for run in runs:
        for measure in measures_of(run.config):
            version = run.versions.get(measure, 1)
            earliest[measure] = min(version, earliest.get(measure, version))
    return earliest


def wall_seconds(run: Run) -> float:
    """Return seconds from start to end; fit's and test's of a run that was interrupted or has no end."""
    parts = run.took
    starts = RunDirectory(run.dir).readable_provenance.executions
    if len(starts) != 1 or run.started is None or run.ended is None:
        return parts
    return max((run.ended - run.started).total_seconds(), parts)


def _claim(j: Judgement) -> dict[str, Any]:
    deciding, claim = j.deciding, j.claim
    published, ratio = published_at(claim, deciding.contrast.first, deciding.contrast.second)
    return {
        "name": claim.name, "says": claim.says, "kind": claim.kind, "source": claim.source, "word": j.word,
        "published": published, "published_ratio": ratio,
        "measured": f"{deciding.contrast.name} = {deciding.text}",
        "claimed": deciding.accepted, "ratio": deciding.ratio, "metric": claim.metric,
        "why": j.why, "warning": j.warning, "rule": claim.rule,
        "note": claim.note, "quote": claim.quote, "otherwise": claim.otherwise,
        "is_tie": deciding.contrast.is_tie, "untestable": claim.untestable,
        "all_published": claim.published, "all_measured": j.figures,
    }  # fmt: skip


def published_at(claim: Claim, *points: MetricPoint | None) -> tuple[str, float | None]:
    """Return these settings' published figures, of all if not named alike, and the first over the second."""
    known, given = dict(claim.published), list(filter(None, points))
    names: list[str] = []
    for point in given:  # by what tells it from the other
        shared = [one for one in point.setting if all(one in other.setting for other in given)]
        own = [value for key, value in point.setting if (key, value) not in shared or len(given) == 1]
        matches = [one for one in (*own, point.metric) if one in known]
        names += matches if len(matches) == 1 else []
    numbers = [re.search(r"\d+(\.\d+)?", known[name]) for name in names]
    figures = [float(number[0]) for number in numbers if number]
    ratio = figures[0] / figures[1] if len(figures) == 2 and figures[1] else None
    return "; ".join(f"{name}: {known[name]}" for name in dict.fromkeys(names or known)), ratio


def results_page(entries: Sequence[Entry], known: Mapping[str, Any], folder: str, pictured: bool) -> str:
    """Return the page: how many findings held, the figure, one row a claim, and what was not run."""
    rows = [(entry, c) for entry in entries for c in entry["claims"]]
    findings = [(entry, c) for entry, c in rows if c["kind"] != "identity"]
    identities = [(entry, c) for entry, c in rows if c["kind"] == "identity"]
    count = Counter(c["word"] for _, c in findings)
    *tested, untestable = FINDINGS
    measured = {entry["name"] for entry in entries if entry["scale"] == "small"}
    return page_template("results.md.j2").render(
        findings=findings, identities=identities, folder=folder, pictured=pictured, duration=duration,
        tested=sum(count[word] for word in tested), untestable=untestable,
        tested_words=listed([f"{count[word]} {word}" for word in tested]),
        untested_words=listed([f"{count[word]} {word}" for word in (untestable, AGAIN) if count[word]]),
        against=[(entry, c) for entry, c in findings if c["word"] == "contradicted"],
        holding=sum(c["word"] == "holds" for _, c in identities),
        whole=all(entry.get("whole") for entry in entries),
        missing=[(name, node.get("minutes", 0)) for name, node in known.items() if name not in measured],
    ) + "\n"  # fmt: skip


def current_claims(entry: Entry, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a paper's claims; those whose file or measures have changed since are to be run again."""
    node = known.get(entry["name"])
    if node is None:
        return list(entry["claims"])
    now, then = (
        json.loads(json.dumps(keys, default=str))
        for keys in (decisive_keys(node.get("claims") or {}, entry["scale"]), entry["decides"])
    )
    same = entry.get("settings") in (None, node.get("settings"))  # None: recorded by an earlier version
    same &= is_measured_alike(entry)
    return [
        claim | ({} if same and now.get(claim["name"]) == then.get(claim["name"]) else {"word": AGAIN})
        for claim in entry["claims"]
    ]


def is_measured_alike(entry: Entry) -> bool:
    """Return whether a result's measures are still those of its figures."""
    versions = {claim["metric"]: 1 for claim in entry["claims"]} | entry.get("versions", {})
    with suppress(UserError):  # a class that is not installed here may have changed or not
        return all(version_of(measure) == version for measure, version in versions.items())
    return True


def _origin(runs: Sequence[Run], seconds: float, machine: str) -> str:
    commits = sorted({run.commit[:10] + ("*" if run.dirty else "") for run in runs if run.commit})
    dates = sorted({run.began[:10] for run in runs if run.started})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "an unknown date"
    changed = " (*: with uncommitted changes)" if any("*" in commit for commit in commits) else ""
    what = f"{quantity(len(runs), 'run')}, {duration(seconds)}; commit {listed(commits) or 'unknown'}"
    return f"{what}; {machine or 'machine unknown'}; {when}{changed}."


def claims_figure(entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Return a PNG of all findings that compare two positive figures; None where there are none."""
    rows = [
        (f"{entry['title']}: {claim['name']}", claim)
        for entry in entries
        for claim in entry["claims"]
        if claim["kind"] != "identity" and claim["ratio"] and claim["word"] in COLOURS
    ]
    if not rows:
        return None
    with styled():
        figure = Figure(figsize=(7.6, 0.9 + 0.19 * max(3, len(rows))), layout="constrained")
        figure.set_facecolor("white")
        ax = figure.subplots()
        ax.axvline(1, color=INK, linewidth=0.8)
        for y, (_, claim) in enumerate(rows):
            mean, low, high = (min(max(end, LOW), HIGH) for end in claim["ratio"])
            ink = COLOURS[claim["word"]]
            ax.plot([low, high], [y, y], color=ink, linewidth=2)
            marker = _marker(claim["ratio"][0], "s" if claim["is_tie"] else "o")
            ax.plot(mean, y, marker, color=ink, markersize=4.5)
            if ratio := claim["published_ratio"]:
                ax.plot(min(max(ratio, LOW), HIGH), y, _marker(ratio, "D"), color=INK,
                        markerfacecolor="none", markersize=4.5, markeredgewidth=0.9)  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlim(LOW * 0.95, HIGH * 1.05)
        plain_ticks(ax.xaxis)
        ax.set_xticks([0.2, 0.5, 1, 2, 5])
        ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(
            "ratio of the two settings that decide; arrows: beyond the axis\n"
            "as claimed: right of 1 (circles), near 1 (squares)"
        )
        words = [Line2D([], [], color=ink, marker="o", label=word) for word, ink in COLOURS.items()]
        words += [
            Line2D([], [], color=INK, marker="s", linestyle="", label="claimed to be the same"),
            Line2D([], [], color=INK, marker="D", markerfacecolor="none", linestyle="", label="published"),
        ]
        figure.legend(handles=words, loc="outside upper center", ncols=3, frameon=False, fontsize=7)
        return to_png(figure)


def _marker(ratio: float, inside: str) -> str:
    """Return the sign of a ratio: an arrow where it lies beyond the axis."""
    return ">" if ratio > HIGH else "<" if ratio < LOW else inside
