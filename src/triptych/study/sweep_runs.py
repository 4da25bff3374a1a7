"""Read the runs and records of one or several sweeps, and compare all runs together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from triptych.errors import Unreadable
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study.cells import DecisionRule
from triptych.study.claims import (
    correct_for_multiple_tests,
    joint_decision_rule,
    mark_interim,
    sweep_decision_rule,
)
from triptych.study.compare import build_comparison
from triptych.study.comparison import Comparison
from triptych.study.groups import group_runs, is_trial, tuning_stages


@dataclass(frozen=True)
class SweepRuns:
    """The runs in a sweep's directory, and the records that the sweep wrote.

    `damage`: why a record cannot be read, or "". If one cannot, the number of runs still to come is
    unknown.
    """

    folder: Path
    runs: Sequence[Run]
    record: SweepRecord = SweepRecord()
    looks: Looks = Looks()
    damage: str = ""

    @classmethod
    def read(cls, folder: Path, runs: Sequence[Run]) -> Self:
        """Read the records of a sweep with these runs."""
        try:
            return cls(folder, runs, SweepRecord.read(folder), Looks.read(folder))
        except Unreadable as error:
            return cls(folder, runs, damage=error.problem)

    @cached_property
    def rule(self) -> DecisionRule:
        """The decision rule of the sweep's own report: margin and planned looks."""
        return sweep_decision_rule(self.record, self.looks)

    @cached_property
    def missing(self) -> int:
        """The number of expected runs without a directory; copies of a run count as one run."""
        ids = [run.id for run in self.runs if run.id]
        copied = len(ids) - len({*ids})
        return max(self.record.expected - len(self.runs) + copied, 0)

    def may_change(self, alone: bool) -> bool:
        """Return whether runs are still to come, so that the results are not final.

        `alone`: whether the report covers only this sweep.
        """
        if self.damage or self.rule.interim:
            return True
        if self.rule.looks > 1 and alone:
            return False  # the planned looks decide, not the number of runs
        statuses = {run.status for run in self.runs}
        will_resume = "interrupted" in statuses and bool(self.record.record)
        return self.missing > 0 or "running" in statuses or will_resume


def read_sweeps(roots: Sequence[Path]) -> list[SweepRuns]:
    """Read all runs beneath `roots`, grouped by sweep, in the order of `roots`."""
    bases = [root.resolve() for root in roots]
    runs_by_path: dict[Path, Run] = {}
    for root in roots:
        for run in read_runs(root):
            runs_by_path[run.dir.parent.resolve() / run.dir.name] = run
    runs_by_folder: dict[Path, list[Run]] = {base: [] for base in bases}
    for path, run in runs_by_path.items():
        runs_by_folder.setdefault(_sweep_folder(path, bases), []).append(run)
    return [SweepRuns.read(folder, runs) for folder, runs in runs_by_folder.items()]


def _sweep_folder(path: Path, bases: Sequence[Path]) -> Path:
    """Return the nearest folder with a ``sweep.json`` above a run and beneath a base.

    Without one: the run's parent, if that is beneath a base, otherwise the run's own folder.
    """
    inside = [folder for folder in path.parents if any(map(folder.is_relative_to, bases))]
    for folder in inside:
        if (folder / "sweep.json").exists():
            return folder
    return inside[0] if inside else path


def compare_sweeps(
    sweeps: Sequence[SweepRuns],
    equal_within: float | None,
) -> tuple[Comparison, ...]:
    """Compare all runs with one correction for multiple tests over the whole report.

    Comparisons with runs of an unfinished sweep claim nothing.
    """
    judged = [sweep for sweep in sweeps if sweep.runs] or sweeps[:1]
    rule = joint_decision_rule([sweep.rule for sweep in judged])
    if equal_within is not None:
        rule = replace(rule, equal_within=equal_within)
    comparisons = []
    for title, runs in _runs_to_compare(sweeps):
        comparisons += [replace(build_comparison(group), title=title) for group in group_runs(runs)]
    open_runs: set[Path] = set()
    for sweep in judged:
        if sweep.may_change(alone=len(judged) == 1):
            open_runs.update(run.dir for run in sweep.runs)
    return tuple(
        mark_interim(comparison, open_runs)
        for comparison in correct_for_multiple_tests(comparisons, rule)
    )


def _runs_to_compare(sweeps: Sequence[SweepRuns]) -> list[tuple[str, Sequence[Run]]]:
    """Return (title, runs) pairs to compare: both stages of each tuned sweep, then other runs."""
    parts: list[tuple[str, Sequence[Run]]] = []
    rest: list[Run] = []
    for sweep in sweeps:
        prefix = f"{sweep.folder.name}: " if len(sweeps) > 1 else ""
        if sweep.record.tuning.best:
            for title, runs in tuning_stages(sweep.runs, sweep.record.tuning):
                parts.append((prefix + title, runs))
        else:
            rest += [run for run in sweep.runs if not is_trial(run)]
    return [*parts, ("", rest)]
