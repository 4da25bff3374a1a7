"""Prepare the directory of a requested run: create, reopen or refuse it."""

import secrets
import shutil
from functools import reduce
from operator import getitem
from typing import NamedTuple

from omegaconf import OmegaConf

from triptych.config import check
from triptych.config.compose import unresolved_config
from triptych.config.identity import (
    ABSENT,
    Changes,
    describe_differences,
    differences,
    flatten_config,
)
from triptych.config.keys import role
from triptych.declare import Role
from triptych.errors import Diverged, OtherRun, UserError
from triptych.files import check_directory, storage_errors
from triptych.records import Config
from triptych.run.directory import NEXT_CONFIG, RunDirectory, log_line, write_atomic
from triptych.run.provenance import new_provenance
from triptych.run.request import Request
from triptych.run.untrusted import check_init_from

# Fixes that end error messages.
CHOOSE_NAME, START_OVER = "choose another name", "or force=true to start over"
LENGTH_KEYS = {"trainer.max_steps", "trainer.max_epochs"}
PATIENCE = 10.0  # seconds to wait for another process that is starting the same run


class RunPlan(NamedTuple):
    """What a command does with an existing run: return its result, resume it, or refuse."""

    is_finished: bool  # The same run has finished; its result is returned.
    changes: Changes  # The run is resumed with these changed settings.
    conflicts: Changes  # Differences that make it another run; with any, the command is refused.


def contains_run(run: RunDirectory) -> bool:
    """Return whether the directory contains a run, started or ended."""
    recorded = run.status in ("finished", "diverged", "unreadable")
    return recorded or (run / "config.yaml").exists() or bool(run.checkpoints())


def plan_run(request: Request) -> RunPlan:
    """Decide what a command does with the run that exists in the requested directory.

    Raises UserError if its configuration is lost or unreadable.
    """
    run = RunDirectory(request.path)
    run.read_records()
    if not (run / "config.yaml").exists():
        raise UserError(f"{run.path}: holds a run without config.yaml; {CHOOSE_NAME}, {START_OVER}")
    changes = _without_defaults(differences(run.config(), request.recorded), request)
    other = without_machine_settings(changes)
    if other.keys() == {"data.root"} and _has_same_data(run, request.config):
        other = {}
    if run.status == "finished":
        return RunPlan(not other, {}, other)
    return RunPlan(False, changes, other)


def check_same_run(request: Request, plan: RunPlan) -> None:
    """Raise OtherRun if the requested directory holds a run with another configuration."""
    if not plan.conflicts:
        return
    problem, fix = f"holds another run ({describe_differences(plan.conflicts)})", ""
    finished = RunDirectory(request.path).status == "finished"  # init_from needs a finished run
    if finished and plan.conflicts.keys() <= LENGTH_KEYS and request.config["trained"] is None:
        fix = f", with init_from={request.path} to begin with its weights"
    raise OtherRun(f"{request.path}: {problem}; {CHOOSE_NAME}{fix}, {START_OVER}")


def without_machine_settings(changes: Changes) -> Changes:
    """Return those ``changes`` that make a run another run, leaving out settings of the machine."""
    return {key: pair for key, pair in changes.items() if role(key) is not Role.MACHINE}


def prepare(request: Request) -> RunDirectory:
    """Create or reopen the directory of the requested run.

    Raises:
        UserError: the directory holds another run or a failed one, or a named file is missing.
        Diverged: the run in the directory has diverged before.
    """
    check_directory(request.path)
    run = RunDirectory(request.path)
    force = request.config["force"]
    if not force:  # With force, the directory is moved aside without reading its content.
        run.read_records()
    if force or (run.status != "finished" and not run.checkpoints()):
        check_init_from(request.config)
    if force and contains_run(run):
        with run.lock(PATIENCE):
            _replace(run, request)
        return RunDirectory(request.path)
    if not contains_run(run):
        with run.lock(PATIENCE):
            if not (run / "config.yaml").exists():  # Another process may have created it meanwhile.
                run.clear_failure()  # An earlier job may have failed before it wrote a config.
                _create(run, request)
                return run
    plan = plan_run(request)
    check_same_run(request, plan)
    _raise_recorded_failure(run, request.config["retry"])
    if plan.changes:
        with run.lock(PATIENCE):
            # Plan again, as another process may have finished the run meanwhile.
            _record_changed_settings(run, plan_run(request).changes)
    return run


def _create(run: RunDirectory, request: Request, **entries: str) -> None:
    """Write the files of a new run; ``entries``: further entries of its provenance."""
    config = request.recorded
    about = new_provenance(run, request.overrides, request.choices, config)
    run.write_provenance(about | entries)
    write_atomic(run / "config.yaml", _to_yaml(config))


def _replace(run: RunDirectory, request: Request) -> None:
    """Create a new run in another directory, and exchange it for an earlier run by renaming.

    So the earlier run keeps its place on a full disk, and the new one names it from the beginning.
    """
    suffix = secrets.token_hex(3)
    new = RunDirectory(run.path.with_name(f".{run.path.name}.new-{suffix}"))
    aside = run.path.with_name(f"{run.path.name}.old-{suffix}")
    try:
        with storage_errors(new.path):
            new.path.mkdir()
        _create(new, request, aside=aside.name)
        with storage_errors(run.path):
            run.path.rename(aside)
    except BaseException:
        shutil.rmtree(new.path, ignore_errors=True)
        raise
    new.path.rename(run.path)


def _record_changed_settings(run: RunDirectory, changes: Changes) -> None:
    """Write changed settings of the machine or the data folder, for when training begins."""
    if not changes:
        return
    log_line(None, f"{run.path.name}: continues with {describe_differences(changes)}")
    config = run.config()
    for key, (_, now) in changes.items():
        *parents, name = key.split(".")
        node = reduce(getitem, parents, config)
        node[name] = None if now is ABSENT else now
    write_atomic(run / NEXT_CONFIG, _to_yaml(config))


def _to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(config))


def _raise_recorded_failure(run: RunDirectory, may_retry: bool) -> None:
    """Raise a recorded failure again, unless it was one of building or the run may be retried.

    The record itself stays until training begins, as building may fail.
    """
    result = run.summary()
    if result is None or result.status == "finished" or result.stage == "build" or may_retry:
        return
    if result.status == "diverged":
        raise Diverged.from_earlier_start(result.error, result.step or 0)
    raise UserError(
        f"failed before: {result.error or '?'} (traceback: {run / 'train.log'}; retry=true tries "
        "again)"
    )


def _without_defaults(changes: Changes, request: Request) -> Changes:
    """Drop changes of keys that the run's version did not have, if they have their defaults.

    Keys that a later version of the project has added do not make it another run.
    """
    new = [key for key, (before, _) in changes.items() if before is ABSENT]
    if not new:
        return changes
    # A new group's default is its default choice, not the one on the command line.
    choices = request.composed_choices
    old_choices = {
        group: choice for group, choice in choices.items() if not _is_key_within(group, new)
    }
    usual = dict(flatten_config(unresolved_config(check.compose_defaults(old_choices))))
    # Compare unresolved values: ${seed} is the default, whatever the seed.
    written = dict(flatten_config(unresolved_config(request.composed)))
    typed = [key for key, value in written.items() if key not in usual or usual[key] != value]
    return {
        key: change
        for key, change in changes.items()
        if key not in new or any(_is_key_within(other, [key]) for other in typed)
    }


def _is_key_within(key: str, parents: list[str]) -> bool:
    """Return whether a key or group is one of ``parents``, or is nested in one of them."""
    return any(f"{key}.".replace("/", ".").startswith(f"{parent}.") for parent in parents)


def _has_same_data(run: RunDirectory, resolved: Config) -> bool:
    """Return whether the data folder in ``resolved`` has the data that the run recorded."""
    known = run.provenance
    if not known.fingerprint:  # The run has no first step, or is older than fingerprints.
        return not run.checkpoints() and run.status != "finished"
    # Imported here because they import torch, which the rest of this module does not need.
    from triptych.data.build import build_data, fingerprint

    now = fingerprint(build_data(resolved))
    return (known.fingerprint, known.split) == (now.data, now.split)
