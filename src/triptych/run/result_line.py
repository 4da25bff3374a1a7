"""A recorded result in one line: a bound and its three terms, an accuracy, or why there is none."""

import math
from collections.abc import Mapping
from typing import Any

from triptych.run.entries import UNITS
from triptych.run.parsing import to_float
from triptych.run.result import PARTS, Result


def _with_error(figure: dict, least: float = 5e-4) -> str:
    """Four decimals, or as many as an error below ``least`` has digits; one item has no error.

    "0.0771 ± 0.0012", "0.0000132 ± 0.0000021", "0.0771".
    """
    mean, error = to_float(figure.get("mean")), to_float(figure.get("stderr"))
    if math.isnan(error):
        return f"{mean:.4f}"
    digits = 1 - math.floor(math.log10(error)) if 0 < error < least else 4
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def one_line(result: Result | None) -> str:
    """A result in one line: the bound and its three terms, or why there is none."""
    if result is None:
        return "no result: nothing recorded"
    split = "test" if result.get("test") else "val"  # of a run that was not to read its test set
    figures = result.get(split)
    line = figures_line(figures, split) if isinstance(figures, dict) else ""
    return line or f"{result.status}: {result.error or 'nothing recorded'}"


def figures_line(figures: Mapping[str, Any], split: str = "test") -> str:
    """The figures of a split in one line: a bound and its three terms, or an accuracy; "" without either."""
    figures = {key: entry for key, entry in figures.items() if isinstance(entry, dict)}
    mean = {key: to_float(entry.get("mean")) for key, entry in figures.items()}
    for unit, label in UNITS.items():
        if unit in figures:
            terms = ", ".join(f"{part} {mean.get(f'{unit}_{part}', math.nan):.4f}" for part in PARTS)
            value = f"{_with_error(figures[unit], least=0.0)} {label}"
            line = f"{split} bound {value} ({terms}; n = {figures[unit].get('n')})"
            if "gap" in figures:
                line += f", {_with_error(figures['gap'])} above the truth"
            if f"{unit}_ode" in figures:
                ode = figures[f"{unit}_ode"]
                line += f"; by the ODE {_with_error(ode)} on {ode.get('n')} of them"
                if f"{unit}_ode_bound" in figures:
                    line += f", whose bound is {_with_error(figures[f'{unit}_ode_bound'])}"
            return line
    if "accuracy" in figures:
        return (
            f"{split} accuracy {_with_error(figures['accuracy'], least=0.0)} "
            f"(cross-entropy {mean.get('cross_entropy', math.nan):.4f} nats; "
            f"n = {figures['accuracy'].get('n')})"
        )
    return ""
