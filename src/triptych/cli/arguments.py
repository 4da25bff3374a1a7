"""Parse a command line: options, and overrides in Hydra's grammar; print --help and --cfg."""

import argparse
import gc
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from triptych.cli.startup import print_version_and_exit
from triptych.config.check import check_choice_lists
from triptych.config.compose import compose_command, to_plain, without_hydra
from triptych.config.describe import help_text, plus_signs
from triptych.config.identity import quote, register_resolvers
from triptych.config.keys import check_values, find_key
from triptych.declare import IsPath
from triptych.errors import UserError, check_password
from triptych.run.command_errors import one_line_errors
from triptych.run.single import request_single

# Hydra reads digits with underscores as a number: a run named 2024_01 would be called 202401.
GROUPED = re.compile(r"\d+(_\d+)+")
# Values that need quotes in Hydra's grammar: a=b, and words with letters beyond ASCII.
UNQUOTED = re.compile(
    r"[^=\s,'\"\\()\[\]{}]+=[^\s,'\"\\()\[\]{}]*"
    r"|(?=.*[^\x00-\x7f])[\w.-]+"
)
# An override as W&B's sweep agents pass it, --key=value. --cfg=job is an option of Hydra.
FLAG = re.compile(r"--(?!cfg=)(?P<key>[A-Za-z_][\w./@]*)=(?P<value>.*)", re.DOTALL)
# Values that need no quotes: empty, null, or quoted already.
NO_QUOTES = re.compile(r"|null|['\"].*", re.IGNORECASE | re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A command-line parser that raises UserError for an invalid argument, and does not exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; other arguments are KEY=VALUE")


def make_parser(command: str) -> Parser:
    """Return the parser of a command's options, which may stand anywhere among the overrides.

    Options are spelt as in Hydra. ``hydra`` is the option that Hydra itself handles, such as -m for
    a sweep. Options of Hydra that are not here are refused, as one of them unpickles a file.
    """
    parser = Parser(f"triptych-{command}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=config_folder)
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    if command == "train":
        for option, letters in (("--multirun", "-m"), ("--shell-completion", "-sc")):
            parser.add_argument(option, letters, dest="hydra", action="store_const", const=option)
    return parser


def config_folder(text: str) -> Path:
    """Parse the value of --config-dir; raise UserError for a missing folder (Hydra ignores it)."""
    folder = Path(text).absolute()
    if not folder.is_dir():
        raise UserError(f"--config-dir={text}: not a directory")
    return folder


def read_command_line(arguments: Sequence[str], command: str) -> argparse.Namespace:
    """Parse the options and overrides of a command.

    For --version, --help and --cfg, print the answer and exit.
    """
    print_version_and_exit(arguments)
    register_resolvers()
    options = make_parser(command).parse_intermixed_args(list(map(without_hyphens, arguments)))
    options.overrides = hydra_overrides(options.overrides, command)
    if options.config_dir:
        options.overrides.append(f"hydra.searchpath=[{quote(f'file://{options.config_dir}')}]")
    if options.help or options.cfg or options.resolve:
        gc.disable()  # the process ends here; garbage collection would take a fifth of its time
        print(help_or_config_text(options, command), end="")
        sys.exit(0)
    return options


def run_command(command: str, task: Callable[[DictConfig], Any]) -> NoReturn:
    """Compose the configuration of this process's command line, pass it to ``task``, and exit."""
    with one_line_errors(command):
        options = read_command_line(sys.argv[1:], command)
        task(without_hydra(compose_command(command, options.overrides)))
    sys.exit(0)


# overrides ----------------------------------------------------------------------------------------


def without_hyphens(argument: str) -> str:
    """Turn ``--optimizer.lr=0.1``, as W&B's agents pass it, into ``optimizer.lr=0.1``.

    The value None becomes null. Other arguments are unchanged.
    """
    match = FLAG.fullmatch(argument)
    if match is None:
        return argument
    value = {"None": "null"}.get(match["value"], match["value"])
    return f"{match['key']}={value}"


def hydra_overrides(arguments: Sequence[str], command: str) -> list[str]:
    """Convert the overrides of a command to Hydra's grammar.

    Raises UserError for an override without effect.
    """
    typed = [without_hyphens(argument) for argument in arguments]
    parts = [override.lstrip("+").partition("._target_=") for override in typed]
    classes = {place: target for place, is_class, target in parts if is_class}
    overrides = [hydra_override(override, classes, command) for override in typed]
    check_choice_lists(overrides)
    return overrides


def hydra_override(override: str, classes: Mapping[str, str], command: str) -> str:
    """Convert one override to Hydra's grammar: quote its value, add "+" to its key where needed.

    "+" is needed for an argument of a class that no configuration file sets. ``classes`` is {group:
    class}, for classes that were themselves typed.
    """
    key, equals, value = override.partition("=")
    if not equals:
        return override
    check_password(override)
    if value == "{}":
        raise UserError(f"{override}: an empty group changes nothing; leave it out")
    return f"{plus_signs(key, classes)}{key}={quote_value(key.lstrip('+'), value, command)}"


def quote_value(key: str, value: str, command: str) -> str:
    """Quote a value if Hydra would misread or refuse it without quotes."""
    if NO_QUOTES.fullmatch(value):
        return value
    is_path = find_key(key, command=command).find_annotation(IsPath) is not None
    misread = UNQUOTED.fullmatch(value) or (key == "name" and GROUPED.fullmatch(value))
    return quote(value) if is_path or misread else value


# output of --help and --cfg -----------------------------------------------------------------------


def help_or_config_text(options: argparse.Namespace, command: str) -> str:
    """Return what ``--help`` or ``--cfg`` prints, after the same checks as for a run."""
    cfg = compose_command(command, options.overrides)
    if options.help:
        return help_text(command, cfg)
    job = job_configuration(cfg, command)
    if options.resolve:
        OmegaConf.resolve(cfg)
    hydra = OmegaConf.masked_copy(cfg, ["hydra"])
    parts = {"job": job, "hydra": hydra, "all": OmegaConf.merge(job, hydra)}
    return OmegaConf.to_yaml(parts[options.cfg or "job"])


def job_configuration(cfg: DictConfig, command: str) -> DictConfig:
    """Return the configuration that ``--cfg=job`` prints.

    For a run, this is the configuration that the run would record. For other commands and for
    sweeps, it is the composed configuration; for a sweep with scale=paper, it is that of the first
    run, as only the runs have the values of this scale.
    """
    if command == "train" and cfg.get("scale", "small") != "small":
        return first_job_at_scale(cfg)
    if command == "train" and not cfg.hydra.sweeper.get("params"):
        return OmegaConf.create(request_single(cfg).config)
    job = without_hydra(cfg)
    if command != "train":
        check_values(
            {key: value for key, value in to_plain(job).items() if value != "???"}, command
        )
    return job


def first_job_at_scale(cfg: DictConfig) -> DictConfig:
    """Return the configuration of a sweep's first run, with the values for ``scale=paper``."""
    from triptych.study.papers.paper import set_scale
    from triptych.study.rounds import composed_grid_jobs

    OmegaConf.set_readonly(cfg.hydra, False)
    set_scale(cfg)
    return without_hydra(compose_command("train", composed_grid_jobs(cfg)[0]))
