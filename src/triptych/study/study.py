"""Runs and their comparisons, read once: page, markdown, CSV and terminal are views of a `Study`."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.errors import Unreadable
from triptych.run.parsing import first_line, natural_key
from triptych.run.read import Run, read_runs
from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study.cells import Comparison
from triptych.study.claims import correct, extra_seconds, joint_rule, rule_of, seeds_next, unsettle
from triptych.study.compare import comparison_of
from triptych.study.curves import crossing
from triptych.study.formatting import duration, quantity
from triptych.study.groups import describe_tuning, group_runs, is_trial, stages
from triptych.study.published import PaperVerdicts, judge_claims
from triptych.study.verdict import Verdict, best_untested, verdict
from triptych.terminal import printable

RETRY = "retry=true"
STATUSES = ("finished", "pruned", "diverged", "running", "interrupted", "failed", "unreadable")


@dataclass(frozen=True)
class Study:
    """Runs, comparisons and their verdicts, with what the sweep recorded of itself."""

    roots: tuple[Path, ...]
    title: str
    question: str
    command: str
    runs: tuple[Run, ...]
    expected: int
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    tuned: str = ""  # what was tuned and what was chosen
    shared: str = ""  # what was typed once for all runs of the sweep
    published: PaperVerdicts | None = None  # of a sweep of a paper's claims
    damaged: str = ""  # the problem with a sweep.json that cannot be read

    @property
    def counts(self) -> Counter[str]:
        return Counter(run.status for run in self.runs)

    @property
    def complete(self) -> bool:
        """Whether as many runs as expected have an end: finished, diverged, or stopped by a search."""
        return sum(self.counts[one] for one in ("finished", "diverged", "pruned")) >= self.expected

    @property
    def banner(self) -> str:
        """ "7 of 15 runs finished, 2 running, 1 failed"; empty when all have finished."""
        if self.damaged:
            return f"{self.damaged}: how many runs are to come is unknown, so nothing is settled"
        if self.complete and not set(self.counts) - {"finished"}:
            return ""
        resumed = {"interrupted": " (the same command resumes it)"}
        rest = [f"{n} {one}{resumed.get(one, '')}" for one in STATUSES[1:] if (n := self.counts[one])]
        missing = self.expected - len(self.runs)
        rest += [f"{missing} not started"] if missing > 0 else []
        return ", ".join([f"{self.counts['finished']} of {quantity(self.expected, 'run')} finished", *rest])

    @property
    def sentences(self) -> list[str]:
        """The verdict, a sentence a relation; of several comparisons, one each."""
        if not self.verdicts and (lost := self.counts["diverged"]):
            runs = quantity(self.expected, "run")
            return [f"{lost} of {runs} diverged; no run has reported a test bound."]
        answers = [f"{c.heading}: {v.headline}" for c, v in zip(self.comparisons, self.verdicts, strict=True)]
        answers = [*self.verdicts[0].sentences] if len(answers) == 1 else answers
        if not answers and not self.tuned and (best := best_untested(self.runs)):
            answers = [best]
        if not answers:
            return ["No run has reported a test bound yet."]
        return [f"So far: {answers[0]}", *answers[1:]] if self.going_on else answers

    @property
    def answer(self) -> str:
        """The same in a line."""
        return " ".join(self.sentences)

    @property
    def going_on(self) -> bool:
        """Whether runs are at work, or to come."""
        return self.expected > len(self.runs) or self.counts["running"] > 0

    @property
    def next_step(self) -> str:
        """ "3 more seeds per setting, 2 min in all: COMMAND": retry what failed, then settle; or ""."""
        words = shlex.split(self.command)
        # a stranger's sweep.json has one type whatever it says
        if words[:1] != ["triptych-train"] or not {"-m", "--multirun"} & {*words}:
            return ""
        if any(word.startswith("hparams_search=") for word in words):
            return ""  # a search goes on by its own count of trials
        words = [word for word in words if word not in (RETRY, "force=true")]
        if (failed := self.counts["failed"]) and not self.going_on:
            return f"{quantity(failed, 'run')} failed, finished runs stay: {shlex.join([*words, RETRY])}"
        judged = zip(self.comparisons, self.verdicts, strict=True)
        seeds = max((seeds_next(c) for c, v in judged if not v.untrained), default=0)
        compared = (run for run in self.runs if not is_trial(run))
        used = sorted({run.seed for run in compared if run.seed is not None})
        single = (word for word in words if not re.search(r",|=\w+\(", word))  # choice(...) is more than one
        alone = {_key(word) for word in single} & varied_keys(self.comparisons)
        if self.published or not self.complete or not used or seeds <= len(used) or alone - {"seed"}:
            # settings of another command would have no further seeds, and published claims others than those
            # that they began with
            return ""
        fresh = [*used, *range(used[-1] + 1, used[-1] + 1 + seeds - len(used))]
        command = [word for word in words if not word.startswith("seed=")]
        command.append(f"seed={','.join(map(str, fresh))}")
        seconds = math.fsum(extra_seconds(c, seeds) for c in self.comparisons)
        takes = f", {duration(seconds)} in all" if math.isfinite(seconds) else ""
        more = f"{quantity(seeds - len(used), 'more seed')} per setting"
        return f"{more}{takes}, finished runs stay: {shlex.join(command)}"

    @property
    def hues(self) -> dict[str, str]:
        """Every cell's label in alphabetical order, and what its colour tells: itself, or a grid's line."""
        lines_of: dict[str, str] = {}
        for comparison in self.comparisons:
            crossed = crossing(comparison)
            lines = {cell.label: key[0] for key, cell in crossed.cells.items()} if crossed else {}
            labels = (cell.label for cell in (*comparison.cells, *comparison.pending))
            lines_of |= {label: lines.get(label, label) for label in sorted(labels, key=natural_key)}
        return lines_of


def read_study(roots: Sequence[Path], equal_within: float | None = None) -> Study:
    """Read the runs beneath `roots` and compare them.

    `equal_within`: the difference below which settings are called the same, in the unit of what decides.
    """
    roots = tuple(Path(root) for root in roots)
    bases = [root.resolve() for root in roots]
    every = {run.dir.parent.resolve() / run.dir.name: run for root in roots for run in read_runs(root)}
    of: dict[Path, list[Run]] = {base: [] for base in bases}  # runs by the folder of their sweep
    for path, run in every.items():
        of.setdefault(_home(path, bases), []).append(run)
    sweeps: dict[Path, SweepRecord] = {}
    looks: dict[Path, Looks] = {}
    damaged: dict[Path, str] = {}  # which leaves open how many runs are to come
    for folder in of:
        try:
            sweeps[folder], looks[folder] = SweepRecord.read(folder), Looks.read(folder)
        except Unreadable as error:
            sweeps[folder], looks[folder], damaged[folder] = SweepRecord(), Looks(), error.problem
    runs = tuple(run for several in of.values() for run in several)
    missing = {folder: _missing(sweeps[folder], several) for folder, several in of.items()}
    rules = {f: rule_of(sweeps[f], looks[f]) for f in of if of[f] or len(of) == 1}
    rule = joint_rule([*rules.values()])
    if equal_within is not None:
        rule = replace(rule, equal_within=equal_within)
    # who may stop when the table looks good has looked before the end
    unsettled = {
        run.dir
        for folder, own in rules.items()
        for run in of[folder]
        if folder in damaged
        or own.interim
        or (
            (own.looks == 1 or len(rules) > 1)  # the looks of one sweep are not those of several
            and (missing[folder] or _any_open(of[folder], bool(sweeps[folder].record)))
        )
    }
    tunings = {folder: sweep.tuning for folder, sweep in sweeps.items() if sweep.tuning.best}
    parts = [
        (f"{folder.name}: {stage}" if len(of) > 1 else stage, part)
        for folder, tuning in tunings.items()
        for stage, part in stages(of[folder], tuning)
    ]
    parts += stages([run for folder in of if folder not in tunings for run in of[folder]], None)
    staged = [
        replace(comparison_of(group), title=stage) for stage, part in parts for group in group_runs(part)
    ]
    comparisons = tuple(  # corrected over all stages: they are one report
        unsettle(c) if any(run.dir in unsettled for run in c.runs) else c for c in correct(staged, rule)
    )
    alone, sweep = len(roots) == 1, sweeps[bases[0]]
    shared = sweep.shared if alone else ()
    varied = varied_keys(comparisons)
    name = (alone and sweep.title) or " + ".join(root.resolve().name for root in roots)
    return Study(
        roots=roots,
        title=printable(name),
        question=_question(comparisons),
        command=_command(sweep, runs) if alone else "",
        runs=runs,
        expected=len(runs) + sum(missing.values()),
        comparisons=comparisons,
        verdicts=tuple(verdict(comparison) for comparison in comparisons),
        tuned=" ".join(map(describe_tuning, tunings.values())),
        shared=", ".join(one for one in map(first_line, shared) if _key(one) not in varied),
        published=judge_claims(sweep, runs) if alone else None,
        damaged="; ".join(damaged.values()),
    )


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def varied_keys(comparisons: Iterable[Comparison]) -> set[str]:
    """Return the keys of the axes of comparisons."""
    return {axis.key for comparison in comparisons for axis in comparison.axes}


def _home(path: Path, roots: Sequence[Path]) -> Path:
    """Return the folder of a run's sweep, at or beneath a root; else its parent there, or its own."""
    inside = [folder for folder in path.parents if any(map(folder.is_relative_to, roots))]
    return next((one for one in inside if (one / "sweep.json").exists()), (inside or [path])[0])


def _missing(sweep: SweepRecord, runs: Sequence[Run]) -> int:
    """Count a sweep's runs that have no directory: copies, of one start of one configuration, are one."""
    digests = [(digest, run.started) for run in runs if (digest := run.digests.get("config.yaml"))]
    return max(sweep.expected - len(runs) + len(digests) - len({*digests}), 0)


def _any_open(runs: Sequence[Run], sweep: bool) -> bool:
    """Return whether a run goes on; one of a sweep that was interrupted will."""
    states = {run.status for run in runs}
    return "running" in states or (sweep and "interrupted" in states)


def _question(comparisons: Sequence[Comparison]) -> str:
    varied = [c for c in comparisons if c.axes]
    if not varied:
        return "How good is this model, by its test bound?"
    data = f" on {varied[0].data}" if len({c.data for c in comparisons}) == 1 and varied[0].data else ""
    if varied[0].deciding:
        return f"Which {varied[0].subject} draws the best samples{data} from one and the same model?"
    alike = all(len({run.parameters for run in c.runs if run.parameters}) < 2 for c in varied)
    return f"Which {varied[0].subject} gives the lowest test bound{data}{', all else being equal' * alike}?"


def _command(sweep: SweepRecord, runs: Sequence[Run]) -> str:
    """Return what is typed to have these runs; "" where no record of it can be read."""
    command = sweep.command or next((run.command for run in runs if run.command), ())
    try:
        command = command if isinstance(command, str) else shlex.join(command)
        shlex.split(command)  # it is read again to add seeds
        return command
    except ValueError:
        return ""
