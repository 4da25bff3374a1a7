"""W&B's workspace and report of a story: the comparison of our page, over runs that W&B has or will have.

Both are built without a network. They name runs by their ids and figures by the keys under which a run tells
them (``training.wandb_content``), so that a sweep that is sent later is found by them.

workspace   a project's runs of these sweeps, as many as there will be, grouped by what differs
report      the runs that were compared, with the table, the paired differences and the verdict in words
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.files import read_json
from triptych.report.axes import SWEEP
from triptych.report.compare import Comparison
from triptych.report.markdown import fenced, published_in_words, results_table, safe
from triptych.report.story import Story
from triptych.report.verdict import footnote
from triptych.report.wandb_panels import config_key, grouping, laid_out, panels_of, runs_of, with_value
from triptych.report.words import count
from triptych.runs.directory import RunDirectory, to_json, write_atomic
from triptych.runs.read import Run
from triptych.training.wandb_content import STEP, sweep_of
from triptych.training.wandb_login import logged_in

LOGGED = "logger.wandb."  # before a key of W&B's in a run's configuration
SAVED = "report_files/wandb.json"  # what has been saved, to be renewed
LIMIT = 128  # characters of a report's title


@dataclass(frozen=True)
class Views:
    """Objects of ``wandb_workspaces``, and the project that they are for."""

    entity: str
    project: str
    workspace: Any
    report: Any

    def plain(self) -> dict[str, Any]:
        """Both as plain JSON, as they are sent to W&B."""
        view, page = self.workspace._to_model(), self.report._to_model()
        named = {"entity": self.entity, "project": self.project}
        specs = {"workspace": (view.display_name, view.spec), "report": (page.display_name, page.spec)}
        return named | {
            kind: {"name": name, "spec": json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))}
            for kind, (name, spec) in specs.items()
        }


def project_of(story: Story) -> tuple[str | None, str]:
    """The entity, None where it is the user's own, and the project that the runs report to.

    Raises:
        UserError: no run reports to W&B, or they report to several projects.
    """
    found = {
        tuple(run.config.get(f"{LOGGED}{key}", "null") for key in ("entity", "project"))
        for run in story.runs
        if any(key.startswith(LOGGED) for key in run.config)
    }
    if not found:
        raise UserError("--wandb: none of these runs reports to W&B; runs with logger=wandb are accepted")
    if len(found) > 1:
        named = ", ".join(sorted("/".join(pair).removeprefix("null/") for pair in found))
        raise UserError(f"--wandb: the runs report to {len(found)} projects ({named}); one is accepted")
    [(entity, project)] = found
    return None if entity == "null" else entity, "triptych" if project == "null" else project


def build(story: Story, entity: str, project: str, saving: bool = False) -> Views:
    """Workspace and report; ``saving``: a server may be asked for the project's number.

    Raises:
        UserError: ``wandb_workspaces`` is not installed, or no run has a test bound.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ImportError:
        raise UserError("--wandb: not installed, pip install 'triptych[wandb]' is needed") from None
    if not story.comparisons:
        raise UserError("--wandb: no run has reported a test bound yet")
    where = {"entity": entity, "project": project}
    return Views(
        **where,
        workspace=_workspace(wr, ws, expr, story, where),
        report=_report(wr, expr, story, where, where if saving else {}),
    )


def save(story: Story, entity: str | None, project: str, folder: Path) -> list[str]:
    """Save both in W&B, in the place of those that were saved from ``folder`` before; their addresses.

    Raises:
        UserError: not logged in, or W&B refuses or does not answer.
    """
    if not logged_in():
        raise UserError(
            "--wandb: not logged in to W&B; `wandb login`, or --wandb-json=FILE without network, is accepted"
        )
    file = folder / SAVED
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        entity = entity or wandb.Api().default_entity or ""
        views = build(story, entity, project, saving=True)
        known = _known(file, views)
        view, page = views.workspace, views.report
        if known:
            view._internal_name, view._internal_id = known["workspace"], known["view"]
            page.id = known["report"]
        page.save()  # asks for the runs' project, without which neither is of use
        view.save()
    except UserError:
        raise
    except Exception as error:  # W&B's and its transport's, under many names
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--wandb: W&B has not taken it ({why})") from error
    known = {"entity": entity, "project": project, "report": page.id}
    known |= {"workspace": view._internal_name, "view": view._internal_id}
    write_atomic(file, to_json(known))
    return [view.url, page.url]


def _known(file: Path, views: Views) -> dict[str, str]:
    try:
        known = read_json(file)
        there = (known["entity"], known["project"]) == (views.entity, views.project)
        return known if there and {"workspace", "view", "report"} <= {*known} else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


# what the runs are grouped and filtered by ------------------------------------------------------------


def run_id(run: Run) -> str:
    """W&B's id of a run: the directory's."""
    return str(RunDirectory(run.dir).provenance().get("id", ""))


def _groups(runs: Iterable[Run]) -> list[str] | None:
    """W&B's groups of all runs; None where a run is in none."""
    found: dict[str, None] = {}
    for run in runs:
        asked = run.config.get(f"{LOGGED}group", "null")
        name = sweep_of(RunDirectory(run.dir)) if asked == "null" else asked
        if name is None:
            return None
        found[name] = None
    return [*found]


# the two objects --------------------------------------------------------------------------------------


def _workspace(wr: Any, ws: Any, expr: Any, story: Story, where: dict[str, str]) -> Any:
    first, several = story.comparisons[0], len(story.comparisons) > 1
    sections = []
    for comparison in story.comparisons:
        prefix = f"{comparison.heading}: " if several else ""
        table = wr.MarkdownPanel(markdown=_in_words(story, comparison), layout=wr.Layout(w=24, h=12))
        sections.append(ws.Section(name=f"{prefix}Comparison", panels=[table], is_open=True, pinned=True))
        sections += [
            ws.Section(name=f"{prefix}{name}", panels=found, is_open=True)
            for name, found in panels_of(wr, comparison)
        ]
    figure = f"test/{first.measure}"
    seen = [f"summary:{figure}{end}" for end in ("", "_stderr", "_n")]
    runs = runs_of(first)
    keys = [config_key(axis, runs) for axis in first.axes if axis.key != SWEEP]
    seen = [f"config:{with_value(key)}" for key in [*keys, "seed"]] + seen
    grouped = [expr.Config(key) for key in keys]
    if any(axis.key == SWEEP for axis in first.axes):
        grouped.append(expr.Metric("Group"))
    made = ws.Workspace(
        **where,
        name=_without_symbols(story.title),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=500),
        runset_settings=ws.RunsetSettings(
            groupby=grouped,
            order=[expr.Ordering(expr.Summary(figure), ascending=True)],
            pinned_columns=seen,
        ),
    )
    groups = _groups(story.runs)
    ids = [run_id(run) for run in story.runs]
    chosen = expr.Metric("Group").isin(groups) if groups else expr.Metric("ID").isin(ids)
    # as it would be after reading: what is given as text, each "=" within a value is doubled in
    made._stashed_filters_v2 = expr.filters_tree_to_v2(expr.filter_expr_to_filters_tree([chosen]))
    made._stashed_filter_string = made.runset_settings.filters
    return made


def _report(wr: Any, expr: Any, story: Story, where: dict[str, str], runset: dict[str, str]) -> Any:
    blocks: list[Any] = [wr.P(story.question), wr.CalloutBlock(story.answer)]
    if story.published:
        blocks += [wr.H1("Published"), wr.MarkdownBlock("\n".join(published_in_words(story.published)))]
    blocks += [wr.P(line) for line in [story.banner, *story.tuned] if line]
    for comparison in story.comparisons:
        blocks += [wr.H1(comparison.heading), wr.MarkdownBlock(_in_words(story, comparison))]
        compared = {
            "name": comparison.heading,
            "filters": expr.And(expr.Metric("ID").isin([run_id(run) for run in runs_of(comparison)])),
            "groupby": grouping(comparison),
            "order": [wr.OrderBy(wr.SummaryMetric(f"test/{comparison.measure}"), ascending=True)],
        }
        for name, found in panels_of(wr, comparison):
            runs = wr.Runset(**compared, **runset)
            blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=laid_out(wr, found))]
    if story.command:
        blocks += [wr.H1("Reproduce"), wr.MarkdownBlock("\n".join(fenced(story.command)))]
    described = f"{count(len(story.runs), 'run')}, by triptych-report"
    return wr.Report(**where, title=story.title[:LIMIT], description=described, blocks=blocks, width="fluid")


def _in_words(story: Story, comparison: Comparison) -> str:
    """The verdict, the table with paired differences, what is to be noted: as markdown."""
    said = story.verdicts[story.comparisons.index(comparison)]
    lines = [f"**{safe(said.headline)}**", "", results_table(comparison)]
    lines += [f"- {safe(line)}" for line in said.lines]
    lines += [f"- Note: {safe(note)}" for note in comparison.notes]
    return "\n".join([*lines, "", safe(footnote(comparison))])


def _without_symbols(text: str) -> str:
    """A workspace's name, in which W&B takes no symbol: "=" and "+" are some."""
    plain = (" " if unicodedata.category(c) in ("So", "Sk", "Sm", "Sc", "Cs") else c for c in text)
    return " ".join("".join(plain).split())[:LIMIT] or "triptych"
