"""Read runs and compare them: page, CSV and terminal are views of one `Study`."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from triptych.errors import Unreadable
from triptych.run.parsing import first_line, natural_key
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study.cells import Comparison, Rule
from triptych.study.claims import correct, joint_rule, rule_of, seeds_next, unsettle
from triptych.study.compare import comparison_of
from triptych.study.curves import lines_by_label
from triptych.study.formatting import quantity
from triptych.study.groups import describe_tuning, group_runs, is_trial, stages
from triptych.study.published import PaperVerdicts, judge_claims
from triptych.study.verdict import Verdict, best_untested, verdict

RETRY = "retry=true"
HINTS = {"interrupted": " (the same command resumes it)"}
STATUSES = ("finished", "pruned", "diverged", "running", "interrupted", "failed", "unreadable")


@dataclass(frozen=True)
class NextStep:
    """A command to type, and why."""

    reason: str
    command: str

    def __str__(self) -> str:
        return f"{self.reason}, finished runs stay: {self.command}"


@dataclass(frozen=True)
class Study:
    """Runs, comparisons and their verdicts, with what the sweep recorded of itself.

    Attributes:
        expected: the number of runs, those to come included.
        tuned: a description of what was tuned and what was chosen.
        shared: overrides that all runs of the sweep have.
        published: verdicts on a paper's claims, if the sweep is one of a paper.
        damaged: the problem with a sweep.json that cannot be read.
    """

    roots: tuple[Path, ...]
    title: str
    question: str
    command: str
    runs: tuple[Run, ...]
    expected: int
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    tuned: str = ""
    shared: str = ""
    published: PaperVerdicts | None = None
    damaged: str = ""

    @property
    def counts(self) -> Counter[str]:
        return Counter(run.status for run in self.runs)

    @property
    def complete(self) -> bool:
        """Whether as many runs as expected finished, diverged, or were stopped by a search."""
        counts = self.counts
        return counts["finished"] + counts["diverged"] + counts["pruned"] >= self.expected

    @property
    def banner(self) -> str:
        """ "7 of 15 runs finished, 2 running, 1 failed"; empty when all have finished."""
        if self.damaged:
            return f"{self.damaged}: how many runs are to come is unknown, so nothing is settled"
        if self.complete and self.counts.keys() <= {"finished"}:
            return ""
        parts = [f"{self.counts['finished']} of {quantity(self.expected, 'run')} finished"]
        for status in STATUSES[1:]:
            if self.counts[status]:
                parts.append(f"{self.counts[status]} {status}{HINTS.get(status, '')}")
        missing = self.expected - len(self.runs)
        if missing > 0:
            parts.append(f"{missing} not started")
        return ", ".join(parts)

    @property
    def sentences(self) -> list[str]:
        """The verdict: a sentence for each relation, or for each of several comparisons."""
        answers = self._answers()
        if self.verdicts and self.going_on:
            answers[0] = f"So far: {answers[0]}"
        return answers

    def _answers(self) -> list[str]:
        if len(self.verdicts) == 1:
            return [*self.verdicts[0].sentences]
        if self.verdicts:
            return [f"{c.heading}: {v.headline}" for c, v in self._judged]
        if self.counts["diverged"]:
            runs = quantity(self.expected, "run")
            return [f"{self.counts['diverged']} of {runs} diverged; no run has reported a test bound."]
        return [best_untested(self.runs) or "No run has reported a test bound yet."]

    @property
    def _judged(self) -> list[tuple[Comparison, Verdict]]:
        return [*zip(self.comparisons, self.verdicts, strict=True)]

    @property
    def answer(self) -> str:
        """The verdict in a line."""
        return " ".join(self.sentences)

    @property
    def going_on(self) -> bool:
        """Whether runs are at work, or to come."""
        return self.expected > len(self.runs) or self.counts["running"] > 0

    @property
    def next_step(self) -> NextStep | None:
        """What to type next: retry what failed, else add seeds that would settle what is open."""
        words = shlex.split(self.command)
        # The record of a sweep from elsewhere may hold any command, which is not to be suggested.
        if words[:1] != ["triptych-train"] or not {"-m", "--multirun"} & {*words}:
            return None
        if any(word.startswith("hparams_search=") for word in words):
            return None  # A search goes on by its own count of trials.
        words = [word for word in words if word not in (RETRY, "force=true")]
        failed = self.counts["failed"]
        if failed and not self.going_on:
            return NextStep(f"{quantity(failed, 'run')} failed", shlex.join([*words, RETRY]))
        if self.published or not self.complete:
            return None  # Published claims have the seeds that they began with.
        return self._more_seeds(words)

    def _more_seeds(self, words: Sequence[str]) -> NextStep | None:
        """Return the command with the seeds that would settle what is open; None if none would."""
        used = sorted({run.seed for run in self.runs if run.seed is not None and not is_trial(run)})
        seeds = max((seeds_next(c) for c, v in self._judged if not v.untrained), default=0)
        missing = seeds - len(used)
        if not used or missing <= 0:
            return None
        all_seeds = [*used, *range(used[-1] + 1, used[-1] + 1 + missing)]
        command = [word for word in words if not word.startswith("seed=")]
        command.append(f"seed={','.join(map(str, all_seeds))}")
        return NextStep(f"{quantity(missing, 'more seed')} per setting", shlex.join(command))

    @property
    def hues(self) -> dict[str, str]:
        """What a cell's colour tells, by its label: the line of a grid, else the label itself."""
        hues: dict[str, str] = {}
        for comparison in self.comparisons:
            cells = comparison.all_cells
            labels = sorted((cell.label for cell in cells), key=natural_key)
            hues |= {label: label for label in labels} | lines_by_label(comparison)
        return hues


@dataclass(frozen=True)
class SweepRuns:
    """The runs in a sweep's directory, and what the sweep recorded of itself.

    `damage`: the problem with a record that cannot be read, which leaves open how many runs are to
    come.
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
    def rule(self) -> Rule:
        """How the sweep's own report decides."""
        return rule_of(self.record, self.looks)

    @cached_property
    def missing(self) -> int:
        """Number of runs without a directory."""
        return max(self.record.expected - len(self.runs), 0)

    def may_change(self, alone: bool) -> bool:
        """Return whether runs are still to come, so that the figures are not yet final."""
        if self.damage or self.rule.interim:
            return True
        if self.rule.looks > 1 and alone:
            return False  # The planned looks decide, not the number of runs.
        statuses = {run.status for run in self.runs}
        will_resume = "interrupted" in statuses and bool(self.record.record)
        return self.missing > 0 or "running" in statuses or will_resume


def read_study(roots: Sequence[Path], equal_within: float | None = None) -> Study:
    """Read the runs beneath `roots` and compare them.

    `equal_within`: the difference below which settings are called the same, in the unit of what
    decides.
    """
    roots = tuple(Path(root) for root in roots)
    sweeps = read_sweeps(roots)
    runs = tuple(run for sweep in sweeps for run in sweep.runs)
    comparisons = compare_sweeps(sweeps, equal_within)
    # A report over several directories is no single sweep's.
    single = len(roots) == 1
    sweep = sweeps[0].record if single else SweepRecord()
    tunings = [sweep.record.tuning for sweep in sweeps if sweep.record.tuning.best]
    return Study(
        roots=roots,
        title=sweep.title or " + ".join(root.resolve().name for root in roots),
        question=_question(comparisons),
        command=_command(sweep, runs) if single else "",
        runs=runs,
        expected=len(runs) + sum([sweep.missing for sweep in sweeps]),
        comparisons=comparisons,
        verdicts=tuple(verdict(comparison) for comparison in comparisons),
        tuned=" ".join(map(describe_tuning, tunings)),
        shared=_shared(sweep, comparisons),
        published=judge_claims(sweep, runs),
        damaged="; ".join(filter(None, [sweep.damage for sweep in sweeps])),
    )


def read_sweeps(roots: Sequence[Path]) -> list[SweepRuns]:
    """Read all runs beneath `roots` by the sweep that they belong to, the first root's first."""
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
    """Return the folder of a run's sweep beneath a base; else the run's parent or itself."""
    inside = [folder for folder in path.parents if any(map(folder.is_relative_to, bases))]
    for folder in inside:
        if (folder / "sweep.json").exists():
            return folder
    return inside[0] if inside else path


def compare_sweeps(sweeps: Sequence[SweepRuns], equal_within: float | None) -> tuple[Comparison, ...]:
    """Compare all runs under one correction; what is of a sweep that goes on claims nothing."""
    judged = [sweep for sweep in sweeps if sweep.runs] or sweeps[:1]
    rule = joint_rule([sweep.rule for sweep in judged])
    if equal_within is not None:
        rule = replace(rule, equal_within=equal_within)
    comparisons = []
    for title, runs in _parts(sweeps):
        comparisons += [replace(comparison_of(group), title=title) for group in group_runs(runs)]
    open_runs: set[Path] = set()
    for sweep in judged:
        if sweep.may_change(alone=len(judged) == 1):
            open_runs.update(run.dir for run in sweep.runs)
    return tuple(unsettle(comparison, open_runs) for comparison in correct(comparisons, rule))


def _parts(sweeps: Sequence[SweepRuns]) -> list[tuple[str, Sequence[Run]]]:
    """Return titles and runs to compare: both stages of a sweep that tuned first, then the rest."""
    parts: list[tuple[str, Sequence[Run]]] = []
    rest: list[Run] = []
    for sweep in sweeps:
        prefix = f"{sweep.folder.name}: " if len(sweeps) > 1 else ""
        if sweep.record.tuning.best:
            parts += [(prefix + title, runs) for title, runs in stages(sweep.runs, sweep.record.tuning)]
        else:
            rest += [run for run in sweep.runs if not is_trial(run)]
    return [*parts, ("", rest)]


def _shared(sweep: SweepRecord, comparisons: Sequence[Comparison]) -> str:
    """Return the overrides of the last command that all runs have."""
    varied = {axis.key for comparison in comparisons for axis in comparison.axes}
    typed = map(first_line, sweep.shared)
    return ", ".join(text for text in typed if text.lstrip("+").partition("=")[0] not in varied)


def _question(comparisons: Sequence[Comparison]) -> str:
    varied = [comparison for comparison in comparisons if comparison.axes]
    if not varied:
        return "How good is this model, by its test bound?"
    first = varied[0]
    data = f" on {first.data}" if {c.data for c in comparisons} == {first.data or None} else ""
    if first.deciding:
        return f"Which {first.subject} draws the best samples{data} from one and the same model?"
    question = f"Which {first.subject} gives the lowest test bound{data}"
    return f"{question}?" if first.sizes_differ else f"{question}, all else being equal?"


def _command(sweep: SweepRecord, runs: Sequence[Run]) -> str:
    """Return what is typed to have these runs; "" where no record of it can be read."""
    command = sweep.command or next((run.command for run in runs if run.command), ())
    if not isinstance(command, str):
        return shlex.join(command)
    try:
        shlex.split(command)  # It is split again to add seeds.
    except ValueError:
        return ""
    return command
