"""Parse values of untrusted files; malformed ones become NaN or None.

Entries of ``summary.json``: None if absent or malformed; ValueError: no result to rely on.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from triptych.config.file import read_config
from triptych.config.identity import leaves
from triptych.config.keys import name_null
from triptych.config.metric import HIGHER, LOWER, NEITHER, Metric
from triptych.terminal import in_one_line, printable

UNITS = {"bpd": "bits/dim", "nats_per_dim": "nats/dim"}
POINTS = 10_000  # of a curve, each of which is drawn
METRICS = 32  # columns of a table: in a stranger's file there could be any number
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # of a metric
BETTER = {"higher": HIGHER, "lower": LOWER, "": NEITHER}
# A value that says nothing without its key.
BARE = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false|null", re.IGNORECASE)
LARGEST = 1e150  # whose square and sums are floats too


def load_config(path: Path) -> dict[str, str]:
    """Read a resolved configuration as {dotted key: text}; empty if there is none; UserError: unreadable."""
    if not os.path.lexists(path):
        return {}
    return {key: format_value(value) for key, value in leaves(read_config(path))}


def format_value(value: Any) -> str:
    """Format a configuration value as on the command line, control characters escaped."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    return printable(text)


def value_name(key: str, text: str) -> str:
    """Name a value in a label: "x0" by itself, a number by its key too, "depth=2"."""
    text = name_null(key, text)
    if not BARE.fullmatch(text):
        return text
    last = re.split("[./]", key)[-1]
    return f"{last}={text}"


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


def parse_time(text: str) -> datetime | None:
    """Parse a time with its offset from UTC, which is 0 where it has none; None for "". ValueError: no time.

    Times of several offsets compare by the moment that they name.
    """
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def first_line(text: object) -> str:
    """Return the first line of a text, at most 500 characters."""
    return (str(text).strip().splitlines() or [""])[0][:500]


def error_line(error: BaseException) -> str:
    """Return a library's error in one line."""
    return in_one_line(error)[:200] or type(error).__name__


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


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` items with its standard error, in the unit of its key.

    `draw_stderr`: the part of it due to the draws of times and noise; NaN where not recorded.
    """

    mean: float
    stderr: float
    n: int
    draw_stderr: float = math.nan


@dataclass(frozen=True)
class Curve:
    """Values at noise levels `gamma` (minus log-SNR); `stderr` is NaN where it was not recorded."""

    gamma: tuple[float, ...]
    value: tuple[float, ...]
    stderr: tuple[float, ...]


@dataclass(frozen=True)
class SampleMeasures:
    """Measures of one run's samples: means by name, one row a value of ``key`` ("" where only one was taken).

    ``floor``: by name, (median, lowest, highest) of the measure between true sets. ``n``: samples of a set.
    ``fewer``: number of samples of each measure that was taken of fewer. ``noise``: each measure of pure
    noise. ``metrics``: the user's own among them.
    """

    key: str
    values: tuple[float, ...]
    rows: tuple[Mapping[str, float], ...]
    floor: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    n: int = 0
    fewer: Mapping[str, int] = field(default_factory=dict)
    reference: str = ""
    noise: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def at(self, name: str) -> tuple[float, ...]:
        """Return one measure at each value; NaN where a row lacks it."""
        return tuple(row.get(name, math.nan) for row in self.rows)


def parse_floats(value: Any) -> dict[str, float]:
    """Read numbers by name."""
    return {str(key): to_float(entry) for key, entry in value.items()}


def nested(record: Any) -> dict[str, dict[str, Any]]:
    """Return the entries of a record that are records themselves."""
    entries = record.items() if isinstance(record, dict) else ()
    return {str(name): entry for name, entry in entries if isinstance(entry, dict)}


def parse_estimates(split: str, figures: Any) -> dict[str, Estimate]:
    """Parse the estimates of a split; other keys are ignored, a malformed estimate is a ValueError."""
    estimates = {}
    for key, entry in (figures or {}).items():
        if isinstance(entry, dict) and "mean" in entry:
            mean = math.nan if entry["mean"] is None else entry["mean"]  # JSON has no word for it
            real = isinstance(mean, int | float) and not isinstance(mean, bool)
            if not real or LARGEST < abs(mean) < math.inf:
                raise ValueError(f"{split}.{key}.mean is {mean!r}, not a number")
            stderr, draws = to_float(entry.get("stderr")), to_float(entry.get("draw_stderr"))
            estimates[str(key)] = Estimate(float(mean), stderr, to_int(entry.get("n")) or 0, draws)
        elif key in UNITS:
            raise ValueError(f"{split}.{key} has no mean")
    return estimates


def _columns(record: Any, *names: str) -> list[tuple[float, ...]] | None:
    """Parse lists of equal length, at most POINTS, the first of them finite; else None."""
    if not isinstance(record, dict) or not all(isinstance(record.get(name), list) for name in names):
        return None
    if len(record[names[0]]) > POINTS:
        return None
    columns = [tuple(map(to_float, record[name])) for name in names]
    sound = columns[0] and len({*map(len, columns)}) == 1 and all(map(math.isfinite, columns[0]))
    return columns if sound else None


def parse_curve(key: str, record: Any) -> Curve | None:
    """Parse ``key`` over gamma, with standard errors if recorded."""
    with_error = isinstance(record, dict) and isinstance(record.get("stderr"), list)
    columns = _columns(record, "gamma", key, *(["stderr"] if with_error else []))
    if columns is None:
        return None
    gamma, value, *stderr = columns
    return Curve(gamma, value, stderr[0] if stderr else (math.nan,) * len(gamma))


def parse_baselines(record: Any) -> dict[str, float]:
    """Parse the finite means of baselines."""
    means = {name: to_float(entry.get("mean")) for name, entry in nested(record).items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def parse_metrics(record: Any) -> dict[str, str]:
    """Parse the direction of user metrics: higher, lower, or neither."""
    entries = record.items() if isinstance(record, dict) else ()
    named = [(name, b if b in ("higher", "lower") else "") for name, b in entries if NAME.fullmatch(name)]
    return dict(named[:METRICS])


def parse_fact(key: str, kind: type, data: Any) -> Any:
    """Parse one fact of the data, None where no fingerprint was recorded."""
    return kind(data.get(key) or "") if isinstance(data, dict) and data.get("fingerprint") else None


def parse_seed(seed: Any, overrides: Any) -> int | None:
    """Parse the seed; records of earlier versions have it in the overrides."""
    return to_int(parse_overrides(overrides).get("seed") if seed is None else seed)


def parse_sample_measures(measures: Any, over: Any, about: Any) -> SampleMeasures | None:
    """Parse measures of samples at one value or several; None if malformed."""
    try:
        about = about or {}
        n = int(about.get("n") or 0)
        rows: Any = over["rows"] if over else [{"value": 0, "measures": measures}]
        return SampleMeasures(
            key=str(over["key"]) if over else "",
            values=tuple(to_float(row["value"]) for row in rows),
            rows=tuple({k: to_float(e["mean"]) for k, e in row["measures"].items()} for row in rows),
            floor={
                name: (to_float(f["median"]), to_float(f["low"]), to_float(f["high"]))
                for name, f in nested(about.get("floor")).items()
            },
            n=n,
            fewer={k: int(e["n"]) for row in rows for k, e in row["measures"].items() if e.get("n", n) != n},
            reference=str(about.get("reference") or ""),
            noise=parse_floats(about.get("noise") or {}),
            metrics={
                name: Metric(name, first_line(m["title"]), BETTER[m["better"]], "", first_line(m["unit"]))
                for name, m in (about.get("metrics") or {}).items()
                if NAME.fullmatch(name)
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
