"""Translate command-line arguments for Hydra."""

import gc
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from triptych.config.check import check_keys
from triptych.config.describe import plus
from triptych.config.habits import MEANT, translated
from triptych.config.keys import check_values, find_key
from triptych.config.names import check_environment, quote
from triptych.config.nearest import nearest
from triptych.errors import StorageError, UserError, check_password
from triptych.run.directory import STORAGE

SANITIZED = Hydra.get_sanitized_cfg
WORD = re.compile(r"[\w.-]+")
OPTIONS = ["--help", "--multirun", "-m", "--config-dir", "--cfg", "--info", "--shell-completion"]

FLAG = re.compile(r"--(?P<key>[A-Za-z_][\w./@]*)=(?P<value>.*)", re.DOTALL)
HYDRAS = ("package", "info", "cfg")  # of its own flags those that look like keys with a value


def without_hyphens(argument: str) -> str:
    """Remove the hyphens of ``--optimizer.lr=0.1``, as W&B agents write overrides; None becomes null."""
    match = FLAG.fullmatch(argument)
    if match is None or match["key"] in HYDRAS:
        return argument
    return f"{match['key']}={'null' if match['value'] == 'None' else match['value']}"


def as_hydra_wants(arguments: list[str], command: str) -> list[str]:
    """Return the arguments of ``command`` with paths quoted: names of runs contain = and commas.

    An override may have two hyphens before it. It needs no plus where a class takes a key that no file lists.

    Where they ask for completion (``-sc``), Hydra's is extended by what is declared.
    """
    if {"-sc", "--shell-completion"} & set(arguments):
        from triptych.config.describe import complete_for

        complete_for(command)
    if {"-h", "--help", "--hydra-help"} & set(arguments):
        from triptych.config.describe import list_groups_quickly

        gc.disable()  # the process ends with that page; to collect meanwhile is a fifth of its time
        list_groups_quickly()
    check_environment()
    arguments = [one for typed in arguments for one in translated(without_hyphens(typed))]
    split = [argument.lstrip("+").partition("._target_=") for argument in arguments]
    classes = {place: target for place, equals, target in split if equals}
    quoted = []
    for argument in arguments:
        check_password(argument)
        key, equals, value = argument.partition("=")
        if equals and not key:
            raise UserError(f"{argument}: no key before the =; type KEY=VALUE")
        if value == "{}" and key[:1].isalpha():
            raise UserError(f"{argument}: an empty group changes nothing; leave it out")
        if equals and key[:1].isalpha():
            key = plus(key, classes) + key
        if equals and value and value[0] not in "'\"" and find_key(key.lstrip("+"), command=command).is_path:
            value = quote(value)
        elif not argument.isascii() and WORD.fullmatch(value):  # Hydra's grammar knows no other letters
            value = f"'{value}'"
        quoted.append(f"{key}{equals}{value}")
    options = check_options(quoted)
    if options.config_name or options.config_path:
        raise UserError("--config-name, --config-path: a command has its own; use experiment=NAME")
    if options.multirun and command != "train":
        raise UserError("-m: only triptych-train sweeps; type this command once for each value")
    if options.cfg:
        gc.disable()  # as above
        check_shown(command)
    return options_first(quoted)


def check_shown(command: str) -> None:
    """Make Hydra's ``--cfg`` check the configuration of ``command`` as a run does."""

    def get_sanitized_cfg(self: Hydra, cfg: DictConfig, cfg_type: str) -> DictConfig:
        if command != "train":
            plain: Any = OmegaConf.to_container(cfg)
            check_values({key: value for key, value in plain.items() if value != "???"}, command)
        else:
            check_keys(cfg, cfg.hydra)
            if not cfg.hydra.sweeper.get("params"):  # else settings to compare: what they share is shown
                from triptych.study.single import check_single

                check_single(cfg)
        return SANITIZED(self, cfg, cfg_type)

    Hydra.get_sanitized_cfg = get_sanitized_cfg  # type: ignore[method-assign]  # Hydra has no hook for it


def options_first(arguments: list[str]) -> list[str]:
    """Move options such as ``-m`` before the overrides: argparse wants overrides in one piece.

    An option's own value, as in ``--config-dir DIR``, stays with it.
    """
    actions = get_args_parser()._option_string_actions
    options, overrides = [], []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        options.append(argument)
        action = actions.get(argument)
        if action is not None and action.nargs is None:  # one value, unless it stands behind a =
            options += [value for value in [next(rest, None)] if value is not None]
    return [*options, *overrides]


def check_place(key: str, path: str | None, folder: bool = False) -> None:
    """Check that a result can be written to the path of ``key``, as far as possible in advance.

    ``folder``: it is written into a folder of that name, else into a file.
    """
    if path is None:
        return
    there = next(one for one in (Path(path).absolute(), *Path(path).absolute().parents) if one.exists())
    whole = there == Path(path).absolute()
    if there.is_dir() == (whole and not folder):
        kind = "directory" if there.is_dir() else "file"
        wanted = "a folder, there or new" if folder else "a file"
        raise UserError(f"{key}={path}: {there} is a {kind}; must be {wanted}")
    if there.is_dir():
        probe = there / f".{os.getpid()}.tmp"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            refused = StorageError if error.errno in STORAGE else UserError
            raise refused(
                f"{key}={path}: cannot be written ({error.strerror}); choose another place"
            ) from error


def check_options(arguments: list[str]) -> Namespace:
    """Parse ``arguments`` as Hydra does; UserError for an unknown option."""

    def refuse(message: str) -> None:
        option = message.removeprefix("unrecognized arguments: ")
        key = MEANT.get(re.split("[= ]", option.lstrip("-"))[0].replace("-", "_"))
        if key and option != message:
            raise UserError(f"{option}: no such option; use {key}=VALUE")
        raise UserError(
            f"{option}: no such option; {nearest(option.split('=')[0], OPTIONS)} (keys are KEY=VALUE)"
            if option != message
            else message
        )

    parser = get_args_parser()
    # argparse's way to change how it refuses
    parser.error = refuse  # type: ignore[assignment, method-assign]
    return parser.parse_args(options_first([one for one in arguments if one != "--version"]))
