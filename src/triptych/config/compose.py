"""Compose and check a command's configuration."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_declared, check_keys
from triptych.config.explain import explain
from triptych.config.identity import ABSENT, check_cores, quote, register_resolvers
from triptych.config.keys import check_values, join
from triptych.config.source import CONFIGS
from triptych.config.trust import NAME
from triptych.errors import UserError

_composing = threading.Lock()  # Hydra's state is global: one thread composes at a time


def compose_command(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose and check ``overrides`` as ``triptych-COMMAND`` does; keep the node ``hydra``."""
    register_resolvers()
    try:
        with _composing, hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(command, overrides=list(overrides), return_hydra_config=True)
            if command == "train":
                check_keys(cfg, cfg.hydra)
            return cfg
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises all three
        raise UserError(explain(error, command)) from error


def overrides_between(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Yield the overrides that change the configuration ``old`` into ``new``.

    Examples: ``a.b=1``, ``+a.c=x``, ``~a.d``.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping) and new:
        for name in dict.fromkeys([*old, *new]):
            yield from overrides_between(
                old.get(name, ABSENT), new.get(name, ABSENT), join(key, name)
            )
    elif new is ABSENT:
        if old is not None:  # Hydra cannot delete a key that is null
            yield f"~{key}"
    elif old is ABSENT:
        yield f"+{key}={format_override_value(new)}"
    elif old != new or type(old) is not type(new):
        yield f"{key}={format_override_value(new)}"


def format_override_value(value: Any) -> str:
    """Format a value in the grammar of Hydra's overrides; raise UserError if it is not plain."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # The explanations of unknown names expect class names without quotes.
        return value if NAME.fullmatch(value) else quote(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_override_value, value))}]"
    if isinstance(value, Mapping):
        return (
            "{"
            + ",".join(f"{key}:{format_override_value(inner)}" for key, inner in value.items())
            + "}"
        )
    raise UserError(
        f"{value!r}: must be a number, text, boolean, null, or a list or mapping of them"
    )


def unresolved_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration without the node ``hydra``, with interpolations unresolved."""
    return to_plain(without_hydra(cfg), resolve=False)


def settable_config(cfg: DictConfig) -> dict[str, Any]:
    """Return all keys that overrides can set, including the node ``hydra``, unresolved."""
    plain = to_plain(cfg, resolve=False)
    # These keys record the composition itself, so overrides cannot set them.
    del plain["hydra"]["runtime"], plain["hydra"]["overrides"]
    return plain


def to_plain(cfg: Any, resolve: bool = True, throw_on_missing: bool = False) -> dict[str, Any]:
    """Convert a config group to plain dictionaries and lists, by default with resolved values."""
    plain = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=throw_on_missing)
    return cast(dict[str, Any], plain)


def checked_values(cfg: DictConfig, command: str) -> dict[str, Any]:
    """Resolve ``cfg``; raise UserError for an undeclared key or a value that is not allowed."""
    values = to_plain(cfg)
    check_declared(values, command)
    check_values(values, command)
    check_cores(values, "threads")
    return values


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return the configuration without the node ``hydra``."""
    own: Any = [key for key in cfg if key != "hydra"]  # a key may be a number
    return OmegaConf.masked_copy(cfg, own)
