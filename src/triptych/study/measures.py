"""Measures of samples: figures and rankings, as far as the corrected test allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from triptych.config.metric import LOWER, SAMPLE_METRICS, Metric
from triptych.study.cells import Cell, Comparison
from triptych.study.formatting import format_number, listed
from triptych.study.statistics import Spread, spread


@dataclass(frozen=True)
class MeasureTable:
    """One measure: for each cell its seeds' values, (seeds, values of the key).

    ``floor``: of true data, (median, lowest, highest). ``noise``: of pure noise.
    """

    metric: Metric
    key: str
    values: tuple[float, ...]
    cells: dict[str, dict[int | None, tuple[float, ...]]]
    floor: tuple[float, float, float] | None
    noise: float = math.nan

    @cached_property
    def spreads(self) -> dict[str, list[Spread]]:
        """Each cell's figures over seeds, one for each value of the key."""
        return {
            label: [spread(list(v)) for v in zip(*seeds.values(), strict=True)]
            for label, seeds in self.cells.items()
        }

    @property
    def sign(self) -> int:
        """1 where lower is better, else -1."""
        return 1 if self.metric.better == LOWER else -1

    def order(self, at: int) -> list[str]:
        """Return the cells by their means at a value, best first; those without one, of a seed's, last."""

        def place(label: str) -> tuple[bool, float, str]:
            mean = self.sign * self.spreads[label][at].mean
            return math.isnan(mean), mean, label

        return sorted(self.spreads, key=place)


def known(cells: Sequence[Cell]) -> dict[str, Metric]:
    """Return all metrics of samples by name: built-in ones, then those of the user."""
    every = [run.measured for cell in cells for run in cell.runs.values() if run.measured]
    own = {name: metric for measured in every for name, metric in measured.metrics.items()}
    return SAMPLE_METRICS | {name: metric for name, metric in own.items() if name not in SAMPLE_METRICS}


def measure_table(cells: Sequence[Cell], name: str) -> MeasureTable | None:
    """Return a measure of all cells that share its key and values; None if there are none."""
    first, cells_of = None, dict[str, dict[int | None, tuple[float, ...]]]()
    for cell in cells:
        for seed, run in cell.runs.items():
            m = run.measured
            if m and not all(map(math.isnan, m.at(name))):
                first = first or m
                if (m.key, m.values) == (first.key, first.values):
                    cells_of.setdefault(cell.label, {})[seed] = m.at(name)
    if first is None:
        return None
    noise = first.noise.get(name, math.nan)
    return MeasureTable(known(cells)[name], first.key, first.values, cells_of, first.floor.get(name), noise)


def deciding_table(comparison: Comparison) -> MeasureTable | None:
    """Return the measure that decides if cells share one model; None if the bound decides."""
    if not comparison.of_drawing:
        return None
    ranked = (name for name, metric in known(comparison.cells).items() if metric.better)
    tables = (measure_table(comparison.cells, name) for name in ranked)
    return next((table for table in tables if table and len(table.cells) > 1), None)


def deciding(comparison: Comparison) -> str:
    """Return the name of the measure that decides; "" if the bound decides."""
    table = deciding_table(comparison)
    return table.metric.name if table else ""


def title(comparison: Comparison) -> str:
    """Describe the figures of `columns`: "sliced Wasserstein distance by evaluations"; "" without any."""
    table = deciding_table(comparison)
    return "" if table is None else table.metric.label + (f" by {table.key}" if table.key else "")


def measure_columns(comparison: Comparison) -> list[tuple[str, str]]:
    """List key and heading of the deciding measure at each value; none where the bound decides."""
    if (table := deciding_table(comparison)) is None:
        return []
    heads = [f"{value:g}" for value in table.values] if table.key else [table.metric.label]
    return [(f"{table.metric.name}@{i}", head) for i, head in enumerate(heads)]


def beside(comparison: Comparison) -> tuple[list[tuple[str, str]], list[tuple[str, dict[str, Spread]]]]:
    """Return columns and rows of the measures beside a bound that decides, at the key's last value.

    A column is a name and a heading, the user's own first; rows are best first by the first one.
    """
    names = known(comparison.cells) if not deciding(comparison) else ()
    tables = [table for name in names if (table := measure_table(comparison.cells, name))]
    tables.sort(key=lambda table: (table.metric.name in SAMPLE_METRICS, not table.metric.better))
    heads = []
    for table in tables:
        at = f" at {table.key} {table.values[-1]:g}" if table.key else ""
        better = f" ({table.metric.better})" if table.metric.better else ""
        heads.append((table.metric.name, f"{table.metric.label}{at}{better}"))
    order = dict.fromkeys([*(tables[0].order(-1) if tables else ()), *(c.label for c in comparison.cells)])
    rows = [
        (label, {t.metric.name: t.spreads[label][-1] for t in tables if label in t.cells}) for label in order
    ]
    return heads, [(label, spreads) for label, spreads in rows if spreads]


def standings(comparison: Comparison) -> list[tuple[str, dict[str, Spread], str]]:
    """Rank cells by the deciding measure's last value, best first: label, figures by column, where best."""
    if (table := deciding_table(comparison)) is None:
        return []
    best = [table.order(i)[0] for i in range(len(table.values))]
    ranked = []
    for label in table.order(-1):
        figures = {f"{table.metric.name}@{i}": figure for i, figure in enumerate(table.spreads[label])}
        at = [f"{value:g}" for value, name in zip(table.values, best, strict=True) if name == label]
        ranked.append(
            (label, figures, "best mean" + (f" at {listed(at)}" if table.key else "") if at else "")
        )
    return ranked


def ranking(comparison: Comparison, name: str) -> str:
    """Describe which setting is best by a measure at each value, and which are no better than noise.

    Only where the corrected test allows a claim.
    """
    table = measure_table(comparison.cells, name)
    if table is None or not table.metric.better:
        return ""
    lost = _lost(table)
    parts = [f"no better than noise ({format_number(table.noise)}): {listed(lost)}"] if lost else []
    if len(table.cells) > 1:
        at: dict[str, list[str]] = {}
        for i, value in enumerate(table.values):
            at.setdefault(_best(comparison, table, i), []).append(f"{value:g}")
        each = [f"at {listed(v)} {text}" for text, v in at.items()]
        parts += each if table.key and len(at) > 1 else list(at)
    return f"By {table.metric.title} ({table.metric.better}): {'; '.join(parts)}." if parts else ""


def _lost(table: MeasureTable) -> list[str]:
    labels = []
    for label, spreads in table.spreads.items():
        at = [f"{v:g}" for v, s in zip(table.values, spreads, strict=True)
              if table.sign * (s.mean - table.noise) >= -1e-9 * abs(table.noise)]  # fmt: skip
        if at:
            labels.append(label + (f" (at {listed(at)})" if len(at) < len(spreads) else ""))
    return labels


def _best(comparison: Comparison, table: MeasureTable, i: int) -> str:
    first, *rest = table.order(i)
    claims = {label: comparison.sampled(table.metric.name, i, first, label) for label in rest}
    clear = [label for label in rest if claims[label].holds and table.sign * claims[label].pair.mean > 0]
    if not clear:
        return "nothing is settled"
    text = f"{first} is clear of {'all others' if len(clear) == len(rest) > 1 else _some(clear)}"
    left = [label for label in rest if label not in clear]
    return f"{text}, not settled against {_some(left)}" if left else text


def _some(labels: list[str]) -> str:
    return listed(labels) if len(labels) < 4 else f"{len(labels)} others"


def about(comparison: Comparison) -> str:
    """Describe the number of samples and their reference."""
    measured = next((run.measured for run in comparison.runs if run.measured), None)
    if measured is None:
        return ""
    titles = known(comparison.cells)
    fewer = [f"{titles[k].title}: {n}" for k, n in measured.fewer.items() if k in titles]
    aside = f" ({'; '.join(fewer)})" if fewer else ""
    return f"{measured.n} samples a set{aside}, against {measured.reference}."
