"""What W&B is told of a run beside the rows of metrics.csv: configuration, figures, panels."""

from collections.abc import Mapping
from typing import Any

from triptych.runs.directory import RunDirectory

SPLITS = {"train": "final/train_", "val": "final/val_", "test": "test/"}  # as metrics.csv names them
NOT_FIGURES = ("schema", "seed", "name", "overrides", "choices", "samples", "metrics", "wandb")
NO_CHOICE = ("hydra", "local", "logger", "paths")  # of what a run is
GROUPS = ("experiment", "ablation", "data")  # choices that become tags
STEP = "trainer/global_step"
LINE = "wandb/line/v0"  # a chart of W&B's: one line a run
RESOLVED = "resolved"  # the key below which W&B has the resolved configuration
BESIDE = ("seed", "setting")  # keys that stand beside the choices


def about(node: dict, config: dict, provenance: dict, run: RunDirectory) -> dict[str, Any]:
    """What W&B knows a run by: a sweep's cells are a group, and are named as their directories are."""
    sweep, choices = sweep_of(run), provenance.get("choices", {})
    asked = node.get("tags") or []
    tags = [asked] if isinstance(asked, str) else [*asked]
    tags += [f"{g}={choices[g]}"[:64] for g in GROUPS if choices.get(g)]
    return {
        "name": node.get("name") or run.path.name,
        "group": node.get("group") or sweep,
        "job_type": node.get("job_type") or ("cell" if sweep else "run"),
        "tags": list(dict.fromkeys(tags)),
        "id": provenance["id"],
        "config": comparable(choices, config) | {RESOLVED: config},
    }


def sweep_of(run: RunDirectory) -> str | None:
    """The name of the sweep that a run's directory lies in; None where it lies in none."""
    folder = run.path.parent
    return folder.name if (folder / "sweep.json").exists() else None


def comparable(choices: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs are grouped and filtered by, one flat key each: "objective": "v", "seed": 1.

    W&B cannot filter by a key with a dot in it, so that the configuration itself is nested, below
    ``RESOLVED``; a choice's name and the keys of what was chosen would be one key otherwise.
    """
    flat = {group: c for group, c in choices.items() if group not in NO_CHOICE and c is not None}
    return flat | {key: config[key] for key in BESIDE if config.get(key) is not None}


def figures(summary: dict) -> dict[str, Any]:
    """``summary.json`` as flat keys: "test/bpd", "test/bpd_stderr", "test/bpd_n", "measures/..."."""
    flat: dict[str, Any] = {}
    for key, value in summary.items():
        if key not in NOT_FIGURES:
            _flatten(value, key, SPLITS.get(key, f"{key}/"), flat)
    return flat


def _flatten(value: Any, name: str, prefix: str, into: dict[str, Any]) -> None:
    """``name``: of the value itself; ``prefix``: before the names of what is in it."""
    if isinstance(value, dict):
        if "mean" in value and "n" in value:  # a figure: its mean has its name, the rest a suffix
            into[name] = value["mean"]
            into.update({f"{name}_{k}": v for k, v in value.items() if k != "mean" and v is not None})
            return
        for key, inner in value.items():
            _flatten(inner, f"{prefix}{key}", f"{prefix}{key}/", into)
    elif value is not None and not isinstance(value, list):
        into[name] = value


def panels(summary: dict) -> dict[str, tuple[list[str], list[list]]]:
    """{"panels/noise_levels": (columns, rows), ...}: what is a curve, and measures over several values."""
    found: dict[str, tuple[list[str], list[list]]] = {}
    for key, value in summary.items():
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("rows"), list):  # one dictionary a row
            flat: list[dict[str, Any]] = [{} for _ in value["rows"]]
            for row, into in zip(value["rows"], flat, strict=True):
                _flatten(row, "", "", into)
            columns = list(dict.fromkeys(name for row in flat for name in row))
            found[f"panels/{key}"] = (columns, [[row.get(name) for name in columns] for row in flat])
        elif value and all(_is_column(v) for v in value.values()) and len({*map(len, value.values())}) == 1:
            found[f"panels/{key}"] = ([*value], [list(row) for row in zip(*value.values(), strict=True)])
    return found


def chart(columns: list[str]) -> tuple[str, str]:
    """The columns that are x and y of a panel's chart: gamma and what goes with it, a value and a measure."""
    measures = [column for column in columns if column.startswith("measures/")]
    return columns[0], [*measures, *columns[1:], columns[0]][0]


def _is_column(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not any(isinstance(v, list | dict) for v in value)
