"""Prepare a run directory from a composed configuration: create, reopen or refuse it."""

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from triptych.config import check
from triptych.config.build import check_names, keep_arguments
from triptych.config.check import check_together, check_used
from triptych.config.compose import to_plain, unresolved, without_hydra
from triptych.config.identity import (
    ABSENT,
    Changes,
    describe_differences,
    differences,
    leaves,
    plain_name,
    slug,
)
from triptych.config.keys import check_values, role
from triptych.declare import Role
from triptych.errors import Diverged, OtherRun, UserError
from triptych.files import check_directory
from triptych.run.directory import RunDirectory, log_line, write_atomic
from triptych.run.provenance import provenance
from triptych.run.untrusted import adopt, check_initial

ANOTHER, ANEW = "choose another name", "or force=true to start over"
LENGTH = {"trainer.max_steps", "trainer.max_epochs"}
PATIENCE = 10.0  # seconds to wait for another process that starts the same run


def resolve_config(cfg: DictConfig, overrides: list[str], choices: dict[str, Any]) -> dict[str, Any]:
    """Resolve ``cfg``; with ``trained``, copy the other run's model into it and ``choices``."""
    plain = to_plain(cfg, throw_on_missing=True)
    typed = _typed_keys(overrides)
    keep_arguments(plain, typed)
    if plain["trainer"].get("max_epochs") and "trainer.max_steps" not in typed:
        plain["trainer"]["max_steps"] = None  # A typed length replaces one from a file.
    check_values(plain)
    check_run_name(plain["name"])
    check_together(plain)
    if plain["trained"] is not None:
        adopt(plain, choices, overrides)
    check_names(plain)
    return plain


def _typed_keys(overrides: list[str]) -> set[str]:
    return {override.lstrip("+").partition("=")[0] for override in overrides}


def check_run_name(name: str | None) -> None:
    """Raise UserError if a run's name cannot be that of a directory."""
    if not name or slug(str(name)) == str(name):
        return
    fix = "use at most 120 of a-z, A-Z, 0-9 and =,._+-"
    raise UserError(f"name={name}: not a directory's name; {fix}, as in name={plain_name(str(name))}")


def resolve_composed(config: DictConfig) -> dict[str, Any]:
    """Resolve a composition that still has Hydra's node; UserError also for unused overrides."""
    hydra, overrides = config.hydra, list(config.hydra.overrides.task)
    plain = resolve_config(without_hydra(config), overrides, dict(hydra.runtime.choices))
    check_used(plain, list(_typed_keys(overrides)))
    return plain


class RunPlan(NamedTuple):
    """What a command would do with an existing run, before it does anything."""

    done: bool  # whether the run has finished
    changes: Changes  # differences with which the run can continue
    other: Changes  # differences that make it another run: the command is refused


def has_run(run: RunDirectory) -> bool:
    """Return whether the directory holds a run, started or ended."""
    recorded = run.status in ("finished", "diverged", "unreadable")
    return recorded or (run / "config.yaml").exists() or bool(run.checkpoints())


def plan_composed(run: RunDirectory, config: DictConfig) -> RunPlan:
    """Plan what a composition with Hydra's node does with a run; errors as ``plan_run``."""
    cfg, choices = without_hydra(config), dict(config.hydra.runtime.choices)
    plain = resolve_config(cfg, list(config.hydra.overrides.task), dict(choices))
    return plan_run(run, plain, cfg, choices)


def plan_run(run: RunDirectory, plain: dict[str, Any], cfg: DictConfig, choices: dict[str, Any]) -> RunPlan:
    """Plan what a command does with an existing run.

    ``plain``: the command's configuration, resolved from ``cfg``; ``choices``: of its groups.
    UserError: the run's configuration is missing or unreadable.
    """
    run.read_records()
    if not (run / "config.yaml").exists():
        raise UserError(f"{run.path}: holds a run that has lost its config.yaml; {ANOTHER}, {ANEW}")
    changes = _without_defaults(differences(run.config(), plain), cfg, choices)
    other = without_machine(changes)
    if other.keys() == {"data.root"} and _lies_there_now(run, plain):
        other = {}
    if run.status == "finished":
        return RunPlan(not other, {}, other)
    return RunPlan(False, changes, other)


def check_plan(run: RunDirectory, plan: RunPlan, config: dict[str, Any]) -> None:
    """Raise OtherRun if the directory holds another run."""
    if not plan.other:
        return
    problem, fix = f"holds another run ({describe_differences(plan.other)})", ""
    if plan.other.keys() <= LENGTH and config["trained"] is None:
        fix = f", with init_from={run.path} to begin with its weights"
    raise OtherRun(f"{run.path}: {problem}; {ANOTHER}{fix}, {ANEW}")


def without_machine(changes: Changes) -> Changes:
    """Return the differences that make two configurations different runs."""
    return {key: pair for key, pair in changes.items() if role(key) is not Role.MACHINE}


def prepare(cfg: DictConfig, path: Path, overrides: list[str], choices: dict[str, Any]) -> RunDirectory:
    """Create or reopen the directory of the run that ``cfg`` describes.

    UserError: a value is refused, or the directory holds another configuration or a failed run.
    Diverged: the run there has diverged.
    """
    check_directory(path)
    run, composed = RunDirectory(path), dict(choices)
    plain = resolve_config(cfg, overrides, choices)
    force, retry = plain.pop("force"), plain.pop("retry")
    plain = {key: value for key, value in plain.items() if role(key) is not Role.START}
    if not force:  # With force=true the directory is put aside, whatever it holds.
        run.read_records()
    check_initial(plain, begun=run.status == "finished" or bool(run.checkpoints()))
    earlier = {}
    if force and has_run(run):
        with run.lock(PATIENCE):
            earlier["aside"] = run.put_aside()
    if not has_run(run):
        with run.lock(PATIENCE):
            if not (run / "config.yaml").exists():  # Another process may have created it meanwhile.
                run.clear_failure()  # A job may have been refused before it began.
                run.write_provenance(provenance(run, overrides, choices, plain) | earlier)
                _record(run, plain)
                return run
    plan = plan_run(run, plain, cfg, composed)
    check_plan(run, plan, plain)
    _settle_failure(run, retry)
    if plan.changes:
        _go_on_with(run, plan.changes)
    return run


def _go_on_with(run: RunDirectory, changes: Changes) -> None:
    """Record that the run continues with this machine's settings and its data's present place."""
    log_line(None, f"{run.path.name}: goes on with {describe_differences(changes)}")
    with run.lock(PATIENCE):
        config = run.config()
        for key, (_, now) in changes.items():
            *parents, name = key.split(".")
            node = reduce(getitem, parents, config)
            node[name] = None if now is ABSENT else now
        _record(run, config)


def _record(run: RunDirectory, config: dict[str, Any]) -> None:
    write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def _settle_failure(run: RunDirectory, retry: bool) -> None:
    """Let a failed run start again if it may, or raise the error that it ended with."""
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


def _without_defaults(changes: Changes, cfg: DictConfig, choices: dict[str, Any]) -> Changes:
    """Leave out keys that did not exist when the run began and that have their defaults."""
    new = [key for key, (before, _) in changes.items() if before is ABSENT]
    if not new:
        return changes
    # The default of a new group is its own choice, not the typed one.
    old_choices = {group: choice for group, choice in choices.items() if not _is_below(group, new)}
    usual = dict(leaves(unresolved(check.defaults(old_choices))))
    # Values are compared before interpolation: ${seed} is a default whatever the seed.
    written = dict(leaves(unresolved(cfg)))
    typed = [key for key, value in written.items() if key not in usual or usual[key] != value]
    return {
        key: change
        for key, change in changes.items()
        if key not in new or any(_is_below(other, [key]) for other in typed)
    }


def _is_below(key: str, parents: list[str]) -> bool:
    """Return whether a key, or a group, is one of ``parents`` or lies below one."""
    return any(f"{key}.".replace("/", ".").startswith(f"{parent}.") for parent in parents)


def _lies_there_now(run: RunDirectory, plain: dict[str, Any]) -> bool:
    """Return whether the run's data are in the folder that its configuration ``plain`` names."""
    known = run.provenance
    if not known.fingerprint:  # before its first step, or before there were fingerprints
        return not run.checkpoints() and run.status != "finished"
    # The import stands here because it needs torch, which nothing else in this module does.
    from triptych.data.build import build_data, fingerprint

    now = fingerprint(build_data(plain))
    return (known.fingerprint, known.split) == (now.data, now.split)
