"""Detect runs that repeat another seed's result: they count once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from triptych.run.items import load_items
from triptych.run.read import Run
from triptych.study.formatting import listed


def copies(runs: Mapping[int | None, Run]) -> dict[int | None, int | None]:
    """Return {seed: the seed whose result it repeats}: all figures, or all items' bounds, to the last digit.

    Trainings differ in some digit where their seeds do; draws from one model in their samples' measures.
    """
    first: dict[Hashable, int | None] = {}
    repeats = {}
    for seed, run in runs.items():
        if again := [first[key] for key in _results(run) if first.setdefault(key, seed) != seed]:
            repeats[seed] = again[0]
    return repeats


def _results(run: Run) -> list[Hashable]:
    samples = [sorted(row.items()) for row in run.measured.rows] if run.measured else []
    figures = (run.test, run.val, run.train, run.noise_levels, samples)
    items = load_items(run.dir)
    # as text, in which NaN equals NaN
    return [repr(figures), *([] if items is None else [(items.total.tobytes(), repr(samples))])]


def counted_once(label: str, repeats: Mapping[int | None, int | None]) -> str:
    """Return the note of a setting's copies."""
    groups = {of: [of, *(seed for seed, one in repeats.items() if one == of)] for of in repeats.values()}
    named = [listed([*map(str, seeds)]) for seeds in groups.values()]
    return (
        f"{label}: seeds {', '.join(named)} have the same figures to the last digit and count once. "
        "Is one a copy of the other, or is the seed not in use?"
    )
