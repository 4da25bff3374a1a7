"""Compare runs on the same data and in the same unit: find settings, make cells, test pairs.

Axis (a setting that differs) -> Cell (one combination of settings, its runs by seed) -> Comparison
(cells, and the tests of all pairs)
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.directory import write_atomic
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import LOOKS, SCHEMA, Looks, SweepRecord
from triptych.study.axes import SWEEP, Axis, all_keys, cell_label, find_comparison_axes, varied_axes
from triptych.study.cells import Cell, DecisionRule, Outcome, is_usable
from triptych.study.claims import correct_for_multiple_tests
from triptych.study.comparison import Comparison
from triptych.study.formatting import count_noun
from triptych.study.groups import Group, group_runs, in_seed_order, repeated_results
from triptych.study.notes import caveats_of

Pair = tuple[str, str]


def compare(runs: Sequence[Run], rule: DecisionRule | None = None) -> list[Comparison]:
    """Group runs by data and unit, and compare the runs of each group; [] if none has finished."""
    comparisons = list(map(build_comparison, group_runs(runs)))
    return correct_for_multiple_tests(comparisons, rule or DecisionRule())


def decide_at_look(
    root: Path, look: int, looks: int, equal_within: float | None = None
) -> tuple[str, dict[Pair, Outcome]]:
    """Test the runs beneath `root` at interim look number `look` (from 1) of at most `looks`.

    Returns a sentence, and {pair of settings: outcome by the deciding measure} in alphabetical
    order. A look that was taken before keeps its recorded seeds.
    """
    runs = read_runs(root)
    rule = take_look(root, runs, look, looks, equal_within)
    outcomes = pair_outcomes(compare(runs, rule))
    n = Counter(outcomes.values())
    tally = f"of {count_noun(len(outcomes), 'pair')} {n['separated']} separated"
    if equal_within is not None:
        tally += f", {n['same']} the same within {equal_within:g}"
    seeds = count_noun(len(rule.seen[-1]), "seed")
    return f"look {look} of {rule.looks}, {seeds}: {tally}, {n['open']} open", outcomes


def take_look(
    root: Path,
    runs: Sequence[Run],
    look: int,
    looks: int,
    equal_within: float | None,
) -> DecisionRule:
    """Return the decision rule at this look; record the look's seeds unless it was taken before."""
    earlier = Looks.read(root)
    recorded = list(map(frozenset, earlier.seeds))
    planned = SweepRecord.read(root).until or earlier
    most = max(looks, len(recorded))
    reported = earlier.reported or planned.reported
    rule = DecisionRule(equal_within, most, tuple(recorded[:look]), reported=reported)
    if len(rule.seen) == look:
        return rule
    finished = [run for run in runs if run.status == "finished"]
    seeds = frozenset(run.seed for run in finished if run.seed is not None)
    # Earlier looks without a record were skipped; record this one in their place.
    seen = [*rule.seen, *[seeds] * (look - len(rule.seen))]
    record = {
        "schema": SCHEMA,
        "looks": rule.looks,
        "equal_within": equal_within,
        "seeds": list(map(sorted, seen)),
    }
    if reported:
        record["reported"] = True
    write_atomic(root / LOOKS, json.dumps(record, indent=1) + "\n")
    return replace(rule, seen=tuple(seen))


def pair_outcomes(comparisons: Sequence[Comparison]) -> dict[Pair, Outcome]:
    """Return {two labels: outcome} by the bound, or by the deciding measure at its last value."""
    outcomes: dict[Pair, Outcome] = {}
    for comparison in comparisons:
        prefix = f"{comparison.data}: " if len(comparisons) > 1 else ""
        for i, j in combinations(range(len(comparison.ranked)), 2):
            # Sort the labels, so that a pair has the same name in each look.
            first, second = sorted((comparison.cells[i].label, comparison.cells[j].label))
            outcomes[prefix + first, prefix + second] = comparison.pair_test(i, j).outcome
    return dict(sorted(outcomes.items()))


def build_comparison(group: Group) -> Comparison:
    """Build the comparison of a group's runs: axes, cells and notes, without tests of pairs."""
    runs = group.runs
    measure = str(group.runs[0].measure)
    axes, notes = find_comparison_axes(runs)
    cells = build_cells(runs, axes, measure)
    # Use machine keys and the directory in cell names only if settings do not distinguish the runs.
    typed = all_keys(run.overrides for run in runs)
    machine = [key for key in typed if role(key) is Role.MACHINE]
    for keys in (machine, [SWEEP]):
        if any(cell.superseded for cell in cells):
            axes = [*axes, *varied_axes(runs, keys)]
            cells = build_cells(runs, axes, measure)
    repeats = sum(cell.superseded for cell in cells)
    if repeats:
        notes.append(
            f"{count_noun(repeats, 'run')} repeated an earlier setting and seed: only the newest "
            "counts."
        )
    usable = [cell for cell in cells if cell.runs]
    usable.sort(key=lambda cell: (cell.bound.mean, cell.label))
    pending = [cell for cell in cells if not cell.runs]
    notes += caveats_of(usable, axes)
    comparison = Comparison(
        group.data, measure, tuple(axes), tuple(usable), tuple(pending), tuple(notes)
    )
    return comparison.best_first()


def build_cells(runs: Sequence[Run], axes: Sequence[Axis], measure: str) -> list[Cell]:
    """Group runs into cells by their labels; return the cells in order of appearance."""
    runs_by_label: dict[str, list[Run]] = {}
    for run in runs:
        runs_by_label.setdefault(cell_label(run, axes), []).append(run)
    return [build_cell(name, measure, cell_runs) for name, cell_runs in runs_by_label.items()]


def build_cell(name: str, measure: str, runs: Sequence[Run]) -> Cell:
    """Return a cell with the newest usable run of each seed, without copies of another seed."""
    oldest_first = sorted(runs, key=lambda run: run.age)
    usable = [run for run in oldest_first if is_usable(run)]
    others = [run for run in oldest_first if not is_usable(run)]
    # Sort the runs by seed, so that results do not depend on which job finished first.
    newest = in_seed_order({run.seed: run for run in usable})
    superseded = len(usable) - len(newest)
    repeats = repeated_results(newest)
    others += [newest.pop(seed) for seed in repeats]
    return Cell(name, measure, newest, tuple(others), repeats, superseded)
