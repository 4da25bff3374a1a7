"""Log a study to W&B: one run of job type "report" with a table of all runs.

W&B groups the runs themselves by the keys that a sweep varies: they stand at the top of a configuration.
"""

from __future__ import annotations

import tempfile
from typing import Any

from triptych.errors import UserError
from triptych.run.directory import RunDirectory
from triptych.run.parsing import error_line
from triptych.run.read import Run
from triptych.run.wandb import FINISH, import_wandb, logged_in, quiet_settings
from triptych.study.results import results
from triptych.study.study import Study

LOGGED = "logger.wandb."  # before a key of W&B's in a run's configuration
LIMIT = 128  # characters of a run's name


def project_of(story: Study) -> tuple[str | None, str]:
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
        raise UserError("--wandb: none of these runs reports to W&B; train them with logger=wandb")
    if len(projects) > 1:
        named = ", ".join(sorted("/".join(pair).removeprefix("null/") for pair in projects))
        raise UserError(f"--wandb: the runs report to {len(projects)} projects ({named}); report on one")
    [(entity, project)] = projects
    return None if entity == "null" else entity, "triptych" if project == "null" else project


def log_study(story: Study) -> str:
    """Log the study to W&B, each time to the same run; return its address.

    Raises:
        UserError: not logged in, or W&B refuses or does not answer.
    """
    if not logged_in():
        raise UserError("--wandb: not logged in to W&B; `wandb login`")
    entity, project = project_of(story)
    try:
        wandb = import_wandb(story.roots[0] / "report_files" / "wandb")
        about: dict[str, Any] = {
            "entity": entity or wandb.Api().default_entity,  # which asks W&B: `init` would wait for it
            "project": project,
            "id": f"report-{run_id(story.runs[0])}",
            "resume": "allow",
            "job_type": "report",
            "name": story.title[:LIMIT],
            "notes": story.answer,
        }
        how = {"mode": "online", "settings": quiet_settings(wandb, FINISH)}
        with tempfile.TemporaryDirectory() as place:  # below the sweep, W&B's files would be read as a run
            try:
                with wandb.init(**about, **how, dir=place) as run:
                    run.log({"runs": _table(wandb, story)})
                    return str(run.url)
            finally:
                wandb.teardown()
    except Exception as error:  # W&B's and its transport's, under many names
        raise UserError(f"--wandb: W&B has not taken it ({error_line(error)})") from error


def _table(wandb: Any, story: Study) -> Any:
    rows = [
        {"id": run_id(run)} | row | {"directory": run.dir.name}
        for run, row in zip(story.runs, results(story.runs), strict=True)
    ]
    columns = [*dict.fromkeys(key for row in rows for key in row)]
    cells = [[row.get(column) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=cells, allow_mixed_types=True)


def run_id(run: Run) -> str:
    """Return W&B's id of a run: the directory's."""
    return str(RunDirectory(run.dir).provenance().get("id", ""))
