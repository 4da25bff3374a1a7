"""Prepare the directory of a requested run: create, reopen or refuse it."""

from functools import reduce
from operator import getitem
from typing import NamedTuple

from omegaconf import OmegaConf

from triptych.config import check
from triptych.config.compose import unresolved
from triptych.config.identity import (
    ABSENT,
    Changes,
    describe_differences,
    differences,
    leaves,
)
from triptych.config.keys import role
from triptych.declare import Role
from triptych.errors import Diverged, OtherRun, UserError
from triptych.files import check_directory
from triptych.records import Config
from triptych.run.directory import RunDirectory, log_line, write_atomic
from triptych.run.provenance import provenance
from triptych.run.request import Request
from triptych.run.untrusted import check_initial

ANOTHER, ANEW = "choose another name", "or force=true to start over"
LENGTH = {"trainer.max_steps", "trainer.max_epochs"}
PATIENCE = 10.0  # seconds to wait for another process that is starting the same run


class RunPlan(NamedTuple):
    """What a command would do with an existing run directory."""

    done: bool  # The same run has finished; its result is returned.
    changes: Changes  # The run is resumed with these changed settings.
    other: Changes  # Differences that make it another run; with any, the command is refused.


def has_run(run: RunDirectory) -> bool:
    """Return whether the directory contains a run, started or ended."""
    recorded = run.status in ("finished", "diverged", "unreadable")
    return recorded or (run / "config.yaml").exists() or bool(run.checkpoints())


def plan_run(request: Request) -> RunPlan:
    """Plan what to do with the run that is in the requested directory.

    Raises UserError if its configuration is lost or unreadable.
    """
    run = RunDirectory(request.path)
    run.read_records()
    if not (run / "config.yaml").exists():
        raise UserError(f"{run.path}: holds a run that has lost its config.yaml; {ANOTHER}, {ANEW}")
    changes = _without_defaults(differences(run.config(), request.recorded), request)
    other = without_machine(changes)
    if other.keys() == {"data.root"} and _lies_there_now(run, request.config):
        other = {}
    if run.status == "finished":
        return RunPlan(not other, {}, other)
    return RunPlan(False, changes, other)


def check_same_run(request: Request, plan: RunPlan) -> None:
    """Raise OtherRun if the directory holds another run."""
    if not plan.other:
        return
    problem, fix = f"holds another run ({describe_differences(plan.other)})", ""
    finished = RunDirectory(request.path).status == "finished"  # another cannot be begun from
    if finished and plan.other.keys() <= LENGTH and request.config["trained"] is None:
        fix = f", with init_from={request.path} to begin with its weights"
    raise OtherRun(f"{request.path}: {problem}; {ANOTHER}{fix}, {ANEW}")


def without_machine(changes: Changes) -> Changes:
    """Return the differences without settings of the machine, which do not make another run."""
    return {key: pair for key, pair in changes.items() if role(key) is not Role.MACHINE}


def prepare(request: Request) -> RunDirectory:
    """Create or reopen the directory of the requested run.

    Raises:
        UserError: the directory holds another run or a failed one, or a named file is missing.
        Diverged: the run in the directory has diverged before.
    """
    check_directory(request.path)
    run, config = RunDirectory(request.path), request.recorded
    force = request.config["force"]
    if not force:  # With force, the directory is moved aside without reading its content.
        run.read_records()
    if run.status != "finished" and not run.checkpoints():
        check_initial(request.config)
    earlier = {}
    if force and has_run(run):
        with run.lock(PATIENCE):
            earlier["aside"] = run.put_aside()
    if not has_run(run):
        with run.lock(PATIENCE):
            if not (run / "config.yaml").exists():  # Another process may have created it meanwhile.
                run.clear_failure()  # An earlier job may have failed before it wrote a config.
                about = provenance(run, request.overrides, request.choices, config)
                run.write_provenance(about | earlier)
                _record(run, config)
                return run
    plan = plan_run(request)
    check_same_run(request, plan)
    _settle_failure(run, request.config["retry"])
    if plan.changes:
        _go_on_with(run, plan.changes)
    return run


def _go_on_with(run: RunDirectory, changes: Changes) -> None:
    """Write the changed settings (machine, data folder) into the run's configuration."""
    log_line(None, f"{run.path.name}: goes on with {describe_differences(changes)}")
    with run.lock(PATIENCE):
        config = run.config()
        for key, (_, now) in changes.items():
            *parents, name = key.split(".")
            node = reduce(getitem, parents, config)
            node[name] = None if now is ABSENT else now
        _record(run, config)


def _record(run: RunDirectory, config: Config) -> None:
    write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def _settle_failure(run: RunDirectory, retry: bool) -> None:
    """Clear a recorded failure if the run may be retried; otherwise raise it again."""
    result = run.summary()
    if result is None or result.status == "finished":
        return
    if result.stage == "build" or retry:
        run.clear_failure()
        return
    if result.status == "diverged":
        raise Diverged.before(result.error, result.step or 0)
    fix = f"traceback: {run / 'train.log'}; retry=true tries again"
    raise UserError(f"failed before: {result.error or '?'} ({fix})")


def _without_defaults(changes: Changes, request: Request) -> Changes:
    """Drop changes of keys that are newer than the run and have their default values.

    Keys that a later version of the project has added do not make it another run.
    """
    new = [key for key, (before, _) in changes.items() if before is ABSENT]
    if not new:
        return changes
    # A new group's default is its default choice, not the one on the command line.
    choices = request.composed_choices
    old_choices = {group: choice for group, choice in choices.items() if not _is_below(group, new)}
    usual = dict(leaves(unresolved(check.defaults(old_choices))))
    # Compare unresolved values: ${seed} is the default, whatever the seed.
    written = dict(leaves(unresolved(request.composed)))
    typed = [key for key, value in written.items() if key not in usual or usual[key] != value]
    return {
        key: change
        for key, change in changes.items()
        if key not in new or any(_is_below(other, [key]) for other in typed)
    }


def _is_below(key: str, parents: list[str]) -> bool:
    """Return whether a key or group is one of ``parents``, or is nested in one of them."""
    return any(f"{key}.".replace("/", ".").startswith(f"{parent}.") for parent in parents)


def _lies_there_now(run: RunDirectory, plain: Config) -> bool:
    """Return whether the run's data are in the folder that its configuration ``plain`` names."""
    known = run.provenance
    if not known.fingerprint:  # The run has no first step, or is older than fingerprints.
        return not run.checkpoints() and run.status != "finished"
    # Imported here because they import torch, which the rest of this module does not need.
    from triptych.data.build import build_data, fingerprint

    now = fingerprint(build_data(plain))
    return (known.fingerprint, known.split) == (now.data, now.split)
