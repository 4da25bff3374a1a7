"""Define, write and read ``summary.json``, the result of a run.

Each field of ``Result`` names its parser and the entries of the file that it is parsed from.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

from triptych.config.identity import flatten_config
from triptych.records import Entries
from triptych.run import parsing
from triptych.run.parsing import (
    PARTS,
    UNITS,
    Curve,
    Estimate,
    SampleMeasures,
    none_if_invalid,
    to_float,
    to_int,
)
from triptych.run.provenance_file import Provenance

Status = Literal["finished", "failed", "diverged", "running", "interrupted", "pruned", "unreadable"]

SCHEMA = 1
ENDED = ("finished", "failed", "diverged")


def _result_field(parse: Callable[..., Any], default: Any = None, keys: Iterable[str] = ()) -> Any:
    """Declare a field of ``Result``: its parser, and the entries that the parser receives.

    By default, it receives the entry with the field's name.
    """
    start = {"default_factory": default} if callable(default) else {"default": default}
    return field(**start, metadata={"parse": parse, "keys": tuple(keys)})


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run; ``result["test"]["bpd"]["mean"]`` is the unparsed entry of the file.

    Attributes:
        status: "finished", "failed" or "diverged" in the file. The last two come with ``stage``
            ("build", "fit" or "test"), ``error`` and ``step``.
        parameters, steps: number of parameters and training steps of the model, also if another
            run trained it.
        seconds: {"fit", "test", "samples"}.
        cost: {"memory": peak bytes, "evaluations": denoiser calls per sample}.
        draws: the stream of random numbers of the training and the bound.
        weights, checkpoint: the reported weights and checkpoint.
        averaging: {"reported": name, "val": metrics of the other weights}.
        fingerprint, split: identify the data and their split.
        data_changed: whether the data changed between two starts.
        shared: {held-out split: how many of its items are also in train}, without zeros.
        train, val, test: {"bpd", "bpd_prior", ..., "gap": ...}, and user-supplied metrics of items.
        tweedie, posterior: curves over noise levels: squared error of the model's posterior mean,
            and variance of the exact posterior.
        variance: variance of one random draw of the diffusion term, nats^2 per item.
        baselines: bits/dim of simple models by name.
        metrics: {user-supplied metric of items: "higher", "lower" or ""}, the better direction.
        versions: {metric's name or class path: version of its definition}; 1 if not recorded.
        samples: path of the picture of samples.
        record: all entries of the file.
    """

    status: Status = field(metadata={"parse": str, "keys": ()})
    name: str = _result_field(str, "")
    overrides: Mapping[str, str] = _result_field(parsing.parse_overrides, dict)
    choices: Mapping[str, str] = _result_field(
        lambda names: {str(k): str(v) for k, v in names.items()}, dict
    )
    seed: int | None = _result_field(parsing.parse_seed, None, ("seed", "overrides"))
    stage: str = _result_field(str, "")
    error: str = _result_field(parsing.first_line, "")
    step: int | None = _result_field(to_int)
    parameters: int | None = _result_field(to_int)
    steps: int | None = _result_field(to_int)
    seconds: Mapping[str, float] = _result_field(parsing.parse_floats, dict)
    cost: Mapping[str, float] = _result_field(parsing.parse_floats, dict)
    device: str = _result_field(str, "")
    draws: str = _result_field(str, "")
    world_size: int | None = _result_field(to_int)
    weights: str = _result_field(str, "")
    checkpoint: str = _result_field(str, "")
    averaging: Mapping[str, Any] | None = _result_field(dict)
    fingerprint: str = _result_field(partial(parsing.parse_fact, "fingerprint", str), "", ["data"])
    split: str = _result_field(partial(parsing.parse_fact, "split", str), "", ["data"])
    data_changed: bool = _result_field(
        partial(parsing.parse_fact, "changed", bool), False, ["data"]
    )
    shared: Mapping[str, float] = _result_field(
        lambda data: parsing.parse_floats(data.get("shared", {})), dict, ["data"]
    )
    train: Mapping[str, Estimate] = _result_field(partial(parsing.parse_estimates, "train"), dict)
    val: Mapping[str, Estimate] = _result_field(partial(parsing.parse_estimates, "val"), dict)
    test: Mapping[str, Estimate] = _result_field(partial(parsing.parse_estimates, "test"), dict)
    noise_levels: Curve | None = _result_field(none_if_invalid(parsing.parse_curve, "epsilon_mse"))
    variance: float = _result_field(
        none_if_invalid(lambda estimator: to_float(estimator["variance"])), math.nan, ["estimator"]
    )
    baselines: Mapping[str, float] = _result_field(parsing.parse_baselines, dict)
    metrics: Mapping[str, str] = _result_field(parsing.parse_metrics, dict)
    versions: Mapping[str, int] = _result_field(dict, dict)
    weighting: Curve | None = _result_field(none_if_invalid(parsing.parse_curve, "effective"))
    tweedie: Curve | None = _result_field(none_if_invalid(parsing.parse_curve, "excess"))
    posterior: Curve | None = _result_field(
        none_if_invalid(parsing.parse_curve, "spread"), None, ["tweedie"]
    )
    samples: Path | None = _result_field(lambda path: Path(path) if isinstance(path, str) else None)
    measured: SampleMeasures | None = _result_field(
        none_if_invalid(parsing.parse_sample_measures),
        None,
        ("measures", "measures_over", "measured"),
    )
    ended: datetime | None = _result_field(parsing.parse_time)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def __contains__(self, key: str) -> bool:
        return key in self.record

    @classmethod
    def from_run(cls, provenance: Provenance, status: str, **more_entries: Any) -> Self:
        """Build a result with the status and entries given, and with what the provenance records.

        Entries that are None are left out.
        """
        entries: Entries = dict.fromkeys(ENTRIES)  # in this order
        entries |= {"schema": SCHEMA, "status": status}
        entries |= {"overrides": [*provenance.overrides], "choices": {**provenance.choices}}
        entries |= more_entries
        record = {key: entry for key, entry in entries.items() if entry is not None}
        if status == "finished":
            record.setdefault("samples", None)
        return cls.from_json(record)

    @classmethod
    def from_json(cls, record: Entries, **known: Any) -> Self:
        """Build a result from the content of ``summary.json``; ``known`` are further fields.

        Raises ValueError if the record is malformed.
        """
        if record.get("schema") != SCHEMA:
            raise ValueError(f"schema={record.get('schema')!r}: must be {SCHEMA}")
        if record.get("status") not in ENDED:
            raise ValueError(f"status={record.get('status')!r}: must be {' or '.join(ENDED)}")
        return cls(**known | parse_entries(record), record=record)

    @cached_property
    def measure(self) -> str | None:
        """The key of the test bound, "bpd" or "nats_per_dim"; None if there is neither."""
        return parsing.bound_unit(self.test)

    @property
    def bound(self) -> float:
        """The test bound in the unit of ``measure``; NaN if there is none."""
        if self.measure is None:
            return math.nan
        return self.test[self.measure].mean

    @property
    def cause(self) -> str:
        """The error without the step at which the run diverged: equal for runs of one cause."""
        return self.error.removeprefix(f"diverged at step {self.step}: ")

    def figure(self, path: str) -> float | None:
        """Return a number by its path, such as ``val.bpd.mean``; None if it is missing.

        "bound" in a path, as in ``val.bound.mean``, stands for the bound in either unit.
        """
        split, _, rest = path.partition(".bound.")
        paths = [f"{split}.{unit}.{rest}" for unit in UNITS] if rest else [path]
        figures = dict(flatten_config(self.record))
        for name in paths:
            if isinstance(figures.get(name), float):
                return figures[name]
        return None

    def higher_is_better(self, path: str) -> bool:
        """Return whether a higher value of the metric at this path is better."""
        _, name, *_ = f"{path}..".split(".")
        return name == "accuracy" or self.metrics.get(name) == "higher"


# {field: (its parser, the entries of the file that are the parser's arguments)}
PARSERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    entry.name: (entry.metadata["parse"], entry.metadata["keys"] or (entry.name,))
    for entry in fields(Result)
    if "parse" in entry.metadata
}
ENTRIES = ("schema", *dict.fromkeys(key for _, keys in PARSERS.values() for key in keys))


def parse_entries(record: Mapping[str, Any]) -> Entries:
    """Parse those entries of a record that are fields of ``Result``; ValueError if malformed."""
    parsed = {}
    try:
        for name, (parse, keys) in PARSERS.items():
            entries = [record.get(key) for key in keys]
            if any(entry is not None for entry in entries):
                parsed[name] = parse(*entries)
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"{name}: {parsing.error_line(error)}") from error
    return {name: value for name, value in parsed.items() if value is not None}


def _format_estimate(estimate: Estimate, min_error: float = 5e-4) -> str:
    """Format a value and its standard error: "0.0771 ± 0.0012", or "0.0771" without an error.

    An error below ``min_error`` gets more than four decimals.
    """
    if math.isnan(estimate.stderr):
        return f"{estimate.mean:.4f}"
    digits = 4
    if 0 < estimate.stderr < min_error:
        digits = 1 - math.floor(math.log10(estimate.stderr))
    return f"{estimate.mean:.{digits}f} ± {estimate.stderr:.{digits}f}"


def result_line(result: Result | None) -> str:
    """Describe a result in one line: the bound and its three terms, or why there is none."""
    if result is None:
        return "no result: nothing recorded"
    # A run with test=false has only metrics of validation.
    line = split_line(result.test) or split_line(result.val, "val")
    return line or f"{result.status}: {result.error or 'nothing recorded'}"


def split_line(metrics: Mapping[str, Estimate], split: str = "test") -> str:
    """Describe the main metric of a split in one line: a bound and its terms, or an accuracy.

    Return "" if there is neither.
    """
    unit = parsing.bound_unit(metrics)
    if unit is not None:
        return _bound_line(metrics, split, unit)
    if "accuracy" not in metrics:
        return ""
    accuracy = metrics["accuracy"]
    entropy = metrics.get("cross_entropy", Estimate(math.nan, math.nan, 0))
    shown = f"{_format_estimate(accuracy, min_error=0.0)} (cross-entropy {entropy.mean:.4f} nats"
    return f"{split} accuracy {shown}; n = {accuracy.n})"


def _bound_line(figures: Mapping[str, Estimate], split: str, unit: str) -> str:
    """Describe the bound of a split and its three terms in one line."""
    bound = figures[unit]
    terms = ", ".join(f"{part} {figures[f'{unit}_{part}'].mean:.4f}" for part in PARTS)
    estimate = _format_estimate(bound, min_error=0.0)
    items = f"n = {bound.n}"
    if bound.groups:
        items += f" in {bound.groups} groups"
    line = f"{split} bound {estimate} {UNITS[unit]} ({terms}; {items})"
    if "gap" in figures:
        line += f", {_format_estimate(figures['gap'])} above the data's entropy"
    if f"{unit}_ode" in figures:
        ode = figures[f"{unit}_ode"]
        line += f"; by the probability-flow ODE {_format_estimate(ode)} on {ode.n} of these items"
    if f"{unit}_ode_bound" in figures:
        line += f", where the bound is {_format_estimate(figures[f'{unit}_ode_bound'])}"
    return line
