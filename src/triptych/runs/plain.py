"""Values from JSON that anyone may have written, made plain: what they are not becomes None or NaN, never an error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def number(value: Any) -> float:
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def whole(value: Any) -> int | None:
    number = number(value)
    return int(number) if math.isfinite(number) else None


def line(text: object) -> str:
    return (str(text).strip().splitlines() or [""])[0][:500]
