"""Open checkpoints and run directories that may be a stranger's, before anything is used."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.config.build import check_names
from triptych.config.file import copy_plain
from triptych.config.identity import describe_differences, in_root, other_figures
from triptych.config.keys import MODEL_KEYS, check_values, groups, with_roles
from triptych.config.own_code import describe_error, raised_at
from triptych.config.schema import ModelKeys
from triptych.declare import Role
from triptych.errors import ForeignCheckpoint, UserError
from triptych.files import check_directory, load_tensors
from triptych.run.directory import NO_CHECKPOINT, SCHEMA, RunDirectory, check_digests, checkpoint_at
from triptych.run.pipeline import is_pipeline, pipeline_config

OWN = "TRIPTYCH_OWN"  # the run directory whose configuration this user's own command has just composed


def check_config(config: Any, what: str, needed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return a plain configuration from a file, once its groups are there and name only what may be built."""
    for name in needed or [key for key in groups() if key in MODEL_KEYS]:
        if not isinstance(config, dict) or not isinstance(config.get(name), dict):
            raise UserError(f"{what}: its configuration has no group {name}; must be that of a run")
        if name in ("data", "model") and "_target_" not in config[name]:
            raise UserError(f"{what}: {name} names no class; pass the configuration of a run")
    if "threads" not in config:
        raise UserError(f"{what}: its configuration has no threads; must be that of a run")
    check_names(config)
    check_values(config)
    return config


def find_checkpoint(ckpt: str | Path, key: str = "ckpt") -> Path:
    """Return the checkpoint at ``ckpt``, a file or a run's directory; UserError if there is none."""
    path = checkpoint_at(ckpt)
    where = f"{key}={path}"
    if is_pipeline(path):
        fix = f"pass a run of triptych-train trained={path} data=NAME"
        raise UserError(f"{where}: a pipeline of diffusers; {fix}")
    if path.is_dir():
        raise UserError(f"{where}: no run in this directory; pass logs/runs/NAME, or a checkpoint")
    if not path.is_file():
        raise UserError(f"{where}: {NO_CHECKPOINT}{in_root(path)}")
    return path


def read_checkpoint(path: Path, key: str = "ckpt") -> dict[str, Any]:
    """Load a checkpoint as plain, checked data on the CPU; UserError: damaged, or another run's."""
    path = find_checkpoint(path, key)
    where, fix = f"{key}={path}", "pass a checkpoint of a run"
    try:
        content = load_tensors(path)
    except ValueError as error:
        raise UserError(f"{where}: {error}; {fix}") from error
    known = content.get("triptych") if isinstance(content, dict) else None
    if not isinstance(known, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{where}: not written by triptych; {fix}")
    if known.get("schema") != SCHEMA:
        problem = "written by another version of triptych, whose configurations have other keys"
        raise UserError(f"{where}: {problem}; pass a checkpoint of schema {SCHEMA}")
    if (odd := _odd_part(content)) is not None:
        raise ForeignCheckpoint(f"{where}: its {odd} is not as a run writes it; {fix}")
    known["config"] = copy_plain(known["config"], f"{where}: config")
    _check_own(path, where, known["config"])
    return content


def _odd_part(content: dict[str, Any]) -> str | None:
    """Return the name of a part of a checkpoint that has another shape than a run's; None if none has."""
    from torch import Tensor  # which the file's reader has imported

    known, callbacks = content["triptych"], content.get("callbacks")
    if type(content.get("global_step")) is not int:
        return "global_step"
    if not isinstance(known.get("config"), dict):
        return "triptych.config"
    if not isinstance(known.get("chosen", ""), str):
        return "triptych.chosen"
    if not isinstance(callbacks, dict) or not all(isinstance(state, dict) for state in callbacks.values()):
        return "callbacks"
    for name, state in callbacks.items():
        if not is_averaging(state):
            continue
        if not isinstance(state["name"], str) or not isinstance(state["others"], dict):
            return f"callbacks.{name}"
        for average in (state["average"], *state["others"].values()):
            if not isinstance(average, dict) or not all(isinstance(one, Tensor) for one in average.values()):
                return f"callbacks.{name}"
    return None


def is_averaging(state: dict[str, Any]) -> bool:
    """Return whether a callback's state is EMA's, or that of a class made from it."""
    return {"average", "name", "others"} <= state.keys()


def _check_own(path: Path, where: str, config: dict[str, Any]) -> None:
    """Check that a checkpoint in a run's directory is that run's, and the one its result is of."""
    run = RunDirectory(path.parent.parent)
    if path.parent.name != "checkpoints" or not (run / "config.yaml").is_file():
        return
    damage = run.damage()
    result = None if damage else run.summary()
    if other := other_figures(run.config(), config):
        problem = f"of another run than {run / 'config.yaml'}, or that is damaged"
        fix = "restore the one that is wrong"
        if damage:  # then the checkpoint may be the only good one
            problem, fix = damage, "restore it, or pass a copy of the checkpoint in another folder"
        raise ForeignCheckpoint(f"{where}: {problem} ({describe_differences(other)}); {fix}")
    try:
        check_digests(run.path, result.digests if result else {}, [f"checkpoints/{path.name}"])
    except ValueError as error:
        raise UserError(f"{where}: not the one that the run's result is of; remove it") from error


@contextmanager
def interpreting(where: str | Path | None, begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Refuse a checkpoint, if there is one, whose content raises an error, unless steps have ``begun`` on it.

    Content of another shape raises whatever its readers raise.
    """
    try:
        yield
    except (TypeError, AttributeError, LookupError, ValueError, RuntimeError) as error:
        if where is None or begun() or type(error).__name__ == "OutOfMemoryError" or raised_at(error):
            raise
        problem = f"the run cannot go on from its content ({describe_error(error)})"
        raise ForeignCheckpoint(f"{where}: {problem}; restore it, or the code that wrote it") from error


def check_checkpoint(ckpt: str, key: str = "ckpt") -> None:
    """Check a checkpoint, or that of a run's directory, and its configuration; UserError."""
    path = checkpoint_at(ckpt)
    check_config(read_checkpoint(path, key)["triptych"]["config"], f"{key}={path}")


def check_reference(key: str, path: str) -> None:
    """Check that ``path`` is a checkpoint, or the directory of a finished run."""
    run = RunDirectory(path)
    check_directory(run.path)
    if (run / "config.yaml").is_file() and run.status != "finished":
        fix = f"pass a checkpoint of it, as {key.partition('[')[0]}=.../checkpoints/last.ckpt"
        problem = (
            f"{damage}; restore it"
            if (damage := run.damage())
            else f"the run there is {run.status}; finish it"
        )
        raise UserError(f"{key}={path}: {problem}, or {fix}")
    check_checkpoint(path, key)


def check_initial(config: dict[str, Any], begun: bool) -> None:
    """Make ``init_from`` absolute, and check that it may be opened, unless the run has already ``begun``."""
    path = config.get("init_from")
    if path is None:
        return
    if config.get("trained") is not None:
        raise UserError(f"init_from={path}: trained=... trains nothing; pass one of the two")
    config["init_from"] = str(Path(path).absolute())
    if not begun:
        check_reference("init_from", path)


def adopt(config: dict[str, Any], choices: dict[str, Any], overrides: list[str]) -> None:
    """Copy the model's configuration from the run ``config["trained"]`` into a composed one and its choices.

    A pipeline of diffusers has no data and no bound: the composed ones stay, but DDPM's steps, decoder and
    variance. UserError if nothing finished is there, or for an override of what only the other run can say.
    """
    path = config["trained"]
    source = RunDirectory(path)
    check_directory(source.path)
    typed = [override.lstrip("+~").split("=")[0] for override in overrides]
    free: tuple[str, ...] = ()
    if pipeline := is_pipeline(path):
        theirs, free = pipeline_config(path), ("data", "bound")
        bound = {k: v for k, v in theirs["bound"].items() if f"bound.{k}" not in typed}
        named: dict[str, Any] = {"schedule": "betas", "denoiser": "unet2d", "process": "vp"}
        named |= {"objective": theirs["objective"]["output"]["space"], "data": choices.get("data")}
        theirs |= {"bound": config["bound"] | bound, "objective": config["objective"] | theirs["objective"]}
        theirs = config | theirs
    elif source.status != "finished":
        state = "no run" if source.status == "new" else f"the run there is {source.status}"
        state = source.damage() or state
        raise UserError(f"trained={path}: {state}; pass the directory of a finished run")
    else:
        theirs, named = source.config(), source.provenance.choices
    own = ", ".join([*free, *with_roles(Role.DRAWING, Role.SEED, Role.MACHINE)])
    for override, key in zip(overrides, typed, strict=True):
        if (group := key.split(".")[0].split("/")[0]) in MODEL_KEYS and group not in free:
            raise UserError(f"{override}: the model is that of trained={path}; beside it pass keys of {own}")
    theirs = check_config(theirs, f"trained={path}")
    for key in MODEL_KEYS:
        choices.pop(key, None)
        if key in theirs:
            config[key] = theirs[key]
        elif key in ModelKeys.__required_keys__:
            raise UserError(f"trained={path}: its configuration has no {key}; pass a run's directory")
        else:
            config.pop(key, None)  # a run of an earlier version has none
        if isinstance(named.get(key), str):
            choices[key] = named[key]
    config["trained"] = str(source.path)
    if pipeline:
        return
    if "download" in config["data"]:
        config["data"]["download"] = False  # it would be to where the other run says
    check_checkpoint(config["trained"], "trained")


def check_run(run: RunDirectory) -> None:
    """Check a directory in which a run is to go on, and its configuration if it was not composed here."""
    check_directory(run.path)
    config = run.config()
    run.read_records()
    if is_composed_here(run):
        return
    check_config(config, str(run / "config.yaml"), groups())


def is_composed_here(run: RunDirectory) -> bool:
    """Return whether this user's own command, which started this, composed the configuration in ``run``."""
    return os.environ.get(OWN) == str(run.path)
