"""Prepare a run directory from a composed configuration: create, reopen or refuse it."""

import re
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
from triptych.config.keys import check_values, fields, find_key, role
from triptych.declare import Role
from triptych.errors import Diverged, OtherRun, UserError
from triptych.files import check_directory
from triptych.run.directory import RunDirectory, log_line, write_atomic
from triptych.run.provenance import provenance
from triptych.run.untrusted import adopt, check_initial

ANOTHER, ANEW = "choose another name", "or force=true to start over"
LENGTH = {"trainer.max_steps", "trainer.max_epochs"}
PATIENCE = 10.0  # seconds, for somebody who is beginning the same run


def resolve_config(cfg: DictConfig, overrides: list[str], choices: dict[str, Any]) -> dict[str, Any]:
    """Resolve ``cfg``; with ``trained``, copy the other run's model configuration into it and ``choices``."""
    plain = to_plain(cfg, throw_on_missing=True)
    for key in [o.removeprefix("~").split("=", 1)[0] for o in overrides if o.startswith("~")]:
        group, _, name = key.rpartition(".")
        if name in fields(find_key(group).kind):
            raise UserError(f"~{key}: every run has it; type {key}=VALUE")
    typed = {o.lstrip("+").split("=", 1)[0] for o in overrides}
    keep_arguments(plain, typed)
    if plain["trainer"].get("max_epochs") and "trainer.max_steps" not in typed:
        plain["trainer"]["max_steps"] = None  # a file's: of two lengths the typed one decides
    check_values(plain)
    for key, value in leaves(plain):
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise UserError(f"{key}={value}: not UTF-8; rename the file or folder")
    name = plain["name"]
    if name not in (None, "") and slug(str(name)) != str(name):
        other = "".join(dict.fromkeys(re.sub(r"[\w=,.+-]", "", str(name), flags=re.ASCII)))
        problem = f"{other!r} is not allowed" if other else "not a directory's name"
        fix = "use at most 120 of a-z, A-Z, 0-9 and =,._+-"
        raise UserError(f"name={name}: {problem}; {fix}, as in name={plain_name(str(name))}")
    check_together(plain)
    if plain["trained"] is not None:
        adopt(plain, choices, overrides)
    check_names(plain)
    return plain


def resolve_composed(config: DictConfig) -> dict[str, Any]:
    """Resolve a composition that still has Hydra's node; also UserError for overrides without effect."""
    hydra, overrides = config.hydra, list(config.hydra.overrides.task)
    plain = resolve_config(without_hydra(config), overrides, dict(hydra.runtime.choices))
    check_used(plain, [one.lstrip("+").split("=", 1)[0] for one in overrides])
    return plain


class RunPlan(NamedTuple):
    """What a command would do with a run that is there, before it does anything."""

    done: bool  # it has finished, and its result is the command's
    changes: Changes  # it goes on with these
    other: Changes  # by these it is another run, and the command is refused


def has_run(run: RunDirectory) -> bool:
    """Return whether the directory holds a run, begun or ended."""
    recorded = run.status in ("finished", "diverged", "unreadable")
    return recorded or (run / "config.yaml").exists() or bool(run.checkpoints())


def plan_composed(run: RunDirectory, config: DictConfig) -> RunPlan:
    """Plan with a run what a composition asks for that still has Hydra's node; errors as of ``plan_run``."""
    cfg, choices = without_hydra(config), dict(config.hydra.runtime.choices)
    plain = resolve_config(cfg, list(config.hydra.overrides.task), dict(choices))
    return plan_run(run, plain, cfg, choices)


def plan_run(run: RunDirectory, plain: dict[str, Any], cfg: DictConfig, choices: dict[str, Any]) -> RunPlan:
    """Plan what to do with a run that is there; UserError if its configuration is lost or unreadable.

    ``plain``: the command's configuration, resolved from ``cfg``, with the ``choices`` of its groups.
    """
    run.read_records()
    if not (run / "config.yaml").exists():
        raise UserError(f"{run.path}: holds a run that has lost its config.yaml; {ANOTHER}, {ANEW}")
    changes = _without_defaults(differences(run.config(), plain), cfg, choices)
    other = without_machine(changes)
    if set(other) == {"data.root"} and _lies_there_now(run, plain):
        other = {}
    finished = run.status == "finished"
    return RunPlan(finished and not other, {} if finished else changes, other)


def check_plan(run: RunDirectory, plan: RunPlan, config: dict[str, Any]) -> None:
    """Raise OtherRun if another run is there."""
    if not plan.other:
        return
    longer = run.status == "finished" and {*plan.other} <= LENGTH and config["trained"] is None
    more = f", with init_from={run.path} to begin with its weights" if longer else ""
    problem = f"holds another run ({describe_differences(plan.other)})"
    raise OtherRun(f"{run.path}: {problem}; {ANOTHER}{more}, {ANEW}")


def without_machine(changes: Changes) -> Changes:
    """Return the differences that make two configurations different runs."""
    return {key: pair for key, pair in changes.items() if role(key) is not Role.MACHINE}


def prepare(cfg: DictConfig, path: Path, overrides: list[str], choices: dict[str, Any]) -> RunDirectory:
    """Create or reopen the directory of the run that ``cfg`` describes.

    UserError: a refused value; another configuration or a failed run is there. Diverged: it did before.
    """
    check_directory(path)
    composed = dict(choices)
    plain = resolve_config(cfg, overrides, choices)
    force, retry = plain.pop("force"), plain.pop("retry")
    for key in [key for key in plain if role(key) is Role.START]:
        plain.pop(key)
    run = RunDirectory(path)
    if not force:  # which puts the directory aside
        run.read_records()
    check_initial(plain, begun=run.status == "finished" or bool(run.checkpoints()))
    earlier = {}
    if force and has_run(run):
        with run.lock(PATIENCE):
            earlier["aside"] = run.put_aside()
    if not has_run(run):
        with run.lock(PATIENCE):
            if not (run / "config.yaml").exists():  # somebody else may have been quicker
                run.clear_failure()  # of a job that was refused before it began
                run.write_provenance(provenance(run, overrides, choices, plain) | earlier)
                _record(run, plain)
                return run
    plan = plan_run(run, plain, cfg, composed)
    check_plan(run, plan, plain)
    _settle_failure(run, retry)
    if plan.changes:  # it goes on as this machine can, with its data where they are now
        log_line(None, f"{run.path.name}: goes on with {describe_differences(plan.changes)}")
        with run.lock(PATIENCE):
            config = run.config()
            for key, (_, now) in plan.changes.items():
                *groups_above, name = key.split(".")
                reduce(getitem, groups_above, config)[name] = None if now is ABSENT else now
            _record(run, config)
    return run


def _record(run: RunDirectory, config: dict[str, Any]) -> None:
    write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def _settle_failure(run: RunDirectory, retry: bool) -> None:
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
    new = [key for key, (was, _) in changes.items() if was is ABSENT]
    if not new:
        return changes
    # of a group that is new, the command's own choice is the default, not the typed one
    inside = [f"{group}.".replace("/", ".") for group in choices]
    old = [not any(at.startswith(f"{key}.") for key in new) for at in inside]
    base = check.defaults({g: c for (g, c), was_there in zip(choices.items(), old, strict=True) if was_there})
    # as they are written, since ${seed} is a default whatever the seed
    usual, written = (dict(leaves(unresolved(one))) for one in (base, cfg))
    other = {at for at, value in written.items() if at not in usual or usual[at] != value}
    same = {key for key in new if not any(f"{at}.".startswith(f"{key}.") for at in other)}
    return {key: pair for key, pair in changes.items() if key not in same}


def _lies_there_now(run: RunDirectory, plain: dict[str, Any]) -> bool:
    known = run.provenance
    if not known.fingerprint:  # before its first step, or from before there were fingerprints
        return not run.checkpoints() and run.status != "finished"
    from triptych.data.build import build_data, fingerprint  # torch, which nothing else here imports

    now = fingerprint(build_data(plain))
    return (known.fingerprint, known.split) == (now.data, now.split)
