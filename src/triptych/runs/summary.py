"""``summary.json``: the recorded result of a run, the contract with every reader."""

import json
import math
from typing import Any

from triptych.errors import Diverged

SCHEMA = 1
UNITS = {"bpd": "bits/dim", "nats_per_dim": "nats/dim"}


def failed(provenance: dict, stage: str, error: str) -> dict:
    """The summary of a run that did not finish; ``stage``: "build", "fit" or "test"."""
    return {
        "schema": SCHEMA,
        "status": "failed",
        "stage": stage,
        "overrides": provenance.get("overrides", []),
        "choices": provenance.get("choices", {}),
        "error": error,
    }


def diverged(provenance: dict, stage: str, found: Diverged) -> dict:
    """The summary of a run that ended at ``step`` because something was not finite any more."""
    return failed(provenance, stage, str(found)) | {"status": "diverged", "step": found.step}


def finished(provenance: dict, config: dict, **facts: Any) -> dict:
    """The summary of a finished run; ``facts`` are its figures."""
    return {
        "schema": SCHEMA,
        "status": "finished",
        "name": config["name"] or "",
        "overrides": provenance.get("overrides", []),
        "choices": provenance.get("choices", {}),
        "seed": config["seed"],
        **facts,
    }


def _with_error(figure: dict) -> str:
    """Four decimals, or as many as the error has digits: "0.0771 ± 0.0012", "0.0000132 ± 0.0000021"."""
    error = figure["stderr"]
    digits = 4 if error == 0 or error >= 5e-4 else 1 - math.floor(math.log10(error))
    return f"{figure['mean']:.{digits}f} ± {error:.{digits}f}"


def one_line(summary: dict, split: str = "test") -> str:
    """The result in one line: the bound and its three terms, with standard errors."""
    split = split if summary.get(split) else "val"  # of a run that was not to read its test set
    figures = summary.get(split) or {}
    for unit, label in UNITS.items():
        if unit in figures:
            total = figures[unit]
            terms = ", ".join(
                f"{term} {figures[f'{unit}_{term}']['mean']:.4f}"
                for term in ("prior", "reconstruction", "diffusion")
            )
            value = f"{total['mean']:.4f} ± {total['stderr']:.4f} {label}"
            line = f"{split} bound {value} ({terms}; n = {total['n']})"
            if "gap" in figures:
                line += f", {_with_error(figures['gap'])} above the truth"
            if f"{unit}_ode" in figures:
                ode = figures[f"{unit}_ode"]
                line += f"; by the ODE {_with_error(ode)} on {ode['n']} of them"
                if f"{unit}_ode_bound" in figures:
                    line += f", whose bound is {_with_error(figures[f'{unit}_ode_bound'])}"
            return line
    if "accuracy" in figures:
        accuracy, nats = figures["accuracy"], figures["cross_entropy"]
        return (
            f"{split} accuracy {accuracy['mean']:.4f} ± {accuracy['stderr']:.4f} "
            f"(cross-entropy {nats['mean']:.4f} nats; n = {accuracy['n']})"
        )
    return f"{summary.get('status', 'no result')}: {summary.get('error', 'nothing recorded')}"


def figure(summary: dict | None, name: str) -> float | None:
    """A figure by its path, as in ``val.bpd.mean``; None if it is not there."""
    value: Any = summary or {}
    for part in name.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return value if isinstance(value, float) else None


def to_json(value: Any) -> str:
    """Strict JSON, which has no word for what is not finite: null."""
    return json.dumps(_strict(value), indent=1, sort_keys=False, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return value
