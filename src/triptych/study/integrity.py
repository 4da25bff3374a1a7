"""Which finished runs do not count: their figures contradict each other, or repeat another seed's result."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

from triptych.run.items import load_items
from triptych.run.read import Run
from triptych.run.result import PARTS
from triptych.study.words import listed, number

NEAR = 1e-4  # of the largest figure: what sums in float32 may differ by


def contradiction(run: Run) -> str:
    """ "its parts add up to 2.100": what a run records against its bound; "" where nothing is.

    A bound is the sum of its parts, and the mean of its test items.
    """
    parts = [run.test[key].mean for part in PARTS if (key := f"{run.measure}_{part}") in run.test]
    if len(parts) == len(PARTS) and all(map(math.isfinite, parts)):
        if not _near(run.bound, math.fsum(parts), max(map(abs, parts))):
            return f"its parts add up to {number(math.fsum(parts))}"
    items = load_items(run.dir)
    if items is not None and not _near(run.bound, float(items.total.mean())):
        return f"the mean of its items is {number(items.total.mean())}"
    return ""


def _near(a: float, b: float, scale: float = 0.0) -> bool:
    return abs(a - b) <= NEAR * max(abs(a), abs(b), scale, 0.1)


def refused(runs: Sequence[Run]) -> list[str]:
    """A sentence for the finished runs that contradict themselves."""
    why = {run.dir.name: (run, said) for run in runs if (said := contradiction(run))}
    named = [f"{name}: its bound is {number(run.bound)}, {said}" for name, (run, said) in why.items()]
    return [f"Not ranked, for their figures contradict each other: {'; '.join(named)}."] if named else []


def copies(runs: Mapping[int | None, Run]) -> dict[int | None, int | None]:
    """{seed: the seed whose result it repeats}: all figures, or the bounds of all items, to the last digit.

    Trainings differ in some digit where their seeds do; draws from one model in their samples' measures.
    """
    first: dict[Hashable, int | None] = {}
    found = {}
    for seed, run in runs.items():
        if again := [first[key] for key in _results(run) if first.setdefault(key, seed) != seed]:
            found[seed] = again[0]
    return found


def _results(run: Run) -> list[Hashable]:
    samples = [sorted(row.items()) for row in run.measured.rows] if run.measured else []
    figures = (run.test, run.val, run.train, run.noise_levels, samples)
    items = load_items(run.dir)
    # as text, in which NaN equals NaN
    return [repr(figures), *([] if items is None else [(items.total.tobytes(), repr(samples))])]


def counted_once(label: str, found: Mapping[int | None, int | None]) -> str:
    """The note of a setting's copies."""
    groups = {of: [of, *(seed for seed, one in found.items() if one == of)] for of in found.values()}
    named = [listed([*map(str, seeds)]) for seeds in groups.values()]
    return (
        f"{label}: seeds {', '.join(named)} have the same figures to the last digit and count once. "
        "Is one a copy of the other, or is the seed not in use?"
    )
