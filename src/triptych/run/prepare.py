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
from triptych.records import Config
from triptych.run.directory import RunDirectory, log_line, write_atomic
from triptych.run.provenance import provenance
from triptych.run.untrusted import adopt, check_initial

ANOTHER, ANEW = "choose another name", "or force=true to start over"
LENGTH = {"trainer.max_steps", "trainer.max_epochs"}
PATIENCE = 10.0  # seconds to wait for another process that is starting the same run


def resolve_config(cfg: DictConfig, overrides: list[str], choices: dict[str, Any]) -> Config:
    """Resolve ``cfg``.

    With ``trained``, the other run's model configuration replaces that of ``cfg``, and its group
    choices replace those in ``choices``.
    """
    plain = to_plain(cfg, throw_on_missing=True)
    typed = _typed_keys(overrides)
    keep_arguments(plain, typed)
    if plain["trainer"].get("max_epochs") and "trainer.max_steps" not in typed:
        # max_epochs on the command line takes precedence over max_steps in a configuration file.
        plain["trainer"]["max_steps"] = None
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
    """Raise UserError if a run's name cannot be the name of its directory."""
    if not name or slug(str(name)) == str(name):
        return
    fix = "use at most 120 of a-z, A-Z, 0-9 and =,._+-"
    raise UserError(
        f"name={name}: not a directory's name; {fix}, as in name={plain_name(str(name))}"
    )


def resolve_composed(config: DictConfig) -> Config:
    """Resolve a composition that still has Hydra's node.

    Raises UserError also for overrides that have no effect.
    """
    hydra, overrides = config.hydra, list(config.hydra.overrides.task)
    plain = resolve_config(without_hydra(config), overrides, dict(hydra.runtime.choices))
    check_used(plain, list(_typed_keys(overrides)))
    return plain


class RunPlan(NamedTuple):
    """What a command would do with an existing run directory."""

    done: bool  # The same run has finished; its result is returned.
    changes: Changes  # The run is resumed with these changed settings.
    other: Changes  # Differences that make it another run; with any, the command is refused.


def has_run(run: RunDirectory) -> bool:
    """Return whether the directory contains a run, started or ended."""
    recorded = run.status in ("finished", "diverged", "unreadable")
    return recorded or (run / "config.yaml").exists() or bool(run.checkpoints())


def plan_composed(run: RunDirectory, config: DictConfig) -> RunPlan:
    """Call ``plan_run`` for a composed configuration that still contains Hydra's node ``hydra``."""
    cfg, choices = without_hydra(config), dict(config.hydra.runtime.choices)
    plain = resolve_config(cfg, list(config.hydra.overrides.task), dict(choices))
    return plan_run(run, plain, cfg, choices)


def plan_run(run: RunDirectory, plain: Config, cfg: DictConfig, choices: dict[str, Any]) -> RunPlan:
    """Plan what to do with a run that is there.

    ``plain`` is the command's resolved configuration, ``cfg`` the same before resolution, and
    ``choices`` its group choices. Raises UserError if the run's configuration is lost or
    unreadable.
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


def check_plan(run: RunDirectory, plan: RunPlan, config: Config) -> None:
    """Raise OtherRun if the directory holds another run."""
    if not plan.other:
        return
    problem, fix = f"holds another run ({describe_differences(plan.other)})", ""
    if plan.other.keys() <= LENGTH and config["trained"] is None:
        fix = f", with init_from={run.path} to begin with its weights"
    raise OtherRun(f"{run.path}: {problem}; {ANOTHER}{fix}, {ANEW}")


def without_machine(changes: Changes) -> Changes:
    """Return the differences without settings of the machine, which do not make another run."""
    return {key: pair for key, pair in changes.items() if role(key) is not Role.MACHINE}


def prepare(
    cfg: DictConfig, path: Path, overrides: list[str], choices: dict[str, Any]
) -> RunDirectory:
    """Create or reopen the directory of the run that ``cfg`` describes.

    Raises:
        UserError: a value is not accepted, or the directory holds another run or a failed one.
        Diverged: the run in the directory has diverged before.
    """
    check_directory(path)
    run, composed = RunDirectory(path), dict(choices)
    plain = resolve_config(cfg, overrides, choices)
    force, retry = plain.pop("force"), plain.pop("retry")
    plain = {key: value for key, value in plain.items() if role(key) is not Role.START}
    if not force:  # With force, the directory is moved aside without reading its content.
        run.read_records()
    check_initial(plain, begun=run.status == "finished" or bool(run.checkpoints()))
    earlier = {}
    if force and has_run(run):
        with run.lock(PATIENCE):
            earlier["aside"] = run.put_aside()
    if not has_run(run):
        with run.lock(PATIENCE):
            if not (run / "config.yaml").exists():  # Another process may have created it meanwhile.
                run.clear_failure()  # An earlier job may have failed before it wrote a config.
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


def _without_defaults(changes: Changes, cfg: DictConfig, choices: dict[str, Any]) -> Changes:
    """Drop changes of keys that are newer than the run and have their default values.

    Keys that a later version of the project has added do not make it another run.
    """
    new = [key for key, (before, _) in changes.items() if before is ABSENT]
    if not new:
        return changes
    # A new group's default is its default choice, not the one on the command line.
    old_choices = {group: choice for group, choice in choices.items() if not _is_below(group, new)}
    usual = dict(leaves(unresolved(check.defaults(old_choices))))
    # Compare unresolved values: ${seed} is the default, whatever the seed.
    written = dict(leaves(unresolved(cfg)))
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
