"""W&B's report of a story: the comparison of our page, over runs that W&B has or will have.

It names runs by their ids and figures by the keys under which a run logs them (``run.log_content``), so
that a sweep that is sent later is found. A panel is there where some run has what it shows; bars and lines
are means over the seeds of a setting with their standard error, as W&B takes them. A run of job type "report"
has what no single run has: a table of all runs, and the error by noise level of each setting.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.run.directory import RunDirectory, to_json, write_atomic
from triptych.run.log_content import (
    BESIDE,
    RESOLVED,
    error_line,
    flat_figures,
    flat_key,
)
from triptych.run.read import Run
from triptych.run.result import PARTS
from triptych.run.wandb import FINISH, LINE, STEP, import_wandb, logged_in, quiet_settings
from triptych.study.axes import SWEEP, Axis
from triptych.study.compare import Comparison
from triptych.study.curves import mean_curves
from triptych.study.formatting import quantity
from triptych.study.markdown import comparison_in_words, fenced, published_in_words, safe
from triptych.study.results import results
from triptych.study.study import Study
from triptych.study.verdict import footnote

LOGGED = "logger.wandb."  # before a key of W&B's in a run's configuration
SAVED = "report_files/wandb.json"  # what has been saved, to be renewed
LIMIT = 128  # characters of a report's title
MOST = {"max_runs_to_show": 500}  # of a panel
NOISE = ("gamma", "epsilon_mse")
CHART = {"x": NOISE[0], "y": NOISE[1], "stroke": "setting"}  # fields of the chart over noise levels


def project_of(story: Study, option: str = "--wandb") -> tuple[str | None, str]:
    """Return the entity, None where it is the user's own, and the project that the runs report to.

    Raises:
        UserError: no run reports to W&B, or they report to several projects.
    """
    projects = {
        tuple(run.config.get(f"{LOGGED}{key}", "null") for key in ("entity", "project"))
        for run in story.runs
        if any(key.startswith(LOGGED) for key in run.config)
    }
    if not projects:
        raise UserError(f"{option}: none of these runs reports to W&B; train them with logger=wandb")
    if len(projects) > 1:
        named = ", ".join(sorted("/".join(pair).removeprefix("null/") for pair in projects))
        raise UserError(f"{option}: the runs report to {len(projects)} projects ({named}); report on one")
    [(entity, project)] = projects
    return None if entity == "null" else entity, "triptych" if project == "null" else project


def save_report(story: Study, entity: str | None, project: str, folder: Path) -> str:
    """Save the report in W&B, in the place of one that was saved from ``folder`` before; its address.

    Raises:
        UserError: not logged in, or W&B refuses or does not answer.
    """
    if not logged_in():
        raise UserError("--wandb: not logged in to W&B; `wandb login`, or --wandb-json=FILE without network")
    file = folder / SAVED
    try:
        wandb = import_wandb(file.parent / "wandb")
        where = {"entity": entity or wandb.Api().default_entity or "", "project": project}
        known = _saved(file, where)
        tables = known.get("tables") or secrets.token_hex(4)
        report = build_report(story, **where, tables=tables)
        report.id = known.get("report", report.id)
        report.save()  # asks for the runs' project, without which it is of no use
        write_atomic(file, to_json(where | {"report": report.id, "tables": tables}))
        _log_tables(wandb, story, where, tables)
    except UserError:
        raise
    except Exception as error:  # W&B's and its transport's, under many names
        raise UserError(f"--wandb: W&B has not taken it ({error_line(error)})") from error
    return report.url


def _saved(file: Path, where: dict[str, str]) -> dict[str, str]:
    """Ids of the report and of its tables' run that were saved in the same project; {} the first time."""
    try:
        known = json.loads(file.read_text())
        return known if where.items() <= known.items() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _log_tables(wandb: Any, story: Study, where: dict[str, str], identity: str) -> None:
    """Log all runs as a table, and the error by noise level as a chart with a line a setting, in one run."""
    rows = [
        {"id": run_id(run)} | row | {"directory": run.dir.name}
        for run, row in zip(story.runs, results(story.runs), strict=True)
    ]
    columns = [*dict.fromkeys(key for row in rows for key in row)]
    cells = [[row.get(column) for column in columns] for row in rows]
    logged = {"runs": wandb.Table(columns=columns, data=cells, allow_mixed_types=True)}
    for key, comparison in _noise_levels(story).items():
        points = [
            [label, *map(float, point)]
            for label, (gamma, mean, _) in mean_curves(comparison).items()
            for point in zip(gamma, mean, strict=True)
        ]
        table = wandb.Table(columns=["setting", *NOISE], data=points)
        logged[key] = wandb.plot_table(LINE, table, CHART, {"title": comparison.heading})
    about = {"id": identity, "resume": "allow", "name": story.title[:LIMIT], "job_type": "report"}
    how = {"mode": "online", "settings": quiet_settings(wandb, FINISH)}
    with tempfile.TemporaryDirectory() as place:  # below the sweep, W&B's files would be read as a run
        try:
            with wandb.init(**where, **about, **how, dir=place) as run:
                run.log(logged)
        finally:
            wandb.teardown()


def _noise_levels(story: Study) -> dict[str, Comparison]:
    """Return the comparisons with an error by noise level, by the keys of their charts."""
    known = [comparison for comparison in story.comparisons if mean_curves(comparison)]
    return {f"noise_levels_{i}" if i > 1 else "noise_levels": one for i, one in enumerate(known, 1)}


def plain_report(report: Any) -> dict[str, Any]:
    """All of it as plain JSON, as it is sent to W&B."""
    page = report._to_model()
    spec = json.loads(page.spec.model_dump_json(by_alias=True, exclude_none=True))
    where = {"entity": report.entity, "project": report.project}
    return where | {"report": {"name": page.display_name, "spec": spec}}


def build_report(story: Study, entity: str, project: str, tables: str = "") -> Any:
    """Build a report of ``wandb_workspaces``; ``tables``: the run that has them, where a server answers.

    Raises:
        UserError: ``wandb_workspaces`` is not installed, or no run has a test bound.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        from wandb_workspaces import expr
    except ImportError:
        raise UserError("--wandb: not installed; pip install 'triptych[wandb]'") from None
    if not story.comparisons:
        raise UserError("--wandb: no run has reported a test bound yet")
    where: dict[str, Any] = {"entity": entity, "project": project}

    def grid(name: str, ids: Iterable[str], panels: list[Any], **how: Any) -> Any:
        filters = expr.And(expr.Metric("ID").isin(list(ids)))
        runset = wr.Runset(name=name, filters=filters, **how, **(where if tables else {}))
        return wr.PanelGrid(runsets=[runset], panels=panels)

    blocks: list[Any] = [wr.P(story.question), wr.CalloutBlock(story.answer)]
    if story.published:
        blocks += [wr.H1("Published"), wr.MarkdownBlock("\n".join(published_in_words(story.published)))]
    blocks += [wr.P(line) for line in [story.banner, *story.tuned] if line]
    for comparison, verdict in zip(story.comparisons, story.verdicts, strict=True):
        runs, heading = comparison.runs, comparison.heading
        words = [f"**{safe(verdict.headline)}**", "", *comparison_in_words(comparison, verdict)]
        words += [safe(footnote(comparison))]
        blocks += [wr.H1(heading), wr.MarkdownBlock("\n".join(words))]
        how = {
            "groupby": [
                "group" if a.key == SWEEP else f"config.{config_key(a, runs)}" for a in comparison.axes
            ],
            "order": [wr.OrderBy(wr.SummaryMetric(f"test/{comparison.measure}"), ascending=True)],
        }
        for name, shown in _panels(wr, comparison).items():
            blocks += [wr.H2(name), grid(heading, map(run_id, runs), shown, **how)] if shown else []
    own = [
        wr.CustomChart(chart_name=LINE, query={"summaryTable": {"tableKey": f"{key}_table"}},
                       chart_fields=CHART, chart_strings={"title": comparison.heading})
        for key, comparison in _noise_levels(story).items()
    ]  # fmt: skip
    if tables and own:
        blocks += [wr.H1("Error by noise level, mean over seeds"), grid("noise levels", [tables], own)]
    blocks += [wr.H1("All runs"), grid("all runs", map(run_id, story.runs), [])]
    if tables:
        blocks += [grid("table of all runs", [tables], [wr.WeavePanelSummaryTable(table_name="runs")])]
    if story.command:
        blocks += [wr.H1("Reproduce"), wr.MarkdownBlock("\n".join(fenced(story.command)))]
    described = f"{quantity(len(story.runs), 'run')}, by triptych-report"
    return wr.Report(**where, title=story.title[:LIMIT], description=described, blocks=blocks, width="fluid")


def _panels(wr: Any, comparison: Comparison) -> dict[str, list[Any]]:
    """Panels of the runs' own figures by section, those of which some run has what they show."""
    runs = comparison.runs
    history = {name for run in runs for name in run.columns()}
    summary = {name for run in runs for name in flat_figures(run)}
    by: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"} | MOST
    if len(comparison.axes) == 1:
        [axis] = comparison.axes
        by["groupby"] = wr.Metric("Group") if axis.key == SWEEP else wr.Config(config_key(axis, runs))
    else:  # the run set's groups
        by["aggregate"] = True
    test, unit = f"test/{comparison.measure}", comparison.unit
    own = {name for cell in comparison.cells for name in cell.metrics}
    drawn = {name for run in runs for name in run.get("measures") or {}}
    bars = {test: f"test bound, {unit}"} | {f"{test}_{part}": f"{part}, {unit}" for part in PARTS}
    bars |= {"test/gap": f"gap to truth, {unit}"} | {f"test/{name}": name for name in sorted(own)}
    bars |= {f"measures/{name}": f"{name}, of samples" for name in sorted(drawn)}
    lines = {STEP: "training step", "time": "seconds"} if "val/bound" in history else {}
    pictures = {"samples/final": any(run.samples for run in runs)}
    pictures["samples"] = any(any((run.dir / "samples").glob("step_*.png")) for run in runs)
    return {
        "Test": [
            wr.BarPlot(title=title, metrics=[key], max_bars_to_show=100, **by)
            for key, title in bars.items()
            if key in summary
        ],
        "Validation": [
            wr.LinePlot(title=f"validation bound, {unit}", x=x, y=["val/bound"], title_x=head, **by)
            for x, head in lines.items()
        ],
        "Samples, drawn from the same noise": [
            wr.MediaBrowser(title=key, media_keys=[key], num_columns=5)
            for key, some in pictures.items()
            if some
        ],
    }


def config_key(axis: Axis, runs: list[Run]) -> str:
    """Return an axis's key in W&B's configuration: a choice or a typed key at its top, else resolved."""
    if axis.key in BESIDE or any(axis.key in run.choices for run in runs):
        return axis.key
    typed = all(axis.key in run.overrides for run in runs)
    return flat_key(axis.key) if typed else f"{RESOLVED}.{axis.key}"


def run_id(run: Run) -> str:
    """W&B's id of a run: the directory's."""
    return str(RunDirectory(run.dir).provenance().get("id", ""))
