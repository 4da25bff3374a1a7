"""Refuse undeclared keys, on the command line and in files, and suggest the nearest name.

Hydra's own strictness covers the command line; files packaged at the top (``experiment/``, ``ablation/``,
``debug/``, ``local/``) may add any key they like. Nothing but Hydra is imported.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from triptych.config import folders
from triptych.config.build import keep_arguments
from triptych.config.folders import CONFIGS
from triptych.config.habits import answer
from triptych.config.keys import FREE_GROUPS, OPTIONS, Key, below, fields, of_class, takes, unfit
from triptych.config.nearest import nearest
from triptych.config.schema import COMMANDS
from triptych.config.trust import check_name
from triptych.errors import UserError

LISTS = ("callbacks", "logger", "metrics")  # groups of which several files go together


def check_keys(cfg: DictConfig, hydra: DictConfig) -> None:
    """Refuse the first undeclared key or value, with its origin and the nearest name or fix: UserError."""
    overrides, command = list(hydra.overrides.task), str(hydra.job.config_name)
    lists = _lists(overrides)
    for group, names in lists.items():
        if group not in (*LISTS, *FREE_GROUPS):
            every = names.strip("[] ")
            if not every:
                near = nearest("", folders.choices_of(group))
                raise UserError(f"{group}={names}: a choice is needed; {near}")
            one = f"{group}={every.split(',')[0].strip()}"
            raise UserError(f"{group}={names}: one choice only; type {one}, or compare: -m {group}={every}")
    typed = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for group in FREE_GROUPS:
        if typed.count(group) > 1:
            every = " ".join(one for one in overrides if one.lstrip("+~").startswith(f"{group}="))
            raise UserError(f"{every}: {group} is typed twice, and the last one only would count; type one")
    choices = dict(hydra.runtime.choices) | lists
    free = {g: c for g, c in choices.items() if g in FREE_GROUPS and c}
    if not (CONFIGS / "local" / "default.yaml").exists():
        free.pop("local", None)  # optional, and not there
    for group in free:
        if group in cfg and group != "paper":
            head = "its file must begin with # @package _global_, so that its keys are those of a run"
            raise UserError(f"{group}={free[group]}: {head}")
    files = f" (in {', '.join(f'{g}={c}' for g, c in free.items())})" if free else ""
    own = [str(key) for key in cfg if key != "hydra" and not OmegaConf.is_missing(cfg, key)]
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, own), resolve=True)
    keep_arguments(plain, typed)
    top = Key(COMMANDS[command])
    for key, line in chain(_undeclared(plain, top), unfit(plain, top)):
        raise UserError(line if key in typed else line.replace(": ", f"{files}: ", 1))


def _undeclared(group: dict[str, Any], key: Key, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, error line) of every key that its group does not take."""
    target = check_name(group["_target_"], path) if "_target_" in group else ""
    declared = fields(key.kind)
    for name, value in ((str(name), value) for name, value in group.items() if name not in OPTIONS):
        where = f"{path}.{name}" if path else name
        member = below(key, name, target) or Key()
        class_missing = value is not None and not (isinstance(value, dict) and "_target_" in value)
        if not takes(key, name, target):
            names = [*declared, *of_class(target or key.base)[0]]
            siblings = [where.removesuffix(name) + one for one in names]
            typed = "null" if value is None else str(value).lower() if value in (True, False) else str(value)
            line = answer(where, typed)
            yield where, line or f"{where}={value!r}: no such key; {nearest(where, siblings)}"
        elif member.base and class_missing and name not in declared:
            problem = f"{where}={value!r}: no such key"
            yield where, f"{problem}; a new name needs its class, +{where}._target_=CLASS"
        elif isinstance(value, dict):
            yield from _undeclared(value, member, where)


def defaults(choices: dict[str, Any]) -> DictConfig:
    """Compose the files of ``choices`` alone, without overrides and free groups."""
    loader = GlobalHydra.instance().config_loader()
    overrides = [
        f"{g}={c}" for g, c in choices.items() if not g.startswith("hydra/") and c and g not in FREE_GROUPS
    ]
    overrides.append("~local")  # the one free group that is there by default
    return loader.load_configuration("train", overrides, RunMode.RUN)


def _lists(overrides: Sequence[str]) -> dict[str, str]:
    """Return {group: "[NAME,NAME]"} of overrides with several choices, as Hydra records the first."""
    parts = (override.split("=", 1) for override in overrides if "=[" in override)
    return {group: value for group, value in parts if folders.choices_of(group)}
