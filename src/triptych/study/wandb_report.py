"""W&B's report of a story: the comparison of our page, over runs that W&B has or will have.

It names runs by their ids and figures by the keys under which a run logs them (``run.log_content``), so
that a sweep that is sent later is found. A panel is there where some run has what it shows; bars and lines
are means over the seeds of a setting with their standard error, as W&B takes them. A table of all runs, and
the curves over noise levels by setting, are logged by a run of its own, of the job type "comparison".
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.run.directory import RunDirectory, to_json, write_atomic
from triptych.run.entries import Curve
from triptych.run.log_content import (
    BESIDE,
    RESOLVED,
    chart,
    error_line,
    flat_figures,
    flat_key,
    panel_tables,
    sweep_of,
)
from triptych.run.read import Run
from triptych.run.result import PARTS
from triptych.run.wandb import STEP, import_wandb, logged_in
from triptych.study.axes import SWEEP, Axis
from triptych.study.compare import Cell, Comparison
from triptych.study.curves import mean_over_seeds
from triptych.study.formatting import quantity
from triptych.study.markdown import fenced, published_in_words, results_table, safe
from triptych.study.results import results
from triptych.study.study import Study
from triptych.study.verdict import footnote

LOGGED = "logger.wandb."  # before a key of W&B's in a run's configuration
SAVED = "report_files/wandb.json"  # what has been saved, to be renewed
LIMIT = 128  # characters of a report's title
SERIES = "wandb/lineseries/v0"  # a chart of W&B's: a line for each value of a column
RUNS = "comparison/runs"  # the table of all runs
Table = tuple[list[str], list[list[Any]]]  # columns, rows


@dataclass(frozen=True)
class WandbReport:
    """A report of ``wandb_workspaces``, its tables, and the project that they are for."""

    entity: str
    project: str
    report: Any
    tables: dict[str, Table]

    def plain(self) -> dict[str, Any]:
        """All of it as plain JSON, as it is sent to W&B."""
        page = self.report._to_model()
        spec = json.loads(page.spec.model_dump_json(by_alias=True, exclude_none=True))
        tables = {key: {"columns": columns, "data": rows} for key, (columns, rows) in self.tables.items()}
        where = {"entity": self.entity, "project": self.project}
        return where | {"report": {"name": page.display_name, "spec": spec}, "tables": tables}


def project_of(story: Study) -> tuple[str | None, str]:
    """The entity, None where it is the user's own, and the project that the runs report to.

    Raises:
        UserError: no run reports to W&B, or they report to several projects.
    """
    projects = {
        tuple(run.config.get(f"{LOGGED}{key}", "null") for key in ("entity", "project"))
        for run in story.runs
        if any(key.startswith(LOGGED) for key in run.config)
    }
    if not projects:
        raise UserError("--wandb: none of these runs reports to W&B; train them with logger=wandb")
    if len(projects) > 1:
        named = ", ".join(sorted("/".join(pair).removeprefix("null/") for pair in projects))
        raise UserError(f"--wandb: the runs report to {len(projects)} projects ({named}); report on one")
    [(entity, project)] = projects
    return None if entity == "null" else entity, "triptych" if project == "null" else project


def build_report(story: Study, entity: str, project: str, saving: bool = False) -> WandbReport:
    """Build the report; ``saving``: a server may be asked for the project's number.

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
    where = {"entity": entity, "project": project}
    return WandbReport(
        **where, report=_report(wr, expr, story, where, where if saving else {}), tables=tables_of(story)
    )


def save_report(story: Study, entity: str | None, project: str, folder: Path) -> list[str]:
    """Save the report in W&B, in the place of one that was saved from ``folder`` before; its address.

    Raises:
        UserError: not logged in, or W&B refuses or does not answer.
    """
    if not logged_in():
        raise UserError("--wandb: not logged in to W&B; `wandb login`, or --wandb-json=FILE without network")
    file = folder / SAVED
    try:
        wandb = import_wandb(file.parent / "wandb")
        entity = entity or wandb.Api().default_entity or ""
        ours = build_report(story, entity, project, saving=True)
        where = {"entity": entity, "project": project}
        try:
            known = json.loads(file.read_text())
            if where.items() <= known.items():
                ours.report.id = known["report"]
        except (OSError, ValueError, KeyError, AttributeError):
            pass  # a first time
        ours.report.save()  # asks for the runs' project, without which it is of no use
        # not beneath the sweep: a run of W&B's has a config.yaml, as ours have
        with tempfile.TemporaryDirectory(prefix="wandb-") as scratch:
            _log_tables(wandb, story, ours, scratch)
    except UserError:
        raise
    except Exception as error:  # W&B's and its transport's, under many names
        raise UserError(f"--wandb: W&B has not taken it ({error_line(error)})") from error
    write_atomic(file, to_json(where | {"report": ours.report.id}))
    return [ours.report.url]


def _log_tables(wandb: Any, story: Study, ours: WandbReport, folder: str) -> None:
    """Log the tables as a run of the sweep's group, the same one every time; all runs are an artifact too."""
    groups, number = _groups(story), tables_id(story)
    settings = wandb.Settings(console="off", silent=True, init_timeout=30, finish_timeout=60)
    about = {"project": ours.project, "name": f"comparison: {story.title}"[:LIMIT], "id": number}
    about |= {"group": groups[0] if groups else "", "job_type": "comparison", "resume": "allow"}
    with wandb.init(entity=ours.entity or None, dir=folder, settings=settings, **about) as run:
        for key, (columns, rows) in ours.tables.items():
            table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            if key == RUNS:
                artifact = wandb.Artifact(f"runs-{number}", type="comparison")
                artifact.add(table, "runs")
                run.log_artifact(artifact)
                run.log({key: table})
            else:
                run.log({key: wandb.plot_table(SERIES, table, _fields(columns), {"title": _title(columns)})})


# the report -----------------------------------------------------------------------------------------------


def _report(wr: Any, expr: Any, story: Study, where: dict[str, str], runset: dict[str, str]) -> Any:
    def grid(name: str, ids: list[str], shown: list[Any], **how: Any) -> Any:
        """Two panels a row of W&B's grid, which is 24 wide; samples and tables take a row."""
        for i, panel in enumerate(shown):
            wide = isinstance(panel, wr.MediaBrowser | wr.WeavePanelSummaryTable)
            x, w = (0, 24) if wide else (12 * (i % 2), 12)
            panel.layout = wr.Layout(x=x, y=8 * (i if wide else i // 2), w=w, h=8)
        filters = expr.And(expr.Metric("ID").isin(ids))
        return wr.PanelGrid(runsets=[wr.Runset(name=name, filters=filters, **how, **runset)], panels=shown)

    blocks: list[Any] = [wr.P(story.question), wr.CalloutBlock(story.answer)]
    if story.published:
        blocks += [wr.H1("Published"), wr.MarkdownBlock("\n".join(published_in_words(story.published)))]
    blocks += [wr.P(line) for line in [story.banner, *story.tuned] if line]
    for number, comparison in enumerate(story.comparisons):
        runs, verdict = compared_runs(comparison), story.verdicts[number]
        words = [f"**{safe(verdict.headline)}**", "", results_table(comparison)]
        words += [f"- {safe(line)}" for line in verdict.lines]
        words += [f"- Note: {safe(note)}" for note in comparison.notes]
        words += ["", safe(footnote(comparison))]
        blocks += [wr.H1(comparison.heading), wr.MarkdownBlock("\n".join(words))]
        axes = comparison.axes
        how = {
            "groupby": ["group" if a.key == SWEEP else f"config.{config_key(a, runs)}" for a in axes],
            "order": [wr.OrderBy(wr.SummaryMetric(f"test/{comparison.measure}"), ascending=True)],
        }
        for name, shown in _panels(wr, comparison).items():
            if shown:
                blocks += [wr.H2(name), grid(comparison.heading, [*map(run_id, runs)], shown, **how)]
        if curves := curve_tables(comparison, number):
            charts = [
                wr.CustomChart(
                    query={"summaryTable": {"tableKey": f"{key}_table"}},
                    chart_name=SERIES,
                    chart_fields=_fields(columns),
                    chart_strings={"title": _title(columns)},
                )
                for key, (columns, _) in curves.items()
            ]
            blocks += [wr.H2("Noise levels and measures, by setting")]
            blocks += [grid("curves by setting", [tables_id(story)], charts)]
    table = wr.WeavePanelSummaryTable(table_name=RUNS)
    blocks += [wr.H1("All runs"), grid("all runs", [tables_id(story)], [table])]
    if story.command:
        blocks += [wr.H1("Reproduce"), wr.MarkdownBlock("\n".join(fenced(story.command)))]
    described = f"{quantity(len(story.runs), 'run')}, by triptych-report"
    return wr.Report(**where, title=story.title[:LIMIT], description=described, blocks=blocks, width="fluid")


def _panels(wr: Any, comparison: Comparison) -> dict[str, list[Any]]:
    """Panels of the runs' own figures by section, those of which some run has what they show."""
    runs = compared_runs(comparison)
    history = {name for run in runs for name in run.columns()}
    summary = {name for run in runs for name in flat_figures(run)}
    by: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    if len(comparison.axes) == 1:
        [axis] = comparison.axes
        by["groupby"] = wr.Metric("Group") if axis.key == SWEEP else wr.Config(config_key(axis, runs))
    else:  # the run set's groups
        by["aggregate"] = True

    def line(title: str, key: str, x: str = STEP) -> Any:
        head = "training step" if x == STEP else "seconds"
        return wr.LinePlot(title=title, x=x, y=[key], title_x=head, max_runs_to_show=500, **by)

    test, unit = f"test/{comparison.measure}", comparison.unit
    own = {name for cell in comparison.cells for name in cell.metrics}
    drawn = {name for run in runs for name in run.get("measures") or {}}
    bars = {test: f"test bound, {unit}"} | {f"{test}_{part}": f"{part}, {unit}" for part in PARTS}
    bars |= {"test/gap": f"gap to truth, {unit}"} | {f"test/{name}": name for name in sorted(own)}
    bars |= {f"measures/{name}": f"{name}, of samples" for name in sorted(drawn)}
    bound = f"validation bound, {unit}"
    pictures = {"samples/final": any(run.samples for run in runs)}
    pictures["samples"] = any(any((run.dir / "samples").glob("step_*.png")) for run in runs)
    return {
        "Test": [
            wr.BarPlot(title=title, metrics=[key], max_runs_to_show=500, max_bars_to_show=100, **by)
            for key, title in bars.items()
            if key in summary
        ],
        "Validation": [
            line(f"{bound}, by training steps", "val/bound"),
            line(f"{bound}, by seconds of training", "val/bound", "time"),
        ]
        if "val/bound" in history
        else [],
        "Samples, drawn from the same noise": [
            wr.MediaBrowser(title=key, media_keys=[key], num_columns=5)
            for key, some in pictures.items()
            if some
        ],
    }


# tables ---------------------------------------------------------------------------------------------------


def tables_of(story: Study) -> dict[str, Table]:
    """All runs with their settings and figures, and each comparison's curves by setting."""
    rows = [{"run": run.dir.name} | row for run, row in zip(story.runs, results(story.runs), strict=True)]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "directory"]
    tables: dict[str, Table] = {RUNS: (columns, [[row.get(key) for key in columns] for row in rows])}
    for number, comparison in enumerate(story.comparisons):
        tables |= curve_tables(comparison, number)
    return tables


def curve_tables(comparison: Comparison, number: int) -> dict[str, Table]:
    """{"comparison/noise_levels": (gamma, setting, epsilon_mse, stderr)}: means over seeds, and the like.

    Of the story's first comparison; those of others have its number behind their names.
    """
    tables: dict[str, Table] = {}
    for cell in comparison.cells:
        for key, (x, y, curves) in _curves(cell).items():
            gamma, mean, error = mean_over_seeds(curves) or ((), (), ())
            name = f"comparison/{key.removeprefix('panels/')}" + (f"_{number + 1}" if number else "")
            tables.setdefault(name, ([x, "setting", y, "stderr"], []))[1].extend(
                [float(a), cell.label, float(b), float(e) if math.isfinite(e) else None]
                for a, b, e in zip(gamma, mean, error, strict=True)
            )
    return tables


def _curves(cell: Cell) -> dict[str, tuple[str, str, list[Curve]]]:
    """{"panels/noise_levels": ("gamma", "epsilon_mse", one curve a seed)} of numbers."""
    curves: dict[str, tuple[str, str, list[Curve]]] = {}
    for run in cell.runs.values():
        for key, (columns, rows) in panel_tables(run).items():
            x, y = chart(columns)
            points = sorted((row[columns.index(x)], row[columns.index(y)]) for row in rows)
            if x != y and all(isinstance(value, int | float) for point in points for value in point):
                curve = Curve(tuple(a for a, _ in points), tuple(b for _, b in points), ())
                curves.setdefault(key, (x, y, []))[2].append(curve)
    return curves


def _fields(columns: list[str]) -> dict[str, str]:
    """What of W&B's line series each column is."""
    return dict(zip(("step", "lineKey", "lineVal"), columns, strict=False))


def _title(columns: list[str]) -> str:
    return f"{columns[2]} over {columns[0]}, by {columns[1]}"


# what runs are found by -----------------------------------------------------------------------------------


def config_key(axis: Axis, runs: list[Run]) -> str:
    """The key of W&B's configuration that an axis is: a choice or a typed key at its top, else resolved."""
    if axis.key in BESIDE or any(axis.key in run.choices for run in runs):
        return axis.key
    typed = all(axis.key in run.overrides for run in runs)
    return flat_key(axis.key) if typed else f"{RESOLVED}.{axis.key}"


def run_id(run: Run) -> str:
    """W&B's id of a run: the directory's."""
    return str(RunDirectory(run.dir).provenance().get("id", ""))


def tables_id(story: Study) -> str:
    """W&B's id of the run that logs the tables: of the same sweeps, or else runs, the same one."""
    named = _groups(story) or sorted(map(run_id, story.runs))
    return f"comparison-{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:8]}"


def _groups(story: Study) -> list[str]:
    """W&B's groups of all runs; [] where a run is in none."""
    typed = [run.config.get(f"{LOGGED}group", "null") for run in story.runs]
    sweeps = [sweep_of(RunDirectory(run.dir)) for run in story.runs]
    names = [sweep if name == "null" else name for name, sweep in zip(typed, sweeps, strict=True)]
    return [*dict.fromkeys(name for name in names if name)] if all(names) else []


def compared_runs(comparison: Comparison) -> list[Run]:
    """The runs that were compared."""
    return [run for cell in comparison.cells for run in cell.runs.values()]
