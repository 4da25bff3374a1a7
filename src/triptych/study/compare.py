"""Compare runs on the same data and in the same unit: find settings, group runs into cells, test pairs.

Axis (a setting that differs) -> Cell (one combination, its runs by seed) -> Comparison (cells, all pairs)
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from triptych.config.identity import BUNDLES
from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.directory import write_atomic
from triptych.run.parsing import few
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import LOOKS, Looks
from triptych.study.axes import SWEEP, Axis, find_axes, label, value, varied
from triptych.study.cells import Cell, Comparison, Rule
from triptych.study.claims import correct
from triptych.study.formatting import listed, quantity
from triptych.study.groups import Group, copies, counted_once, group_runs

ALIKE = 1e-4  # share of a bound to which two trainings may agree by chance in one seed, hardly in several
Pair = tuple[str, str]
Outcome = Literal["separated", "same", "open"]


def compare(runs: Sequence[Run], rule: Rule | None = None) -> list[Comparison]:
    """Group by data and unit, and compare within each group. Empty while nothing has finished."""
    return correct(list(map(comparison_of, group_runs(runs))), rule or Rule())


def decide(
    root: Path, look: int, looks: int, equal_within: float | None = None
) -> tuple[str, dict[Pair, Outcome]]:
    """Take look number `look` (from 1) of at most `looks` at the runs beneath `root`.

    Returns a sentence, and what is known of each two settings with finished runs, in alphabetical order, by
    what decides. A look that was taken before has the seeds that it had.
    """
    taken, runs = [*map(frozenset, Looks.read(root).seeds)], read_runs(root)
    seen, looks = taken[:look], max(looks, len(taken))
    if len(seen) < look:
        seeds = {run.seed for run in runs if run.status == "finished" and run.seed is not None}
        # looks that were not recorded were not taken: this one stands for them
        seen += [frozenset(seeds)] * (look - len(seen))
        record = {"looks": looks, "equal_within": equal_within, "seeds": [sorted(s) for s in seen]}
        write_atomic(root / LOOKS, json.dumps(record, indent=1) + "\n")
    comparisons = compare(runs, Rule(equal_within, looks, tuple(seen)))
    several = len(comparisons) > 1
    pairs = {
        (prefix + a, prefix + b): outcome
        for comparison in comparisons
        for prefix in [f"{comparison.data}: " if several else ""]
        for (a, b), outcome in _outcomes(comparison).items()
    }
    n = Counter(pairs.values())
    same = "" if equal_within is None else f", {n['same']} the same within {equal_within:g}"
    tally = f"of {quantity(len(pairs), 'pair')} {n['separated']} separated{same}, {n['open']} open"
    return f"look {look} of {looks}, {quantity(len(seen[-1]), 'seed')}: {tally}", pairs


def _outcomes(comparison: Comparison) -> dict[Pair, Outcome]:
    """Return each pair's outcome by the bound, or by the deciding measure at its key's last value."""
    table = comparison.question
    # by name, and not by which is better now: a pair keeps its name from look to look
    outcomes: dict[Pair, Outcome] = {
        (min(a, b), max(a, b)): "separated" if claim.holds else "same" if claim.equal else "open"
        for (of, at, a, b), claim in comparison.claims.items()
        if (of, at) == (table.metric.name, len(table.values) - 1)
    }
    return dict(sorted(outcomes.items()))


def comparison_of(group: Group) -> Comparison:
    """Return the comparison of a group of data and unit, without the tests of its pairs."""
    runs, measure = group.runs, str(group.runs[0].measure)
    axes, notes = find_axes(runs)
    cells, repeated = _cells(runs, axes, measure)
    # keys of the machine that were typed are no settings, nor is where equal settings lie
    machine = dict.fromkeys(key for run in runs for key in run.overrides if role(key) is Role.MACHINE)
    for keys in (machine, [SWEEP]):
        if repeated and (others := varied(runs, keys)):
            axes = [*axes, *others]
            cells, repeated = _cells(runs, axes, measure)
    if repeated:
        notes.append(
            f"{quantity(repeated, 'run')} repeated a setting and seed already run: the newest of each counts."
        )
    usable = sorted((cell for cell in cells if cell.runs), key=lambda cell: (cell.bound.mean, cell.label))
    pending = tuple(cell for cell in cells if not cell.runs)
    notes += [*group.notes, *_warnings(runs, usable, axes)]
    return Comparison(group.data, measure, tuple(axes), tuple(usable), pending, tuple(notes))


def _cells(runs: list[Run], axes: list[Axis], measure: str) -> tuple[list[Cell], int]:
    """Return the cells, with the newest run of each seed, and how many runs repeated one."""
    labels = {id(run): label(run, axes) for run in runs}
    cells = {name: Cell(name, measure, {}) for name in labels.values()}
    repeated = 0
    for run in sorted(runs, key=lambda run: run.age):
        cell = cells[name := labels[id(run)]]
        if run.status == "finished" and math.isfinite(run.bound):
            repeated += run.seed in cell.runs
            cell.runs[run.seed] = run
        else:
            cells[name] = replace(cell, others=(*cell.others, run))
    for name, cell in cells.items():  # by seed, as figures do not depend on which job ended first
        of = dict(sorted(cell.runs.items(), key=lambda kv: (kv[0] is None, kv[0] or 0)))
        again = copies(of)
        once = {seed: run for seed, run in of.items() if seed not in again}
        others = (*cell.others, *(of[seed] for seed in again))
        cells[name] = replace(cell, runs=once, others=others, copies=again)
    return [*cells.values()], repeated


def _warnings(runs: list[Run], cells: list[Cell], axes: Sequence[Axis]) -> Iterator[str]:
    used = [run for cell in cells for run in cell.runs.values()]
    if left := [run.dir.name for run in runs if run.status == "finished" and not math.isfinite(run.bound)]:
        yield f"Left out, without a finite bound: {listed(left)}."
    if len({tuple(cell.runs) for cell in cells}) > 1:
        yield "Not every setting has the same seeds: paired differences use only the seeds both have."
    yield from (counted_once(cell.label, cell.copies) for cell in cells if cell.copies)
    sizes = sorted({run.test[run.measure].n for run in used if run.measure})
    if len(sizes) > 1:
        yield f"The runs were measured on different numbers of test items ({listed(list(map(str, sizes)))})."
    varied = {axis.key for axis in axes}
    for name, what, key in (
        ("steps", "training steps", "trainer.max_steps"),
        ("weights", "weights", "weights"),
        ("commit", "commits of the code", ""),
        ("split", "splits of the same data into training and validation", ""),
    ):
        if key in varied or (name == "split" and any(role(axis) is Role.SPLIT for axis in varied)):
            continue
        distinct = sorted({str(getattr(run, name)) for run in used if getattr(run, name)})
        if len(distinct) > 1:
            yield f"The runs used different {what}: {listed([text[:10] for text in distinct])}."
    yield from _sizes(cells)
    yield from (*_measured(used), *_metrics(used))
    yield from (*_changes(used), *_same_in_effect(cells))
    if _added_seeds(used):
        errs = '"clear of" errs more often than 5% of the time'
        yield f"Seeds were added to a sweep: after a look at its figures {errs}; until=decided plans looks."
    if any(run.dirty for run in used):
        yield "Some runs used code with uncommitted changes, which their commit does not identify."


def _added_seeds(runs: Sequence[Run]) -> bool:
    """Return whether a run of a sweep has a seed that the first of the sweep's commands did not have."""
    folders: dict[Path, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.age):
        folders.setdefault(run.dir.parent, []).append(run)
    for several in folders.values():
        command = several[0].command
        later = [run for run in several if run.command != command and "until=decided" not in run.command]
        first = typed = _typed_seeds(several[0])
        if not typed:  # its file's, which are not known where some were trained anew
            first = {run.seed for run in several if run.command == command}
        added = any(run.seed not in first if typed else _typed_seeds(run) > first for run in later)
        if {"-m", "--multirun"} & {*command} and len(first) > 1 and added:
            return True
    return False


def _typed_seeds(run: Run) -> set[int | None]:
    """Return the seeds that a run's command lists; none where it does not, or as a range."""
    typed = next((one.partition("=")[2] for one in run.command if one.startswith("seed=")), "")
    return {int(seed) for seed in typed.split(",")} if re.fullmatch(r"\d+(,\d+)*", typed) else set()


def _sizes(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield "Parameters: levels 110,087; v and x0 104,455."."""
    named: dict[int, list[str]] = {}
    for cell in cells:
        for size in {run.parameters for run in cell.runs.values() if run.parameters}:
            named.setdefault(size, []).append(cell.label)
    if len(named) > 1:
        yield f"Parameters: {'; '.join(f'{listed(labels)} {size:,}' for size, labels in named.items())}."


def _measured(runs: list[Run]) -> Iterator[str]:
    taken: dict[str, dict[str, None]] = {}
    for m in (run.measured for run in runs if run.measured):
        at = f"{m.key} {few([f'{value:g}' for value in m.values])}" if m.key else "as drawn"
        for name in {name for row in m.rows for name in row if not all(map(math.isnan, m.at(name)))}:
            taken.setdefault(name, {})[at] = None
    if apart := next((places for places in taken.values() if len(places) > 1), None):
        yield f"Samples were measured at different values ({'; '.join(apart)}): only the first are compared."


def _metrics(runs: list[Run]) -> Iterator[str]:
    taken = [dict.fromkeys(run.metrics, frozenset[tuple[str, str]]()) for run in runs]
    for run, own in zip(runs, taken, strict=True):
        for name, m in (run.measured.metrics if run.measured else {}).items():
            own[name] = frozenset({("title", m.title), ("unit", m.unit), ("direction", m.better)})
    for name in dict.fromkeys(name for own in taken for name in own):
        configs = [
            own[name] | {item for item in run.config.items() if item[0].startswith(f"metrics.{name}.")}
            for run, own in zip(runs, taken, strict=True)
            if name in own
        ]
        if differ := sorted({key for one in configs for key, _ in one ^ configs[0]}):
            yield f"The runs took the metric {name} with different {listed(differ)}: do not compare it."


def _same_in_effect(cells: Sequence[Cell]) -> Iterator[str]:
    """Note settings that trained to equal bounds, such as losses that differ by a factor."""
    for a, b in combinations(cells, 2):
        pairs = [(a.runs[seed], b.runs[seed]) for seed in a.runs if seed in b.runs]
        apart = [abs(one.bound - other.bound) / max(abs(one.bound), 1e-9) for one, other in pairs]
        if len(pairs) < 2 or max(apart) > ALIKE or not all(run.parameters for pair in pairs for run in pair):
            continue
        one, other = pairs[0]
        keys = one.settings.keys() | other.settings.keys()
        apart_in = {key for key in keys if value(one, key) != value(other, key)}
        if not all(role(key) is Role.DRAWING for key in apart_in.difference(BUNDLES)):
            # else one model, of which samples are drawn in two ways
            yield (
                f"{a.label} and {b.label} have the same bound in each of {len(pairs)} seeds: what sets them "
                "apart may have no effect here, as a factor of the loss has none."
            )


def _changes(runs: list[Run]) -> Iterator[str]:
    """Note runs whose code or data changed on the way."""
    if changed := [run for run in runs if run.code_changes]:
        changes = "; ".join(f"{run.dir.name}: {run.code_changes[0]}" for run in changed[:3])
        yield f"{quantity(len(changed), 'run')} went on after an interruption under other code ({changes})."
    if changed := [run for run in runs if run.data_changed]:
        names = listed([run.dir.name for run in changed[:3]])
        yield f"{quantity(len(changed), 'run')} went on after the data had changed ({names})."
