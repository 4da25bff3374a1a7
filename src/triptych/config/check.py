"""Refuse unknown keys, on the command line and in files, and suggest the nearest name.

Hydra's own strictness covers the command line; files packaged at the top (``experiment/``, ``ablation/``,
``debug/``, ``local/``) may add any key they like. Here the same choices are composed a second time without
those files, and a key that is only in the first composition is refused. Nothing but Hydra is imported.
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_origin

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from triptych.config import folders
from triptych.config.folders import CONFIGS
from triptych.config.habits import answer
from triptych.config.keys import FREE_GROUPS, of_class, takes_names, unfit
from triptych.config.nearest import nearest
from triptych.config.trust import check_name
from triptych.declare import alternatives, unwrap
from triptych.errors import UserError

LISTS = ("callbacks", "logger", "metrics")  # groups of which several files go together
OPEN = ("condition_from", "stages")  # groups whose keys are names of the user's


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a config, groups before their keys; lists are leaves."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    key: Any
    for key in node:
        path = f"{prefix}{key}"
        yield path
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            yield from keys(node[key], f"{path}.")


def check_keys(cfg: DictConfig, hydra: DictConfig) -> None:
    """Refuse unknown keys and values outside of their declaration.

    Raises:
        UserError: the first such key, its value, its origin, and the nearest name or what the value must be.
    """
    lists = _lists(hydra.overrides.task)
    for group, names in lists.items():
        if group not in (*LISTS, *FREE_GROUPS):
            every = names.strip("[] ")
            if not every:
                near = nearest("", folders.choices_of(group))
                raise UserError(f"{group}={names}: a choice is needed; {near}")
            one = f"{group}={every.split(',')[0].strip()}"
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
    # without a free group and a ``+`` nothing can add a key, and the second composition is left out
    added = free or any(override.startswith("+") for override in hydra.overrides.task)
    known = set(keys(defaults(choices, hydra.job.config_name) if added else cfg))
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
    """Compose the files of ``choices`` alone, without overrides and free groups."""
    loader = GlobalHydra.instance().config_loader()
    overrides = [
        f"{g}={c}" for g, c in choices.items() if not g.startswith("hydra/") and c and g not in FREE_GROUPS
    ]
    overrides.append("~local")  # the one free group that is there by default
    return loader.load_configuration(door, overrides, RunMode.RUN)


def unresolved_value(cfg: DictConfig, key: str) -> Any:
    """Return the value at a dotted key as plain data, interpolations left as they are written."""
    node = cfg
    *parents, name = key.split(".")
    for parent in parents:
        node = node[parent]
    if OmegaConf.is_missing(node, name):
        return "???"
    if OmegaConf.is_interpolation(node, name):
        # a dict
        return str(OmegaConf.to_container(node, resolve=False)[name])  # type: ignore[call-overload, index]
    value = node[name]
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Resolve the configuration to plain data, without Hydra's node and missing values."""
    return {
        str(key): OmegaConf.to_container(cfg[key], resolve=True)
        if OmegaConf.is_config(cfg[key])
        else cfg[key]
        for key in cfg
        if key != "hydra" and not OmegaConf.is_missing(cfg, key)
    }


def _lists(overrides: Sequence[str]) -> dict[str, str]:
    """Return {group: "[NAME,NAME]"} of overrides with several choices, as Hydra records the first."""
    parts = (override.split("=", 1) for override in overrides if "=[" in override)
    return {group: value for group, value in parts if folders.choices_of(group)}


def _added(cfg: DictConfig, key: str) -> bool:
    """Return whether a key adds an object under a new name, as ``+callbacks.x._target_=CLASS``."""
    name = key.removesuffix("._target_")
    parent, _, _leaf = name.rpartition(".")
    node = OmegaConf.select(cfg, name)
    return takes_names(parent) and isinstance(node, DictConfig) and "_target_" in node


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _target_takes(node: Any, name: str) -> bool:
    """Return whether the class of ``node`` has an argument ``name``."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    return name in of_class(check_name(node["_target_"]))[0]


def _takes_names(cfg: DictConfig, key: str) -> bool:
    """Return whether ``key`` is an argument that maps names to values, as {text: 0.1}."""
    owner, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, owner)
    if not _target_takes(node, name):
        return False
    kind = of_class(check_name(node["_target_"]))[0][name].kind
    return any(get_origin(unwrap(one)[0]) is dict for one in alternatives(unwrap(kind)[0]))
