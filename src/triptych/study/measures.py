"""Measures of samples in words: rankings, as far as the corrected test allows."""

from __future__ import annotations

from triptych.study.cells import Comparison, MeasureTable
from triptych.study.formatting import format_number, listed


def ranking(comparison: Comparison, table: MeasureTable) -> str:
    """Describe which setting is best by a measure at each value, and which are no better than noise.

    Only where the corrected test allows a claim.
    """
    if not table.metric.better:
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
    tables = comparison.measures
    fewer = [f"{tables[k].metric.title}: {n}" for k, n in measured.fewer.items() if k in tables]
    aside = f" ({'; '.join(fewer)})" if fewer else ""
    return f"{measured.n} samples a set{aside}, against {measured.reference}."
