"""What W&B is told of a run beside the rows of metrics.csv: configuration, figures, panels."""

from typing import Any

from triptych.runs.directory import RunDirectory

SPLITS = {"train": "final/train_", "val": "final/val_", "test": "test/"}  # as metrics.csv names them
NOT_FIGURES = ("schema", "seed", "name", "overrides", "choices", "samples", "metrics", "wandb")
NO_CHOICE = ("hydra", "local", "logger", "paths")  # of what a run is
GROUPS = ("experiment", "ablation", "data")  # choices that become tags


def about(node: dict, config: dict, provenance: dict, run: RunDirectory) -> dict[str, Any]:
    """What W&B knows a run by: a sweep's cells are a group, and are named as their directories are.

    The configuration is the resolved one and, beside it, each choice as a flat key, "choice/objective": "v".
    """
    in_sweep = (run.path.parent / "sweep.json").exists()
    choices = provenance.get("choices", {})
    tags = [*(node.get("tags") or []), *(f"{g}={choices[g]}"[:64] for g in GROUPS if choices.get(g))]
    return {
        "name": run.path.name,
        "group": node.get("group") or (run.path.parent.name if in_sweep else None),
        "job_type": node.get("job_type") or ("cell" if in_sweep else "run"),
        "tags": list(dict.fromkeys(tags)),
        "id": provenance["id"],
        "config": config | {f"choice/{group}": c for group, c in choices.items() if group not in NO_CHOICE},
    }


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


def _is_column(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and not any(isinstance(v, list | dict) for v in value)
