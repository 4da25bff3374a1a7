"""Measures of samples in words: a figure each, and a ranking by each where the corrected test allows one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triptych.report.statistics import Spread, spread
from triptych.report.words import listed
from triptych.runs.read_measures import Measured

if TYPE_CHECKING:
    from triptych.report.compare import Cell, Comparison

LOWER, HIGHER, NEITHER = "lower is better", "higher is better", ""
# name in the summary -> what the axis says, which end is good
KNOWN = {
    "sliced_wasserstein": ("sliced Wasserstein distance", LOWER),
    "energy_distance": ("energy distance", LOWER),
    "mode_error": ("share of samples in the wrong mode", LOWER),
    "mode_1": ("share of mode 1", NEITHER),
    "prompt_accuracy": ("share of samples as asked for", HIGHER),
    "prompt_accuracy_held_out": ("share as asked for, of combinations kept from training", HIGHER),
    "retrieval": ("share whose caption the contrastive model finds", HIGHER),
    "fid": ("FID", LOWER),
    "frechet_distance": ("Fréchet distance of features", LOWER),
    "precision": ("precision", HIGHER),
    "recall": ("recall", HIGHER),
    "class_accuracy": ("class accuracy", HIGHER),
}


@dataclass(frozen=True)
class Table:
    """One measure: for each cell its seeds' values, (seeds, values of the key)."""

    name: str
    key: str
    values: tuple[float, ...]
    cells: dict[str, dict[int | None, tuple[float, ...]]]
    floor: tuple[float, float, float] | None


def table(cells: Sequence[Cell], name: str) -> Table | None:
    """The measure of all cells that took it at the same values of the same key; None where none did."""
    found = {cell.label: _seeds(cell, name) for cell in cells}
    first = next((m for seeds in found.values() for m in seeds.values()), None)
    if first is None:
        return None
    same = {
        label: {
            seed: m.at(name) for seed, m in seeds.items() if (m.key, m.values) == (first.key, first.values)
        }
        for label, seeds in found.items()
    }
    taken = {label: seeds for label, seeds in same.items() if seeds}
    return Table(name, first.key, first.values, taken, first.floor.get(name))


def deciding(comparison: Comparison) -> str:
    """The measure that answers where cells share one model; "" where the bound answers."""
    if not comparison.of_drawing:
        return ""
    taken = ((name, table(comparison.cells, name)) for name, (_, better) in KNOWN.items() if better)
    return next((name for name, known in taken if known and len(known.cells) > 1), "")


def title(comparison: Comparison) -> str:
    """ "sliced Wasserstein distance by evaluations": what the figures of `columns` are; "" without any."""
    name = deciding(comparison)
    known = table(comparison.cells, name) if name else None
    return "" if known is None else KNOWN[name][0] + (f" by {known.key}" if known.key else "")


def columns(comparison: Comparison) -> list[tuple[str, str]]:
    """Key and heading of the deciding measure at each value; none where the bound decides."""
    name = deciding(comparison)
    known = table(comparison.cells, name) if name else None
    if known is None:
        return []
    heads = [f"{value:g}" for value in known.values] if known.key else [KNOWN[name][0]]
    return [(f"{name}@{i}", head) for i, head in enumerate(heads)]


def standings(comparison: Comparison) -> list[tuple[str, dict[str, Spread], str]]:
    """Cells by the deciding measure at its last value, best first: label, figures by column, where best."""
    name = deciding(comparison)
    known = table(comparison.cells, name) if name else None
    if known is None:
        return []
    sign = 1 if KNOWN[name][1] == LOWER else -1
    found = {label: [spread(list(v)) for v in zip(*seeds.values(), strict=True)]
             for label, seeds in known.cells.items()}  # fmt: skip
    best = [min(found, key=lambda label: sign * found[label][i].mean) for i in range(len(known.values))]
    order = sorted(found, key=lambda label: (sign * found[label][-1].mean, label))
    return [(label, {f"{name}@{i}": s for i, s in enumerate(found[label])}, _where(known, best, label))
            for label in order]  # fmt: skip


def _where(known: Table, best: list[str], label: str) -> str:
    at = [f"{value:g}" for value, name in zip(known.values, best, strict=True) if name == label]
    return ("best mean" + (f" at {listed(at)}" if known.key else "")) if at else ""


def ranking(comparison: Comparison, name: str) -> str:
    """Who is best by a measure at each value of the key, where the corrected test allows a claim."""
    known, (what, better) = table(comparison.cells, name), KNOWN[name]
    if known is None or not better or len(known.cells) < 2:
        return ""
    sign = 1 if better == LOWER else -1
    said = [_best(comparison, known, i, sign) for i in range(len(known.values))]
    if known.key:
        at = {text: [f"{v:g}" for v, t in zip(known.values, said, strict=True) if t == text] for text in said}
        said = [f"at {listed(values)} {text}" for text, values in at.items()] if len(at) > 1 else list(at)
    return f"By {what} ({better}): {'; '.join(said)}."


def about(comparison: Comparison) -> str:
    """How many samples were measured against what."""
    for cell in comparison.cells:
        for run in cell.runs.values():
            if run.measured:
                fewer = [f"{KNOWN[k][0]}: {n}" for k, n in run.measured.fewer.items() if k in KNOWN]
                aside = f" ({'; '.join(fewer)})" if fewer else ""
                return f"{run.measured.n} samples a set{aside}, against {run.measured.reference}."
    return ""


def _best(comparison: Comparison, known: Table, i: int, sign: int) -> str:
    at = {label: {seed: sign * v[i] for seed, v in seeds.items()} for label, seeds in known.cells.items()}
    order = sorted(at, key=lambda label: spread(list(at[label].values())).mean)
    first, rest = order[0], order[1:]
    claims = {label: comparison.sampled(known.name, i, first, label) for label in rest}
    beaten = [label for label in rest if claims[label].holds and sign * claims[label].pair.mean > 0]
    if len(beaten) == len(rest):
        return f"{first} beats {'all others' if len(rest) > 1 else rest[0]}"
    hints = [label for label in rest if claims[label].hint and sign * claims[label].pair.mean > 0]
    maybe = f"{first} may be better than {_some(hints)}" if hints else ""
    if not beaten:
        return f"no ranking ({maybe})" if maybe else "no ranking"
    level = [label for label in rest if label not in beaten]
    return f"{first} has the best mean and beats {_some(beaten)}, but not {_some(level)}"


def _some(labels: list[str]) -> str:
    return listed(labels) if len(labels) < 4 else f"{len(labels)} others"


def _seeds(cell: Cell, name: str) -> dict[int | None, Measured]:
    taken = {seed: run.measured for seed, run in cell.runs.items() if run.measured}
    return {seed: m for seed, m in taken.items() if not all(map(math.isnan, m.at(name)))}
