"""Content for loggers beside metrics.csv: configuration, figures, panels."""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from triptych.config.identity import leaves
from triptych.run.directory import RunDirectory
from triptych.run.parsing import format_value
from triptych.run.result import Result

SPLITS = {"train": "final/train_", "val": "final/val_", "test": "test/"}  # as metrics.csv names them
NOT_FIGURES = ("schema", "seed", "name", "overrides", "choices", "samples", "metrics")
NO_CHOICE = ("hydra", "local", "logger", "paths")  # of what a run is
NOT_PARAMETERS = ("logger", "paths")
RESOLVED = "resolved"  # the key below which W&B has the resolved configuration
BESIDE = ("seed", "setting")  # keys that stand beside the choices


def sweep_of(run: RunDirectory) -> str | None:
    """Return the name of the sweep that a run belongs to; None if it belongs to none."""
    folder = run.path.parent
    return folder.name if (folder / "sweep.json").exists() else None


def comparable(
    choices: Mapping[str, Any], config: Mapping[str, Any], overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the settings to group and filter runs by: "objective": "v", "optimizer/lr": 0.01.

    Choices, seed, setting and typed keys, with "/" for ".": W&B cannot filter by a key with a dot in it.
    """
    flat = {group: c for group, c in choices.items() if group not in NO_CHOICE and c is not None}
    flat |= {key: config[key] for key in BESIDE if config.get(key) is not None}
    typed = {o.lstrip("+~").partition("=")[0] for o in overrides}
    return flat | {
        key.replace(".", "/"): value
        for key, value in leaves(dict(config))
        if key in typed and "." in key and key.split(".")[0] not in NOT_PARAMETERS
    }


def parameters(run: RunDirectory) -> dict[str, Any]:
    """Flatten a run's configuration ("optimizer.lr") and its choices ("objective")."""
    config, choices = run.config(), run.provenance().get("choices", {})
    flat = {k: v for k, v in leaves(config) if k.split(".")[0] not in NOT_PARAMETERS}
    flat |= comparable(choices, config)
    return {k: v if isinstance(v, int | float) else format_value(v) for k, v in flat.items()}


def flat_figures(record: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten ``summary.json``: "test/bpd", "test/bpd_stderr", "test/bpd_n", "measures/..."."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key not in NOT_FIGURES:
            _flatten(value, key, SPLITS.get(key, f"{key}/"), flat)
    return flat


def flat_numbers(summary: Result | None, logged: Collection[str] = ()) -> dict[str, float]:
    """Return the numbers of a summary that are not ``logged`` yet; {} without a summary."""
    flat = flat_figures(summary.record) if summary else {}
    return {k: float(v) for k, v in flat.items() if isinstance(v, int | float) and k not in logged}


def _flatten(value: Any, name: str, prefix: str, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        if "mean" in value and "n" in value:  # a figure: its mean has its name, the rest a suffix
            into[name] = value["mean"]
            into.update({f"{name}_{k}": v for k, v in value.items() if k != "mean" and v is not None})
            return
        for key, inner in value.items():
            _flatten(inner, f"{prefix}{key}", f"{prefix}{key}/", into)
    elif value is not None and not isinstance(value, list):
        into[name] = value


def panel_tables(record: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return {"panels/noise_levels": (columns, rows), ...}: the curves of a summary."""
    tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
    for key, value in record.items():
        columns = [*value.values()] if isinstance(value, dict) else []
        lists = bool(columns) and all(isinstance(column, list) and column for column in columns)
        if lists and not any(isinstance(one, list | dict) for column in columns for one in column):
            with contextlib.suppress(ValueError):  # columns of several lengths
                rows = [list(row) for row in zip(*columns, strict=True)]
                tables[f"panels/{key}"] = ([*value], rows)
    return tables
