"""Parse values of untrusted files; malformed ones become NaN or None."""

import json
import math
import re
from pathlib import Path
from typing import Any

from triptych.config.file import read_config
from triptych.config.identity import leaves
from triptych.errors import UserError
from triptych.files import printable

LARGEST = 1e150  # whose square and sums are floats too


def load_config(path: Path) -> dict[str, str]:
    """Read a resolved configuration as {dotted key: text}; empty if unreadable."""
    try:
        return {key: format_value(value) for key, value in leaves(read_config(path))}
    except UserError:
        return {}


def format_value(value: Any) -> str:
    """Format a configuration value as on the command line, control characters escaped."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    return printable(text)


def to_float(value: Any) -> float:
    """Parse a float; NaN for anything else, and for one whose square overflows."""
    if isinstance(value, bool):
        return math.nan
    try:
        return real if math.isinf(real := float(value)) or abs(real) < LARGEST else math.nan
    except (TypeError, ValueError, OverflowError):
        return math.nan


def to_int(value: Any) -> int | None:
    """Parse an int; None for anything that is not a finite number."""
    real = to_float(value)
    return int(real) if math.isfinite(real) else None


def first_line(text: object) -> str:
    """Return the first line of a text, at most 500 characters."""
    return (str(text).strip().splitlines() or [""])[0][:500]


def error_line(error: BaseException) -> str:
    """Return a library's error in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def natural_key(text: str) -> list[Any]:
    """Return a sort key under which "seed=2" comes before "seed=10"."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]


def parse_overrides(overrides: Any) -> dict[str, str]:
    """Parse Hydra's overrides to {"objective": "x0", "c": "removed"}; ValueError unless a list of strings."""
    if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
        raise ValueError("overrides is not a list of strings")
    pairs = (item.partition("=") for item in overrides)
    return {k.lstrip("+~").strip(): _unquoted(value) if equals else "removed" for k, equals, value in pairs}


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\'", "'").replace("\\\\", "\\")
    return value


def few(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
