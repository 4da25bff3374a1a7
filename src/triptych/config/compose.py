"""A command's configuration without the command: composed and checked as ``triptych-train`` does it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_keys, explain
from triptych.config.folders import CONFIGS
from triptych.config.names import register_resolvers
from triptych.errors import UserError

ABSENT = object()


def compose_command(command: str, overrides: Sequence[str]) -> DictConfig:
    """What ``triptych-COMMAND`` makes of ``overrides``, with Hydra's own node, which knows them, in it.

    Raises:
        UserError: what the command would refuse, in the same words.
    """
    register_resolvers()
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose(command, overrides=list(overrides), return_hydra_config=True)
            if command == "train":
                check_keys(cfg, cfg.hydra)
            return cfg
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error


def edits(was: Any, now: Any, key: str = "") -> Iterator[str]:
    """The overrides that turn one configuration into another: ``a.b=1``, ``+a.c=x``, ``~a.d``."""
    if isinstance(was, Mapping) and isinstance(now, Mapping) and was and now:
        for name in dict.fromkeys([*was, *now]):
            at = f"{key}.{name}" if key else str(name)
            yield from edits(was.get(name, ABSENT), now.get(name, ABSENT), at)
    elif now is ABSENT:
        yield f"~{key}"
    elif was is ABSENT:
        yield f"+{key}={typed(now)}"
    elif was != now or type(was) is not type(now):
        yield f"{key}={typed(now)}"


def typed(value: Any) -> str:
    """A plain value in the grammar of Hydra's overrides.

    Raises:
        UserError: it is not plain.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{typed(v)}" for k, v in value.items()) + "}"
    raise UserError(f"{value!r}: must be a number, text, boolean, null, or a list or mapping of them")


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Everything but Hydra's own, interpolations as they are written."""
    return to_plain(without_hydra(cfg), resolve=False)


def to_plain(cfg: Any, resolve: bool = True, throw_on_missing: bool = False) -> dict[str, Any]:
    """Return a group of a configuration as plain dictionaries and lists; interpolations become values."""
    plain = OmegaConf.to_container(cfg, resolve=resolve, throw_on_missing=throw_on_missing)
    return cast(dict[str, Any], plain)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """What the command itself is given."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
