"""Translate command-line arguments for Hydra."""

import atexit
import gc
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig, OmegaConf

from triptych.cli.startup import answer_version
from triptych.config.check import check_lists
from triptych.config.compose import compose_command, to_plain, without_hydra
from triptych.config.describe import help_text, plus_signs
from triptych.config.habits import VALUE, nearest, replacement, translated
from triptych.config.hydra_internals import get_args_parser
from triptych.config.identity import ABSENT, quote, register_resolvers
from triptych.config.keys import check_values, find_key
from triptych.config.source import CONFIGS
from triptych.declare import IsPath
from triptych.errors import StorageError, UserError, check_password
from triptych.files import STORAGE, directory_with_records
from triptych.run.command_errors import one_line_errors

WORD = re.compile(r"[\w.-]+")
GROUPED = re.compile(r"\d+(_\d+)+")  # a number to Hydra, which would call the run 2024_01 202401
EQUALS = re.compile(
    r"[^=\s,'\"\\()\[\]{}]+=[^\s,'\"\\()\[\]{}]*"
)  # one text, as a=b, which Hydra cannot read
SHOW_ONE = "several values, and --help and --cfg show one run; type one"
# The options of Hydra's that are taken: of its others one unpickles a file.
OPTIONS = [
    "--help",
    "--multirun",
    "-m",
    "--config-dir",
    "--cfg",
    "--resolve",
    "--package",
    "--info",
    "--shell-completion",
]

FLAG = re.compile(r"--(?P<key>[A-Za-z_][\w./@]*)=(?P<value>.*)", re.DOTALL)


def without_hyphens(argument: str) -> str:
    """Remove the hyphens of ``--optimizer.lr=0.1``, as W&B agents write overrides; None becomes null."""
    match = FLAG.fullmatch(argument)
    if match is None or f"--{match['key']}" in OPTIONS:
        return argument
    return f"{match['key']}={'null' if match['value'] == 'None' else match['value']}"


def as_hydra_wants(arguments: list[str], command: str) -> list[str]:
    """Return the arguments of ``command`` as Hydra needs them; answer ``--help`` and ``--cfg``, and exit.

    Paths are quoted, as runs' names contain = and commas; a class's key that no file lists gets its plus.
    """
    answer_version(arguments)
    register_resolvers()
    arguments = [one for typed in arguments for one in translated(without_hyphens(typed))]
    split = [argument.lstrip("+").partition("._target_=") for argument in arguments]
    classes = {place: target for place, equals, target in split if equals}
    quoted = []
    for argument in arguments:
        if not argument.strip():
            raise UserError(f"{argument!r}: an empty argument; leave it out")
        check_password(argument)
        key, equals, value = argument.partition("=")
        if equals and not key.lstrip("+~"):
            raise UserError(f"{argument}: no key before the =; type KEY=VALUE")
        if key.lstrip("+") == "hydra.mode":
            raise UserError(f"{argument}: leave it out; -m is a sweep")
        if value == "{}" and key[:1].isalpha():
            raise UserError(f"{argument}: an empty group changes nothing; leave it out")
        if equals and key[:1].isalpha():
            key = plus_signs(key, classes) + key
        path = find_key(key.lstrip("+"), command=command).mark(IsPath) if value else None
        text = key == "name" and GROUPED.fullmatch(value)
        text = text or (argument[0] != "-" and EQUALS.fullmatch(value))
        if text or (path and value[0] not in "'\"" and value.lower() != "null"):
            value = quote(value)
        elif not argument.isascii() and WORD.fullmatch(value):  # Hydra's grammar knows no other letters
            value = f"'{value}'"
        quoted.append(f"{key}{equals}{value}")
    options = check_options(quoted, command)
    check_lists(options.overrides)
    if options.multirun and command != "train":
        raise UserError("-m: only triptych-train sweeps; type this command once for each value")
    if options.help or options.cfg:
        gc.disable()  # the process ends with that page; to collect meanwhile is a fifth of its time
        atexit.register(gc.freeze)  # as it would at the end
        print(help_or_config(options, command), end="")
        sys.exit(0)
    # options first: Hydra's parser takes overrides in one piece
    return [*(one for one in quoted if one not in options.overrides), *options.overrides]


def run_command(command: str, task: Callable[[DictConfig], Any]) -> NoReturn:
    """Call ``task`` with the configuration that Hydra composes of the command line, and exit."""
    with one_line_errors(command):
        arguments = as_hydra_wants(sys.argv[1:], command)
    sys.argv[1:] = arguments
    with one_line_errors(command, arguments):
        compose = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)
        compose(one_line_errors(command, arguments)(task))()  # within Hydra, which would add lines of its own
    sys.exit(0)


def help_or_config(options: Namespace, command: str) -> str:
    """Return what ``--help`` or ``--cfg`` prints, checked as for a run; UserError as the command's."""
    folder = [f"hydra.searchpath=[{quote(f'file://{options.config_dir}')}]"] * bool(options.config_dir)
    several = SHOW_ONE if options.multirun else ""
    cfg = compose_command(command, [*options.overrides, *folder], several)
    if options.help:
        return help_text(command, cfg)
    if command != "train":
        plain = to_plain(without_hydra(cfg))
        check_values({key: value for key, value in plain.items() if value != "???"}, command)
    elif not cfg.hydra.sweeper.get("params"):  # else settings to compare: what they share is shown
        from triptych.study.prerequisites import check_single

        plain = check_single(cfg)
        if plain["trained"] is None:  # else it has the other run's model
            _keep(cfg, plain)
    if options.resolve:
        OmegaConf.resolve(cfg)
    parts = {"job": without_hydra(cfg), "hydra": OmegaConf.masked_copy(cfg, ["hydra"]), "all": cfg}
    shown = OmegaConf.select(parts[options.cfg], options.package or "", default=ABSENT)
    if shown is ABSENT:
        raise UserError(f"--package {options.package}: no such key; leave it out, or type one that is shown")
    return OmegaConf.to_yaml(shown) if OmegaConf.is_config(shown) else f"{json.dumps(shown)}\n"


def _keep(cfg: Any, plain: dict[str, Any]) -> None:
    """Remove what a run's configuration ``plain`` has not: a file's keys beside a typed class or length."""
    OmegaConf.set_struct(cfg, False)
    for key in [str(key) for key in cfg if key != "hydra"]:
        node = cfg._get_node(key)  # an interpolation stays one
        if key not in plain:
            del cfg[key]
        elif isinstance(node, DictConfig) and isinstance(plain[key], dict):
            _keep(node, plain[key])
        elif plain[key] is None and cfg.get(key) is not None:  # a reference to null stays one
            cfg[key] = None


def check_place(key: str, path: str | None, folder: bool = False) -> None:
    """Check that ``key``'s file, or a ``folder`` of that name, can be written; UserError, or StorageError."""
    if path is None:
        return
    place = Path(path).absolute()
    records = directory_with_records(place / "samples" if folder else place)
    if records:
        raise UserError(f"{key}={path}: {records} keeps its own records; choose another place")
    special = place.is_symlink() or (place.exists() and not place.is_file() and not place.is_dir())
    if special and not folder:
        raise UserError(f"{key}={path}: not a regular file; choose another place")
    there = next(one for one in (place, *place.parents) if one.exists())
    if there.is_dir() == (there == place and not folder):
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
            problem = f"cannot be written ({error.strerror}); choose another place"
            raise refused(f"{key}={path}: {problem}") from error


def check_options(arguments: list[str], command: str) -> Namespace:
    """Parse ``arguments`` as Hydra does; UserError for an option that is not among ``OPTIONS``."""

    def refuse(message: str) -> None:
        option = message.removeprefix("unrecognized arguments: ")
        if option == message:
            raise UserError(message)
        key = re.split("[= ]", option.lstrip("-"))[0].replace("-", "_")
        if line := replacement(key, VALUE, command):
            raise UserError(f"{option}: no such option; use {line}")
        if find_key(key, command=command).kind is not Any:
            raise UserError(f"{option}: no such option; use {key}={VALUE}")
        near = nearest(option.split("=")[0], OPTIONS)
        raise UserError(f"{option}: no such option; {near} (keys are KEY=VALUE)")

    if "--" in arguments:
        raise UserError("--: no such option; leave it out")
    parser = get_args_parser()
    # argparse's way to change how it refuses
    parser.error = refuse  # type: ignore[assignment, method-assign]
    options = parser.parse_intermixed_args(arguments)
    for name, value in vars(options).items():
        option = f"--{name.replace('_', '-')}"
        if name != "overrides" and option not in OPTIONS and value != parser.get_default(name):
            refuse(f"unrecognized arguments: {option}")
    if (options.package or options.resolve) and not options.cfg:
        raise UserError("--package, --resolve: say what --cfg shows; add --cfg job")
    return options
