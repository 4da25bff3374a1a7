"""Note the limits of a comparison: seeds, code or measures that differ between its runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.read import Run, reconstruction_notes
from triptych.study.axes import Axis
from triptych.study.cells import Cell
from triptych.study.formatting import count_noun, join_names
from triptych.study.groups import repeats_note

# Facts that should be equal in all runs: attribute, name in a note, and the key that sets it.
EQUAL_FACTS = (
    ("steps", "training steps", "trainer.max_steps"),
    ("weights", "weights", "weights"),
    ("commit", "commits of the code", ""),
    ("draws", "streams of random numbers (for pairs by seed set draws=batch)", "draws"),
    ("split", "splits of the same data into training and validation", "split"),
)


def caveats_of(cells: Sequence[Cell], axes: Sequence[Axis]) -> Iterator[str]:
    """Yield a note on each difference or fault that limits what a comparison of cells can show."""
    runs = [*chain.from_iterable(cell.runs.values() for cell in cells)]
    yield from _seed_notes(cells)
    yield from _fact_notes(runs, axes)
    yield from _source_notes(runs)
    yield from reconstruction_notes(runs)
    yield from _metric_notes(runs)
    yield from _sample_measure_notes(runs)
    yield from _leakage_notes(runs)
    yield from _change_notes(runs)


def _seed_notes(cells: Sequence[Cell]) -> Iterator[str]:
    """Note seeds that not all cells have, and seeds that repeat another seed's result."""
    if len({tuple(cell.runs) for cell in cells}) > 1:
        yield (
            "Not every setting has the same seeds: paired differences use only the seeds that "
            "both have; one seed in common carries no interval and no verdict."
        )
    for cell in cells:
        if cell.copies:
            yield f"{repeats_note(cell.label, cell.copies)} and count once."


def _fact_notes(runs: Sequence[Run], axes: Sequence[Axis]) -> Iterator[str]:
    """Note facts that differ between runs, unless an axis of the comparison sets them."""
    explained = {axis.key for axis in axes}
    if Role.SPLIT in map(role, explained):
        explained.add("split")
    for attribute, name, key in EQUAL_FACTS:
        values = sorted({str(getattr(run, attribute) or "") for run in runs} - {""})
        if len(values) > 1 and key not in explained:
            yield f"The runs used different {name}: {join_names([value[:10] for value in values])}."


def _source_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Note other runs that were trained again, so that runs took different weights from them."""
    sources = {(run.source, run.source_digest) for run in runs}
    for path, count in Counter(path for path, _ in sources).items():
        if count > 1:
            yield (
                f"{path} was trained again meanwhile: the runs took {count} different models from "
                "it, so differences are not only those of the settings."
            )


def _metric_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Note user-defined metrics with one name and several definitions."""
    definitions: dict[str, set[Any]] = {}
    for run in runs:
        of_samples = dict(run.measured.metrics) if run.measured else {}
        for name in (*run.metrics, *of_samples):
            keys = [item for item in run.config.items() if item[0].startswith(f"metrics.{name}.")]
            definition = (of_samples.get(name), frozenset(keys))
            definitions.setdefault(name, set()).add(definition)
    for name, variants in definitions.items():
        if len(variants) > 1:
            yield f"The runs define the metric {name} differently: do not compare it."


def _sample_measure_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Note that samples at other values of ``measures.over`` than the first run's are left out."""
    drawn = {(run.measured.key, run.measured.values) for run in runs if run.measured}
    if len(drawn) > 1:
        yield (
            "Samples were measured at different values of measures.over: only runs that agree with "
            "the first are compared."
        )


def _leakage_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Note held-out items that are also in train."""
    shared: dict[str, float] = {}
    for run in runs:
        shared |= run.shared
    effect = "bounds on them are too low (leakage)"
    for split, count in shared.items():
        yield f"{count:g} of the {split} items are identical to items in train: {effect}."


def _change_notes(runs: Sequence[Run]) -> Iterator[str]:
    """Note what changed while a run or a sweep was under way."""
    changed = [run.dir.name for run in runs if run.data_changed]
    if changed:
        count = count_noun(len(changed), "run")
        yield f"{count} resumed after the data had changed ({join_names(changed[:3])})."
    if has_added_seeds(runs):
        yield (
            'A later command added seeds: if it was typed because of earlier results, "clear of" '
            "may be wrong more often than in 5% of reports; until=decided avoids this."
        )
    if any(run.dirty for run in runs):
        yield "Some runs used code with uncommitted changes, which their commit does not identify."


def has_added_seeds(runs: Sequence[Run]) -> bool:
    """Return whether a later command of a sweep has seeds that its first command did not have."""
    seeds_by_sweep: dict[Path, dict[tuple[str, ...], set[int | None]]] = {}
    for run in sorted(runs, key=lambda run: run.age):
        command = tuple(run.command)
        # Seeds that a sweep with until=decided adds are planned, so they do not count.
        if "until=decided" not in command and {"-m", "--multirun"} & {*command}:
            seeds_by_command = seeds_by_sweep.setdefault(run.dir.parent, {})
            seeds_by_command.setdefault(command, set()).add(run.seed)
    for seeds_by_command in seeds_by_sweep.values():
        first, *later = seeds_by_command.values()
        if len(first) > 1 and not first.issuperset(set().union(*later)):
            return True
    return False
