"""Parse values of untrusted files.

Malformed numbers become NaN or None. The parsers of entries of ``summary.json`` do not check types:
for a value of a wrong type they raise TypeError, AttributeError etc., and ``result.parse_entries``
refuses the whole record. A parser within ``none_if_invalid`` returns None instead.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from triptych.config.file import read_config
from triptych.config.identity import flatten_config
from triptych.config.keys import describe_null
from triptych.config.metric import HIGHER, LOWER, NEITHER, Metric
from triptych.records import Entries
from triptych.terminal import as_one_line, escape_control_characters

PARTS = ("prior", "reconstruction", "diffusion")  # the terms of the variational bound
UNITS = {"bpd": "bits/dim", "nats_per_dim": "nats/dim"}
POINTS = 10_000  # maximum number of points of a curve, as a report plots all of them
METRICS = 32  # maximum number of metrics that are read from an untrusted file; each is a column
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # names of metrics
# {recorded direction of a metric: its direction in reports}
BETTER = {"higher": HIGHER, "lower": LOWER, "": NEITHER}
# Values that a label must show with their key: numbers, booleans, null and none.
BARE = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false|null|none", re.IGNORECASE)


def load_config(path: Path) -> dict[str, str]:
    """Read a resolved configuration as {dotted key: text}; {} if there is no file.

    Raises UserError if it is unreadable.
    """
    if not os.path.lexists(path):
        return {}
    return {key: format_value(value) for key, value in flatten_config(read_config(path))}


def format_value(value: Any) -> str:
    """Format a configuration value as on the command line, with control characters escaped."""
    text = (
        value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    )
    return escape_control_characters(text)


def value_name(key: str, text: str) -> str:
    """Return a label for a key's value: a word alone, such as "x0", or "depth=2" for a number.

    true, false and null also have the key.
    """
    text = describe_null(key, text)
    if not BARE.fullmatch(text):
        return text
    last = re.split("[./]", key)[-1]
    return f"{last}={text}"


def to_float(value: Any) -> float:
    """Parse a float; return NaN for anything else."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def to_int(value: Any) -> int | None:
    """Parse a number and return it as an int; None for anything that is not a finite number."""
    real = to_float(value)
    if not math.isfinite(real):
        return None
    return int(real)


def parse_time(text: str) -> datetime | None:
    """Parse an ISO 8601 time; a time without an offset is in UTC. Return None for "".

    Times with different offsets compare correctly. Raises ValueError for other text.
    """
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment


def first_line(text: object) -> str:
    """Return the first line of a text, at most 500 characters."""
    return (str(text).strip().splitlines() or [""])[0][:500]


def error_line(error: BaseException) -> str:
    """Return a library's error message as one line of at most 200 characters."""
    return as_one_line(error)[:200] or type(error).__name__


def natural_key(text: str) -> list[Any]:
    """Return a sort key under which "seed=2" comes before "seed=10", and "3e-4" before "0.001"."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def parse_overrides(overrides: Any) -> dict[str, str]:
    """Parse overrides to {key: value}; the value of "~key" is "removed"."""
    parsed = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        parsed[key.lstrip("+~").strip()] = _unquote(value) if equals else "removed"
    return parsed


def _unquote(value: str) -> str:
    """Return a value without Hydra's quotes."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\'", "'").replace("\\\\", "\\")
    return value


def abbreviate_list(names: list[str]) -> str:
    """Return the first three names, and the number of the others: "a, b, c and 2 more"."""
    shown = ", ".join(names[:3])
    if len(names) > 3:
        return f"{shown} and {len(names) - 3} more"
    return shown


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` items with its standard error, in the unit of its key.

    `draw_stderr` is the part of the standard error that is due to the random draws of times and
    noise. It is NaN if it was not recorded. `groups`: the number of groups over which the standard
    error is taken; None: the items are taken as independent.
    """

    mean: float
    stderr: float
    n: int
    draw_stderr: float = math.nan
    groups: int | None = None


@dataclass(frozen=True)
class Curve:
    """Values at noise levels `gamma` (minus log-SNR); `stderr` is NaN where it was not recorded."""

    gamma: tuple[float, ...]
    value: tuple[float, ...]
    stderr: tuple[float, ...]


@dataclass(frozen=True)
class SampleMeasures:
    """Metrics of one run's samples, for one or several values of a varied setting.

    Attributes:
        key, values: the varied setting ("" if none) and its values.
        rows: {metric: value} for each of the values.
        floor: {metric: (median, lowest, highest) between two true sets}.
        n: number of samples of a set.
        reference: a description of the true items that the samples are compared with.
        noise: {metric: its value for pure noise in place of samples}.
        metrics: descriptions of the user-supplied metrics.
    """

    key: str
    values: tuple[float, ...]
    rows: tuple[Mapping[str, float], ...]
    floor: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    n: int = 0
    reference: str = ""
    noise: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def at(self, name: str) -> tuple[float, ...]:
        """Return one metric at each value of ``key``; NaN where it is missing."""
        return tuple(row.get(name, math.nan) for row in self.rows)


def none_if_invalid(parse: Callable[..., Any], *leading: Any) -> Callable[..., Any]:
    """Return a parser that calls ``parse`` and returns None if this raises an error.

    A report then lacks one panel instead of the whole run. ``leading`` are the first arguments.
    """

    def parse_or_none(*entries: Any) -> Any:
        try:
            return parse(*leading, *entries)
        except (TypeError, AttributeError, LookupError, ValueError, OverflowError):
            return None

    return parse_or_none


def parse_floats(record: Any) -> dict[str, float]:
    """Parse a dict of numbers to {name: float}."""
    return {str(name): to_float(entry) for name, entry in record.items()}


def nested_records(record: Any) -> dict[str, Entries]:
    """Return the entries of a record whose values are dictionaries."""
    return {str(name): entry for name, entry in record.items() if isinstance(entry, dict)}


def parse_estimates(split: str, figures: Any) -> dict[str, Estimate]:
    """Parse the metrics of a split as ``Estimate``s; ignore entries without a "mean".

    Raises ValueError if a mean is not a number, or a term of a bound is missing.
    """
    unit = bound_unit(figures)
    if unit is not None:
        _check_terms(f"{split}.{unit}", [figures.get(key, {}) for key in bound_term_keys(unit)])
    return {
        name: _parse_estimate(f"{split}.{name}.mean", entry)
        for name, entry in nested_records(figures).items()
        if "mean" in entry
    }


def bound_unit(figures: Mapping[str, Any]) -> str | None:
    """Return the key of the bound in ``figures``: "bpd" or "nats_per_dim"; None without one."""
    return next((unit for unit in UNITS if unit in figures), None)


def bound_term_keys(unit: str) -> list[str]:
    """Return the keys of a bound in this unit and of its terms, such as "bpd" and "bpd_prior"."""
    return [unit, *(f"{unit}_{part}" for part in PARTS)]


def _check_terms(key: str, estimates: list[Mapping[str, Any]]) -> None:
    """Raise ValueError unless the bound ``key`` and its terms are complete."""
    if not all(estimate.keys() >= {"mean", "stderr", "n"} for estimate in estimates):
        raise ValueError(f"{key}: mean, stderr or n is missing, here or in one of its terms")


def _parse_estimate(key: str, entry: Mapping[str, Any]) -> Estimate:
    """Parse one metric of a split."""
    mean = entry["mean"]
    if type(mean) not in (int, float, type(None)):
        raise ValueError(f"{key} is {mean!r}, not a number")
    stderr, draw_stderr = to_float(entry.get("stderr")), to_float(entry.get("draw_stderr"))
    n, groups = to_int(entry.get("n")) or 0, to_int(entry.get("groups"))
    return Estimate(to_float(mean), stderr, n, draw_stderr, groups)


def parse_curve(key: str, record: Any) -> Curve:
    """Parse the column ``key`` over the column "gamma", with standard errors if recorded.

    Raises ValueError if the columns are too long or have different lengths.
    """
    gamma = _parse_column(record["gamma"])
    stderr = record.get("stderr") or [math.nan] * len(gamma)
    curve = Curve(gamma, _parse_column(record[key]), _parse_column(stderr))
    if not gamma or not all(map(math.isfinite, gamma)):
        raise ValueError("gamma is empty, or not finite")
    if not len(gamma) == len(curve.value) == len(curve.stderr):
        raise ValueError("columns have different lengths")
    return curve


def _parse_column(column: Any) -> tuple[float, ...]:
    """Parse a list of numbers; ValueError if it is none or too long."""
    if not isinstance(column, list) or len(column) > POINTS:
        raise ValueError(f"not a list of at most {POINTS} numbers")
    return tuple(map(to_float, column))


def parse_baselines(record: Any) -> dict[str, float]:
    """Parse baselines to {name: mean}, without means that are not finite."""
    means = {name: to_float(entry.get("mean")) for name, entry in nested_records(record).items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def parse_metrics(record: Any) -> dict[str, str]:
    """Parse {user-supplied metric: its better direction}, which is "higher", "lower" or ""."""
    names = _valid_metric_names(record)[:METRICS]
    return {name: record[name] if record[name] in BETTER else "" for name in names}


def _valid_metric_names(record: Mapping[str, Any]) -> list[str]:
    """Return those keys of a record that are valid names of metrics."""
    return [name for name in record if NAME.fullmatch(name)]


def parse_fact(key: str, kind: type, data: Any) -> Any:
    """Parse the entry ``key`` of a result's entry ``data``, and convert it to ``kind``."""
    return kind(data.get(key) or "")


def parse_seed(seed: Any, overrides: Any) -> int | None:
    """Parse the seed; in records of earlier versions it is one of the overrides."""
    if seed is None:
        seed = parse_overrides(overrides).get("seed")
    return to_int(seed)


def parse_sample_measures(measures: Any, over_values: Any, metadata: Any) -> SampleMeasures:
    """Parse the entries "measures", "measures_over" and "measured" of ``summary.json``."""
    if over_values:
        key, rows = str(over_values["key"]), over_values["rows"]
    else:
        key, rows = "", [{"value": 0, "measures": measures}]
    metadata = metadata or {}
    return SampleMeasures(
        key=key,
        values=tuple(to_float(row["value"]) for row in rows),
        rows=tuple(_parse_means(row["measures"]) for row in rows),
        floor=_parse_floor(metadata.get("floor", {})),
        n=int(metadata.get("n", 0)),
        reference=str(metadata.get("reference", "")),
        noise=parse_floats(metadata.get("noise", {})),
        metrics=_parse_own_metrics(metadata.get("metrics", {})),
    )


def _parse_means(measures: Any) -> dict[str, float]:
    """Return {metric: mean}."""
    return {name: to_float(entry["mean"]) for name, entry in measures.items()}


def _parse_floor(floor: Any) -> dict[str, tuple[float, float, float]]:
    """Return {metric: (median, lowest, highest)} between two true sets."""
    return {
        name: (to_float(entry["median"]), to_float(entry["low"]), to_float(entry["high"]))
        for name, entry in nested_records(floor).items()
    }


def _parse_own_metrics(record: Any) -> dict[str, Metric]:
    """Return {name: description} of the user-supplied metrics of samples."""
    metrics = {}
    for name in _valid_metric_names(record):
        about = record[name]
        title, unit = first_line(about["title"]), first_line(about["unit"])
        metrics[name] = Metric(name, title, BETTER[about["better"]], "", unit)
    return metrics
