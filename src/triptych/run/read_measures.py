"""What a summary says of its samples, as plain data for the report; a part that is malformed is left out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych.config.metric import HIGHER, LOWER, NEITHER, Metric
from triptych.run.plain import line, number
from triptych.run.summary import Summary

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # of a metric
BETTER = {"higher": HIGHER, "lower": LOWER, "": NEITHER}


@dataclass(frozen=True)
class Measured:
    """Measures of one run's samples: means by name, one row a value of ``key`` ("" where only one was taken).

    ``floor``: median, lowest and highest of the same measure between true sets, by name. ``n``: samples of a
    set. ``fewer``: of the measures that were taken of fewer, how many, by name. ``noise``: each measure of
    pure noise. ``metrics``: the user's own among them.
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
        """One measure by value; NaN where a row lacks it."""
        return tuple(row.get(name, math.nan) for row in self.rows)


def read_measures(summary: Summary) -> Measured | None:
    """The measures of a summary, or None."""
    try:
        about = summary.measured or {}
        floor = {
            name: (number(f["median"]), number(f["low"]), number(f["high"]))
            for name, f in (about.get("floor") or {}).items()
            if isinstance(f, dict)
        }
        over = summary.measures_over
        n = int(about.get("n") or 0)
        rows: Any = over["rows"] if over else [{"value": 0, "measures": summary.measures}]
        return Measured(
            key=str(over["key"]) if over else "",
            values=tuple(number(row["value"]) for row in rows),
            rows=tuple({k: number(e["mean"]) for k, e in row["measures"].items()} for row in rows),
            floor=floor,
            n=n,
            fewer={k: int(e["n"]) for row in rows for k, e in row["measures"].items() if e.get("n", n) != n},
            reference=str(about.get("reference") or ""),
            noise={str(name): number(figure) for name, figure in (about.get("noise") or {}).items()},
            metrics={
                str(name): Metric(
                    str(name), line(said["title"]), BETTER[said["better"]], "", line(said["unit"])
                )
                for name, said in (about.get("metrics") or {}).items()
                if NAME.fullmatch(name)
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
