"""``config.yaml`` read as plain data: no tags, no aliases, no references, and never more than the limits."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from triptych.config.plain import plain
from triptych.errors import UserError
from triptych.limits import DEPTH, TEXT, limit

# as OmegaConf, which writes these files, reads them: 8e-3 is a number, a date is text
FLOAT = re.compile(
    r"^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)"
    r"|\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def read_config(file: Path) -> dict[str, Any]:
    """The configuration in ``file``.

    Raises:
        UserError: not readable, no YAML, larger than the limits, or more than plain data.
    """
    most = limit("TRIPTYCH_MAX_CONFIG")
    try:
        with open(file, "rb") as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise UserError(f"{file}: more than {most} bytes; TRIPTYCH_MAX_CONFIG=... raises the limit")
        text = data.decode()
        _check_events(text, file)
        value = yaml.load(text, Loader=_loader())  # a safe one, without constructors for objects
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: cannot be read ({line})") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: cannot be read (not a group of keys)")
    found: dict[str, Any] = plain(value, str(file))
    return found


def _check_events(text: str, file: Path) -> None:
    """What would explode when it is built is refused while it is still being read."""
    depth, count, most = 0, 0, limit("TRIPTYCH_MAX_NODES")
    for event in yaml.parse(text, Loader=_loader()):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{file}: an alias (&, *); plain values are accepted")
        if getattr(event, "tag", None) and not _quoted(event):
            raise UserError(f"{file}: a tag ({str(event.tag)[:60]}); plain values are accepted")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise UserError(f"{file}: nested deeper than {DEPTH}, as no configuration is")
        count += isinstance(event, yaml.NodeEvent)  # what begins, or stands alone
        if count > 2 * most:  # keys and values
            raise UserError(f"{file}: more than {most} values; TRIPTYCH_MAX_NODES=... raises the limit")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > TEXT:
            raise UserError(f"{file}: a value of more than {TEXT} characters")


def _quoted(event: Any) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.tag == "!"


@cache
def _loader() -> Any:
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """Safe, and the float of YAML 1.2."""

    unwanted = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float", "tag:yaml.org,2002:merge")
    Loader.yaml_implicit_resolvers = {
        key: [(tag, pattern) for tag, pattern in found if tag not in unwanted]
        for key, found in Loader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    return Loader
