"""Read a configuration file as plain data: no objects, aliases or interpolations, within limits."""

import re
from pathlib import Path
from typing import Any

import yaml

from triptych.errors import UserError
from triptych.files import limit, read_bytes

NO_TAGS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge")
WHOLE = 2**64  # no number of a configuration is larger
REMOVED = {("model", "beta_warmup"): 0, ("model", "free_bits"): 0, ("data", "cache"): True}


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML as OmegaConf writes it: 8e-3 is a number, a date is text, and << merges nothing."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in NO_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
EXPONENT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def read_config(file: Path) -> dict[str, Any]:
    """Return the configuration in ``file``; UserError: no YAML, too large, or more than plain data."""
    try:
        text = read_bytes(file, "TRIPTYCH_MAX_CONFIG").decode()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=Loader)):
            raise UserError(f"{file}: an alias (*) is not allowed in a configuration; repeat the value")
        value = yaml.load(text, Loader=Loader)  # a safe one, without constructors for objects
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        line = str(error)[:200] or type(error).__name__
        raise UserError(f"{file}: cannot be read ({line})") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: cannot be read (not a group of keys)")
    return copy_plain(value, str(file))


def copy_plain(value: Any, what: str) -> Any:
    """Copy ``value`` as None, bool, int, float, str, list and dict alone; UserError begins with ``what``.

    Runs record their configuration resolved, so ``${...}`` in it is refused. A key of older runs that is gone
    is left out at the value that changed nothing (`REMOVED`).
    """
    try:
        copied = _copy(value, "", what, [limit("TRIPTYCH_MAX_NODES")])
    except RecursionError as error:
        raise UserError(f"{what}: nested too deeply; flatten it") from error
    for (group, key), neutral in REMOVED.items():
        node = copied.get(group) if isinstance(copied, dict) else None
        if isinstance(node, dict) and key in node and node[key] == neutral:
            del node[key]
    return copied


def _copy(value: Any, path: str, what: str, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        most = limit("TRIPTYCH_MAX_NODES")
        raise UserError(f"{what}: more than {most} values; TRIPTYCH_MAX_NODES=... raises the limit")
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if kind is int and abs(value) < WHOLE:
        return value
    if kind is str:
        if "${" in value:
            problem = "interpolation is not allowed in a recorded configuration"
            raise UserError(f"{what}: {path}={value[:60]!r}: {problem}")
        return value
    if kind is list or kind is tuple:
        return [_copy(v, f"{path}[{i}]", what, left) for i, v in enumerate(value)]
    if isinstance(value, dict):
        if odd := [key for key in value if type(key) is not str]:
            at = f"{path}.{odd[0]!r}"[:60].lstrip(".")
            raise UserError(f"{what}: {at}: a key must be text")
        return {k: _copy(v, f"{path}.{k}" if path else k, what, left) for k, v in value.items()}
    shown = "a longer value" if kind is int else kind.__name__
    at = path or "the configuration"
    raise UserError(f"{what}: {at} is {shown}; must be a number, text, list or group")
