"""Open checkpoints and run directories that may be a stranger's, before anything is used."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.config.build import check_names
from triptych.config.file import copy_plain
from triptych.config.identity import describe_differences, other_figures
from triptych.config.keys import MODEL_KEYS, check_values, groups, with_roles
from triptych.config.own_code import describe_error, raised_at
from triptych.config.schema import ModelKeys
from triptych.declare import Role
from triptych.errors import ForeignCheckpoint, UserError
from triptych.files import check_directory, load_tensors
from triptych.run.directory import NO_CHECKPOINT, SCHEMA, RunDirectory, check_digests, checkpoint_at
from triptych.run.pipeline import is_pipeline, pipeline_config

OWN = "TRIPTYCH_OWN"  # names the run directory whose configuration this user's command has composed


def check_config(config: dict[str, Any], what: str, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Check and return a file's configuration: its groups are there and name allowed classes.

    ``needed``: further keys that must be there.
    """
    model_groups = [key for key in groups() if key in MODEL_KEYS]
    missing = [key for key in (*model_groups, "threads", *needed) if key not in config]
    if missing:
        raise UserError(f"{what}: its configuration has no {missing[0]}; pass the configuration of a run")
    check_names(config)
    check_values(config)
    return config


def find_checkpoint(ckpt: str | Path, key: str = "ckpt") -> Path:
    """Return the checkpoint at ``ckpt``, a file or a run's directory.

    UserError if there is none.
    """
    path = checkpoint_at(ckpt)
    if path.is_dir():
        raise UserError(f"{key}={path}: no run in this directory; pass logs/runs/NAME, or a checkpoint")
    if not path.is_file():
        raise UserError(f"{key}={path}: {NO_CHECKPOINT}")
    return path


def read_checkpoint(path: Path, key: str = "ckpt") -> dict[str, Any]:
    """Load a checkpoint as plain, checked data on the CPU; UserError: damaged, or another run's."""
    path = find_checkpoint(path, key)
    where = f"{key}={path}"
    content = _load_content(path, where)
    known = content["triptych"]
    known["config"] = copy_plain(known["config"], f"{where}: config")
    _check_own(path, where, known["config"])
    return content


def _load_content(path: Path, where: str) -> dict[str, Any]:
    """Load a checkpoint that this version has written; UserError for any other file.

    What else is in it has the shape that its readers need, or they raise whatever they raise: those
    of a stranger's checkpoint turn that into one line (``interpreting``, ``reopen``).
    """
    try:
        content: dict[str, Any] = load_tensors(path)
    except ValueError as error:
        raise UserError(f"{where}: {error}; pass a checkpoint of a run") from error
    try:
        schema = content["triptych"]["schema"]
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{where}: not written by triptych; pass a checkpoint of a run") from error
    if schema != SCHEMA:
        problem = "written by another version of triptych, whose configurations have other keys"
        raise UserError(f"{where}: {problem}; pass a checkpoint of schema {SCHEMA}")
    parts = content.get("global_step"), content["triptych"].get("config"), content.get("callbacks")
    if not all(map(isinstance, parts, (int, dict, dict))):
        raise ForeignCheckpoint(f"{where}: not as a run writes it; pass a checkpoint of a run")
    return content


def is_averaging(state: dict[str, Any]) -> bool:
    """Return whether a callback's state is that of ``EMA``, or of a subclass."""
    return {"average", "name", "others"} <= state.keys()


def _check_own(path: Path, where: str, config: dict[str, Any]) -> None:
    """Check that a checkpoint in a run's directory is that run's, and that of its result."""
    run = RunDirectory(path.parent.parent)
    if path.parent.name != "checkpoints" or not (run / "config.yaml").is_file():
        return
    differences = other_figures(run.config(), config)
    if differences:
        problem = f"of another run than {run / 'config.yaml'} ({describe_differences(differences)})"
        fix = "restore the one that is wrong, or pass a copy of the checkpoint in another folder"
        raise ForeignCheckpoint(f"{where}: {problem}; {fix}")
    result = None if run.damage() else run.summary()
    if result is None:
        return
    try:
        check_digests(run.path, result.digests, [f"checkpoints/{path.name}"])
    except ValueError as error:
        raise UserError(f"{where}: not the one that the run's result is of; remove it") from error


@contextmanager
def interpreting(where: str | Path | None, begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise ForeignCheckpoint for errors within the context, unless training steps have ``begun``.

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
        fix = f"or pass a checkpoint of it, as {key.partition('[')[0]}=.../checkpoints/last.ckpt"
        raise UserError(f"{key}={path}: {_state(run)}; finish or restore it, {fix}")
    check_checkpoint(path, key)


def _state(run: RunDirectory) -> str:
    """Describe the state of a run that has not finished."""
    if run.status == "new":
        return "no run"
    return run.damage() or f"the run there is {run.status}"


def check_initial(config: dict[str, Any], begun: bool) -> None:
    """Make ``init_from`` absolute, and check it unless the run has already ``begun``."""
    path = config.get("init_from")
    if path is None:
        return
    if config.get("trained") is not None:
        raise UserError(f"init_from={path}: trained=... trains nothing; pass one of the two")
    config["init_from"] = str(Path(path).absolute())
    if not begun:
        check_reference("init_from", path)


def adopt(config: dict[str, Any], choices: dict[str, Any], overrides: list[str]) -> None:
    """Copy the model's configuration from the run ``trained=`` into a composed one.

    UserError: nothing finished is there, or an override is of what only the other run can say.
    """
    path = config["trained"]
    source = RunDirectory(path)
    check_directory(source.path)
    if is_pipeline(path):
        _adopt_pipeline(config, choices, overrides)
        return
    if source.status != "finished":
        raise UserError(f"trained={path}: {_state(source)}; pass the directory of a finished run")
    _check_overrides(path, overrides)
    _copy_model(source.config(), source.provenance.choices, config, choices)
    if "download" in config["data"]:
        config["data"]["download"] = False  # the folder is the other run's choice
    check_checkpoint(config["trained"], "trained")


def _adopt_pipeline(config: dict[str, Any], choices: dict[str, Any], overrides: list[str]) -> None:
    """Copy the configuration of a pipeline of diffusers, which has no data and no bound of its own.

    The composed ones stay, but for DDPM's steps, decoder and variance where they were not typed.
    """
    _check_overrides(config["trained"], overrides, ("data", "bound"))
    pipeline = pipeline_config(config["trained"])
    typed = _typed_keys(overrides)
    bound = {key: value for key, value in pipeline["bound"].items() if f"bound.{key}" not in typed}
    pipeline["bound"] = config["bound"] | bound
    pipeline["objective"] = config["objective"] | pipeline["objective"]
    names = {"schedule": "betas", "denoiser": "unet2d", "process": "vp", "data": choices.get("data")}
    names["objective"] = pipeline["objective"]["output"]["space"]
    _copy_model(config | pipeline, names, config, choices)


def _copy_model(
    source: dict[str, Any], names: Mapping[str, Any], config: dict[str, Any], choices: dict[str, Any]
) -> None:
    """Copy the keys that define the model, and its groups' names, from another configuration."""
    path = config["trained"]
    check_config(source, f"trained={path}", ModelKeys.__required_keys__)
    for key in MODEL_KEYS:
        choices.pop(key, None)
        if key in source:
            config[key] = source[key]
        else:
            config.pop(key, None)  # a run of an earlier version has no such group
        if isinstance(names.get(key), str):
            choices[key] = names[key]
    config["trained"] = str(RunDirectory(path).path)


def _check_overrides(path: str, overrides: list[str], free: tuple[str, ...] = ()) -> None:
    """Refuse an override of what defines the model, but for the groups in ``free``."""
    for override, key in zip(overrides, _typed_keys(overrides), strict=True):
        group = key.split(".")[0].split("/")[0]
        if group in MODEL_KEYS and group not in free:
            keys = ", ".join([*free, *with_roles(Role.DRAWING, Role.SEED, Role.MACHINE)])
            raise UserError(f"{override}: the model is that of trained={path}; beside it pass keys of {keys}")


def _typed_keys(overrides: list[str]) -> list[str]:
    return [override.lstrip("+~").split("=")[0] for override in overrides]


def check_run(run: RunDirectory) -> None:
    """Check a directory in which a run is to go on, also a configuration of another command."""
    check_directory(run.path)
    config = run.config()
    run.read_records()
    if is_composed_here(run):
        return
    check_config(config, str(run / "config.yaml"), groups())


def is_composed_here(run: RunDirectory) -> bool:
    """Return whether this user's own command composed the configuration in ``run``."""
    return os.environ.get(OWN) == str(run.path)
