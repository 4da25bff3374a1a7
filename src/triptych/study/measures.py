"""Measures of samples: figures and rankings, as far as the corrected test allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from triptych.config.metric import LOWER, SAMPLE_METRICS, Metric
from triptych.run.entries import SampleMeasures
from triptych.study.cells import Cell, Comparison
from triptych.study.formatting import format_number, listed
from triptych.study.statistics import Spread, spread


@dataclass(frozen=True)
class MeasureTable:
    """One measure: for each cell its seeds' values, (seeds, values of the key).

    ``floor``: of true data, (median, lowest, highest). ``noise``: of pure noise.
    """

    name: str
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


def known(cells: Sequence[Cell]) -> dict[str, Metric]:
    """Return all metrics of samples by name: built-in ones, then those of the user."""
    every = [run.measured for cell in cells for run in cell.runs.values() if run.measured]
    own = {name: metric for measured in every for name, metric in measured.metrics.items()}
    return SAMPLE_METRICS | {name: metric for name, metric in own.items() if name not in SAMPLE_METRICS}


def measure_table(cells: Sequence[Cell], name: str) -> MeasureTable | None:
    """Return a measure of all cells that share its key and values; None if there are none."""
    seeds_of = {cell.label: _seeds(cell, name) for cell in cells}
    first = next((m for seeds in seeds_of.values() for m in seeds.values()), None)
    if first is None:
        return None
    same = {
        label: {
            seed: m.at(name) for seed, m in seeds.items() if (m.key, m.values) == (first.key, first.values)
        }
        for label, seeds in seeds_of.items()
    }
    cells_of = {label: seeds for label, seeds in same.items() if seeds}
    return MeasureTable(
        name, first.key, first.values, cells_of, first.floor.get(name), first.noise.get(name, math.nan)
    )


def deciding(comparison: Comparison) -> str:
    """Return the measure that decides if cells share one model; "" if the bound decides."""
    if not comparison.of_drawing:
        return ""
    ranked = (metric.name for metric in known(comparison.cells).values() if metric.better)
    tables = ((name, measure_table(comparison.cells, name)) for name in ranked)
    return next((name for name, measure in tables if measure and len(measure.cells) > 1), "")


def _deciding(comparison: Comparison) -> tuple[Metric, MeasureTable] | None:
    name = deciding(comparison)
    measure = measure_table(comparison.cells, name) if name else None
    return None if measure is None else (known(comparison.cells)[name], measure)


def title(comparison: Comparison) -> str:
    """Describe the figures of `columns`: "sliced Wasserstein distance by evaluations"; "" without any."""
    of = _deciding(comparison)
    return "" if of is None else of[0].label + (f" by {of[1].key}" if of[1].key else "")


def measure_columns(comparison: Comparison) -> list[tuple[str, str]]:
    """List key and heading of the deciding measure at each value; none where the bound decides."""
    if (of := _deciding(comparison)) is None:
        return []
    heads = [f"{value:g}" for value in of[1].values] if of[1].key else [of[0].label]
    return [(f"{of[0].name}@{i}", head) for i, head in enumerate(heads)]


def beside(comparison: Comparison) -> tuple[list[tuple[str, str]], list[tuple[str, dict[str, Spread]]]]:
    """Return columns and rows of the measures beside a bound that decides, at the key's last value.

    A column is a name and a heading, the user's own first; rows are best first by the first one.
    """
    metrics = known(comparison.cells).items() if not deciding(comparison) else ()
    each = {metric: measure for name, metric in metrics if (measure := measure_table(comparison.cells, name))}
    there = sorted(each.items(), key=lambda one: (one[0].name in SAMPLE_METRICS, not one[0].better))
    if not there:
        return [], []
    order = _ordered(there[0][1], -1, _sign(there[0][0]))
    order += [cell.label for cell in comparison.cells if cell.label not in order]
    heads = []
    for metric, measure in there:
        at = f" at {measure.key} {measure.values[-1]:g}" if measure.key else ""
        heads.append((metric.name, f"{metric.label}{at}{f' ({metric.better})' if metric.better else ''}"))
    figures = {
        label: {metric.name: of.spreads[label][-1] for metric, of in there if label in of.cells}
        for label in order
    }
    return heads, [(label, spreads) for label, spreads in figures.items() if spreads]


def standings(comparison: Comparison) -> list[tuple[str, dict[str, Spread], str]]:
    """Rank cells by the deciding measure's last value, best first: label, figures by column, where best."""
    if (of := _deciding(comparison)) is None:
        return []
    metric, measure = of
    sign, spreads = _sign(metric), measure.spreads
    best = [_ordered(measure, i, sign)[0] for i in range(len(measure.values))]
    order = _ordered(measure, -1, sign)
    figures = {label: {f"{metric.name}@{i}": s for i, s in enumerate(spreads[label])} for label in order}
    return [(label, figures[label], _where(measure, best, label)) for label in order]  # fmt: skip


def _where(measure: MeasureTable, best: list[str], label: str) -> str:
    at = [f"{value:g}" for value, name in zip(measure.values, best, strict=True) if name == label]
    return ("best mean" + (f" at {listed(at)}" if measure.key else "")) if at else ""


def _ordered(measure: MeasureTable, i: int, sign: int) -> list[str]:
    """Return the cells by their means at a value, best first; those without one, as a seed has none, last."""

    def place(label: str) -> tuple[bool, float, str]:
        mean = sign * measure.spreads[label][i].mean
        return math.isnan(mean), mean, label

    return sorted(measure.spreads, key=place)


def _sign(metric: Metric) -> int:
    return 1 if metric.better == LOWER else -1


def ranking(comparison: Comparison, name: str) -> str:
    """Describe which setting is best by a measure at each value, and which are no better than noise.

    Only where the corrected test allows a claim.
    """
    metric, measure = known(comparison.cells)[name], measure_table(comparison.cells, name)
    if measure is None or not metric.better:
        return ""
    lost = _lost(metric, measure)
    parts = [f"no better than noise ({format_number(measure.noise)}): {listed(lost)}"] if lost else []
    if len(measure.cells) > 1:
        each = [_best(comparison, measure, i, _sign(metric)) for i in range(len(measure.values))]
        at = {
            text: [f"{v:g}" for v, t in zip(measure.values, each, strict=True) if t == text] for text in each
        }
        parts += (
            [f"at {listed(v)} {text}" for text, v in at.items()] if measure.key and len(at) > 1 else list(at)
        )
    return f"By {metric.title} ({metric.better}): {'; '.join(parts)}." if parts else ""


def _lost(metric: Metric, measure: MeasureTable) -> list[str]:
    """Return the settings whose mean is no better than that of pure noise, and where."""
    labels = []
    for label, spreads in measure.spreads.items():
        at = [f"{v:g}" for v, s in zip(measure.values, spreads, strict=True)
              if _sign(metric) * (s.mean - measure.noise) >= -1e-9 * abs(measure.noise)]  # fmt: skip
        if at:
            labels.append(label + (f" (at {listed(at)})" if len(at) < len(spreads) else ""))
    return labels


def about(comparison: Comparison) -> str:
    """Describe the number of samples and their reference."""
    measured = next((run.measured for run in comparison.runs if run.measured), None)
    if measured is None:
        return ""
    titles = known(comparison.cells)
    fewer = [f"{titles[k].title}: {n}" for k, n in measured.fewer.items() if k in titles]
    aside = f" ({'; '.join(fewer)})" if fewer else ""
    return f"{measured.n} samples a set{aside}, against {measured.reference}."


def _best(comparison: Comparison, measure: MeasureTable, i: int, sign: int) -> str:
    first, *rest = _ordered(measure, i, sign)
    claims = {label: comparison.sampled(measure.name, i, first, label) for label in rest}
    clear = [label for label in rest if claims[label].holds and sign * claims[label].pair.mean > 0]
    if not clear:
        return "nothing is settled"
    text = f"{first} is clear of {'all others' if len(clear) == len(rest) > 1 else _some(clear)}"
    left = [label for label in rest if label not in clear]
    return f"{text}, not settled against {_some(left)}" if left else text


def _some(labels: list[str]) -> str:
    return listed(labels) if len(labels) < 4 else f"{len(labels)} others"


def _seeds(cell: Cell, name: str) -> dict[int | None, SampleMeasures]:
    measured_of = {seed: run.measured for seed, run in cell.runs.items() if run.measured}
    return {seed: m for seed, m in measured_of.items() if not all(map(math.isnan, m.at(name)))}
