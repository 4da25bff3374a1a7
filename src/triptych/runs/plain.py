"""Values from JSON that anyone may have written, made plain; what they are not becomes NaN or None."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from triptych.config.identity import leaves

CONFIG_LIMIT = 2**20  # bytes


def load(path: Path) -> Any:
    """The file's JSON, or None where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def load_config(path: Path) -> dict[str, str]:
    """A resolved configuration by dotted keys, values as one types them; empty where it cannot be had.

    A file that anyone may have written: one that is too long or too deep, or has aliases, which a few lines
    of can unfold to gigabytes, counts as broken.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            return {}
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            return {}
        config = yaml.load(text, Loader=loader)  # noqa: S506  # a safe one
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return {key: shown(value) for key, value in leaves(config)} if isinstance(config, dict) else {}


def shown(value: Any) -> str:
    """A value of a configuration as one types it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)


def number(value: Any) -> float:
    """A float, NaN for anything else."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def whole(value: Any) -> int | None:
    """An int, None for anything that is not a finite number."""
    found = number(value)
    return int(found) if math.isfinite(found) else None


def line(text: object) -> str:
    """The first line of a text, at most 500 characters."""
    return (str(text).strip().splitlines() or [""])[0][:500]


def natural(text: str) -> list[Any]:
    """A sort key under which "seed=2" comes before "seed=10"."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part
    ]


def parse_overrides(overrides: Any) -> dict[str, str]:
    """["objective=x0", "+a.b=1", "~c"] -> {"objective": "x0", "a.b": "1", "c": "removed"}, or ValueError."""
    if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
        raise ValueError("overrides is not a list of strings")
    pairs = (item.partition("=") for item in overrides)
    return {
        key.lstrip("+~").strip(): _unquoted(value) if equals else "removed" for key, equals, value in pairs
    }


def _unquoted(value: str) -> str:
    """The text that Hydra's grammar has in quotes."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\'", "'").replace("\\\\", "\\")
    return value
