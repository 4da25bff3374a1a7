"""Refuse what nobody will read: unknown keys, wherever they were written, with the nearest name that exists.

Hydra's own strictness covers the command line; files packaged at the top (``experiment/``, ``ablation/``,
``debug/``, ``local/``) may add any key they like. Here the same choices are composed a second time without
those files, and a key that is only in the first composition is refused. Nothing but Hydra is imported.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from triptych.config import folders
from triptych.config.describe import listing, read_yaml
from triptych.config.folders import CONFIGS
from triptych.config.habits import answer
from triptych.config.keys import FREE_GROUPS, of_class, takes_names, unfit
from triptych.config.nearest import nearest
from triptych.config.source import REQUIRED
from triptych.config.trust import check_name
from triptych.declare import alternatives, unwrap
from triptych.errors import UserError

EXTRAS = {  # files of packages that are not installed by default
    "hydra/launcher/ray": "ray",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
}

LISTS = ("callbacks", "logger", "metrics")  # groups of which several files go together
OPEN = ("condition_from", "stages")  # groups whose keys are names of the user's


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, inner nodes before their children; lists are leaves."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    key: Any
    for key in node:
        path = f"{prefix}{key}"
        yield path
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            yield from keys(node[key], f"{path}.")


def check_keys(cfg: DictConfig, hydra: DictConfig) -> None:
    """Refuse keys that no group defines and values that are not what is declared.

    Raises:
        UserError: the first such key, its value, its origin, and the nearest name or what the value must be.
    """
    lists = _lists(hydra.overrides.task)
    for group, names in lists.items():
        if group not in (*LISTS, *FREE_GROUPS):
            one, every = f"{group}={names.strip('[]').split(',')[0].strip()}", names.strip("[]")
            raise UserError(f"{group}={names}: one choice only; type {one}, or compare: -m {group}={every}")
    typed = [override.lstrip("+~").partition("=")[0] for override in hydra.overrides.task]
    for group in FREE_GROUPS:
        if typed.count(group) > 1:
            every = " ".join(one for one in hydra.overrides.task if one.lstrip("+~").startswith(f"{group}="))
            raise UserError(f"{every}: {group} is typed twice, and the last one only would count; type one")
    choices = dict(hydra.runtime.choices) | lists
    free = {g: c for g, c in choices.items() if g in FREE_GROUPS and c}
    if not (CONFIGS / "local" / "default.yaml").exists():
        free.pop("local", None)  # optional, and not there
    if not free and not hydra.overrides.task:
        return
    known = set(keys(defaults(choices, hydra.job.config_name)))
    files = f" (in {', '.join(f'{g}={c}' for g, c in free.items())})" if free else ""
    for key in keys(cfg):
        group = key.split(".")[0]
        if group in ("hydra", "paper"):  # there while a sweep is being set up; checked elsewhere
            continue
        if group in free:
            head = "its file must begin with # @package _global_, so that its keys are those of a run"
            raise UserError(f"{group}={free[group]}: {head}")
        parent, _, name = key.rpartition(".")
        if (
            key in known
            or _added(cfg, key)
            or _target_takes(OmegaConf.select(cfg, parent) if parent else None, name)
        ):
            continue
        if parent.split(".")[0] in OPEN or ("." in parent and _takes_names(cfg, parent)):
            continue
        value, where = unresolved_value(cfg, key), "" if key in typed else files
        if line := answer(key, value if isinstance(value, str) else _shown(value)):
            raise UserError(line if not where else line.replace(": ", f"{where}: ", 1))
        if takes_names(parent):
            raise UserError(
                f"{key}={value!r}{where}: no such key; a new name needs its class, +{key}._target_=CLASS"
            )
        siblings = [k for k in known if k.rpartition(".")[0] == parent]
        if (
            not siblings
            and isinstance(node := OmegaConf.select(cfg, parent), DictConfig)
            and "_target_" in node
        ):
            siblings = [f"{parent}.{name}" for name in of_class(check_name(node["_target_"]))[0]]
        raise UserError(f"{key}={value!r}{where}: no such key; {nearest(key, siblings)}")
    for key, line in unfit(_resolved(cfg), str(hydra.job.config_name)):
        raise UserError(line if key in typed else line.replace(": ", f"{files}: ", 1))


def defaults(choices: dict[str, Any], door: str = "train") -> DictConfig:
    """What the files of ``choices`` say by themselves: without overrides and without the free groups."""
    loader = GlobalHydra.instance().config_loader()
    overrides = [
        f"{g}={c}" for g, c in choices.items() if not g.startswith("hydra/") and c and g not in FREE_GROUPS
    ]
    overrides.append("~local")  # the one free group that is there by default
    return loader.load_configuration(door, overrides, RunMode.RUN)


def unresolved_value(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key as plain data, interpolations left as they are written."""
    node = cfg
    *parents, name = key.split(".")
    for parent in parents:
        node = node[parent]
    if OmegaConf.is_missing(node, name):
        return "???"
    if OmegaConf.is_interpolation(node, name):
        return str(OmegaConf.to_container(node, resolve=False)[name])  # type: ignore[call-overload, index]
    value = node[name]
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, without what Hydra reads and what cannot be resolved yet."""
    return {
        str(key): OmegaConf.to_container(cfg[key], resolve=True)
        if OmegaConf.is_config(cfg[key])
        else cfg[key]
        for key in cfg
        if key != "hydra" and not OmegaConf.is_missing(cfg, key)
    }


def _lists(overrides: Sequence[str]) -> dict[str, str]:
    """{group: [NAME,NAME]} where several files of one were typed, of which Hydra remembers the first."""
    parts = (override.split("=", 1) for override in overrides if "=[" in override)
    return {group: value for group, value in parts if folders.choices_of(group)}


def _added(cfg: DictConfig, key: str) -> bool:
    """Whether it is an object under a name of one's own, as ``+callbacks.x._target_=CLASS``, or its class."""
    name = key.removesuffix("._target_")
    parent, _, leaf = name.rpartition(".")
    node = OmegaConf.select(cfg, name)
    return takes_names(parent) and isinstance(node, DictConfig) and "_target_" in node


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _target_takes(node: Any, name: str) -> bool:
    """Whether the object that ``node`` describes has an argument ``name`` that its file does not list."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    return name in of_class(check_name(node["_target_"]))[0]


def _takes_names(cfg: DictConfig, key: str) -> bool:
    """Whether ``key`` is an argument that takes a value for each of several names, as {text: 0.1}."""
    owner, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, owner)
    if not _target_takes(node, name):
        return False
    kind = of_class(check_name(node["_target_"]))[0][name].kind
    return any(get_origin(unwrap(one)[0]) is dict for one in alternatives(unwrap(kind)[0]))


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Explain a Hydra or OmegaConf error in one line: KEY=VALUE: problem; fix."""
    text = str(error)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        if extra := EXTRAS.get(match[1]):
            return f"{match[1]}: not installed; pip install 'triptych[{extra}]'"
        group, _, option = match[1].rpartition("/")
        options = _options(group)
        if line := answer(group, option, "no such file"):
            return line
        near = nearest(option, options)
        if not near.startswith("choose from"):  # all that there is in any case: a group is short
            near += f" (choose from {', '.join(sorted(options))})"
        if lost := folders.missing_packages():
            near += f"; a trusted package lies nowhere on Python's path: {', '.join(lost)}"
        return f"{group}={option}: no such file; {near}"
    if match := re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text):
        key = match[1].split("@")[0]
        override = next((a for a in arguments if a.lstrip("+~").split("=")[0] == key), key)
        known = answer(key, override.partition("=")[2]) if _door() == "train" else ""
        return known or _no_such_key(key, override, arguments)
    if match := re.search(r"Error merging override ((\S+?)=.*)", text):
        return (
            f"{match[1].lstrip('+')}: must be a group of keys, each typed as {match[2].lstrip('+')}.KEY=VALUE"
        )
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        if _door() != "train":
            return f"{match[1]}: several values; type one, and the command once for each"
        key, _, values = match[1].partition("=")
        return f"{match[1]}: several values need -m (a sweep); for a list type {key}=[{values}]"
    if "override_grammar" in text and (override := next(filter(_unreadable, arguments), "")):
        if len(several := re.split(r"\s+(?=[+~]*[\w./@]+=)", override)) > 1:
            return f"{override}: two overrides in one argument; type {several[0]} and {several[1]} apart"
        if "/" in override and "=" not in override and _door() != "train":
            return f"{override}: no key; type ckpt={override}"
        key = override.split("=", 1)[0] if "=" in override else "KEY"
        return f"{override}: cannot be read as KEY=VALUE; quote special characters: \"{key}='a=b'\""
    if "Config group override must be a string" in text:
        for override in arguments:
            group, _, option = override.lstrip("+").partition("=")
            if (choices := _options(group)) and option not in choices:
                return f"{override}: must be one of {', '.join(choices)}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]}: missing; type {match[1]}=VALUE"
    if match := re.search(r"Multiple values for (\S+)\. .*: (\S+)'", text):
        return f"+{match[1]}={match[2]}: has a choice already; type {match[1]}={match[2]} without the plus"
    where = re.match(r"In '(\S+)': ", text)
    if match := re.search(r"([^\n]+?)\s+full_key: (\S+)", text):  # OmegaConf's
        problem = re.sub(r".*raised while [^:]*: ", "", match[1])
        return f"{match[2]}{f' (in {where[1]})' if where else ''}: {problem}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:3])


def _no_such_key(key: str, override: str, arguments: Sequence[str]) -> str:
    """Of a key that another choice of its group has, that choice; else the nearest name."""
    group, *names = key.split(".")
    parent = key.rpartition(".")[0]
    if names and (options := _options(place := key.replace(".", "/"))):  # a choice, typed like a key
        value = override.partition("=")[2]
        choice = value if value in options else "NAME"
        return f"{override.lstrip('+')}: a group of keys; type {place}={choice}"
    typed = (one.lstrip("+").partition("=") for one in arguments)
    target = next((value for name, _, value in typed if name == f"{parent}._target_" != key), "")
    if target:
        of_target = of_class(check_name(target, parent))[0].items()
        known = [f"{parent}.{name}" for name, one in of_target if one.default is not REQUIRED]
        return f"{override}: {target} has no such argument; {nearest(key, known)}"
    if names and (others := listing(key)):
        chosen = _choice(group, arguments)
        listed = " or ".join(f"{group}={one}" for one in others[:3])
        return f"{override}: no such key with {group}={chosen}; choose {listed}"
    open_to_names = read_yaml(CONFIGS / f"{_door()}.yaml").get(group) == {}  # as condition_from
    if open_to_names or (names and takes_names(key.removesuffix("._target_").rpartition(".")[0])):
        return f"{override}: no such key; a new name is added with a plus, as in +{override}"
    return f"{override}: no such key; {nearest(key, _all_names(arguments))}"


def _choice(group: str, arguments: Sequence[str]) -> Any:
    """The choice of a group: as typed, else the default one."""
    typed = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    return typed[group] if group in typed else _default_choices().get(group)


def _default_choices() -> dict[str, Any]:
    """The groups of this command, with the choice that each has by default."""
    every = read_yaml(CONFIGS / f"{_door()}.yaml").get("defaults", [])
    return {key: value for one in every if isinstance(one, dict) for key, value in one.items()}


def _unreadable(argument: str) -> bool:
    """Whether it is no override in Hydra's grammar."""
    try:
        if argument[:1] != "-":
            OverridesParser.create().parse_override(argument)
    except (HydraException, ValueError):
        return True
    return False


def _options(group: str) -> list[str]:
    """The choices of a group."""
    names = folders.choices_of(group)
    if group == "hydra/launcher":
        names += ["joblib", *(name.rpartition("/")[2] for name in EXTRAS)]
    return sorted(names)


def _door() -> str:
    return next((d for d in ("evaluate", "sample") if d in Path(sys.argv[0]).stem), "train")


def _all_names(arguments: Sequence[str]) -> list[str]:
    """Every group, and every key of the composition that the sound choices among ``arguments`` make."""
    door = _door()
    groups: list[str] = []
    for folder in folders.folders():
        places = (p for p in folder.rglob("*") if p.is_dir() and p.name[0] not in "_.")
        groups += [str(p.relative_to(folder)) for p in places]
    parts = (a.split("=", 1) for a in arguments if "=" in a)
    own = _default_choices() if door != "train" else {}
    choices = [f"{g}={c}" for g, c in parts if c in folders.choices_of(g) and (not own or g in own)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            names = list(keys(compose(door, overrides=choices)))
            return groups + names if door == "train" else names
    except HydraException:
        return groups
