"""Write `docs/results.md`: the verdict on every published claim, and a page of details per paper.

The folder `docs/results` has each paper's result as a page, and as JSON, which remains when the
sweep is deleted.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.compose import to_plain
from triptych.config.describe import read_yaml
from triptych.config.metric import metric_names, metric_version
from triptych.config.source import config_folders
from triptych.errors import Unreadable, UserError
from triptych.files import read_record, walk
from triptych.run.directory import RunDirectory, log_line, write_atomic
from triptych.run.read import Run
from triptych.run.sweep_record import SweepRecord
from triptych.study.claim_counts import (
    AGAIN,
    SECTIONS,
    UNTESTABLE,
    Verdict,
    count_sentences,
    tally,
)  # fmt: skip
from triptych.study.claims_figure import Row, claims_figure
from triptych.study.formatting import count_noun, duration, join_names
from triptych.study.papers.claim import Claim, MetricPoint
from triptych.study.papers.labels import Node, claim_labels
from triptych.study.papers.paper import (
    claims_at_scale,
    decisive_keys,
    set_measures,
    settings_digest,
)  # fmt: skip
from triptych.study.published import Judgement
from triptych.study.render import page_template
from triptych.study.study import Study, read_study

Entry = dict[str, Any]  # a paper's result, or one of its claims, as recorded
TITLE = "# Published claims, measured"  # the first line of the page


def find_papers(roots: Iterable[Path]) -> list[Path]:
    """Return the sweeps of papers at or beneath ``roots``."""
    papers: list[Path] = []
    for root in roots:
        papers += filter(_is_papers_sweep, sorted(folder for folder, _ in walk(root)))
    return papers


def _is_papers_sweep(folder: Path) -> bool:
    """Return whether a folder is a sweep of a paper; log why if its record is unreadable."""
    try:
        return bool(SweepRecord.read(folder).paper)
    except Unreadable as error:
        log_line(None, f"sweep left out: {error}")
        return False


def read_papers(scale: str = "small") -> dict[str, Any]:
    """Return {name: node ``paper`` at a scale} of all papers' files, those of trusted packages too.

    Each node has the digest of its file's settings as ``settings``.
    """
    nodes: dict[str, Any] = {}
    for folder in config_folders():
        for file in sorted((folder / "paper").glob("*.yaml")):
            plain = read_yaml(file)
            node = _paper_node(plain, scale)
            nodes[file.stem] = node | {"settings": settings_digest(plain, scale)}
    return nodes


def _paper_node(settings: dict[str, Any], scale: str) -> Any:
    """Return the node ``paper`` of a file's settings, resolved with the measures of a scale.

    If it cannot be resolved, it is returned as written.
    """
    try:
        config = DictConfig(settings)
        values = OmegaConf.select(config, f"hydra.sweeper.scales.{scale}")
        if isinstance(values, DictConfig):
            set_measures(config, to_plain(values, resolve=False))
        return to_plain(config.paper)
    except OmegaConfBaseException:
        return settings.get("paper", {})


def write_results(page: Path, roots: Sequence[Path]) -> None:
    """Write the page of all results, its figure, and a page for each paper.

    Papers without a sweep beneath ``roots`` keep their earlier result. UserError: ``page`` is a
    file, but no page of results; OSError, StorageError: a file cannot be written.
    """
    if page.is_file() and not page.read_bytes().startswith(TITLE.encode()):
        raise UserError(
            f"--results {page}: exists, but is not a page of results; choose another name"
        )
    folder = page.with_suffix("")
    for sweep in find_papers(roots):
        study = read_study([sweep])
        if study.published:
            entry = paper_entry(study)
            text = json.dumps(entry, indent=1, ensure_ascii=False)
            write_atomic(folder / Path(f"{entry['title']}.json").name, text + "\n")
    kept = read_entries(folder)
    known = {scale: read_papers(scale) for scale in {"small", *(entry["scale"] for entry in kept)}}
    entries = [entry | {"claims": current_claims(entry, known[entry["scale"]])} for entry in kept]
    for entry in entries:
        text = page_template("paper.md.j2").render(entry=entry, folder=folder.name)
        write_atomic(folder / f"{entry['title']}.md", text + "\n")
    figure = claims_figure(claim_rows(entries))
    if figure:
        write_atomic(folder / "claims.png", figure)
    write_atomic(page, results_page(entries, known["small"], folder.name, bool(figure)))


def read_entries(folder: Path) -> list[Entry]:
    """Return the papers' results that `write_results` stored in a folder, sorted by title."""
    files = sorted(folder.glob("*.json"))
    return [(read_record(file) or {}) | {"title": file.stem} for file in files]


def paper_entry(study: Study) -> Entry:
    """Return a finished sweep's result as plain data."""
    results = study.published
    runs = study.runs
    assert results is not None
    node, seconds, title = results.node, sum(map(wall_seconds, runs)), results.name
    if results.scale != "small":
        title += f"_{results.scale}"
    return {
        "title": title,
        "name": results.name, "cite": node["cite"], "arxiv": node.get("arxiv", ""),
        "where": node["where"], "scale": results.scale,
        "differs": node.get("differs", []), "discarded_seeds": node.get("discarded_seeds", []),
        "data": ", ".join(sorted({run.choices.get("data", "") for run in runs} - {""})),
        "steps": max((run.steps or 0 for run in runs), default=0),
        "seconds": round(seconds, 1), "whole": all("ended" in run for run in runs),
        "origin": _origin_text(runs, seconds, results.machine), "changed": results.changed,
        "decides": decisive_keys(node["claims"], results.scale),
        "claims": list(map(_claim_entry, results.judgements)),
        "versions": earliest_versions(runs),
        "settings": study.record.paper_settings or None,
    }  # fmt: skip


def earliest_versions(runs: Sequence[Run]) -> dict[str, int]:
    """Return the earliest version of each measure of these runs; 1 where a run recorded none."""
    earliest: dict[str, int] = {}
    for run in runs:
        for measure in metric_names(run.config):
            version = run.versions.get(measure, 1)
            earliest[measure] = min(version, earliest.get(measure, version))
    return earliest


def wall_seconds(run: Run) -> float:
    """Return seconds from start to end; for an interrupted run, the seconds it computed."""
    starts = RunDirectory(run.dir).readable_provenance.executions
    if len(starts) != 1 or run.started is None or run.ended is None:
        return run.computing_seconds
    return max((run.ended - run.started).total_seconds(), run.computing_seconds)


def _claim_entry(judgement: Judgement) -> Entry:
    """Return a judged claim as plain data."""
    deciding = judgement.deciding
    claim = judgement.claim
    published, ratio = published_at(claim, *deciding.contrast.compared)
    entry = vars(claim) | {
        "word": judgement.word, "outcome": judgement.outcome,
        "published": published, "published_ratio": ratio, "all_published": claim.published,
        "measured": f"{deciding.contrast.name} = {deciding.text}",
        "claimed": deciding.accepted, "ratio": deciding.ratio, "is_tie": deciding.contrast.is_tie,
        "why": judgement.why, "warning": judgement.warning, "all_measured": judgement.figures,
    }  # fmt: skip
    del entry["contrasts"]
    return entry


def published_at(claim: Claim, *points: MetricPoint) -> tuple[str, float | None]:
    """Return the published figures of some settings as text, and the ratio of two of them.

    If none of them is known, the text has all figures of the claim. The ratio is that of the first
    figure to the second; None unless both are known.
    """
    known = dict(claim.published)
    names = [name for point in points for name in _published_names(point, points, known)]
    figures = [_first_number(known[name]) for name in names]
    ratio = None
    if len(figures) == 2 and all(figures):
        ratio = figures[0] / figures[1]
    shown = dict.fromkeys(names or known)
    return "; ".join(f"{name}: {known[name]}" for name in shown), ratio


def _published_names(
    point: MetricPoint, points: Iterable[MetricPoint], known: Mapping[str, str]
) -> list[str]:
    """Return [name of a setting's published figure], or [] unless exactly one name matches.

    The name is a value that the other settings of ``points`` lack, or the metric. ``known``:
    {name: published figure}.
    """
    others = {setting for other in points if other is not point for setting in other.setting}
    names = [value for key, value in point.setting if (key, value) not in others]
    matches = [name for name in [*names, point.metric] if name in known]
    return matches if len(matches) == 1 else []


def _first_number(text: str) -> float:
    """Return the first number of a text: 3.7 of "≤ 3.70"; 0 if there is none."""
    match = re.search(r"\d+(\.\d+)?", text)
    if match is None:
        return 0.0
    return float(match[0])


def claim_rows(entries: Iterable[Entry]) -> dict[str, list[Row]]:
    """Return {section: (paper's result, claim) pairs} with each claim in its section."""
    rows: dict[str, list[Row]] = {section: [] for section in SECTIONS}
    for entry in entries:
        for claim in entry["claims"]:
            rows[read_verdict(claim).section].append((entry, claim))
    return rows


def read_verdict(claim: Node) -> Verdict:
    """Return the verdict of a recorded claim."""
    return Verdict(claim["counts_as"], claim["word"], claim["outcome"])


def short_citation(cite: str) -> str:
    """Return authors and year of a citation; the whole citation if it has no year."""
    return re.sub(r"(\b\d{4}\b).*", r"\1", cite)


def paper_counts(entry: Entry) -> list[str]:
    """Return the counts of a paper's verdicts for each section, as "2 reproduced"."""
    verdicts = [read_verdict(claim) for claim in entry["claims"]]
    return [tally(verdicts, section) for section in SECTIONS]


def results_page(
    entries: Sequence[Entry],
    current_papers: Mapping[str, Node],
    folder: str,
    has_figure: bool,
) -> str:
    """Render the page: counts, a row per paper, the figure, a row per claim, papers not run."""
    sections = claim_rows(entries)
    claims = [*chain.from_iterable(entry["claims"] for entry in entries)]
    measured = {entry["name"] for entry in entries if entry["scale"] == "small"}
    return page_template("results.md.j2").render(
        papers=[(entry, short_citation(entry["cite"]), paper_counts(entry)) for entry in entries],
        sections=sections, sentences=count_sentences(list(map(read_verdict, claims))),
        n=len(claims), relabelled=sum(bool(claim["relabelled"]) for claim in claims),
        folder=folder, pictured=has_figure, duration=duration,
        whole=all(entry.get("whole") for entry in entries),
        missing=[
            (name, paper.get("minutes", 0))
            for name, paper in current_papers.items() if name not in measured
        ],
    ) + "\n"  # fmt: skip


def current_claims(entry: Entry, current_papers: Mapping[str, Node]) -> list[Entry]:
    """Return a paper's recorded claims with the labels that its file has now.

    A claim whose text, settings or measures changed since its runs is marked "to run again".
    """
    node = current_papers.get(entry["name"])
    if node is None:
        return list(entry["claims"])
    nodes = claims_at_scale(node.get("claims", {}), entry["scale"])
    labels = claim_labels(nodes, entry["scale"])
    keys = decisive_keys(node.get("claims", {}), entry["scale"])
    now = json.loads(json.dumps(keys, default=str))  # convert like the recorded keys
    # Results of earlier versions have no digest of their settings.
    same_settings = entry.get("settings") in (None, node.get("settings"))
    same_runs = same_settings and has_current_versions(entry)
    claims = []
    for claim in entry["claims"]:
        name = claim["name"]
        if not same_runs or now.get(name) != entry["decides"].get(name, {}):
            claim = claim | {"word": AGAIN}
        if name in now:
            claim = _with_current_labels(claim, labels[name])
        claims.append(claim)
    return claims


def _with_current_labels(claim: Node, labels: Mapping[str, str]) -> Entry:
    """Update the labels of a recorded claim, and its verdict (``word``) if they change it.

    They do if the claim has become untestable, or is no longer.
    """
    current = {**claim, **labels}
    if claim["word"] == AGAIN:
        return current
    reason = labels["untestable"]
    if reason:
        return current | {"word": UNTESTABLE, "why": f"{reason.rstrip('.')}."}
    if claim["word"] == UNTESTABLE:
        # The claim was not tested, and now can be.
        current["word"] = AGAIN
    return current


def has_current_versions(entry: Entry) -> bool:
    """Return whether the metrics of a result still have the versions with which it was measured."""
    versions = {claim["metric"]: 1 for claim in entry["claims"]} | entry.get("versions", {})
    try:
        return all(metric_version(measure) == version for measure, version in versions.items())
    except UserError:
        return True  # the class is not installed here, so assume no change


def _origin_text(runs: Sequence[Run], seconds: float, machine: str) -> str:
    """Describe where a result comes from: "6 runs, 4 min; commit 0123456789; x86; 2025-01-01."."""
    parts = [f"{count_noun(len(runs), 'run')}, {duration(seconds)}"]
    commits = sorted({run.commit[:10] for run in runs if run.commit})
    parts.append(f"commit {join_names(commits) or 'unknown'}")
    if any(run.dirty for run in runs):
        parts.append("with uncommitted changes")
    parts.append(machine or "machine unknown")
    dates = sorted({run.start_time[:10] for run in runs if run.started})
    ends = dict.fromkeys([*dates[:1], *dates[-1:]])
    parts.append(" to ".join(ends) or "an unknown date")
    return "; ".join(parts) + "."
