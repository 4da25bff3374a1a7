"""Open and check checkpoints and run directories that may be untrusted, before they are used."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from triptych.config.build import check_names
from triptych.config.file import copy_plain
from triptych.config.identity import describe_differences, result_changing_differences
from triptych.config.keys import (
    MODEL_KEYS,
    check_values,
    groups,
    keys_with_roles,
    override_keys,
)
from triptych.config.own_code import describe_error, error_location
from triptych.config.schema import DrawsName, ModelKeys
from triptych.declare import Role
from triptych.errors import ForeignCheckpoint, UserError
from triptych.files import check_directory, load_tensors
from triptych.records import Checkpoint, Config
from triptych.run.directory import SCHEMA, RunDirectory, resolve_checkpoint_path
from triptych.run.pipeline import is_pipeline, pipeline_config

# Environment variable with the run directory whose configuration this user's command has composed.
OWN = "TRIPTYCH_OWN"


def check_config(config: Config, description: str, needed: Iterable[str] = ()) -> Config:
    """Check that a configuration has all groups and names only allowed classes; return it.

    ``needed`` are further keys that must exist; ``description`` begins the error messages.
    """
    model_groups = [key for key in groups() if key in MODEL_KEYS]
    missing = [key for key in (*model_groups, "threads", *needed) if key not in config]
    if missing:
        raise UserError(
            f"{description}: its configuration has no {missing[0]}; pass the configuration of a run"
        )
    check_names(config)
    check_values(config)
    return config


def find_checkpoint(ckpt: str | Path, key: str = "ckpt") -> Path:
    """Return the path of the checkpoint at ``ckpt``, which is a file or a run's directory.

    Raises UserError if there is no checkpoint.
    """
    path = resolve_checkpoint_path(ckpt)
    if not path.is_file():
        raise UserError(
            f"{key}={path}: no such file; pass a run's directory or a checkpoint in it, as "
            "checkpoints/last.ckpt"
        )
    return path


def read_checkpoint(path: Path, key: str = "ckpt") -> Checkpoint:
    """Load a checkpoint as plain, checked data on the CPU.

    For a checkpoint in its run's directory, the configuration is that of the directory: settings of
    the machine may have changed since it was written, such as devices, threads or the data's
    folder. Raises UserError if the checkpoint is damaged or belongs to another run.
    """
    path = find_checkpoint(path, key)
    where = f"{key}={path}"
    content = _load_content(path, where)
    known = content["triptych"]
    known["config"] = _current_config(path, where, copy_plain(known["config"], f"{where}: config"))
    return content


def _load_content(path: Path, where: str) -> Checkpoint:
    """Load a checkpoint that this version has written; UserError for any other file.

    Only the main entries are checked. If others are malformed, the code that reads them may raise
    any error; ``reraise_as_foreign_checkpoint`` and ``reopen`` turn it into a one-line message.
    """
    try:
        content: Checkpoint = load_tensors(path)
    except ValueError as error:
        raise UserError(f"{where}: {error}; pass a checkpoint of a run") from error
    try:
        schema = content["triptych"]["schema"]
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{where}: not written by triptych; pass a checkpoint of a run") from error
    if schema != SCHEMA:
        raise ForeignCheckpoint(
            f"{where}: written by another version of triptych, with other keys; pass a checkpoint "
            f"with schema {SCHEMA}"
        )
    parts = content.get("global_step"), content["triptych"].get("config"), content.get("callbacks")
    is_complete = all(map(isinstance, parts, (int, dict, dict)))
    if not (is_complete and content["triptych"].get("draws", "batch") in get_args(DrawsName)):
        raise ForeignCheckpoint(f"{where}: not a complete checkpoint; pass a checkpoint of a run")
    return content


def is_ema_state(state: dict[str, Any]) -> bool:
    """Return whether a callback's state is that of ``EMA`` or of a subclass."""
    return {"average", "name", "others"} <= state.keys()


def _current_config(path: Path, where: str, config: Config) -> Config:
    """Return the configuration of the run in whose directory a checkpoint lies.

    For a checkpoint elsewhere, return its own, ``config``. Raises UserError if the checkpoint does
    not belong to the run.
    """
    run = RunDirectory(path.parent.parent)
    if path.parent.name != "checkpoints" or not (run / "config.yaml").is_file():
        return config
    current = run.config()
    differences = result_changing_differences(current, config)
    if differences:
        raise ForeignCheckpoint(
            f"{where}: belongs to another run than {run / 'config.yaml'} "
            f"({describe_differences(differences)}); put back the file that was replaced, or copy "
            "the checkpoint to another folder and pass the copy"
        )
    return current


@contextmanager
def reraise_as_foreign_checkpoint(
    where: str | Path | None, has_begun: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Convert errors in the ``with`` block to ForeignCheckpoint, unless training ``has_begun``.

    Code that reads a malformed checkpoint may raise many types of errors. If ``where`` (the
    checkpoint) is None, no error is converted.
    """
    try:
        yield
    except (TypeError, AttributeError, LookupError, ValueError, RuntimeError) as error:
        if (
            where is None
            or has_begun()
            or type(error).__name__ == "OutOfMemoryError"
            or error_location(error)
        ):
            raise
        raise ForeignCheckpoint(
            f"{where}: its content cannot be used ({describe_error(error)}); restore it, or the "
            "version of the code that wrote it"
        ) from error


def check_checkpoint(ckpt: str, key: str = "ckpt") -> None:
    """Raise UserError if a checkpoint, or its configuration, is not valid.

    ``ckpt`` is a checkpoint or a run's directory.
    """
    path = resolve_checkpoint_path(ckpt)
    check_config(read_checkpoint(path, key)["triptych"]["config"], f"{key}={path}")


def check_reference(key: str, path: str) -> None:
    """Raise UserError unless ``path`` is a checkpoint or the directory of a finished run."""
    run = RunDirectory(path)
    check_directory(run.path)
    if (run / "config.yaml").is_file() and run.status != "finished":
        raise UserError(
            f"{key}={path}: {_unfinished_reason(run)}; finish or restore this run, or pass a "
            f"checkpoint of it, as {key.partition('[')[0]}=.../checkpoints/last.ckpt"
        )
    check_checkpoint(path, key)


def _unfinished_reason(run: RunDirectory) -> str:
    """Describe why a run cannot be used as finished; Unreadable if its result cannot be read."""
    if run.status == "new":
        return "no run"
    run.summary()  # Raises Unreadable.
    return f"the run there is {run.status}"


def check_init_from(config: Config) -> None:
    """Raise UserError unless ``init_from``, if it is set, is a checkpoint or a finished run."""
    if config.get("init_from") is not None:
        check_reference("init_from", config["init_from"])


def adopt_trained_config(config: Config, choices: dict[str, Any], overrides: Sequence[str]) -> None:
    """Copy the model's keys from the configuration of the run ``trained`` into ``config``.

    Raises UserError if that run has not finished, or if an override would change the model.
    """
    path = config["trained"]
    source = RunDirectory(path)
    check_directory(source.path)
    if is_pipeline(path):
        _adopt_pipeline_config(config, choices, overrides)
        return
    if source.status != "finished":
        raise UserError(
            f"trained={path}: {_unfinished_reason(source)}; pass the directory of a finished run"
        )
    _check_overrides(path, overrides)
    _copy_model(source.config(), source.provenance.choices, config, choices)
    if "download" in config["data"]:
        config["data"]["download"] = False  # Do not download into a folder that a file names.
    check_checkpoint(config["trained"], "trained")


def _adopt_pipeline_config(
    config: Config, choices: dict[str, Any], overrides: Sequence[str]
) -> None:
    """Copy the configuration of a diffusers pipeline into ``config``.

    A pipeline defines neither data nor bound, so the composed groups are kept. Only the bound's
    steps, decoder and variance become those of the DDPM, unless they were overridden.
    """
    _check_overrides(config["trained"], overrides, ("data", "bound"))
    pipeline = pipeline_config(config["trained"])
    typed = override_keys(overrides)
    bound = {key: value for key, value in pipeline["bound"].items() if f"bound.{key}" not in typed}
    pipeline["bound"] = config["bound"] | bound
    pipeline["objective"] = config["objective"] | pipeline["objective"]
    names = {
        "schedule": "betas",
        "denoiser": "unet2d",
        "process": "vp",
        "data": choices.get("data"),
    }
    names["objective"] = pipeline["objective"]["output"]["space"]
    _copy_model(config | pipeline, names, config, choices)


def _copy_model(
    source: dict[str, Any], names: Mapping[str, Any], config: Config, choices: dict[str, Any]
) -> None:
    """Copy the keys that define the model from ``source``, and their choices from ``names``."""
    path = config["trained"]
    check_config(source, f"trained={path}", ModelKeys.__required_keys__)
    for key in MODEL_KEYS:
        choices.pop(key, None)
        if key in source:
            config[key] = source[key]
        else:
            config.pop(key, None)  # The other run is older than this group.
        if isinstance(names.get(key), str):
            choices[key] = names[key]
    config["trained"] = str(RunDirectory(path).path)


def _check_overrides(
    path: str, overrides: Sequence[str], free_groups: tuple[str, ...] = ()
) -> None:
    """Raise UserError for an override that would change the model, except in ``free_groups``."""
    for override, key in zip(overrides, override_keys(overrides), strict=True):
        group = key.split(".")[0].split("/")[0]
        if group in MODEL_KEYS and group not in free_groups:
            keys = ", ".join(
                [*free_groups, *keys_with_roles(Role.DRAWING, Role.SEED, Role.MACHINE)]
            )
            raise UserError(
                f"{override}: not allowed, as trained={path} sets the model; change only keys of "
                f"{keys}"
            )


def check_run(run: RunDirectory) -> None:
    """Check a run's directory before it is resumed.

    The configuration is checked too, unless this user's own command has just composed it.
    """
    check_directory(run.path)
    config = run.config()
    run.read_records()
    if is_composed_here(run):
        return
    check_config(config, str(run / "config.yaml"), groups())


def is_composed_here(run: RunDirectory) -> bool:
    """Return whether this user's own command composed the configuration in ``run``."""
    return os.environ.get(OWN) == str(run.path)
