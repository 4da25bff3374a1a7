"""From a composed configuration to a run's directory: new, the same again, or refused."""

import secrets
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from triptych.errors import UserError
from triptych.runs.directory import RunDirectory, write_atomic
from triptych.runs.provenance import provenance
from triptych.runs.trained import adopt

SWEEPING = ("until", "max_seeds", "equal_within")  # for the sweep as a whole

# Not part of what a run is: how this start treats its directory, and where things happen to lie.
VOLATILE = ("force", "retry", "paths", *SWEEPING)
PATIENCE = 10.0  # seconds, for somebody who is beginning the same run


def prepare(cfg: DictConfig, path: Path, overrides: list[str], choices: dict[str, Any]) -> RunDirectory:
    """The directory of the run that ``cfg`` describes, ready to be executed.

    Raises:
        UserError: ``trained`` is no finished run's; the directory records another configuration, or a
            failed run (``retry=true`` tries that again, ``force=true`` starts over and keeps the old aside).
    """
    plain: dict = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    force, retry = plain.pop("force"), plain.pop("retry")
    for key in SWEEPING:
        plain.pop(key)
    if plain["trained"] is not None:
        adopt(plain, choices, overrides)
    run = RunDirectory(path)
    if force and (run / "config.yaml").exists():
        _set_aside(run)
    if not (run / "config.yaml").exists():
        with run.lock(PATIENCE):
            if not (run / "config.yaml").exists():  # somebody else may have been quicker
                return _begin(run, plain, overrides, choices)
    different = list(_differences(run.config(), plain))
    refused = (run.summary() or {}).get("stage") == "build" and not (run / "metrics.csv").exists()
    if different and refused and not run.checkpoints():
        with run.lock(PATIENCE):  # before its first step: nothing is lost with it
            return _begin(run, plain, overrides, choices)
    if different:
        shown = "; ".join(different[:5]) + ("; ..." if len(different) > 5 else "")
        raise UserError(
            f"{run.path}: holds another run ({shown}); choose another name, or force=true to start over"
        )
    _settle_failure(run, retry)
    return run


def _begin(run: RunDirectory, plain: dict, overrides: list[str], choices: dict[str, Any]) -> RunDirectory:
    (run / "summary.json").unlink(missing_ok=True)  # of a job that was refused before it began
    run.write("provenance.json", provenance(run, overrides, choices))
    write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain)))
    return run


def _settle_failure(run: RunDirectory, retry: bool) -> None:
    """A run refused before its first step is tried again; one that failed later only on request."""
    summary = run.summary() or {}
    if summary.get("status") != "failed":
        return
    if summary.get("stage") == "build" or retry:
        (run / "summary.json").unlink()
        return
    raise UserError(
        f"failed before: {summary.get('error', '?')} (traceback: {run / 'train.log'}; retry=true tries again)"
    )


def _set_aside(run: RunDirectory) -> None:
    with run.lock(PATIENCE):
        aside = run.path.with_name(f"{run.path.name}.old-{secrets.token_hex(3)}")
        shutil.move(run.path, aside)


def _differences(recorded: Any, asked: Any, path: str = "") -> list[str]:
    """ "key: recorded -> asked" for every leaf that differs."""
    if isinstance(recorded, dict) and isinstance(asked, dict):
        names = [
            n for n in [*recorded, *(k for k in asked if k not in recorded)] if path or n not in VOLATILE
        ]
        return [
            line
            for n in names
            for line in _differences(recorded.get(n), asked.get(n), f"{path}.{n}" if path else str(n))
        ]
    return [] if recorded == asked else [f"{path}: {recorded!r} -> {asked!r}"]
