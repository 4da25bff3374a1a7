"""Read configuration files as plain data, without objects, aliases or interpolations."""

import re
from pathlib import Path
from typing import Any

import yaml

from triptych.config.keys import join
from triptych.errors import UserError
from triptych.files import open_regular

# YAML tags that are not resolved, so that such values stay text.
NO_TAGS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge")
PLAIN = (type(None), bool, int, float, str)  # types of values, besides lists and dicts
# {removed key: the value without effect, at which it is dropped from an older configuration}
REMOVED = {("model", "beta_warmup"): 0, ("model", "free_bits"): 0, ("data", "cache"): True}


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C is optional
    """A YAML loader that reads files as OmegaConf writes them.

    In contrast to PyYAML's loader, 8e-3 is a number, dates are text, and << does not merge.
    """


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in NO_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
EXPONENT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def read_config(file: Path) -> dict[str, Any]:
    """Return the configuration in ``file``.

    Raises UserError if it is not YAML, or contains more than plain data.
    """
    try:
        with open_regular(file) as stream:
            text = stream.read().decode()
        check_aliases(text, file)
        value = yaml.load(text, Loader=Loader)  # Loader constructs no objects
        if not isinstance(value, dict):
            raise ValueError("not a group of keys")
        return copy_plain(value, str(file))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        line = str(error)[:200] or type(error).__name__
        raise UserError(f"{file}: cannot be read ({line})") from error


def check_aliases(text: str, file: Path) -> None:
    """Raise UserError for YAML aliases, as a few can expand to more than memory holds."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=Loader)):
        raise UserError(f"{file}: an alias (*) is not allowed in a configuration; repeat the value")


def copy_plain(value: Any, description: str) -> Any:
    """Copy a configuration that consists of None, bool, int, float, str, list and dict only.

    Raises UserError, which begins with ``description``, for any other value, and for ``${...}``, as
    recorded configurations are resolved. Keys of earlier versions that have no effect (``REMOVED``)
    are dropped.
    """
    try:
        copied = _copy_value(value, "", description)
    except RecursionError as error:
        raise UserError(f"{description}: nested too deeply; flatten it") from error
    if isinstance(copied, dict):
        _drop_removed_keys(copied)
    return copied


def _drop_removed_keys(config: dict[str, Any]) -> None:
    """Drop keys in ``REMOVED`` that have the value without effect, from ``config`` itself."""
    for (group, key), neutral in REMOVED.items():
        node = config.get(group)
        if isinstance(node, dict) and key in node and node[key] == neutral:
            del node[key]


def _copy_value(value: Any, path: str, description: str) -> Any:
    """Copy a plain value; ``path`` is its dotted key, for messages."""
    if isinstance(value, dict):
        _check_keys(value, path, description)
        return {
            key: _copy_value(inner, join(path, key), description) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_copy_value(item, f"{path}[{i}]", description) for i, item in enumerate(value)]
    if type(value) not in PLAIN:
        raise UserError(
            f"{description}: {path or 'the configuration'} is {type(value).__name__}; must be a "
            "number, text, list or group"
        )
    if isinstance(value, str) and "${" in value:
        raise UserError(
            f"{description}: {path}={value[:60]!r}: interpolation is not allowed in a recorded "
            "configuration"
        )
    return value


def _check_keys(group: dict[Any, Any], path: str, description: str) -> None:
    """Raise UserError if a key of a group is not a text, or not allowed in a configuration."""
    for key in group:
        if type(key) is not str:
            raise UserError(
                f"{description}: {f'{path}.{key!r}'[:60].lstrip('.')}: a key must be text"
            )
