"""`docs/results.md`: the verdict on every published claim at a glance, and a page of details per paper.

The folder of the page's name has each paper's result as a page, and as JSON, which outlives its sweep.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.compose import to_plain
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
    for folder in folders():
        for file in sorted((folder / "paper").glob("*.yaml")):
            plain = read_yaml(file)
            nodes[file.stem] = _paper_node(plain, scale) | {"settings": settings_digest(plain, scale)}
    return nodes


def _paper_node(plain: dict[str, Any], scale: str) -> Any:
    """Return a file's node ``paper`` with a scale's measures; as written if it refers beyond the file."""
    try:
        config = DictConfig(plain)
        values = OmegaConf.select(config, f"hydra.sweeper.scales.{scale}")
        if isinstance(values, DictConfig):
            set_measures(config, to_plain(values, resolve=False))
        return to_plain(config.paper)
    except OmegaConfBaseException:
        return plain.get("paper", {})


def write_results(page: Path, roots: Sequence[Path]) -> None:
    """Write the page, its figure and each paper's page; papers whose sweeps are gone keep their result.

    UserError: ``page`` is another file; OSError, StorageError: a file cannot be written.
    """
    if page.is_file() and not page.read_bytes().startswith(TITLE.encode()):
        raise UserError(f"--results {page}: exists and is no page of results; choose another name")
    folder = page.with_suffix("")
    for place in find_papers(roots):
        study = read_study([place])
        if study.published:
            entry = paper_entry(study) | {"settings": SweepRecord.read(place).paper_settings or None}
            text = json.dumps(entry, indent=1, ensure_ascii=False)
            write_atomic(folder / Path(f"{entry['title']}.json").name, text + "\n")
    kept = read_entries(folder)
    known = {scale: read_papers(scale) for scale in {"small", *(entry["scale"] for entry in kept)}}
    entries = [entry | {"claims": current_claims(entry, known[entry["scale"]])} for entry in kept]
    for entry in entries:
        write_atomic(folder / f"{entry['title']}.md", page_template("paper.md.j2").render(entry=entry) + "\n")
    figure = claims_figure(entries)
    if figure:
        write_atomic(folder / "claims.png", figure)
    write_atomic(page, results_page(entries, known["small"], folder.name, bool(figure)))


def read_entries(folder: Path) -> list[Entry]:
    """Return the papers' results that `write_results` left in a folder, by title."""
    return [(read_record(file) or {}) | {"title": file.stem} for file in sorted(folder.glob("*.json"))]


def paper_entry(study: Study) -> dict[str, Any]:
    """Return a finished sweep's result as plain data."""
    results, runs = study.published, study.runs
    assert results is not None
    node, seconds, title = results.node, sum(map(wall_seconds, runs)), results.name
    if results.scale != "small":
        title += f"_{results.scale}"
    return {
        "title": title,
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
    starts = RunDirectory(run.dir).readable_provenance.executions
    if len(starts) != 1 or run.started is None or run.ended is None:
        return run.took
    return max((run.ended - run.started).total_seconds(), run.took)


def _claim(j: Judgement) -> dict[str, Any]:
    deciding, claim = j.deciding, j.claim
    published, ratio = published_at(claim, *deciding.contrast.compared)
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


def published_at(claim: Claim, *points: MetricPoint) -> tuple[str, float | None]:
    """Return these settings' published figures, of all if not named alike, and the first over the second."""
    known = dict(claim.published)
    names = [name for point in points for name in _published_names(point, points, known)]
    figures = [_first_number(known[name]) for name in names]
    ratio = None
    if len(figures) == 2 and all(figures):
        ratio = figures[0] / figures[1]
    shown = dict.fromkeys(names or known)
    return "; ".join(f"{name}: {known[name]}" for name in shown), ratio


def _published_names(point: MetricPoint, points: Iterable[MetricPoint], known: Iterable[str]) -> list[str]:
    """Return a setting's name among those published: a value that the other lacks, or its metric."""
    others = {setting for other in points if other is not point for setting in other.setting}
    names = [value for key, value in point.setting if (key, value) not in others]
    matches = [name for name in [*names, point.metric] if name in known]
    if len(matches) != 1:
        return []
    return matches


def _first_number(text: str) -> float:
    """Return the first number of a text: 3.7 of "≤ 3.70"; 0 if there is none."""
    match = re.search(r"\d+(\.\d+)?", text)
    if match is None:
        return 0.0
    return float(match[0])


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
        contradicted=count["contradicted"],
        holding=sum(c["word"] == "holds" for _, c in identities),
        whole=all(entry.get("whole") for entry in entries),
        missing=[(name, node.get("minutes", 0)) for name, node in known.items() if name not in measured],
    ) + "\n"  # fmt: skip


def current_claims(entry: Entry, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a paper's claims; those whose file or measures have changed since are to be run again."""
    node = known.get(entry["name"])
    if node is None:
        return list(entry["claims"])
    keys = decisive_keys(node.get("claims", {}), entry["scale"])
    now = json.loads(json.dumps(keys, default=str))  # as the entry's own have been written and read
    same_settings = entry.get("settings") in (None, node.get("settings"))  # None in earlier versions
    same_runs = same_settings and is_measured_alike(entry)
    claims = []
    for claim in entry["claims"]:
        name = claim["name"]
        if not same_runs or now.get(name) != entry["decides"].get(name):
            claim = claim | {"word": AGAIN}
        claims.append(claim)
    return claims


def is_measured_alike(entry: Entry) -> bool:
    """Return whether a result's measures are still those of its figures."""
    versions = {claim["metric"]: 1 for claim in entry["claims"]} | entry.get("versions", {})
    try:
        return all(version_of(measure) == version for measure, version in versions.items())
    except UserError:
        return True  # a class that is not installed here may have changed or not


def _origin(runs: Sequence[Run], seconds: float, machine: str) -> str:
    """Describe where a result comes from: "6 runs, 4 min; commit 0123456789; x86; 2025-01-01."."""
    changed = {f"{run.commit[:10]}*" for run in runs if run.commit and run.dirty}
    clean = {run.commit[:10] for run in runs if run.commit and not run.dirty}
    parts = [f"{quantity(len(runs), 'run')}, {duration(seconds)}"]
    parts.append(f"commit {listed(sorted(clean | changed)) or 'unknown'}")
    parts.append(machine or "machine unknown")
    dates = sorted({run.began[:10] for run in runs if run.started})
    when = "an unknown date"
    if dates:
        when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    if changed:
        when += " (*: with uncommitted changes)"
    return "; ".join([*parts, when]) + "."


def claims_figure(entries: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Return a PNG of all findings that compare two positive figures; None where there are none."""
    rows: dict[str, Any] = {}
    for entry in entries:
        for claim in entry["claims"]:
            if claim["kind"] != "identity" and claim["ratio"] and claim["word"] in COLOURS:
                rows[f"{entry['title']}: {claim['name']}"] = claim
    if not rows:
        return None
    with styled():
        figure = Figure(figsize=(7.6, 0.9 + 0.19 * max(3, len(rows))), layout="constrained")
        figure.set_facecolor("white")
        ax = figure.subplots()
        ax.axvline(1, color=INK, linewidth=0.8)
        for y, claim in enumerate(rows.values()):
            _draw_claim(ax, y, claim)
        ax.set_xscale("log")
        ax.set_xlim(LOW * 0.95, HIGH * 1.05)
        plain_ticks(ax.xaxis)
        ax.set_xticks([0.2, 0.5, 1, 2, 5])
        ax.set_yticks(range(len(rows)), list(rows), fontsize=7)
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


def _draw_claim(ax: Axes, y: float, claim: Mapping[str, Any]) -> None:
    """Draw the measured ratio of a claim with its interval, and the published one."""
    ink = COLOURS[claim["word"]]
    mean, low, high = np.clip(claim["ratio"], LOW, HIGH)
    ax.plot([low, high], [y, y], color=ink, linewidth=2)
    marker = "s" if claim["is_tie"] else "o"
    ax.plot(mean, y, _marker(claim["ratio"][0], marker), color=ink, markersize=4.5)
    ratio = claim["published_ratio"]
    if ratio:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markersize": 4.5, "markeredgewidth": 0.9}
        ax.plot(np.clip(ratio, LOW, HIGH), y, _marker(ratio, "D"), color=INK, **hollow)


def _marker(ratio: float, inside: str) -> str:
    """Return the sign of a ratio: an arrow where it lies beyond the axis."""
    if ratio > HIGH:
        return ">"
    if ratio < LOW:
        return "<"
    return inside
